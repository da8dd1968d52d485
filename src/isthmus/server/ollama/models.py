"""What Ollama's clients are told of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from isthmus.model import Model
from isthmus.server.generation.completer import Completer
from isthmus.server.ollama.answer import timestamp
from isthmus.server.ollama.replies import Details, LocalModel, RunningModel, Shown

_NEVER = "9999-12-31T23:59:59Z"
_ON_HOST = ("cpu", "null")
"""Devices that compute in the host's memory."""
_BILLION, _MILLION = 10**9, 10**6


def listed(completers: Mapping[str, Completer]) -> list[LocalModel]:
    """All models. Their files may have to be read for their hashes: not in the event loop."""
    return [_local(name, it.model) for name, it in completers.items()]


def running(completers: Mapping[str, Completer]) -> list[RunningModel]:
    """All models, since they stay loaded. Not in the event loop, as `listed`."""
    found: list[RunningModel] = []
    for name, it in completers.items():
        local = _local(name, it.model)
        found.append(
            {
                "name": local["name"],
                "model": local["model"],
                "size": local["size"],
                "digest": local["digest"],
                "details": local["details"],
                "expires_at": _NEVER,
                "size_vram": 0 if it.model.device.name in _ON_HOST else local["size"],
                "context_length": it.n_ctx,
            }
        )
    return found


def shown(name: str, completer: Completer) -> Shown:
    """One model."""
    model = completer.model
    kind = model.hparams.architecture
    return {
        "modelfile": f"# {name}, served by Isthmus",
        "parameters": f"num_ctx {completer.n_ctx}",
        "template": _template(model),
        "details": _details(model),
        "model_info": {
            "general.architecture": kind,
            "general.parameter_count": _n_parameters(model),
            f"{kind}.block_count": model.hparams.n_layer,
            f"{kind}.context_length": model.hparams.n_ctx_train,
            f"{kind}.embedding_length": model.hparams.n_embd,
        },
        "capabilities": _capabilities(completer),
        "modified_at": timestamp(model.path.stat().st_mtime),
    }


def _local(name: str, model: Model) -> LocalModel:
    status = model.path.stat()
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(status.st_mtime),
        "size": status.st_size,
        "digest": model.weights_sha256,
        "details": _details(model),
    }


def _details(model: Model) -> Details:
    kind = model.hparams.architecture
    return {
        "parent_model": "",
        "format": "gguf",
        "family": kind,
        "families": [kind],
        "parameter_size": _size(_n_parameters(model)),
        "quantization_level": _type_of_most(model),
    }


def _n_parameters(model: Model) -> int:
    return sum(prod(it.shape) for it in model.file.tensors.values())


def _type_of_most(model: Model) -> str:
    """The type of most weights."""
    counted: Counter[str] = Counter()
    for it in model.file.tensors.values():
        counted[it.dtype.name] += prod(it.shape)
    return counted.most_common(1)[0][0].upper()


def _size(n_parameters: int) -> str:
    if n_parameters >= _BILLION:
        return f"{n_parameters / _BILLION:.1f}B"
    return f"{n_parameters / _MILLION:.2f}M"


def _template(model: Model) -> str:
    if not model.has_chat_template:
        return ""
    return model.chat_templates.chosen(with_tools=False).template.source


def _capabilities(completer: Completer) -> list[str]:
    model = completer.model
    found = ["completion"] if model.generates else []
    found += ["embedding"] if model.embeds else []
    if model.generates and model.has_chat_template:
        form = completer.form(with_tools=True)
        found += ["tools"] if form.calls is not None else []
        found += ["thinking"] if form.thought is not None else []
    return found

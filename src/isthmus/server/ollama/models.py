"""What Ollama's clients are told of models: by their files' headers, whether loaded or not."""

from __future__ import annotations

import time
from collections.abc import Iterable

from isthmus.errors import TemplateError
from isthmus.model.chat.template_set import TemplateSet
from isthmus.model.forms import Form
from isthmus.server.models.card import Card
from isthmus.server.models.resident import Resident, State
from isthmus.server.ollama.answer import timestamp
from isthmus.server.ollama.replies import Details, LocalModel, RunningModel, Shown

_NEVER = "9999-12-31T23:59:59Z"
_ON_HOST = ("cpu", "null")
"""Devices that compute in the host's memory."""
_BILLION, _MILLION = 10**9, 10**6
_NEVER_S = 100 * 365 * 86_400
"""When a model is said to leave that stays: in a hundred years."""


def listed(found: Iterable[tuple[Resident, Card]]) -> list[LocalModel]:
    """All models."""
    return [_local(name, card) for it, card in found for name in it.source.names]


def running(residents: Iterable[Resident]) -> list[RunningModel]:
    """The models that are in memory."""
    return [
        _running(name, it, it.card)
        for it in residents
        if it.state is State.LOADED and it.card is not None
        for name in it.source.names
    ]


def shown(name: str, resident: Resident, card: Card, templates: TemplateSet | None) -> Shown:
    """One model."""
    kind = card.hparams.architecture
    return {
        "modelfile": f"# {name}, served by Isthmus",
        "parameters": f"num_ctx {resident.n_ctx}",
        "template": _template(templates),
        "details": _details(card),
        "model_info": {
            "general.architecture": kind,
            "general.parameter_count": card.n_parameters,
            f"{kind}.block_count": card.hparams.n_layer,
            f"{kind}.context_length": card.hparams.n_ctx_train,
            f"{kind}.embedding_length": card.hparams.n_embd,
        },
        "capabilities": _capabilities(card, templates),
        "modified_at": timestamp(card.changed),
    }


def _local(name: str, card: Card) -> LocalModel:
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(card.changed),
        "size": card.file_nbytes,
        "digest": card.digest,
        "details": _details(card),
    }


def _running(name: str, resident: Resident, card: Card) -> RunningModel:
    stays_s = resident.keep_alive_s if resident.keep_alive_s >= 0 else _NEVER_S
    since = 0.0 if resident.n_users else time.monotonic() - resident.used
    return {
        "name": name,
        "model": name,
        "size": resident.nbytes,
        "digest": card.digest,
        "details": _details(card),
        "expires_at": timestamp(time.time() + stays_s - since),
        "size_vram": resident.nbytes if resident.model.weights.uploaded else 0,
        "context_length": resident.n_ctx,
    }


def _details(card: Card) -> Details:
    kind = card.hparams.architecture
    return {
        "parent_model": "",
        "format": "gguf",
        "family": kind,
        "families": [kind],
        "parameter_size": _size(card.n_parameters),
        "quantization_level": card.quantisation,
    }


def _size(n_parameters: int) -> str:
    if n_parameters >= _BILLION:
        return f"{n_parameters / _BILLION:.1f}B"
    return f"{n_parameters / _MILLION:.2f}M"


def _template(templates: TemplateSet | None) -> str:
    """The usual template; empty if there is none that can be used."""
    try:
        return "" if templates is None else templates.chosen(with_tools=False).template.source
    except TemplateError:
        return ""


_CAPABILITIES = {"image": "vision", "audio": "audio"}
"""Ollama's words for what a model takes beside text."""


def _capabilities(card: Card, templates: TemplateSet | None) -> list[str]:
    found = ["completion"] if card.generates else []
    found += ["embedding"] if card.embeds else []
    found += [_CAPABILITIES[it] for it in card.media]
    form = _form(templates) if card.generates else None
    if form is not None:
        found += ["tools"] if form.calls is not None else []
        found += ["thinking"] if form.thought is not None else []
    return found


def _form(templates: TemplateSet | None) -> Form | None:
    try:
        return None if templates is None else templates.chosen(with_tools=True).form
    except TemplateError:
        return None

"""`/props` and `/health`: what the server tells of itself."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.abi import MediaKind
from isthmus.model import Tokenizer
from isthmus.printable import printable
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import read_query
from isthmus.server.llamacpp.replies import Health, Props
from isthmus.server.llamacpp.requests import Which
from isthmus.server.llamacpp.translate import DEFAULTS, settings_of
from isthmus.server.models.resident import Served
from isthmus.server.settings import ServerSettings
from isthmus.version import VERSION


class About:
    """The handlers."""

    def __init__(self, writer: Writer, settings: ServerSettings) -> None:
        self._writer = writer
        self._settings = settings

    async def health(self, _http: HttpRequest) -> Response:
        """That the server answers, as llama.cpp's tells it."""
        told: Health = {"status": "ok"}
        return JSONResponse(told)

    async def props(self, http: HttpRequest) -> Response:
        """A model, and what holds for a completion that says nothing else."""
        models = self._writer.models
        served = await models.use(read_query(http, Which).model or models.files.first())
        return JSONResponse(self._props(served))

    def _props(self, served: Served) -> Props:
        model = served.model
        tokenizer = model.tokenizer if model.has_tokenizer else None
        params = {**settings_of(DEFAULTS), "n_predict": -1, "max_tokens": -1, "stop": []}
        templates = model.chat_templates if model.has_chat_template else None
        template = templates.chosen(with_tools=False).template.source if templates else ""
        return {
            "default_generation_settings": {"params": params, "n_ctx": served.n_ctx},
            "total_slots": self._settings.slots,
            "model_alias": served.name,
            "model_path": printable(model.path.name),
            "modalities": {
                "vision": MediaKind.RGB in model.media_kinds,
                "audio": MediaKind.PCM in model.media_kinds,
                "video": False,
            },
            "endpoint_slots": False,
            "endpoint_props": False,
            "endpoint_metrics": True,
            "chat_template": template,
            "bos_token": _text(tokenizer, "bos"),
            "eos_token": _text(tokenizer, "eos"),
            "build_info": f"isthmus {VERSION}",
            "is_sleeping": False,
        }


def _text(tokenizer: Tokenizer | None, name: str) -> str:
    token = -1 if tokenizer is None else getattr(tokenizer, name)
    if tokenizer is None or token < 0:
        return ""
    return tokenizer.decode([token], render_special=True).decode(errors="replace")

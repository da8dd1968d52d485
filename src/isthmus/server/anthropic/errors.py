"""Errors as Anthropic's clients expect them, for the paths of its API."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from isthmus.server.anthropic.replies import MessagesErrorReply
from isthmus.server.http.entry import Shape, current
from isthmus.server.http.errors import ErrorReply

_PATHS = ("/v1/messages", "/v1/messages/")
_MODELS = "/v1/models"
_VERSION = b"anthropic-version"
_OVERLOADED = 529
_KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_INDEX = re.compile(r"\[(\d+)\]")


def shape_of(scope: MutableMapping[str, Any]) -> Shape | None:
    """How errors of a request are told; None for OpenAI's shape."""
    return as_anthropic if speaks_anthropic(scope) else None


def speaks_anthropic(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is one of Anthropic's API: by its path, or for `/v1/models`, which OpenAI's
    API has too, by its `anthropic-version`."""
    path: str = scope["path"]
    if path == _PATHS[0] or path.startswith(_PATHS[1]):
        return True
    is_models = path == _MODELS or path.startswith(f"{_MODELS}/")
    return is_models and any(name == _VERSION for name, _ in scope["headers"])


def as_anthropic(status: int, body: ErrorReply) -> tuple[int, MessagesErrorReply]:
    """The status and the body of an error that was made for OpenAI's clients."""
    error = body["error"]
    status = _OVERLOADED if status == 503 else status
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = error["message"]
    if error["param"] is not None:
        message = _placed(message, error["param"])
    told: MessagesErrorReply = {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": current().id,
    }
    return status, told


def _placed(message: str, param: str) -> str:
    """A message with the place of what is wrong, written as Anthropic writes places."""
    where = _INDEX.sub(r".\1", param)
    if f"'{param}'" in message or message.startswith((f"{param} ", f"{param}: ")):
        return message.replace(param, where)
    return f"{where}: {message}"

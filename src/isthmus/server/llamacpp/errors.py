"""Errors as clients of llama.cpp's server expect them, for the paths of its API."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from isthmus.server.http.entry import Shape
from isthmus.server.http.errors import ErrorReply
from isthmus.server.llamacpp.replies import LlamaError

PATHS = frozenset(
    {
        *("/tokenize", "/detokenize", "/apply-template", "/completion", "/completions"),
        *("/infill", "/props", "/health", "/v1/health"),
    }
)
"""Those of the API; reranking has OpenAI's errors, since others have it too."""
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
_CODES = {
    "context_length_exceeded": "exceed_context_size_error",
    "unsupported": "not_supported_error",
    "unsupported_parameter": "not_supported_error",
}


def shape_of(scope: MutableMapping[str, Any]) -> Shape | None:
    """How errors of a request are told; None if it is no request of this API."""
    return as_llama if scope["path"] in PATHS else None


def as_llama(status: int, body: ErrorReply) -> tuple[int, LlamaError]:
    """The status and the body of an error that was made for OpenAI's clients."""
    error = body["error"]
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    kind = _CODES.get(error["code"] or "", kind)
    where = error["param"]
    message = error["message"] if where is None else f"{where}: {error['message']}"
    return status, {"error": {"code": status, "message": message, "type": kind, "param": where}}

"""Errors as Ollama's clients expect them, for the paths of its API."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from isthmus.server.http.entry import Shape
from isthmus.server.http.errors import ErrorReply
from isthmus.server.ollama.replies import OllamaError


def shape_of(scope: MutableMapping[str, Any]) -> Shape | None:
    """How errors of a request are told; None if it is no request of Ollama's API."""
    return as_ollama if scope["path"].startswith("/api/") else None


def as_ollama(status: int, body: ErrorReply) -> tuple[int, OllamaError]:
    """The status and the body of an error that was made for OpenAI's clients."""
    error = body["error"]
    param = error["param"]
    where = "" if param is None or param in error["message"] else f"{param}: "
    return status, {"error": where + error["message"]}

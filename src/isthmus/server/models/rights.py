"""Who may say which models come and go. Anybody's request may load the model that it names."""

from __future__ import annotations

from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError


def may_manage() -> bool:
    """Whether whoever asks may: everybody without keys, else owners of `--limit models=1`."""
    key = current().key
    return key is None or bool(key.limits.models)


def require_manager() -> None:
    """HttpError 403."""
    if not may_manage():
        said = "this key may not say which models come and go: only one of --limit models=1 may"
        raise HttpError(403, said, code="models")

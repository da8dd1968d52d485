"""Errors in the shape that OpenAI's clients expect, with the status that fits."""

from __future__ import annotations

import logging
from typing import TypedDict

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    ContextFull,
    DeadlineExceeded,
    DeviceFailed,
    DownloadError,
    GrammarError,
    GuestError,
    GuestInvalid,
    IsthmusError,
    LimitExceeded,
    ModelNotFound,
    ModelUnsupported,
    Overloaded,
    RegionError,
    SettingsError,
    SnapshotError,
    SnapshotInvalid,
    SnapshotMismatch,
    SnapshotNotFound,
    StorageError,
    TemplateError,
    TokenError,
    ToolError,
)
from isthmus.server.http.entry import current

_log = logging.getLogger("isthmus.server")
RETRY_S = 1
"""When to try again a server that is too busy."""
_INVALID = "invalid_request_error"
_NO_STORAGE = (
    "the store of the agents cannot be used now; what was asked is not done, and each agent is at "
    "its last acknowledged message: try again later"
)
_STATUS: tuple[tuple[type[IsthmusError], int, str, str | None], ...] = (
    (ContextFull, 400, _INVALID, "context_length_exceeded"),
    (TemplateError, 400, _INVALID, "chat_template"),
    (TokenError, 400, _INVALID, "token"),
    (GrammarError, 400, _INVALID, "grammar"),
    (SettingsError, 400, _INVALID, None),
    (GuestInvalid, 400, _INVALID, "guest_invalid"),
    (ModelUnsupported, 400, _INVALID, "unsupported"),
    (ModelNotFound, 404, _INVALID, "model_not_found"),
    (SnapshotNotFound, 404, _INVALID, "not_found"),
    (SnapshotInvalid, 500, "server_error", "damaged"),
    (SnapshotMismatch, 409, _INVALID, "mismatch"),
    (SnapshotError, 400, _INVALID, "snapshot"),
    (ActorBusy, 409, _INVALID, "busy"),
    (ActorClosed, 409, _INVALID, "closed"),
    (DownloadError, 502, "server_error", "download"),
    (StorageError, 503, "server_error", "storage"),
    (Overloaded, 503, "server_error", "overloaded"),
    (RegionError, 503, "server_error", "memory"),
    (DeviceFailed, 503, "server_error", "device"),
    (DeadlineExceeded, 504, "server_error", "deadline"),
    (LimitExceeded, 400, _INVALID, "limit"),
    (Cancelled, 499, "server_error", "cancelled"),
    (GuestError, 422, "guest_error", "guest"),
    (ToolError, 422, "guest_error", "tool"),
)


class ErrorDetail(TypedDict):
    """What happened, and to which part of the request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    """An error as OpenAI tells it."""

    error: ErrorDetail


class HttpError(Exception):
    """What a route refuses by itself."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.kind = kind or (_INVALID if status < 500 else "server_error")
        """What OpenAI's clients find as the error's `type`."""
        self.retry_s = retry_s
        """When to try again; None where waiting does not help, or nothing is known."""


def not_found(what: str) -> HttpError:
    """404."""
    return HttpError(404, what, code="not_found")


def body_of(error: BaseException) -> tuple[int, ErrorReply]:
    """The status and the body that say what happened. What nobody foresaw is logged, not told."""
    if isinstance(error, HttpError):
        return error.status, _body(str(error), error.kind, error.code, error.param)
    if isinstance(error, IsthmusError):
        return _of_isthmus(error)
    if isinstance(error, msgspec.DecodeError):
        return 400, _body(f"the body is not JSON: {error}", _INVALID, "invalid_json")
    if isinstance(error, ClientDisconnect):  # nobody hears it
        return 499, _body("the caller left", _INVALID, "cancelled")
    _log.error("an unforeseen error", exc_info=error)
    return 500, _body("an internal error; the server's log has it", "server_error", None)


def _of_isthmus(error: IsthmusError) -> tuple[int, ErrorReply]:
    if isinstance(error, StorageError):  # its text has addresses that are no caller's business
        _log.error("%s", error)
        error = StorageError(_NO_STORAGE)
    for kind_of, status, kind, code in _STATUS:
        if isinstance(error, kind_of):
            return status, _body(str(error), kind, code)
    return 500, _body(str(error), "server_error", type(error).__name__)


def _body(message: str, kind: str, code: str | None, param: str | None = None) -> ErrorReply:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def respond_to(error: Exception) -> Response:
    """What is answered, and noted in the log."""
    status, body = body_of(error)
    note(body)
    headers = {}
    retry_s = error.retry_s if isinstance(error, HttpError) else None
    if status == 503 or retry_s is not None:
        headers["Retry-After"] = str(retry_s or RETRY_S)
    elif status == 429:
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    status, told = shaped(status, body)
    return JSONResponse(told, status, headers=headers)


def shaped(status: int, body: ErrorReply) -> tuple[int, object]:
    """The status and the body in the shape of the API that is asked."""
    shape = current().shape
    return (status, body) if shape is None else shape(status, body)


def note(body: ErrorReply) -> None:
    """Has the log tell of an error."""
    current().error = body["error"]["code"] or body["error"]["type"]


async def handle(_request: Request, error: Exception) -> Response:
    """For Starlette."""
    return respond_to(error)

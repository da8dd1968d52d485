"""Texts with a gap, for the APIs that have what is before it and what is after it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from isthmus.errors import ModelUnsupported
from isthmus.model import Model
from isthmus.model.tokens.infill import Gap
from isthmus.server.generation.completer import Completer
from isthmus.server.http.errors import HttpError
from isthmus.server.http.texts import Check


def require_infill(model: Model, param: str) -> None:
    """HttpError 400, code `unsupported`, at `param`, for a model that cannot fill gaps."""
    try:
        model.tokenizer.infill.require()
    except ModelUnsupported as error:
        raise HttpError(400, str(error), code="unsupported", param=param) from None


def begin_of(model: Model) -> Sequence[int]:
    """What a text begins with, as the vocabulary wants it."""
    tokenizer = model.tokenizer
    return [tokenizer.bos] if tokenizer.adds_bos else []


def gap_prompt(
    completer: Completer, before: str | Sequence[int], after: str, check: Check
) -> list[int]:
    """Token ids of a prompt whose answer stands between two texts; `before` may be token ids.

    Control tokens in the texts are text. ContextFull for what does not fit, TokenError,
    ModelUnsupported.
    """
    tokenizer = completer.model.tokenizer
    encode = partial(tokenizer.encode, most=completer.n_ctx, check=check)
    ids = encode(before) if isinstance(before, str) else before
    gap = Gap(ids, encode(after), begin=begin_of(completer.model))
    return gap.prompt(tokenizer.infill)

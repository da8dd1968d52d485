"""`/completion` and `/infill`: a text goes on, or a gap in it is filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.model.tokens.infill import Gap, OtherFile, other_files
from isthmus.server.generation.completer import Completer
from isthmus.server.generation.infill import begin_of, require_infill
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.wanted import Wanted
from isthmus.server.generation.writer import Writer
from isthmus.server.http.entry import current
from isthmus.server.http.strict import read_strictly
from isthmus.server.http.texts import TOKEN_NBYTES, Check, most_nbytes
from isthmus.server.llamacpp.answer import Answers, Telling
from isthmus.server.llamacpp.fields import COMPLETION, INFILL
from isthmus.server.llamacpp.prompts import MAX_PROMPTS, Reader
from isthmus.server.llamacpp.requests import CompletionRequest, InfillRequest, Sampled
from isthmus.server.llamacpp.translate import n_predict, wanted_of
from isthmus.units import MIB

_INFILL_NBYTES = 2 * MIB
"""Bytes of a body of `/infill`: texts around a gap may be longer than the context."""
_MAX_TOKENS = 2 * MIB
"""Tokens that those can have: what does not fit is left out."""
_completion = msgspec.json.Decoder(CompletionRequest)
_infill = msgspec.json.Decoder(InfillRequest)


@dataclass(frozen=True)
class _Read:
    """A request's prompts, and what is wanted of each."""

    prompts: Sequence[Sequence[int]]
    wanted: Wanted
    warnings: tuple[str, ...] = ()
    is_cut: bool = False


class Completion:
    """The handlers."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def complete(self, http: HttpRequest) -> Response:
        """A text goes on, as llama.cpp's server tells it."""
        most = most_nbytes(self._writer.n_ctx * MAX_PROMPTS)
        asked = await read_strictly(http, _completion, {"": COMPLETION}, most)
        name, completer = await self._completer(http, asked)

        def read_prompts(check: Check) -> _Read:
            reader = Reader(
                completer.model.tokenizer, check, completer.n_ctx, bool(asked.parse_special)
            )
            prompts = reader.prompts(asked.prompt)
            return _Read(prompts, wanted_of(asked, reader), reader.warnings())

        return await self._answer(http, (name, completer), asked, read_prompts)

    async def infill(self, http: HttpRequest) -> Response:
        """A gap in a text is filled, as llama.cpp's server tells it."""
        asked = await read_strictly(http, _infill, {"": INFILL}, _INFILL_NBYTES)
        name, completer = await self._completer(http, asked)
        require_infill(completer.model, "model")

        def read_gap(check: Check) -> _Read:
            reader = Reader(completer.model.tokenizer, check, _MAX_TOKENS)
            gap, is_cut = _gap(completer, asked, reader)
            fitting = gap.cut(completer.n_ctx - _spare(completer.n_ctx, n_predict(asked)))
            tokens = completer.model.tokenizer.infill
            prompt = fitting.prompt(tokens, suffix_first=bool(asked.spm_infill))
            return _Read([prompt], wanted_of(asked, reader), is_cut=is_cut or fitting != gap)

        return await self._answer(http, (name, completer), asked, read_gap)

    async def _answer(
        self,
        http: HttpRequest,
        model: tuple[str, Completer],
        asked: Sampled,
        read_all: Callable[[Check], _Read],
    ) -> Response:
        writer, (name, completer) = self._writer, model
        found = await writer.texts.of(http, read_all)
        said = await writer.require_grammar(completer.model, found.wanted.grammar)
        warnings = (*found.warnings, *said)
        current().warn(warnings)
        each = [
            Prepared(name, completer, writer.request(completer, prompt, found.wanted))
            for prompt in found.prompts
        ]
        n = asked.n_cmpl or asked.n or 1
        numbered = [it.numbered(index) for it in each for index in range(n)]
        return await Answers(numbered, Telling(asked, warnings, found.is_cut)).respond(http)

    async def _completer(self, http: HttpRequest, asked: Sampled) -> tuple[str, Completer]:
        name = asked.model or self._writer.models.files.first()
        completer = await self._writer.completer(http, name)
        completer.require_room()
        return name, completer


def _spare(n_ctx: int, most: int | None) -> int:
    """Tokens of the context that are kept for an answer."""
    return n_ctx // 4 if most is None else min(max(most, 1), n_ctx // 2)


def _gap(completer: Completer, asked: InfillRequest, reader: Reader) -> tuple[Gap, bool]:
    """What is around a gap, and whether something is left out of it already: what is too far from
    the gap to fit is not even tokenized."""
    tokens, most = completer.model.tokenizer.infill, TOKEN_NBYTES * completer.n_ctx
    before, after = asked.input_prefix, asked.input_suffix
    near_before = before[-most:] if isinstance(before, str) else before
    near_after = after[:most] if isinstance(after, str) else after
    given = [OtherFile(it.filename or "tmp", it.text or "") for it in asked.input_extra or ()]
    files = [*_last(given, most)][::-1]
    begun = [] if asked.prompt is None else reader.mixed(asked.prompt, "prompt")
    gap = Gap(
        [*reader.mixed(near_before, "input_prefix"), *begun],
        reader.mixed(near_after, "input_suffix"),
        other_files(tokens, files, reader.text),
        begin_of(completer.model),
    )
    return gap, (near_before, near_after, files) != (before, after, given)


def _last(files: Sequence[OtherFile], most: int) -> Iterator[OtherFile]:
    """The last files, from the last one on, with up to `most` characters together; the text of the
    first of them may be cut at its beginning."""
    for it in reversed(files):
        if most <= 0:
            return
        yield replace(it, text=it.text[-most:])
        most -= len(it.text) + len(it.name)

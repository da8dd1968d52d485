"""Constrained decoding: which tokens may come next, applied to logits where they lie.

A `Grammar` is one text that is being written. What it is, is its source and the tokens that it
accepted: whoever has those has the same grammar, so that is what a fork, an undone message and a
snapshot go by. The matcher, llguidance's, is made of them anew, and thrown away where it fails.

Hostile sources are refused by `Trials`; see `grammar_source.py`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import llguidance
import numpy as np
import numpy.typing as npt

from isthmus.abi import GrammarKind, TokenFlag
from isthmus.config import MAX_GRAMMAR_NBYTES, MAX_GRAMMAR_TOKENS
from isthmus.errors import GrammarError, LimitExceeded, ModelUnsupported
from isthmus.model.checks import nothing
from isthmus.model.sampling import grammar_source
from isthmus.model.sampling.grammar_source import compile_source, complaint, parser_limits
from isthmus.model.text import TextModel
from isthmus.model.tokens.tokenizer import Tokenizer
from isthmus.trial import Ending, TrialLimits, try_out

_TRIAL = TrialLimits(cpu_s=2, memory_nbytes=224 << 20, stack_nbytes=1 << 20, result_nbytes=2 << 20)
"""An eighth of the stack that a thread of the host has: what fits there fits here."""
_MAX_KNOWN = 256
_MAX_KEPT = 16 << 20
"""Characters of all that is known of sources."""


class Grammar:
    """See the module. Made by `Grammars.open`; used by one thread at a time."""

    def __init__(
        self,
        grammars: Grammars,
        kind: GrammarKind,
        source: str,
        tried: Tried,
        tokens: Sequence[int],
    ) -> None:
        """GrammarError where llguidance takes neither the source nor these tokens."""
        self.model = grammars.model
        self.kind = kind
        self.source = source
        self.tokens = array("i", tokens)
        self._grammars = grammars
        self._tried = tried
        self._matcher: llguidance.LLMatcher | None = self._make()

    def mask(self, logits: npt.NDArray[np.float32]) -> int:
        """Sets the logits, f32 [n_vocab], of all tokens that may not come next to -infinity.

        Returns how many may that do not end the text. With 0 it is complete, and only those that
        do are left. GrammarError, and nothing is changed, where it cannot be told.
        """
        matcher = self._live()
        bits = matcher.compute_bitmask()
        self._require_sound(matcher)
        allowed = np.zeros(len(logits), dtype=bool)
        n = min(len(logits), 8 * len(bits))
        allowed[:n] = np.unpackbits(np.frombuffer(bits, np.uint8), count=n, bitorder="little")
        if not allowed.any():
            raise GrammarError("no token of the vocabulary goes on as the grammar wants it")
        logits[~allowed] = -np.inf
        allowed[self._grammars.vocabulary.ends] = False
        return int(np.count_nonzero(allowed))

    def accept(self, token: int) -> None:
        """Goes on behind a token; GrammarError, and nothing is changed, where it may not come.
        LimitExceeded if it has taken as many as it can."""
        if len(self.tokens) >= MAX_GRAMMAR_TOKENS:
            raise LimitExceeded(f"a grammar takes {MAX_GRAMMAR_TOKENS} tokens")
        matcher = self._live()
        taken = matcher.try_consume_tokens([token])
        self._require_sound(matcher)
        if taken != 1:
            raise GrammarError(f"the grammar does not allow the token {token} now")
        self.tokens.append(token)

    def _live(self) -> llguidance.LLMatcher:
        if self._matcher is None:
            self._matcher = self._make()
        return self._matcher

    def _make(self) -> llguidance.LLMatcher:
        matcher = self._grammars.matcher(self.kind, self._tried.lark or self.source)
        if matcher.try_consume_tokens(self.tokens.tolist()) != len(self.tokens):
            raise GrammarError("the tokens that it accepted do not follow the grammar")
        self._require_sound(matcher)
        return matcher

    def _require_sound(self, matcher: llguidance.LLMatcher) -> None:
        """A matcher that failed stays so: the next call makes another one."""
        if problem := complaint(matcher):
            self._matcher = None
            raise GrammarError(f"the grammar is too complex here: {problem}")


class Grammars:
    """The grammars over one model's vocabulary, which is read when one is first opened.

    Safe to use from several threads.
    """

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self._trials = Trials()

    def open(
        self,
        kind: GrammarKind,
        source: str,
        tokens: Sequence[int] = (),
        check: Callable[[], None] = nothing,
    ) -> Grammar:
        """A text that follows a grammar, behind `tokens`.

        `check` is called while it waits and may raise. Raises GrammarError, with the parser's
        message; ModelUnsupported for a model without a tokenizer, or a token that ends a text.
        """
        tried = self._tried(kind, source, check)
        return Grammar(self, kind, source, tried, tokens)

    def require(
        self, kind: GrammarKind, source: str, check: Callable[[], None] = nothing
    ) -> tuple[str, ...]:
        """Sentences about what of a JSON schema is not enforced. Raises what `open` raises for such
        a source."""
        return self._tried(kind, source, check).warnings

    def _tried(self, kind: GrammarKind, source: str, check: Callable[[], None]) -> Tried:
        _ = self.vocabulary
        tried = self._trials.outcome(kind, source, check)
        if tried.problem:
            raise GrammarError(f"the {_shown(kind)} cannot be followed: {tried.problem}")
        return tried

    def matcher(self, kind: GrammarKind, source: str) -> llguidance.LLMatcher:
        """A matcher at its beginning, of a source that was tried. A JSON schema's source is the
        grammar that it was made into."""
        name = "lark" if kind is GrammarKind.JSON_SCHEMA else kind.name.lower()
        grammar = compile_source(name, source)
        return llguidance.LLMatcher(
            self.vocabulary.tokenizer, grammar, log_level=0, limits=parser_limits()
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary, as llguidance has it."""
        return Vocabulary(self.model)


class Vocabulary:
    """A model's tokens as llguidance asks for them, and its own table of them."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        tokenizer = model.tokenizer
        known = range(min(model.n_vocab, tokenizer.n_tokens))
        flags = [tokenizer.flags(it) for it in known]
        self.ends = [it for it in known if flags[it] & TokenFlag.EOG]
        """Ids of the tokens that end a text."""
        if not self.ends:
            raise ModelUnsupported(f"{model.path} has no token that ends a text")
        main = [it for it in (tokenizer.eos, tokenizer.eot) if it in self.ends]
        self.eos_token_id = (main or self.ends)[0]
        self.bos_token_id = tokenizer.bos if tokenizer.bos in known else None
        special = TokenFlag.CONTROL | TokenFlag.EOG
        self.special_token_ids = [it for it in known if flags[it] & special]
        self.tokens = [tokenizer.decode([it], render_special=True) for it in known]
        self._ids = {self.tokens[it]: it for it in known if not flags[it] & special}
        self._most = max(map(len, self._ids), default=1)
        ends = [self.eos_token_id, *(it for it in self.ends if it != self.eos_token_id)]
        self.tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(self), n_vocab=len(known), eos_token=ends
        )

    def __call__(self, text: bytes) -> list[int]:
        """The model's own tokens where those spell the text: some tokenizers begin with a space
        that is not there, and a grammar cannot have that."""
        ids = _encode(self._model.tokenizer, text)
        if b"".join(self.tokens[it] for it in ids) == text:
            return ids
        return self._longest(text)

    def _longest(self, text: bytes) -> list[int]:
        """The longest token each time; what has none is left out."""
        ids, at = [], 0
        while at < len(text):
            sizes = range(min(self._most, len(text) - at), 0, -1)
            n = next((n for n in sizes if text[at : at + n] in self._ids), 0)
            ids += [self._ids[text[at : at + n]]] if n else []
            at += n or 1
        return ids


def _encode(tokenizer: Tokenizer, text: bytes) -> list[int]:
    try:
        return tokenizer.encode(text.decode())
    except UnicodeDecodeError:
        return []


@dataclass(frozen=True)
class Tried:
    """What came of a source that was tried out."""

    problem: str = ""
    """What is wrong with it; empty where it can be used."""
    lark: str = ""
    """The grammar that a JSON schema was made into; empty for every other kind."""
    warnings: tuple[str, ...] = ()
    """Sentences about what that does not enforce."""

    @property
    def n_chars(self) -> int:
        return len(self.problem) + len(self.lark) + sum(map(len, self.warnings))


class Trials:
    """Sources that were tried out in a process of their own, and what came of it."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[GrammarKind, bytes], Tried] = OrderedDict()
        self._n_chars = 0
        self._lock = threading.Lock()

    def outcome(self, kind: GrammarKind, source: str, check: Callable[[], None]) -> Tried:
        """What came of a source."""
        data = source.encode(errors="surrogatepass")
        if not source.strip() or "\0" in source:
            return Tried("it is empty, or has a zero byte in it")
        if len(data) > MAX_GRAMMAR_NBYTES:
            where = "#: " if kind is GrammarKind.JSON_SCHEMA else ""
            return Tried(f"{where}it has {len(data)} bytes; {MAX_GRAMMAR_NBYTES} are allowed")
        key = (kind, hashlib.sha256(data).digest())
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = _try(kind, source, check)
        with self._lock:
            if key not in self._known:
                self._known[key] = found
                self._n_chars += found.n_chars
            while len(self._known) > _MAX_KNOWN or self._n_chars > _MAX_KEPT:
                self._n_chars -= self._known.popitem(last=False)[1].n_chars
        return found


def _try(kind: GrammarKind, source: str, check: Callable[[], None]) -> Tried:
    job = json.dumps({"kind": kind.name.lower(), "source": source}).encode()
    outcome = try_out(Path(grammar_source.__file__), "try_out", job, _TRIAL, check)
    if outcome.ending is Ending.DONE:
        found = json.loads(outcome.result)
        return Tried(found["problem"], found.get("lark", ""), tuple(found.get("warnings", ())))
    if outcome.ending is Ending.BUSY:
        raise GrammarError("the machine is too busy to try the grammar out; try again later")
    where = "#: " if kind is GrammarKind.JSON_SCHEMA else ""
    if outcome.ending is Ending.OUT_OF_TIME:
        return Tried(f"{where}it takes more than {_TRIAL.cpu_s} s to prepare; make it simpler")
    return Tried(f"{where}it is too large, or too deeply nested, to be prepared; make it simpler")


def _shown(kind: GrammarKind) -> str:
    names = {
        GrammarKind.JSON_SCHEMA: "JSON schema",
        GrammarKind.GBNF: "GBNF grammar",
        GrammarKind.REGEX: "regular expression",
        GrammarKind.LARK: "Lark grammar",
    }
    return names[kind]

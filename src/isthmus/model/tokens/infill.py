"""A prompt for a gap in a text: what comes before and after it, between control tokens.

A model that was trained to fill gaps has three of these tokens. Those of some models also know
other files of the same repository::

    [repository]myproject↵ [file]a.py↵ text of a.py … [file]filename↵
    [prefix] what is before [suffix] what is after [middle] the answer fills the gap

The order, and the words `myproject` and `filename`, are those of llama.cpp's server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.errors import ContextFull, ModelUnsupported, TokenError
from isthmus.native.loader import Library

_REPOSITORY, _FILE = "myproject\n", "filename\n"
_SNIPPET = "\n\n--- snippet ---\n\n"
"""What begins another file for a model without a token for it."""
Encode = Callable[[str], Sequence[int]]
"""Token ids of a text, in which control tokens are text."""


@dataclass(frozen=True)
class InfillTokens:
    """Ids of the control tokens; None for each that the vocabulary lacks.

    libllama finds them by the file's metadata (`tokenizer.ggml.fim_pre_token_id` …, of older files
    `prefix_token_id` …), or by their texts.
    """

    prefix: int | None
    suffix: int | None
    middle: int | None
    repository: int | None
    file: int | None

    @staticmethod
    def of(library: Library, vocabulary: int) -> InfillTokens:
        """Those of a vocabulary."""
        n_tokens = library.llama_vocab_n_tokens(vocabulary)
        found = (
            library.llama_vocab_fim_pre(vocabulary),
            library.llama_vocab_fim_suf(vocabulary),
            library.llama_vocab_fim_mid(vocabulary),
            library.llama_vocab_fim_rep(vocabulary),
            library.llama_vocab_fim_sep(vocabulary),
        )
        return InfillTokens(*(it if 0 <= it < n_tokens else None for it in found))

    @property
    def lacks(self) -> tuple[str, ...]:
        """Names of the tokens without which no gap can be filled, if there are none of them."""
        needed = {"prefix": self.prefix, "suffix": self.suffix, "middle": self.middle}
        return tuple(name for name, token in needed.items() if token is None)

    def require(self) -> tuple[int, int, int]:
        """Prefix, suffix and middle; ModelUnsupported says what is missing."""
        if self.prefix is None or self.suffix is None or self.middle is None:
            raise ModelUnsupported(
                "this model was not trained to fill gaps: its vocabulary has no token for "
                + ", ".join(self.lacks)
            )
        return self.prefix, self.suffix, self.middle

    def require_text(self, ids: Sequence[int]) -> None:
        """TokenError for ids of a text that have one of these tokens among them."""
        own = {self.prefix, self.suffix, self.middle, self.repository, self.file} - {None}
        if not own.isdisjoint(ids):
            raise TokenError(
                "the vocabulary takes a part of this text for a token that marks a gap: leave it "
                "out"
            )


@dataclass(frozen=True)
class OtherFile:
    """A text that the model knows beside the one that has the gap."""

    name: str
    text: str


def other_files(tokens: InfillTokens, files: Sequence[OtherFile], encode: Encode) -> list[int]:
    """Token ids of what stands before the text that has the gap. TokenError as `encode`."""
    ids: list[int] = []
    if tokens.repository is not None:
        ids += [tokens.repository, *encode(_REPOSITORY)]
    for it in files:
        name = it.name if it.name else "tmp"
        head = encode(_SNIPPET) if tokens.file is None else [tokens.file, *encode(f"{name}\n")]
        text = encode(it.text)
        tokens.require_text([*head[1:], *text])
        ids += [*head, *text]
    return ids if tokens.file is None else [*ids, tokens.file, *encode(_FILE)]


@dataclass(frozen=True)
class Gap:
    """A gap and what is around it, as token ids."""

    before: Sequence[int]
    after: Sequence[int]
    others: Sequence[int] = ()
    """What `other_files` gives."""
    begin: Sequence[int] = ()
    """What a text begins with: BOS, if the vocabulary wants it."""

    def prompt(self, tokens: InfillTokens, *, suffix_first: bool = False) -> list[int]:
        """The prompt whose answer fills the gap; `suffix_first` puts what is after it first.

        ModelUnsupported for a vocabulary without the tokens, TokenError for a text that has one.
        """
        prefix, suffix, middle = tokens.require()
        for ids in (self.before, self.after):
            tokens.require_text(ids)
        parts = [[prefix, *self.before], [suffix, *self.after]]
        first, second = reversed(parts) if suffix_first else parts
        return [*self.others, *self.begin, *first, *second, middle]

    def cut(self, most: int) -> Gap:
        """The gap with at most `most` tokens in all, three control tokens among them.

        What is farthest from the gap is left out: first other files, from their beginning; then of
        the text, of which three quarters are what is before the gap if both sides are too long.
        ContextFull if there is no room for a token.
        """
        room = most - 3 - len(self.begin)
        if room < 1:
            raise ContextFull(f"a gap needs 4 tokens or more; there is room for {most}")
        quarter = room // 4
        n_before = min(len(self.before), max(room - quarter, room - len(self.after)))
        n_after = min(len(self.after), room - n_before)
        n_others = min(len(self.others), room - n_before - n_after)
        return Gap(
            self.before[len(self.before) - n_before :],
            self.after[:n_after],
            self.others[len(self.others) - n_others :],
            self.begin,
        )

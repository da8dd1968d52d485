"""Text to token ids, whatever the text: by libllama, in pieces that it survives.

::

    text ── Specials.cut ──► id, bytes, id, id, bytes, …     in time that grows with the text
                                  │
                                  └── PreTokenizer.run ──► llama_tokenize, on a stack deep enough

Between two pieces the caller's `check` is asked, so that a deadline counts. A text with more bytes
than its context's tokens can have is refused before anything else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

from isthmus.errors import ContextFull, TokenError
from isthmus.model.checks import nothing
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.header import TOKENS_KEY
from isthmus.model.tokens.pre_tokenizers import PreTokenizer
from isthmus.model.tokens.specials import Special, Specials
from isthmus.model.tokens.vocabulary import MODEL_KEY
from isthmus.native.loader import Library

_TYPES_KEY, _PRE_KEY = "tokenizer.ggml.token_type", "tokenizer.ggml.pre"
_UNK_KEY = "tokenizer.ggml.unknown_token_id"
_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
_STRIPS_LEFT, _STRIPS_RIGHT = 1 << 7, 1 << 8
"""`llama_token_attr`."""
_CONTROL_TYPE = 3
"""`LLAMA_TOKEN_TYPE_CONTROL`, as files have it."""
_PLAIN_TYPES = (1, 5, 6)
"""Normal ones, unused ones, bytes."""
_SPM, _BPE, _WPM, _UGM = 1, 2, 3, 4
"""`llama_vocab_type`."""
_MAX_NBYTES = 2**31 - 1
_CHECKED_NBYTES = 16 << 10
"""Of text that is tokenized between two checks, if there are places to cut it."""


class TextEncoder:
    """A vocabulary's. Owns nothing; safe to use from several threads."""

    def __init__(self, library: Library, vocabulary: int, file: GgufFile) -> None:
        self._library = library
        self._vocabulary = vocabulary
        self._file = file
        self._kind = int(library.llama_vocab_type(vocabulary))
        self._pre = PreTokenizer(_pre_tokenizer(file) if self._kind == _BPE else None)

    def encode(
        self,
        text: str,
        add_special: bool,
        parse_special: bool,
        seam: str = "",
        most: int | None = None,
        check: Callable[[], None] = nothing,
    ) -> list[int]:
        """See `Tokenizer.encode`. Raises TokenError for a text that is too long for any vocabulary,
        and ContextFull beyond `most` tokens."""
        data, removed = _utf8(text), seam.encode()
        if len(data) > _MAX_NBYTES:
            raise TokenError(f"the text has {len(data)} bytes; {_MAX_NBYTES} can be tokenized")
        if most is not None:
            self._require_room(data.replace(removed, b"") if removed else data, most)
        head, tail = self.ends if add_special else ([], [])
        ids, unchecked = [*head], 0
        for piece in (self._all if parse_special else self._plain).cut(data, check):
            if isinstance(piece, int):
                ids.append(piece)
                unchecked += 1
            else:
                ids += self._plain_ids(piece.replace(removed, b"") if removed else piece)
                unchecked += len(piece)
            if unchecked > _CHECKED_NBYTES:
                check()
                unchecked = 0
                if most is not None and len(ids) > most:
                    raise ContextFull(f"the text has more than {most} tokens, the most that fit")
        return ids + tail

    # ------------------------------------------------------------------ what is known of it

    @cached_property
    def controls(self) -> Specials:
        """The tokens that only a template or a program writes, and no user."""
        return Specials(it for it in self._specials if it.control)

    @cached_property
    def ends(self) -> tuple[list[int], list[int]]:
        """What comes before and after a text with `add_special`."""
        ids = self._call(b"", add_special=True)
        library, vocabulary = self._library, self._vocabulary
        begins = self._kind == _WPM or library.llama_vocab_get_add_bos(vocabulary)
        return (ids[:1], ids[1:]) if begins else ([], ids)

    @cached_property
    def _all(self) -> Specials:
        return Specials(self._specials)

    @cached_property
    def _plain(self) -> Specials:
        return Specials(it for it in self._specials if not it.control)

    @cached_property
    def _masked(self) -> Specials:
        """Control tokens that libllama finds in plain text too."""
        return Specials(it for it in self._specials if it.masked)

    @cached_property
    def _forbidden(self) -> frozenset[int]:
        """Ids that plain text must not become."""
        if self._kind in (_WPM, _UGM):  # cannot
            return frozenset()
        is_control, unknown = (
            self._library.llama_vocab_is_control,
            self._file.metadata.get(_UNK_KEY),
        )
        found = (
            it.token for it in self._specials if it.masked or is_control(self._vocabulary, it.token)
        )
        return frozenset(found) - {unknown}

    @cached_property
    def _specials(self) -> list[Special]:
        """All that are found before anything else, as libllama has them."""
        attributes = self._library.llama_vocab_get_attr
        special = _UNKNOWN | _CONTROL | _USER_DEFINED
        found = []
        for token in self._perhaps_special():
            attribute = attributes(self._vocabulary, token)
            if attribute & special:
                found.append(self._special(token, attribute))
        return found

    def _perhaps_special(self) -> Iterator[int]:
        """Tokens that the file says are special, and those that libllama may take for such by their
        names, which all have one of two brackets: asking for each of 150,000 takes long."""
        tokens, types = self._file.metadata.get(TOKENS_KEY), self._file.metadata.get(_TYPES_KEY)
        known = range(self._library.llama_vocab_n_tokens(self._vocabulary))
        if not isinstance(tokens, list) or not isinstance(types, tuple):
            return iter(known)
        return (
            token
            for token, text, kind in zip(known, tokens, types, strict=False)
            if kind not in _PLAIN_TYPES or "<" in text or "[" in text
        )

    def _special(self, token: int, attribute: int) -> Special:
        types = self._file.metadata.get(_TYPES_KEY)
        by_file = isinstance(types, tuple) and token < len(types) and types[token] == _CONTROL_TYPE
        by_users = bool(attribute & _USER_DEFINED)
        return Special(
            token,
            self._library.llama_vocab_get_text(self._vocabulary, token),
            control=by_file or not by_users,
            masked=by_file and by_users,
            strips_left=bool(attribute & _STRIPS_LEFT),
            strips_right=bool(attribute & _STRIPS_RIGHT),
        )

    # ------------------------------------------------------------------ bounds

    def _require_room(self, data: bytes, most: int) -> None:
        """Refuses what cannot fit, before it is tokenized."""
        longest = self._longest
        nbytes = len(data.translate(None, delete=self._unknown_bytes)) if longest else 0
        if longest and nbytes > most * longest:
            raise ContextFull(
                f"the text has {len(data)} bytes, and a token {longest} at most: it cannot fit "
                f"into the {most} tokens for which the context has room"
            )

    @cached_property
    def _longest(self) -> int | None:
        """Bytes of text that a token stands for at most; None where it may be any number."""
        strips = any(it.strips_left or it.strips_right for it in self._specials)
        tokens = self._file.metadata.get(TOKENS_KEY)
        if self._kind not in (_SPM, _BPE) or strips or not isinstance(tokens, list):
            return None
        if not self._pre.writes_bytes and not set(tokens).issuperset(_BYTES_OF_SPM):
            return None  # what it does not know becomes nothing
        return max(len(token.encode(errors="surrogatepass")) for token in tokens)

    @cached_property
    def _unknown_bytes(self) -> bytes:
        """Those of which nothing may become, as of 255, which is in no text."""
        if not self._pre.writes_bytes:
            return b""
        known = set(self._file.metadata[TOKENS_KEY])  # type: ignore[arg-type]
        return bytes(byte for byte, symbol in _BYTES_OF_BPE.items() if symbol not in known)

    # ------------------------------------------------------------------ pieces

    def _plain_ids(self, data: bytes) -> list[int]:
        """Of text without special tokens, in which control tokens are text."""
        ids = [it for part in self._masked.parted(data) for it in self._call(part)]
        if self._forbidden.isdisjoint(ids):
            return ids
        ids = [it for part in self.controls.parted(data) for it in self._call(part)]
        if self._forbidden.isdisjoint(ids):
            return ids
        raise TokenError("the vocabulary takes this text for a control token: leave it out")

    def _call(self, data: bytes, *, add_special: bool = False) -> list[int]:
        room = len(data) + 4
        count = room + 1
        while count > room:
            room = count
            ids = (ctypes.c_int32 * room)()
            count = self._pre.run(data, partial(self._tokenize, data, ids, add_special))
        return list(ids[:count])

    def _tokenize(self, data: bytes, ids: ctypes.Array[ctypes.c_int32], add_special: bool) -> int:
        """How many there are; they are all in `ids` where there is room for them."""
        count: int = self._library.llama_tokenize(
            self._vocabulary, data, len(data), ids, len(ids), add_special, False
        )
        return abs(int(count))


def _pre_tokenizer(file: GgufFile) -> str:
    """The name of a byte-pair vocabulary's: one kind has its own, whatever else the file says."""
    if file.metadata.get(MODEL_KEY) == "gemma4":
        return "gemma4"
    return str(file.metadata.get(_PRE_KEY, "default"))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenError(
            f"the text has U+{ord(text[error.start]):04X} at {error.start}, half of a character: "
            "a text must be such that UTF-8 can hold it"
        ) from None


def _byte_symbols() -> Iterator[tuple[int, str]]:
    """Each byte and what byte-pair vocabularies write for it, as GPT-2 has it."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    yield from ((byte, chr(byte)) for byte in shown)
    yield from ((byte, chr(256 + n)) for n, byte in enumerate(hidden))


_BYTES_OF_SPM: Sequence[str] = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTES_OF_BPE = dict(_byte_symbols())

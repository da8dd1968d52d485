"""Text to token ids and back, by libllama's own tokenizer, which the model was built for."""

from __future__ import annotations

import codecs
import ctypes
import os
from collections.abc import Callable, Collection, Sequence

from isthmus.abi import TokenFlag
from isthmus.errors import ModelFileError, TokenError
from isthmus.model.checks import nothing
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.refusal import refusal
from isthmus.model.tokens.infill import InfillTokens
from isthmus.model.tokens.specials import Specials
from isthmus.model.tokens.text_encoder import TextEncoder
from isthmus.model.tokens.vocabulary import has_tokenizer, require_sound_vocabulary
from isthmus.native.loader import Library
from isthmus.native.owned import Owned

_WORDPIECE = 3
"""`LLAMA_VOCAB_TYPE_WPM`."""
_PIECE_NBYTES = 256


class Tokenizer(Owned):
    """Owns a model of libllama that was loaded without weights, for its vocabulary; or has the
    vocabulary of one that was loaded with them.

    Safe to use from several threads: nothing of it changes after loading.
    """

    def __init__(self, library: Library, file: GgufFile, model: Owned | None = None) -> None:
        """`model` is the file's, if libllama has loaded it already; it is closed after this."""
        path = file.path
        require_sound_vocabulary(file)
        handle = _load(library, file) if model is None else model.handle
        super().__init__(handle, library.llama_model_free if model is None else _leave)
        self._library = library
        self._vocabulary = library.llama_model_get_vocab(handle)
        self._texts = TextEncoder(library, self._vocabulary, file)
        self.n_tokens: int = library.llama_vocab_n_tokens(self._vocabulary)
        self._pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        """Of the tokens that were asked for; without and with the text of special ones."""
        self._flags: dict[int, TokenFlag] = {}
        self._said: dict[int, bytes | None] = {}
        """What `text_of` found: one look-up for each token that is said."""
        self.is_warm = False
        """Whether a text was encoded: before the first one the whole vocabulary is looked at."""
        self.bos: int = library.llama_vocab_bos(self._vocabulary)
        self.eos: int = library.llama_vocab_eos(self._vocabulary)
        self.eot: int = library.llama_vocab_eot(self._vocabulary)
        self.infill = InfillTokens.of(library, self._vocabulary)
        """Those with which a gap in a text is filled."""
        self.adds_bos = bool(library.llama_vocab_get_add_bos(self._vocabulary))
        adds_eos = library.llama_vocab_get_add_eos(self._vocabulary)
        lacks = (self.adds_bos and self.bos < 0) or (adds_eos and self.eos < 0)
        if lacks or not self._is_whole_wordpiece():
            self.close()
            raise ModelFileError(f"{path} wants a token at the beginning or end that it lacks")

    @classmethod
    def try_open(
        cls, library: Library, file: GgufFile, model: Owned | None = None
    ) -> Tokenizer | None:
        """The file's tokenizer, or None where it says that it has none."""
        if not has_tokenizer(file):
            return None
        return cls(library, file, model)

    def encode(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = False,
        seam: str = "",
        most: int | None = None,
        check: Callable[[], None] = nothing,
    ) -> list[int]:
        """Token ids of a text.

        `add_special` adds what the model wants at the beginning and the end; `parse_special` reads
        control tokens in the text as such, which must not be done with text from a stranger.
        `seam` is a character that is no part of the text: no control token is read across it.
        `check` is called between pieces of a long text, and may raise. ContextFull for a text that
        is seen to have more than `most` tokens before all of it is tokenized; TokenError for what
        is no text, or has so long a word that it cannot be tokenized.
        """
        ids = self._texts.encode(text, add_special, parse_special, seam, most, check=check)
        self.is_warm = True
        return ids

    def encode_pair(self, query: str, document: str, most: int | None = None) -> list[int]:
        """Token ids of two texts, with the tokens around and between them that the vocabulary adds:
        in libllama's order. Raises as `encode`."""
        library, vocabulary = self._library, self._vocabulary
        sep = library.llama_vocab_sep(vocabulary)
        eos = [self.eos if self.eos >= 0 else sep]
        end = eos if library.llama_vocab_get_add_eos(vocabulary) else []
        between = [sep] if library.llama_vocab_get_add_sep(vocabulary) else []
        first, second = (self.encode(it, most=most) for it in (query, document))
        begin = [self.bos] if self.adds_bos else []
        return [*begin, *first, *end, *between, *second, *end]

    @property
    def controls(self) -> Specials:
        """The tokens that only a template or a program writes, and no user."""
        return self._texts.controls

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """What `add_special` puts before and after a text."""
        return self._texts.ends

    def decode(self, tokens: Sequence[int], *, render_special: bool = False) -> bytes:
        """The text of tokens, as UTF-8 that may begin or end inside a character."""
        pieces = self._pieces[render_special]
        try:
            return b"".join([pieces[token] for token in tokens])
        except KeyError:
            for token in tokens:
                pieces[token] = self._piece(token, render_special)
            return b"".join([pieces[token] for token in tokens])

    def text_of(self, token: int) -> bytes | None:
        """The text of one token, as `decode` gives it; None if the token ends the generation.

        TokenError if there is no such token.
        """
        try:
            return self._said[token]
        except KeyError:
            ends = TokenFlag.EOG in self.flags(token)
            text = self._said[token] = None if ends else self.decode((token,))
            return text

    def flags(self, token: int) -> TokenFlag:
        """What kind of token an id is; TokenError where there is none."""
        flags = self._flags.get(token)
        if flags is None:
            self._require(token)
            flags = TokenFlag(0)
            if self._library.llama_vocab_is_eog(self._vocabulary, token):
                flags |= TokenFlag.EOG
            if self._library.llama_vocab_is_control(self._vocabulary, token):
                flags |= TokenFlag.CONTROL
            self._flags[token] = flags
        return flags

    def _is_whole_wordpiece(self) -> bool:
        """Whether a WordPiece has the tokens without which libllama aborts; others do not need
        them."""
        if self._library.llama_vocab_type(self._vocabulary) != _WORDPIECE:
            return True
        return bool(self.bos >= 0 and self._library.llama_vocab_sep(self._vocabulary) >= 0)

    def _piece(self, token: int, render_special: bool) -> bytes:
        self._require(token)
        room = _PIECE_NBYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._library.llama_token_to_piece(
                self._vocabulary, token, buffer, room, 0, render_special
            )
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def _require(self, token: int) -> None:
        if not 0 <= token < self.n_tokens:
            raise TokenError(f"token {token} is not in the vocabulary of {self.n_tokens}")


def _load(library: Library, file: GgufFile) -> int:
    """The file's model without its weights."""
    params = library.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    library.llama_backend_init()
    with library.errors() as complaints:
        handle = library.llama_model_load_from_file(os.fsencode(file.path), params)
    if not handle:
        raise refusal(library, file, complaints, "has no usable vocabulary")
    return int(handle)


def _leave(_handle: int) -> None:
    """The handle is another's."""


class Detokenizer:
    """Turns a stream of tokens into text, piece by piece, never cutting a UTF-8 character.

    Bytes that are no UTF-8 become U+FFFD, as soon as that is certain. Of control tokens those in
    `rendered` are text; all others give none.
    """

    def __init__(self, tokenizer: Tokenizer, rendered: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._rendered = frozenset(rendered)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: int | Sequence[int]) -> str:
        """The text that is complete with these tokens; it may be empty."""
        batch = [tokens] if isinstance(tokens, int) else tokens
        if not self._rendered.isdisjoint(batch):
            return "".join(self._decoder.decode(self._piece(token)) for token in batch)
        return self._decoder.decode(self._tokenizer.decode(batch))

    def _piece(self, token: int) -> bytes:
        return self._tokenizer.decode([token], render_special=token in self._rendered)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was begun and not finished."""
        return self._decoder.decode(b"", final=True)

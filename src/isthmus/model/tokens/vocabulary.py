"""What a file's vocabulary must be for libllama, which trusts most of it.

libllama reads arrays without a look at their type, and ends the process if a token that it needs
is missing, some of them only with the text that needs them. `llama_vocab::impl::load` and the
tokenizers in llama.cpp's `src/llama-vocab.cpp` say what they need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.header import TOKENS_KEY
from isthmus.model.tokens.charsmap import is_sound_charsmap
from isthmus.native._ggml import GgufType

MODEL_KEY = "tokenizer.ggml.model"
NO_TOKENIZER = ("", "none", "no_vocab")
MAX_SPECIAL = 8192
"""Tokens that libllama looks for one after the other in every text. Gemma 3 has 6,414, the most
that is known; 50,000 keep it busy for 4 s with a text of 100,000 characters."""
MAX_TOKEN_NBYTES = 1 << 16
"""Bytes of a token's text; a common one has up to 128."""
_SCORES_KEY, _TYPES_KEY = "tokenizer.ggml.scores", "tokenizer.ggml.token_type"
_MERGES_KEY, _SUPPRESSED_KEY = "tokenizer.ggml.merges", "tokenizer.ggml.suppress_tokens"
_CHARSMAP_KEY = "tokenizer.ggml.precompiled_charsmap"
_UNKNOWN_KEY = "tokenizer.ggml.unknown_token_id"
_USUAL_UNKNOWN = {"bert": 100, "t5": 2}
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
"""Values of `llama_token_type`."""
_INT32 = (GgufType.INT32, GgufType.UINT32)
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|[^x])", re.S)
_MAX_RWKV_CHARACTERS = 4096
"""Of a token: libllama goes so deep into the stack. The longest known one has 128."""


def has_tokenizer(file: GgufFile) -> bool:
    """Whether the file says that it has a tokenizer."""
    return file.metadata.get(MODEL_KEY, "") not in NO_TOKENIZER


def require_sound_vocabulary(file: GgufFile) -> None:
    """Raises ModelFileError for what libllama would trip over, ModelUnsupported for a tokenizer
    that is not used here."""
    kind = file.metadata.get(MODEL_KEY, "")
    require_kind = _KINDS.get(kind) if isinstance(kind, str) else None
    if require_kind is None and kind not in NO_TOKENIZER:
        raise ModelUnsupported(
            f"{file.path} has a tokenizer of kind {kind!r}; known are {', '.join(_KINDS)}"
        )
    tokens = file.metadata.get(TOKENS_KEY)
    if not isinstance(tokens, list) or not tokens:
        raise ModelFileError(f"{file.path} has no list of tokens")
    _require_distinct(file, tokens)
    _require_arrays(file, len(tokens))
    if require_kind is not None:
        require_kind(file, tokens)


def _require_distinct(file: GgufFile, tokens: Sequence[str]) -> None:
    """libllama gives empty tokens a name; then all must differ."""
    named = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    if len(set(named)) != len(named):
        raise ModelFileError(f"{file.path} has a vocabulary in which a token occurs twice")
    longest = max(len(it.encode()) for it in named)
    if longest > MAX_TOKEN_NBYTES:
        raise ModelFileError(
            f"{file.path} has a token of {longest} bytes; {MAX_TOKEN_NBYTES} are the most"
        )


def _require_arrays(file: GgufFile, n_tokens: int) -> None:
    _require_array(file, _SCORES_KEY, (GgufType.FLOAT32,), n_tokens)
    _require_array(file, _TYPES_KEY, _INT32, n_tokens)
    _require_array(file, _SUPPRESSED_KEY, _INT32)
    _require_array(file, _MERGES_KEY, (GgufType.STRING,))
    scores = file.metadata.get(_SCORES_KEY, ())
    if isinstance(scores, tuple) and any(map(math.isnan, scores)):
        raise ModelFileError(f"{file.path} has a token whose score is no number")
    n_special = sum(it in (_UNKNOWN, _CONTROL, _USER_DEFINED) for it in _types(file))
    if n_special > MAX_SPECIAL:
        raise ModelFileError(
            f"{file.path} has {n_special} control and user-defined tokens, each of which is looked "
            f"for in every text; up to {MAX_SPECIAL} are taken"
        )


def _require_array(
    file: GgufFile, key: str, elements: Sequence[GgufType], at_least: int = 0
) -> None:
    """An array may be missing; another type would be read beyond its end."""
    found = file.arrays.get(key)
    if found is None:
        if key in file.metadata:
            raise ModelFileError(f"{file.path}: {key} is no array")
    elif found.element not in elements or found.count < at_least:
        raise ModelFileError(
            f"{file.path}: {key} is {found.count} times {found.element.name}; expected is "
            f"{elements[0].name}" + (f", {at_least} times or more" if at_least else "")
        )


def _types(file: GgufFile) -> Sequence[int | float | bool]:
    types = file.metadata.get(_TYPES_KEY, ())
    return types if isinstance(types, tuple) else ()


def _require_byte_names(file: GgufFile, tokens: Sequence[str]) -> None:
    """Of a token that is marked as a byte, libllama reads the two digits in its name."""
    for token, kind in zip(tokens, _types(file), strict=False):
        if kind == _BYTE and not _BYTE_TOKEN.fullmatch(token):
            raise ModelFileError(
                f"{file.path} marks the token {token[:20]!r} as a byte; those are like <0x0A>"
            )


def _require_sentencepiece(file: GgufFile, tokens: Sequence[str]) -> None:
    """Every byte has a token, since any text may need it."""
    _require_byte_names(file, tokens)
    known = set(tokens)
    for byte in range(256):
        if f"<0x{byte:02X}>" not in known and (byte >= 0x80 or chr(byte) not in known):
            raise ModelFileError(
                f"{file.path} has no token for the byte <0x{byte:02X}>, which a text may need"
            )


def _require_bpe(file: GgufFile, tokens: Sequence[str]) -> None:
    _require_byte_names(file, tokens)
    if _MERGES_KEY not in file.arrays:
        raise ModelFileError(f"{file.path} has no merges, which its tokenizer needs")


def _require_wordpiece(file: GgufFile, tokens: Sequence[str]) -> None:
    if _BYTE in _types(file):
        raise ModelFileError(f"{file.path} marks a token of a WordPiece vocabulary as a byte")
    _require_unknown(file, tokens)


def _require_unigram(file: GgufFile, tokens: Sequence[str]) -> None:
    _require_byte_names(file, tokens)
    _require_unknown(file, tokens)
    _require_array(file, _CHARSMAP_KEY, (GgufType.INT8, GgufType.UINT8))
    charsmap = file.metadata.get(_CHARSMAP_KEY)
    if isinstance(charsmap, tuple):
        data = bytes(int(it) & 0xFF for it in charsmap)
        if not is_sound_charsmap(data):
            raise ModelFileError(f"{file.path}: {_CHARSMAP_KEY} leads outside of itself")


def _require_unknown(file: GgufFile, tokens: Sequence[str]) -> None:
    """The token for what is in no other; libllama would use id -1 without one."""
    usual = _USUAL_UNKNOWN[str(file.metadata[MODEL_KEY])]
    unknown = file.metadata.get(_UNKNOWN_KEY, usual)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise ModelFileError(
            f"{file.path} has no token for what it does not know: {_UNKNOWN_KEY} is {unknown!r} "
            f"and it has {len(tokens)} tokens"
        )


def _require_rwkv(file: GgufFile, tokens: Sequence[str]) -> None:
    """Every byte is a token by itself: libllama takes the longest token with which a text goes on,
    and looks for ever if some begin in that way and none is there."""
    longest = max(len(it) for it in tokens)
    if longest > _MAX_RWKV_CHARACTERS:
        raise ModelFileError(
            f"{file.path} has a token of {longest} characters; {_MAX_RWKV_CHARACTERS} are the most"
        )
    single = {_unescaped(it) for it in tokens if len(it) <= len(r"\x00")}
    for byte in range(256):
        if bytes([byte]) not in single:
            raise ModelFileError(
                f"{file.path} has no token for the byte \\x{byte:02x}, which a text may need"
            )


def _unescaped(text: str) -> bytes:
    """A token's bytes, of which RWKV's vocabularies write some as \\t, \\n, \\r and \\x00."""
    named = {"t": b"\t", "n": b"\n", "r": b"\r"}

    def byte(found: re.Match[str]) -> str:
        it = found[1]
        raw = bytes([int(it[1:], 16)]) if len(it) > 1 else named.get(it, it.encode())
        return raw.decode(errors="surrogateescape")

    return _ESCAPE.sub(byte, text).encode(errors="surrogateescape")


_KINDS: dict[str, Callable[[GgufFile, Sequence[str]], None]] = {
    "llama": _require_sentencepiece,
    "gpt2": _require_bpe,
    "gemma4": _require_bpe,
    "bert": _require_wordpiece,
    "t5": _require_unigram,
    "rwkv": _require_rwkv,
}

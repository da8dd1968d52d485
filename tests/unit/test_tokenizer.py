from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.abi import TokenFlag
from isthmus.errors import ModelFileError, TokenError
from isthmus.model import Detokenizer, Tokenizer
from isthmus.model.files.gguf import GgufFile
from isthmus.native.loader import Library
from tests.tiny_gguf import TinyLlama

TEXTS = ["", "Hello, world", "naïve café", "日本語 🎉", "a\n\n  b\tc", "x" * 3000]


@pytest.fixture(scope="module")
def tokenizer(library: Library, tiny: Path) -> Tokenizer:
    return Tokenizer(library, GgufFile(library, tiny))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)).decode() == text


def test_control_tokens_are_read_only_when_asked(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("<|im_start|>")
    special = tokenizer.encode("<|im_start|>", parse_special=True)
    assert len(plain) > 1
    assert special == [1]
    assert tokenizer.decode(special) == b""
    assert tokenizer.decode(special, render_special=True) == b"<|im_start|>"


def test_kinds_of_tokens(tokenizer: Tokenizer) -> None:
    assert TokenFlag.EOG in tokenizer.flags(tokenizer.eos)
    assert TokenFlag.CONTROL in tokenizer.flags(1)
    assert tokenizer.flags(tokenizer.encode("a")[0]) == TokenFlag(0)


@pytest.mark.parametrize("token", [-1, 320, 2**31 - 1, -(2**31)])
def test_unknown_token(token: int, tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenError, match="not in the vocabulary"):
        tokenizer.decode([token])


def test_detokenizer_never_cuts_a_character(tokenizer: Tokenizer) -> None:
    text = "é日🎉!"
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    assert "" in pieces  # some tokens end inside a character
    assert "\ufffd" not in "".join(pieces)


def test_detokenizer_marks_what_is_no_character(tokenizer: Tokenizer) -> None:
    stream = Detokenizer(tokenizer)
    first = tokenizer.encode("é")[0]
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"


def test_file_without_a_vocabulary(library: Library, tmp_path: Path) -> None:
    file = GgufFile(library, TinyLlama().write(tmp_path / "x.gguf"))
    assert Tokenizer.try_open(library, file) is None
    with pytest.raises(ModelFileError, match="has no list of tokens"):
        Tokenizer(library, file)


def test_a_token_that_occurs_twice(library: Library, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"[unused8]", b"[unused9]"))
    with pytest.raises(ModelFileError, match="occurs twice"):
        Tokenizer(library, GgufFile(library, path))

"""Special tokens in a text: the same cuts as libllama's, in time that grows with the text."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.errors import Cancelled, ContextFull, TokenError
from isthmus.model import Tokenizer
from isthmus.model.files.gguf import GgufFile
from isthmus.native.loader import Library
from tests.vocabularies import CONTROL, KINDS, PRE_TOKENIZERS, USER_DEFINED, Vocabulary

OTHER = (
    "a¦the ¦thing¦ ¦  ¦\n¦\r\n¦\t¦é¦日本¦🎉¦123¦1234567¦!¦!!¦...¦'s¦'LL¦AAaa¦<s>¦<unk>¦\0¦\u00a0"
    "¦\u3000¦\u0301¦한국¦IMGIMGABZ¦</¦s>¦_start|>¦|¦<"
)
ATOMS = [*CONTROL, *USER_DEFINED, *OTHER.split("¦"), "x" * 60]
VOCABULARIES = [
    *(Vocabulary(pre=pre) for pre in PRE_TOKENIZERS),
    *(Vocabulary(kind) for kind in KINDS if kind != "gpt2"),
    Vocabulary(pre="llama-bpe", name="Phi-3", control=(*CONTROL, "a b")),
    Vocabulary("llama", name="phi-3"),
    Vocabulary(control=("<|im_start|>", "</s>", "<|im"), user_defined=("   ", "  ", "\n\n", "zz")),
]


def opened(library: Library, vocabulary: Vocabulary, folder: Path) -> Tokenizer:
    path = vocabulary.write(folder / "vocabulary.gguf")
    return Tokenizer(library, GgufFile(library, path))


def plain(library: Library, tokenizer: Tokenizer, text: str, add: bool, parse: bool) -> list[int]:
    """What libllama itself makes of it."""
    data = text.encode()
    ids = (ctypes.c_int32 * (2 * len(data) + 8))()
    handle = tokenizer._vocabulary
    n = library.llama_tokenize(handle, data, len(data), ids, len(ids), add, parse)
    assert n >= 0
    return list(ids[:n])


def texts(seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    yield from ("", " ", "<", CONTROL[0], CONTROL[0] * 3, "  ".join(CONTROL))
    for _ in range(30):
        yield "".join(chance.choices(ATOMS, k=chance.randint(1, 40)))


@pytest.mark.slow
@pytest.mark.parametrize("it", VOCABULARIES, ids=lambda it: f"{it.kind}-{it.pre}-{it.name}")
def test_the_same_tokens(library: Library, tmp_path: Path, it: Vocabulary) -> None:
    n_compared = 0
    with opened(library, it, tmp_path) as tokenizer:
        forbidden = set(tokenizer.encode("".join((*it.control, "<s>")), parse_special=True))
        for n, text in enumerate(texts(seed=len(it.pre))):
            add, parse = bool(n & 1), bool(n & 2)
            try:
                ids = tokenizer.encode(text, add_special=add, parse_special=parse)
            except TokenError:
                assert it.pre == "whitespace"
                continue
            wanted = plain(library, tokenizer, text, add, parse)
            if not parse and forbidden & set(plain(library, tokenizer, text, False, False)):
                assert it.kind == "llama"  # merges a control token of plain text
                assert not forbidden & set(tokenizer.encode(text))
                continue
            assert ids == wanted, (text, add, parse)
            n_compared += 1
            again = tokenizer.encode(text, add_special=add, parse_special=parse, most=len(ids))
            assert again == ids  # what fits is not refused
    assert n_compared > 5


@pytest.mark.model
def test_which_tokens_are_special(library: Library, smollm2: Path, tmp_path: Path) -> None:
    """The quick look at names finds what asking for each token finds."""
    named = Vocabulary(control=("<PRE>", "[EOT]", "_<EOT>"), user_defined=("<|fim_prefix|>",))
    files = [smollm2, named.write(tmp_path / "named.gguf")]
    for path in files:
        with Tokenizer(library, GgufFile(library, path)) as tokenizer:
            found = {it.token for it in tokenizer._texts._specials}
            attribute = library.llama_vocab_get_attr
            slow = {
                token
                for token in range(tokenizer.n_tokens)
                if attribute(tokenizer._vocabulary, token) & (1 | 8 | 16)
            }
            assert found == slow


@pytest.fixture
def tokenizer(library: Library, tmp_path: Path) -> Iterator[Tokenizer]:
    with opened(library, Vocabulary(), tmp_path) as tokenizer:
        yield tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("parse", [False, True])
def test_time_grows_with_the_text(tokenizer: Tokenizer, parse: bool) -> None:
    """Four times the special tokens take libllama sixteen times as long."""
    text = (CONTROL[0] if parse else USER_DEFINED[0]) + "hi"

    def seconds(n: int) -> float:
        began = time.thread_time()
        assert len(tokenizer.encode(text * n, parse_special=parse)) == 3 * n
        return time.thread_time() - began

    seconds(100)
    assert seconds(40_000) < 9 * min(seconds(10_000) for _ in range(3))


def test_it_can_be_ended(tokenizer: Tokenizer) -> None:
    calls = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        tokenizer.encode("<|im_start|>" * 50_000, parse_special=True, check=check)
    calls.clear()
    with pytest.raises(Cancelled):
        tokenizer.encode("<tool_call>x" * 50_000, check=check)


def test_what_cannot_fit_is_refused_before_it_is_tokenized(tokenizer: Tokenizer) -> None:
    def check() -> None:
        raise AssertionError("it was begun")

    with pytest.raises(ContextFull, match="it cannot fit into the 100 tokens"):
        tokenizer.encode("x" * 10_000, most=100, check=check)
    with pytest.raises(ContextFull, match="more than 20000 tokens"):  # and while it is
        tokenizer.encode("y<tool_call>" * 20_000, most=20_000)
    assert len(tokenizer.encode("y" * 100, most=100)) == 100


def test_a_vocabulary_without_some_bytes(library: Library, tmp_path: Path) -> None:
    """What nothing becomes of counts nothing."""
    with opened(library, Vocabulary(without=("q", "Ā")), tmp_path) as tokenizer:
        assert tokenizer.encode("q" * 10_000 + "\0" * 5_000 + "y", most=1) == (
            tokenizer.encode("y")
        )
        with pytest.raises(ContextFull):
            tokenizer.encode("q" * 10 + "y" * 10_000, most=1)


@pytest.mark.model
def test_room_in_a_real_vocabulary(library: Library, smollm2: Path) -> None:
    with (
        Tokenizer(library, GgufFile(library, smollm2)) as tokenizer,
        pytest.raises(ContextFull, match="cannot fit"),
    ):
        tokenizer.encode("x" * (8 << 20), most=4096)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "ok " * 100 + "\udc80"])
def test_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(TokenError, match="half of a character"):
        tokenizer.encode(text)


def test_zero_bytes_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\0b<|im\0_start|>")) == b"a\0b<|im\0_start|>"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_plain_text_has_no_control_tokens(library: Library, tmp_path: Path, kind: str) -> None:
    """Not those either that libllama takes for what users may write."""
    control = (*CONTROL, "<|channel|>", "<|start|>")
    it = Vocabulary(kind, control=control, user_defined=("<tool_call>",))
    with opened(library, it, tmp_path) as tokenizer:
        ids = set(tokenizer.encode("".join(control), parse_special=True))
        assert len(ids) >= len(control) - 2
        said = "".join(control) + "<tool_call>" + " ".join(control)
        plain_ids = tokenizer.encode(said)
        assert not ids & set(plain_ids)
        assert tokenizer.encode("<tool_call>", parse_special=True)[0] in plain_ids
        assert tokenizer.decode(plain_ids, render_special=True).decode().replace(" ", "") == (
            said.replace(" ", "")
        )


def test_a_seam_keeps_control_tokens_apart(library: Library, tmp_path: Path) -> None:
    seam, text = "\ufdd0", "<|im_start|> the"
    with opened(library, Vocabulary(control=("<|im_start|>", "<|im_end|>")), tmp_path) as tokenizer:
        written = text.replace("_", f"_{seam}") + "<|im_end|>"
        ids = tokenizer.encode(written, parse_special=True, seam=seam)
        assert ids == [*tokenizer.encode(text), 3]

"""Texts that end a process in libllama, against all pre-tokenizers; so most run in a child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.model.tokens.pre_tokenizers import AT_SPACES, BY_HAND, FRAME_NBYTES
from tests.vocabularies import KINDS, PRE_TOKENIZERS, Vocabulary

pytestmark = pytest.mark.slow
RUNS = ("a", "A", "!", "+", " ", "\n", "\r", "9", "é", "一", "aA", "a ", "\u0301", "\u3000", "'s")
CHILD = """
import ctypes, sys, threading
from pathlib import Path
from isthmus.errors import TokenError
from isthmus.model.files.gguf import GgufFile
from isthmus.model.tokens.tokenizer import Tokenizer
from isthmus.native.loader import open_library

library = open_library()

def each(paths):
    for path in paths:
        print(path, flush=True)
        yield Tokenizer(library, GgufFile(library, Path(path)))

def plain(tokenizer, text):
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    n = library.llama_tokenize(
        tokenizer._vocabulary, data, len(data), ids, len(ids), False, False
    )
    return list(ids[:n])

def on_stack(nbytes, work):
    threading.stack_size(nbytes)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


def run_child(body: str, vocabularies: list[Vocabulary], folder: Path) -> str:
    """What a child prints that has the vocabularies as `each(sys.argv[1:])`; it must survive."""
    paths = [
        str(it.write(folder / f"{n}-{it.kind}-{it.pre}.gguf")) for n, it in enumerate(vocabularies)
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHILD + body, *paths],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-200:], done.stderr[-500:])
    return done.stdout


def test_every_name_is_known() -> None:
    assert not BY_HAND & AT_SPACES
    assert set(PRE_TOKENIZERS) - BY_HAND - AT_SPACES == {"exaone-moe"}  # goes over spaces


def test_a_long_word_ends_no_process(tmp_path: Path) -> None:
    """30,000 of a kind, which overflow 8 MiB of stack, in threads of 512 KiB."""
    body = """
def work(tokenizer):
    for run in ("a", "!", " ", "9", "é", "\u3000"):
        text = (run * 30_000)[:30_000]
        try:
            assert tokenizer.encode(text) or tokenizer.n_tokens < 300
        except TokenError as error:
            print("refused", flush=True)

for tokenizer in each(sys.argv[1:]):
    on_stack(512 << 10, lambda: work(tokenizer))
"""
    names = [it for it in PRE_TOKENIZERS if it not in BY_HAND]
    others = [Vocabulary(kind) for kind in KINDS]
    vocabularies = [*(Vocabulary(pre=it, user_defined=()) for it in names), *others]
    refusing, now = set(), ""
    for line in run_child(body, vocabularies, tmp_path).splitlines():
        if line == "refused":
            refusing.add(now)
        else:
            now = line.partition("gpt2-")[2].removesuffix(".gguf")
    assert refusing == {"deepseek-llm", "superbpe", "whitespace"}


def test_a_character_takes_less_stack_than_is_kept_for_it(tmp_path: Path) -> None:
    names = [it for it in PRE_TOKENIZERS if it not in BY_HAND and it != "whitespace"]
    body = f"""
n = 4_000
for tokenizer in each(sys.argv[1:]):
    for run in {RUNS!r}:
        on_stack({FRAME_NBYTES} * n // 2, lambda: plain(tokenizer, (run * n)[:n]))
"""
    run_child(body, [Vocabulary(pre=it, user_defined=()) for it in names], tmp_path)


def test_loops_of_the_library_take_no_stack(tmp_path: Path) -> None:
    names = [it for it in PRE_TOKENIZERS if it in BY_HAND]
    assert len(names) > 30
    body = f"""
for tokenizer in each(sys.argv[1:]):
    for run in {RUNS!r}:
        on_stack(256 << 10, lambda: plain(tokenizer, (run * 10_000)[:10_000]))
"""
    run_child(body, [Vocabulary(pre=it, user_defined=()) for it in names], tmp_path)


def test_long_words_have_the_tokens_of_the_library(tmp_path: Path) -> None:
    """As long as they survive it, on 64 MiB of stack."""
    names = [it for it in PRE_TOKENIZERS if it not in BY_HAND and it != "whitespace"]
    body = f"""
def work(tokenizer):
    for run in {RUNS!r}:
        text = "the " + (run * 1_000)[:1_000] + " end"
        assert tokenizer.encode(text) == plain(tokenizer, text), run

failed = []
threading.excepthook = lambda given: failed.append(given.exc_value)
for tokenizer in each(sys.argv[1:]):
    on_stack(64 << 20, lambda: work(tokenizer))
assert not failed, failed
"""
    run_child(body, [Vocabulary(pre=it, user_defined=()) for it in names], tmp_path)

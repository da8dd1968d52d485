"""What a library says before it ends a process, as a reason in one line."""

from __future__ import annotations

import pytest

from isthmus.native.child import last_words, reason


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", ""),
        ("\n \n", ""),
        (
            "words\n/there/llama.cpp/src/models/plm.cpp:28: GGML_ASSERT(n == 0) failed\nmore\n",
            "plm.cpp:28: GGML_ASSERT(n == 0) failed",
        ),
        ("ggml.c:7: fatal \x1b[2J error\n", "ggml.c:7: fatal \\x1b[2J error"),
        (
            "terminate called after throwing an instance of 'std::bad_alloc'\n"
            "  what():  std::bad_alloc\n",
            "std::bad_alloc",
        ),
        ("Traceback\n  File x\nMemoryError: no room\n", "MemoryError: no room"),
        ("x" * 9000, "x" * 300),
    ],
)
def test_last_words(said: str, words: str) -> None:
    assert last_words(said) == words


def test_a_complaint_without_the_function_that_made_it() -> None:
    assert reason(["llama_model_load: it is\nbroken", "later"], "no reason") == "it is; broken"
    assert reason(["f: error loading model: broken"], "no reason") == "broken"
    assert reason(["broken"], "no reason") == "broken"
    assert reason([], "no reason") == "no reason"

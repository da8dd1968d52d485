"""Tiny models of every architecture: what the library makes of the recipes."""

from __future__ import annotations

import pytest

from isthmus.errors import ModelUnsupported
from isthmus.native.loader import Library
from isthmus.survey.tiny import tiny_model


def test_a_model_has_the_same_bytes_each_time(library: Library) -> None:
    once, again = (tiny_model(library, "qwen35") for _ in range(2))
    assert once == again
    assert once[:4] == b"GGUF"
    assert tiny_model(library, "qwen35", seed=1) != once


def test_what_the_library_makes_no_model_of_is_refused_with_its_words(library: Library) -> None:
    with pytest.raises(ModelUnsupported, match="CLIP cannot be used as main model"):
        tiny_model(library, "clip")
    with pytest.raises(ModelUnsupported, match="GGML_ASSERT"):
        tiny_model(library, "gemma4-assistant")
    with pytest.raises(ModelUnsupported, match="unknown model architecture: 'none-such'"):
        tiny_model(library, "none-such")


def test_the_library_tells_its_architectures(library: Library) -> None:
    names = library.architectures()
    assert {"llama", "qwen35", "gemma4", "gpt-oss", "lfm2"} <= set(names)
    assert len(set(names)) == len(names)

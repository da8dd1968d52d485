"""How deep libllama goes into the native stack for a text, and a stack that is deep enough.

Vocabularies of byte pairs are cut into words first. libllama does that by `std::regex` for many of
them, and libstdc++'s recurses once for each character of a match: 356 bytes of stack each, so a
word of 24,000 letters ends a process on 8 MiB. A match is no longer than the longest run without
white space and the longest run of white space beside it, unless the regular expression goes over
white space. So the longest runs tell how much stack a text may need. Few need more than there is;
those are tokenized by a thread with a large one.

Names were tried out one by one; `tests/unit/test_pre_tokenizers.py` does it again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import numpy as np

from isthmus.errors import Overloaded, TokenError
from isthmus.units import KIB, MIB, format_nbytes

FRAME_NBYTES = KIB
"""Stack for a character of a match: more than twice what the wheels take, for other builds."""
_NEAR = 192
"""Bytes of a match for which every stack has room, a guest's below it included."""
_STACK_NBYTES = 256 * MIB
"""Of addresses; a third of that is memory for the longest match."""
MAX_NBYTES = _STACK_NBYTES // FRAME_NBYTES
"""Bytes of the longest match."""
_AT_A_TIME = threading.BoundedSemaphore(2)
_starting = threading.Lock()
"""Of who sets the size of the stack of new threads, which all share."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


BY_HAND = _names(
    """
    llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe
    glm4 chatglm-bpe gpt-2 phi-2 jina-es jina-de gigachat jina-v1-en jina-v2-es jina-v2-de
    jina-v2-code a.x-4.0 mellum modern-bert exaone4 roberta-bpe mpt olmo jais trillion
    granite-docling starcoder refact command-r smollm codeshell exaone minerva-7b mellum2 qwen2
    deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open qwen35 gemma4
    granite-embed-multi-311m sarvam-moe laguna kimi-k2 grok-2 chameleon
    """
)
"""Those for which the library has loops of its own, however long a word is."""
AT_SPACES = _names(
    """
    default minicpm5 deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu falcon jais-2 whitespace
    poro-chat viking tekken bloom gpt3-finnish gpt-4o llama4 kanana2 talkie granite-embed-multi-97m
    tiny_aya cohere2moe superbpe bailingmoe bailingmoe2 llada-moe seed-coder hunyuan-dense hy_v4
    joyai-llm ufakzeka afmoe minimax-m2
    """
)
"""Those whose matches end at white space. Of names that are not here it is not known."""
_IN_UTF8 = _names("gemma4 granite-embed-multi-311m sarvam-moe whitespace")
"""Those after which a vocabulary has the text itself, and not GPT-2's symbols for its bytes."""
_STEEP = {
    "deepseek-llm": (re.compile(r"\s+"), 8192),
    "superbpe": (re.compile(r"\d+"), 1024),
    "whitespace": (re.compile(r"\s+"), 1),
}
"""Runs and how many characters they may have: the time that they take grows with the square, 8,192
spaces take two seconds. The last one ends the process."""


class PreTokenizer:
    """That of a vocabulary, by the name that its file gives it; None for one that has none."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._recurses = name is not None and name not in BY_HAND
        self._steep = _STEEP.get(name or "")

    @property
    def writes_bytes(self) -> bool:
        """Whether there is a symbol for each byte, and tokens are made of those."""
        return self._name is not None and self._name not in _IN_UTF8

    def run(self, data: bytes, tokenize: Callable[[], int]) -> int:
        """What `tokenize` gives, on a stack that is deep enough for the text.

        TokenError for a text with a word that is too long, Overloaded without room for a stack.
        """
        if self._steep is not None:
            self._require_short_runs(data, *self._steep)
        if not self._recurses or len(data) <= _NEAR:
            return tokenize()
        nbytes = _longest_match(data) if self._name in AT_SPACES else len(data)
        if nbytes <= _NEAR:
            return tokenize()
        if nbytes > MAX_NBYTES:
            raise TokenError(
                f"the text has {format_nbytes(nbytes)} without a place to cut it, and the model's "
                f"pre-tokenizer {self._name!r} takes {format_nbytes(MAX_NBYTES)} at most: break "
                "it into words"
            )
        with _AT_A_TIME:
            return _on_deep_stack(tokenize)

    def _require_short_runs(self, data: bytes, runs: re.Pattern[str], most: int) -> None:
        for run in runs.finditer(data.decode(errors="replace")):
            if run.end() - run.start() > most:
                raise TokenError(
                    f"the text has {run.end() - run.start()} white spaces or digits in a row, and "
                    f"the model's pre-tokenizer {self._name!r} takes {most} at most"
                )


def _longest_match(data: bytes) -> int:
    """At most so many bytes are in one match."""
    values = np.frombuffer(data, np.uint8)
    other = values >= 0x80  # may be white space, or not
    space = (values == 0x20) | ((values >= 0x09) & (values <= 0x0D))
    return 1 + _longest_run(~space) + _longest_run(space | other)


def _longest_run(inside: np.ndarray) -> int:
    """The most elements in a row that are true."""
    ends = np.flatnonzero(~inside)
    if not ends.size:
        return inside.size
    gaps = np.diff(ends, prepend=-1, append=inside.size)
    return int(gaps.max()) - 1


def _on_deep_stack(work: Callable[[], int]) -> int:
    results: list[int] = []
    with _starting:
        usual = threading.stack_size(_STACK_NBYTES)
        try:
            thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
            thread.start()
        except RuntimeError:
            raise Overloaded(
                f"there is no room for a stack of {format_nbytes(_STACK_NBYTES)}, which a text "
                "with so long a word needs: try again later"
            ) from None
        finally:
            threading.stack_size(usual)
    thread.join()
    return results[0]

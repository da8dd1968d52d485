"""Quantisations by the names of files, and which of several a repository's model is taken in."""

from __future__ import annotations

import re

PREFERRED = (
    *("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "MXFP4", "MXFP4_MOE", "UD-Q4_K_XL"),
    *("Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16", "F32"),
)
"""In this order, if nobody says: four bits first, then more, then fewer, then none spared."""
_TYPE = re.compile(
    r"I?Q[1-8]_[A-Z0-9]+(_[A-Z]+)*|TQ[12]_0|BF16|F16|FP16|F32|FP32|MXFP4(_MOE)?", re.IGNORECASE
)
_DYNAMIC = "UD"
"""A mark before the type of files whose layers have types of their own."""


def quant_of(stem: str) -> str:
    """The quantisation that a file's name ends with, in capitals; "" if it says none.

    `SmolLM2-135M-Instruct.Q4_1` gives Q4_1, and `Qwen3-4B-UD-Q4_K_XL` gives UD-Q4_K_XL.
    """
    words = re.split(r"[-.]", stem)
    for n in reversed(range(len(words))):
        if _TYPE.fullmatch(words[n]):
            dynamic = n > 0 and words[n - 1].upper() == _DYNAMIC
            return f"{_DYNAMIC}-{words[n]}".upper() if dynamic else words[n].upper()
    return ""

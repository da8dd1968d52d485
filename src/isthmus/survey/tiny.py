"""Tiny models of the library's architectures, each made in a process of its own.

A model has a few hundred kilobytes of random weights and a vocabulary of single bytes. It is good
for finding out what holds of an architecture, and for tests; it says nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from isthmus.errors import ModelUnsupported
from isthmus.native.child import last_words, told
from isthmus.native.loader import Library
from isthmus.trial import Ending, TrialLimits, try_out
from isthmus.units import MIB

_SCRIPT = Path(__file__).with_name("making.py")
_LIMITS = TrialLimits(
    cpu_s=20, memory_nbytes=1024 * MIB, stack_nbytes=8 * MIB, result_nbytes=8 * MIB
)


def tiny_model(library: Library, architecture: str, seed: int = 0) -> bytes:
    """A GGUF file's bytes; equal seeds give equal bytes.

    Raises ModelUnsupported with the library's reason if it makes no model of that architecture, as
    of a projector that is used beside a model.
    """
    job = json.dumps({"name": architecture, "seed": seed}).encode()
    outcome = try_out(_SCRIPT, "make", job, _LIMITS, prepare=told(library))
    if outcome.ending is not Ending.DONE:
        raise ModelUnsupported(last_words(outcome.said) or f"the library {outcome.ending.value}")
    good, result = outcome.result[0], outcome.result[1:]
    if not good:
        raise ModelUnsupported(result.decode())
    return result

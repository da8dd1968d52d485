"""What libllama's own graph of a file is, found out by opening it and decoding a few tokens.

A child process does that, `isthmus.model.file_trial`, before the file is opened here: libllama
relies on most numbers in a file without a look at them.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import open_device
from isthmus.model.adopted.context import Contexts
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.gguf import GgufFile
from isthmus.native.loader import Library
from isthmus.units import HostAddr

_N_CTX = 256
_N_PROMPT = 5
"""More than one token: libllama writes another graph then, with other kernels."""


@dataclass(frozen=True)
class GraphFacts:
    """What a model is to whoever adopts it."""

    keeps_state: bool
    """Whether a session has a state that each token rewrites: no token can be taken back."""
    memories: tuple[int, ...]
    """Bytes of each memory of a session of 256 tokens; empty if there are no sessions."""
    states: tuple[int, ...]
    """Which of the memories, from 0 on, are states: these are no larger in a longer session."""
    n_vocab: int
    """Length of the logits."""

    @property
    def generates(self) -> bool:
        """Whether the model makes text."""
        return bool(self.memories)

    def session_nbytes(self, n_ctx: int) -> int:
        """Bytes of a session's memories and logits, about."""
        each = (
            nbytes if it in self.states else -(-nbytes * n_ctx // _N_CTX)
            for it, nbytes in enumerate(self.memories)
        )
        return 4 * self.n_vocab + sum(each)

    def as_json(self) -> dict[str, Any]:
        """Its fields, of which `from_json` makes it again."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> GraphFacts:
        """What `as_json` gave. Raises TypeError for anything else."""
        given: dict[str, Any] = {
            key: tuple(it) if isinstance(it, list) else it for key, it in fields.items()
        }
        return cls(**given)


def vet(library: Library, file: GgufFile) -> GraphFacts:
    """Opens the file as adopted models are opened, and decodes.

    Raises ModelUnsupported or ModelFileError. What the library does not survive ends the process.
    """
    settings = ModelSettings()
    device = open_device("cpu", library, DeviceSettings(threads=1))
    model = LibraryModel(library, file, settings)
    contexts = Contexts(device, model, settings)
    if not contexts.has_memory:
        return GraphFacts(model.keeps_state, (), (), model.n_vocab)
    layout = contexts.layout(_N_CTX)
    span = mmap.mmap(-1, layout.nbytes)
    base = HostAddr(ctypes.addressof(ctypes.c_char.from_buffer(span)))
    with contexts.open(base, layout) as context:
        context.append(np.arange(_N_PROMPT, dtype=np.int32) % model.n_vocab, with_logits=True)
        context.append_one(0)
    return GraphFacts(model.keeps_state, layout.memories, contexts.states, model.n_vocab)

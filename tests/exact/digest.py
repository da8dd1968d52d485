"""All that an actor is, as hashes to compare."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

from isthmus import Actor
from isthmus.wasm import read_globals


def digest(actor: Actor) -> dict[str, Any]:
    """Hashes of its memory, KV caches and logits; its globals, tokens, clock and random state."""
    state = actor.body.state(actor.n_messages)
    return {
        "memory": sha256(actor.region.base, actor.region.nbytes),
        "memory_nbytes": actor.region.nbytes,
        "globals": [[it.index, it.type, it.bits.hex()] for it in read_globals(actor.instance)],
        "sessions": [
            {
                "kv": sha256(session.base + session.layout.kv_offset, session.layout.kv_nbytes),
                "logits": hashlib.sha256(session.logits.tobytes()).hexdigest(),
                "tokens": session.tokens.tolist(),
                "has_logits": session.has_logits,
            }
            for session in actor.sessions
        ],
        "clock_ns": state.clock_ns,
        "n_random_blocks": state.n_random_blocks,
        "log_position": state.log_position,
        "n_messages": state.n_messages,
        "opened": [type(it).__name__ + str(it.handle) for it in state.opened],
    }


def sha256(address: int, nbytes: int) -> str:
    data = (ctypes.c_ubyte * nbytes).from_address(address)
    return hashlib.sha256(data).hexdigest()

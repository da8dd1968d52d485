"""All that an actor is, as hashes to compare."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

from isthmus import Actor
from isthmus.actor.body import Body
from isthmus.wasm import read_globals


def digest(actor: Actor, body: Body | None = None) -> dict[str, Any]:
    """Hashes of its memory, KV caches and logits; its globals, tokens, clock and random state."""
    body = body or actor.body
    with body.on_host():
        return _digest(actor, body)


def _digest(actor: Actor, body: Body) -> dict[str, Any]:
    state = body.state(actor.n_messages)
    return {
        "memory": sha256(body.region.base, body.region.nbytes),
        "memory_nbytes": body.region.nbytes,
        "globals": [[it.index, it.type, it.bits.hex()] for it in read_globals(body.instance)],
        "sessions": [
            {
                "kv": sha256(session.base + session.layout.kv_offset, session.layout.kv_nbytes),
                "logits": hashlib.sha256(session.logits.tobytes()).hexdigest(),
                "tokens": session.tokens.tolist(),
                "has_logits": session.has_logits,
            }
            for session in body.sessions
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

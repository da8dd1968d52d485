"""Messages for the guest of fuzz/abi.py, which makes the host calls that a message lists.

They use two sessions in every way that there is: prefill, decode, decode_many, truncate,
session_copy, grammars, samplers. What each call returned stays in the guest's memory, so that it
is compared with everything else.
"""

from __future__ import annotations

import random

from isthmus import abi
from isthmus.abi import GrammarKind
from tests.fuzz.abi import AREA, call, text

N_CTX = 256
_MODEL, _SESSIONS = 1, (2, 3)
"""Handles, which are given in this order."""
_TOKENS, _SAMPLER, _SOURCE, _LOGITS = 4096, 8192, 12_288, 4 * AREA
_STEPS, _CANDIDATES = 16_384, 20_480
_GRAMMAR = b'root ::= "the " [a-z]+'


def opening() -> bytes:
    """The first message: both sessions are opened."""
    found = [*text(64, b"default"), call("model_open", 64, 7)]
    found += [call("session_open", _MODEL, N_CTX, n * AREA, AREA) for n in (1, 2)]
    settings = abi.Sampler(0.8, 20, 0.9, 0.01, 1.1, 16, rng_state=7)
    found += [*text(_SAMPLER, abi.SAMPLER.pack(*settings)), *text(_SOURCE, _GRAMMAR)]
    return b"".join(found)


class Script:
    """Makes messages; knows how many tokens each session has after them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lengths = [0, 0]
        self.n_grammars = 0

    def message(self) -> bytes:
        """The next message: a few steps with one session."""
        found: list[bytes] = []
        which = self.rng.choice([0, 0, 1])
        if self.lengths[which] < 2:
            found += self._prefill(which)
        for _ in range(self.rng.randrange(1, 6)):
            makers = (self._prefill, self._decode, self._many, self._truncate, self._copy)
            found += self.rng.choice((*makers, self._sample, self._follow, self._both, self._ask))(
                which
            )
        return b"".join(found)

    def _room(self, which: int, n: int) -> list[bytes]:
        """Forgets tokens if there is no room for `n` more."""
        if self.lengths[which] + n <= N_CTX:
            return []
        self.lengths[which] = 20
        return [call("truncate", _SESSIONS[which], 20), call("decode", _SESSIONS[which], 5)]

    def _ids(self, n: int) -> list[bytes]:
        ids = [self.rng.randrange(3, 300) for _ in range(n)]
        return text(_TOKENS, b"".join(it.to_bytes(4, "little") for it in ids))

    def _prefill(self, which: int) -> list[bytes]:
        n = self.rng.choice([2, 3, 17, 60, 100])
        found = [*self._made_room(which, n), *self._ids(n)]
        self.lengths[which] += n
        return [*found, call("prefill", _SESSIONS[which], _TOKENS, n)]

    def _made_room(self, which: int, n: int) -> list[bytes]:
        found = self._room(which, n + 1)
        self.lengths[which] += bool(found)
        return found

    def _decode(self, which: int) -> list[bytes]:
        n = self.rng.randrange(1, 12)
        found = self._made_room(which, n)
        self.lengths[which] += n
        return found + [
            call("decode", _SESSIONS[which], self.rng.randrange(3, 300)) for _ in range(n)
        ]

    def _many(self, which: int) -> list[bytes]:
        n = self.rng.choice([1, 2, 5, 32])
        found = [*self._made_room(which, n), *self._ids(n)]
        self.lengths[which] += n
        return [*found, call("decode_many", _SESSIONS[which], _TOKENS, n, _LOGITS)]

    def _both(self, which: int) -> list[bytes]:
        """A step of each session, in one call."""
        sessions = [which, 1 - which]
        found = [record for it in sessions for record in self._made_room(it, 1)]
        steps = b""
        for it in sessions:
            self.lengths[it] += 1
            steps += abi.STEP.pack(_SESSIONS[it], self.rng.randrange(3, 300))
        return [*found, *text(_STEPS, steps), call("decode_batch", _STEPS, 2)]

    def _ask(self, which: int) -> list[bytes]:
        """Candidates from the next step on, or none any longer."""
        place = _CANDIDATES + 4096 * which
        return [call("session_top_k", _SESSIONS[which], self.rng.choice([0, 2, 41]), place)]

    def _truncate(self, which: int) -> list[bytes]:
        length = self.rng.randrange(1, self.lengths[which])
        self.lengths[which] = length + 1
        session = _SESSIONS[which]
        return [call("truncate", session, length), call("decode", session, 9)]

    def _copy(self, which: int) -> list[bytes]:
        """The other session gets this one's beginning."""
        other, n = 1 - which, self.rng.randrange(1, self.lengths[which] + 1)
        n = min(n, N_CTX - 1)
        self.lengths[other] = n + 1
        to, origin = _SESSIONS[other], _SESSIONS[which]
        return [call("session_copy", to, origin, n), call("decode", to, 11)]

    def _sample(self, which: int) -> list[bytes]:
        return [call("sample", _SESSIONS[which], _SAMPLER)]

    def _follow(self, which: int) -> list[bytes]:
        """A grammar that masks the logits of which a token is then taken."""
        self.n_grammars += 1
        handle = _SESSIONS[-1] + self.n_grammars
        return [
            call("grammar_open", _MODEL, GrammarKind.GBNF, _SOURCE, len(_GRAMMAR)),
            call("grammar_mask", handle, _SESSIONS[which]),
            call("sample", _SESSIONS[which], _SAMPLER),
            call("grammar_close", handle),
        ]

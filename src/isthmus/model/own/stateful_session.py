"""Sessions of models whose layers keep states: what is rewritten at each token cannot be cut.

`truncate` goes back to no tokens, or to a checkpoint: a copy of the states after so many tokens, in
the session's own memory (`kv_cache.py` has the layout).

========  ====================================================================================
state     what holds
========  ====================================================================================
whole     the states are those after the session's tokens
lost      a pass failed in the middle, so they are of no tokens: only `truncate` helps
========  ====================================================================================
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from isthmus.device.buffer import Rows
from isthmus.errors import DeviceFailed, ModelUnsupported
from isthmus.model.own.session import OwnSession
from isthmus.model.session import COPY_NBYTES, Session
from isthmus.units import HostAddr

_WHOLE, _LOST = 0, 1
"""What the first of its words says of its states."""


class StatefulSession(OwnSession):
    """See the module."""

    _kept: tuple[int, bytes] | None = None
    """A number of tokens and the states after them, to which a prompt that fails goes back."""
    _words: npt.NDArray[np.int64]
    """i64 [1 + n_checkpoints], in place: see `kv_cache.py`."""

    # ------------------------------------------------------------------ checkpoints

    def checkpoints(self, n_tokens: int) -> dict[int, int]:
        """By their lengths, at most `n_tokens`: the numbers of its checkpoints."""
        lengths = self._lengths.tolist()
        return {n: number for number, n in enumerate(lengths) if 0 < n <= n_tokens}

    @property
    def state_nbytes(self) -> int:
        return self.layout.states_nbytes

    def checkpoint(self) -> bool:
        n_tokens = self.n_tokens
        if n_tokens == 0 or n_tokens in self.checkpoints(n_tokens):
            return True
        if not self.layout.n_checkpoints or self._is_lost:
            return False
        number = int(np.argmin(self._lengths))  # a free one, or the one of the fewest tokens
        self._lengths[number] = 0
        self._copy_states(self._checkpoint_at(number), self._states_at)
        self._lengths[number] = n_tokens
        return True

    def reach(self, n_tokens: int) -> int:
        if n_tokens >= self.n_tokens and not self._is_lost:
            return self.n_tokens
        return max((it for it in self._found if it <= n_tokens), default=0)

    def truncate(self, n_tokens: int) -> None:
        if 0 <= n_tokens <= self.n_tokens and not self._try_go_back(n_tokens):
            raise ModelUnsupported(self._unreachable(n_tokens))
        super().truncate(n_tokens)
        self._lengths[self._lengths > n_tokens] = 0

    def _try_go_back(self, n_tokens: int) -> bool:
        """Has the states be those after so many tokens; False if no copy of these was kept."""
        if n_tokens == self.n_tokens and not self._is_lost:
            return True
        checkpoint = self.checkpoints(n_tokens).get(n_tokens)
        if n_tokens == 0:
            self.binding.write(self._states_at, bytes(self.layout.states_nbytes))
        elif self._kept is not None and self._kept[0] == n_tokens:
            self.binding.write(self._states_at, self._kept[1])
        elif checkpoint is not None:
            self._copy_states(self._states_at, self._checkpoint_at(checkpoint))
        else:
            return False
        self._words[0] = _WHOLE
        return True

    def _unreachable(self, n_tokens: int) -> str:
        found = ", ".join(map(str, self._found))
        reached = f"one of 0, {found}" if found else "0"
        return (
            f"{self.owner.name} keeps a state that each token rewrites, so {self.n_tokens} tokens "
            f"cannot be cut to {n_tokens}: truncate to {reached}, and take a checkpoint "
            "where you want to come back"
        )

    # ------------------------------------------------------------------ passes that fail

    def roll_back(self, n_tokens: int) -> None:
        if not self._try_go_back(n_tokens):
            self.lose()
        super().roll_back(n_tokens)

    @contextlib.contextmanager
    def restorable(self) -> Iterator[None]:
        """Keeps the states aside meanwhile."""
        if self._kept is not None or self._is_lost:
            yield
            return
        nbytes = self.layout.states_nbytes if self.n_tokens else 0  # of no tokens, they are zeros
        self._kept = self.n_tokens, self.binding.read(self._states_at, nbytes)
        try:
            yield
        finally:
            self._kept = None

    def lose(self) -> None:
        self._words[0] = _LOST

    def require_whole(self) -> None:
        if self._is_lost:
            raise DeviceFailed(
                f"a pass over the session failed, and {self.owner.name} keeps a state that no pass "
                "can make again: truncate it to 0 or to a checkpoint, and prefill again"
            )

    # ------------------------------------------------------------------ bytes

    def rows(self, n_tokens: int) -> Rows:
        numbers = self.checkpoints(n_tokens).values()
        places = [self._states_at, *map(self._checkpoint_at, numbers)]
        return [*super().rows(n_tokens), *((it, self.layout.states_nbytes) for it in places)]

    def copied_nbytes(self, n_tokens: int) -> int:
        return super().copied_nbytes(n_tokens) + self.layout.states_nbytes

    def fetch(self, first: int, n: int, *, with_logits: bool) -> None:
        super().fetch(first, n, with_logits=with_logits)
        if self.binding.copies:
            self.binding.fetch(self._states_at, self.layout.states_nbytes)

    def _require_copyable(self, source: Session, n_tokens: int) -> None:
        source.require_whole()
        assert isinstance(source, StatefulSession)
        if n_tokens not in (0, source.n_tokens, *source._found):
            raise ModelUnsupported(source._unreachable(n_tokens))

    def _copy_bytes(self, source: Session, n_tokens: int, check: Callable[[], None]) -> None:
        assert isinstance(source, StatefulSession)
        if n_tokens == 0:
            return
        self.lose()  # unless the copy is finished
        super()._copy_bytes(source, n_tokens, check)
        origin = source._states_at
        if n_tokens != source.n_tokens:
            origin = source._checkpoint_at(source.checkpoints(n_tokens)[n_tokens])
        self._copy_states(self._states_at, origin, check)
        self._words[0] = _WHOLE

    def _copy_states(
        self, target: HostAddr, origin: HostAddr, check: Callable[[], None] = lambda: None
    ) -> None:
        nbytes = self.layout.states_nbytes
        for at in range(0, nbytes, COPY_NBYTES):
            part = min(COPY_NBYTES, nbytes - at)
            self.binding.copy(HostAddr(target + at), HostAddr(origin + at), part)
            check()
        self.binding.send(target, nbytes)

    @property
    def _found(self) -> list[int]:
        """Lengths of its checkpoints, ascending."""
        return sorted(self.checkpoints(self.n_tokens))

    def _begin(self) -> None:
        place = self.base + self.layout.words_offset
        room = (ctypes.c_int64 * self.layout.n_words).from_address(place)
        self._words = np.ctypeslib.as_array(room)
        super()._begin()

    @property
    def _is_lost(self) -> bool:
        return bool(self._words[0] == _LOST)

    @property
    def _lengths(self) -> npt.NDArray[np.int64]:
        """i64 [n_checkpoints], in place."""
        return self._words[1:]

    @property
    def _states_at(self) -> HostAddr:
        return HostAddr(self.base + self.layout.states_offset)

    def _checkpoint_at(self, number: int) -> HostAddr:
        return HostAddr(self.base + self.layout.checkpoint_offset(number))

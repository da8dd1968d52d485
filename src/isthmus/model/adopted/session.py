"""Sessions of models whose graph libllama writes down: memories whose inside is its own business.

What a session is lies in its bytes and its tokens. The context of libllama that computes for it is
the executor's, made when it is needed and thrown away at will.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.device.buffer import Binding
from isthmus.errors import DeviceFailed, ModelUnsupported, SettingsError
from isthmus.memory import Region
from isthmus.model.adopted.layout import AdoptedLayout
from isthmus.model.session import Session, SessionOwner
from isthmus.units import KIB, GuestPtr, HostAddr

_PIECE_NBYTES = 256 * KIB
"""Bytes that are looked at before they are copied: those without a token are zero."""
_LOOK_PIECES = 256
"""Pieces between two looks at whether the message goes on."""


class AdoptedSession(Session):
    """See the module."""

    layout: AdoptedLayout
    _kept: tuple[int, list[bytes]] | None = None
    """The number of tokens and the states to which it can be brought back."""
    _lost = False

    def __init__(
        self,
        owner: SessionOwner,
        region: Region,
        binding: Binding,
        ptr: GuestPtr,
        layout: AdoptedLayout,
        states: Sequence[int],
    ) -> None:
        """`states`: which of its memories each token rewrites: `Contexts.states`."""
        self._state_numbers = states
        super().__init__(owner, region, binding, ptr, layout)

    def reach(self, n_tokens: int) -> int:
        if not self._state_numbers or (n_tokens >= self.n_tokens and not self._lost):
            return super().reach(n_tokens)
        return 0

    def checkpoint(self) -> bool:
        """The library writes the graph of its states down, and we keep no copies of those."""
        return not self._state_numbers or self.n_tokens == 0

    def truncate(self, n_tokens: int) -> None:
        if self._can_truncate_to(n_tokens):
            super().truncate(n_tokens)
            return
        raise ModelUnsupported(
            f"{self.owner.name} keeps a state that each token rewrites, so {self.n_tokens} tokens "
            f"cannot be cut to {n_tokens}: truncate to 0 and prefill again, or fork the agent "
            "before"
        )

    def roll_back(self, n_tokens: int) -> None:
        if self._lost or n_tokens < self.n_tokens:
            self._put_back(n_tokens)
        super().roll_back(n_tokens)

    @contextlib.contextmanager
    def restorable(self) -> Iterator[None]:
        """Keeps its states aside meanwhile, if it has some."""
        if self._kept is not None or not self._state_numbers:
            yield
            return
        states = [ctypes.string_at(*place) for place in self._states()]
        self._kept = self.n_tokens, states
        try:
            yield
        finally:
            self._kept = None

    def copied_nbytes(self, n_tokens: int) -> int:
        return self.layout.kv_nbytes

    def lose(self) -> None:
        """To be called after a pass that failed: states may be rewritten in part."""
        self._lost = bool(self._state_numbers)

    @property
    def is_lost(self) -> bool:
        return self._lost

    def require_whole(self) -> None:
        """Raises DeviceFailed if a pass failed in the middle."""
        if self._lost:
            raise DeviceFailed(
                f"a pass over the session failed, and {self.owner.name} keeps a state that no pass "
                "can make again: truncate it to 0 and prefill again"
            )

    def _can_truncate_to(self, n_tokens: int) -> bool:
        """Has its states be those after so many tokens, if that can be."""
        if not self._state_numbers or (n_tokens >= self.n_tokens and not self._lost):
            return True
        if n_tokens == 0:
            for address, nbytes in self._states():  # as in a new session: libllama multiplies by 0
                ctypes.memset(address, 0, nbytes)
            self._lost = False
            return True
        return self._put_back(n_tokens)

    def _put_back(self, n_tokens: int) -> bool:
        """Brings the states back that were kept; False if those were of other tokens."""
        if not self._state_numbers:
            return True
        if self._kept is None or self._kept[0] != n_tokens:
            return False
        for (address, nbytes), state in zip(self._states(), self._kept[1], strict=True):
            ctypes.memmove(address, state, nbytes)
        self.owner.forget(self)
        self._lost = False
        return True

    def _states(self) -> list[tuple[HostAddr, int]]:
        """The address and the bytes of each state."""
        layout = self.layout
        return [
            (HostAddr(self.base + layout.offsets[it]), layout.memories[it])
            for it in self._state_numbers
        ]

    def _require_copyable(self, source: Session, n_tokens: int) -> None:
        if source.layout != self.layout:
            raise SettingsError(
                f"sessions of {self.owner.name} are copied into those of the same n_ctx: "
                f"{source.n_ctx} is not {self.n_ctx}"
            )
        if self._state_numbers and n_tokens not in (0, source.n_tokens):
            raise ModelUnsupported(
                f"{self.owner.name} keeps a state that each token rewrites: copy all "
                f"{source.n_tokens} tokens of the session, and not {n_tokens}"
            )

    def _copy_bytes(self, source: Session, n_tokens: int, check: Callable[[], None]) -> None:
        """All memories are copied, and pages without anything stay untouched."""
        if n_tokens == 0:
            return  # states stay those of no tokens
        self.owner.forget(self)
        self._lost = source.is_lost
        for offset, nbytes in zip(self.layout.offsets, self.layout.memories, strict=True):
            target = _array_at(HostAddr(self.base + offset), nbytes)
            origin = _array_at(HostAddr(source.base + offset), nbytes)
            for i, at in enumerate(range(0, nbytes, _PIECE_NBYTES)):
                piece = slice(at, at + _PIECE_NBYTES)
                if origin[piece].any() or target[piece].any():
                    target[piece] = origin[piece]
                if i % _LOOK_PIECES == 0:
                    check()


def _array_at(address: HostAddr, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

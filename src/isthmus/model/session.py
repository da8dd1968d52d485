"""One sequence of tokens: its KV cache and logits, inside a guest's linear memory.

Some devices have the cache in memory of their own: its bytes are reserved in the guest's then.

========  ====================================================================================
state     what holds
========  ====================================================================================
open      `tokens` are those whose keys and values lie in the cache; `has_logits` tells whether
          the logits are those after the last of them
closed    the bytes are the guest's again; nothing refers to them
========  ====================================================================================

The token list is the host's own bookkeeping; everything else is bytes of the guest.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Device
from isthmus.device.buffer import Binding, Rows
from isthmus.errors import ContextFull, ModelUnsupported, SettingsError
from isthmus.memory import Region
from isthmus.model.checks import nothing
from isthmus.model.layout import Layout
from isthmus.model.sampling.top import PAIR_NBYTES, Top
from isthmus.model.spans import Embeddings, Span, cut_span, position_of
from isthmus.units import MIB, GuestPtr, HostAddr

COPY_NBYTES = 64 * MIB
"""Bytes that are copied between two looks at whether the message goes on: some 10 to 50 ms."""


class SessionOwner(ABC):
    """What a session asks of the model that opened it; `Model.of` gives the model."""

    device: Device

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call it."""

    @property
    @abstractmethod
    def finds_top(self) -> bool:
        """Whether passes find the most probable tokens for sessions that ask: `Session.top`."""

    @abstractmethod
    def require_token(self, token: int) -> None:
        """Raises TokenError for an id outside the vocabulary: kernels use it as an address."""

    @abstractmethod
    def forget(self, session: Session) -> None:
        """Keeps nothing of a session that is about to close or changes: see `Executor.forget`."""


class Session(ABC):
    """See the module. Opened by `Model.open_session`; used by one thread at a time."""

    layout: Layout

    def __init__(
        self, owner: SessionOwner, region: Region, binding: Binding, ptr: GuestPtr, layout: Layout
    ) -> None:
        self.owner = owner
        self.layout = layout
        self.ptr = ptr
        self.binding = binding
        self.base: HostAddr = region.address(ptr, layout.nbytes)
        self.tokens: array[int] = array("i")
        """Token ids in the cache: the same array for as long as the session is open. A row that
        came of an embedding has `spans.NO_TOKEN`."""
        self.spans: list[Span] = []
        """Those rows, oldest first."""
        self.has_logits = False
        self.top: Top | None = None
        """Where the guest wants the most probable tokens of each pass; see `leave_top`."""
        self._region = region
        self.closed = False
        self._begin()
        self._hold = region.hold("a session")

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    @property
    def next_position(self) -> int:
        """The position of the next token: `n_tokens`, unless a picture took fewer positions."""
        return position_of(self.spans, self.n_tokens) if self.spans else self.n_tokens

    def extend(self, tokens: Sequence[int], embeddings: Embeddings | None = None) -> None:
        """Holds tokens that were computed, or embeddings in their place."""
        if embeddings is not None:
            self.spans.append(Span.of(embeddings, self.n_tokens, self.next_position))
        self.tokens.extend(tokens)

    def rows(self, n_tokens: int) -> Rows:
        """Rows of its first tokens, by host address, in a cache that `Binding.settle` has settled;
        none if it has no such cache."""
        return []

    @property
    def n_ctx(self) -> int:
        """Tokens that fit."""
        return self.layout.n_ctx

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """f32 [n_vocab], in place: valid while the session is open."""
        buffer = (ctypes.c_float * self.layout.n_vocab).from_address(self.base)
        return np.ctypeslib.as_array(buffer)

    @property
    def logits_ptr(self) -> GuestPtr:
        """Where the guest finds the logits."""
        return self.ptr

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another token."""
        return self.n_tokens >= self.n_ctx

    def require_room(self, n_tokens: int) -> None:
        """Raises ContextFull where `n_tokens` more do not fit."""
        if len(self.tokens) + n_tokens > self.layout.n_ctx:
            raise ContextFull(
                f"the context is full: it holds {self.n_tokens} of {self.n_ctx} tokens and has "
                f"no room for {n_tokens} more; open the session with a larger n_ctx, or truncate it"
            )

    def require_ready(self, n_tokens: int) -> None:
        """Raises as `require_room` and `require_whole`: to be asked before a session takes part in
        a pass, which others may share."""
        self.require_room(n_tokens)
        self.require_whole()

    def leave_top(self, k: int, ptr: GuestPtr) -> None:
        """From the next pass on, k candidates go to `ptr` in the guest's memory; 0 ends it.

        `k` is at most `top.MAX_TOP` and n_vocab, `ptr` a multiple of `top.TOP_ALIGNMENT` with room
        for k pairs. Passes use them if `SessionOwner.finds_top` says so. The memory stays as it is.
        """
        before = (self.top.k, self.top.ptr) if self.top is not None else (0, ptr)
        if before == (k, ptr):
            return
        if self.owner.finds_top:  # otherwise no graph knows of it
            self.owner.forget(self)
        self.resume_top(k, ptr)

    def resume_top(self, k: int, ptr: GuestPtr) -> None:
        """As `leave_top`, for a session that was in no pass yet."""
        if not k:
            self.top = None
            return
        top = self.top = Top(k, ptr, self._region.address(ptr, PAIR_NBYTES * k))
        if self.owner.device.finds_top:  # batches write there, though no tensor is placed there
            self.binding.cover(top.address, top.nbytes)

    @property
    def state_nbytes(self) -> int:
        """Bytes, about, that a checkpoint copies, and a `truncate` to it."""
        return 0

    def reach(self, n_tokens: int) -> int:
        """The most tokens, at most `n_tokens` and what it holds, that `truncate` can leave."""
        return min(n_tokens, self.n_tokens)

    def checkpoint(self) -> bool:
        """Has `truncate` be able to come back to the tokens that it holds now.

        False if it cannot: there is no room for checkpoints, or a pass over it failed.
        """
        return True

    def truncate(self, n_tokens: int) -> None:
        """Forgets all tokens after the first `n_tokens`, and the logits.

        Raises SettingsError, and ModelUnsupported for what is not in `reach`, or if that would cut
        embeddings that were given together.
        """
        if not 0 <= n_tokens <= self.n_tokens:
            raise SettingsError(f"cannot keep {n_tokens} of {self.n_tokens} tokens")
        self._require_whole_spans(self.spans, n_tokens)
        if n_tokens < self.n_tokens:
            self.has_logits = False
        self._drop_after(n_tokens)

    def roll_back(self, n_tokens: int) -> None:
        """Forgets the tokens after the first `n_tokens`, which a prompt that failed had appended.

        Unlike `truncate`, it leaves `has_logits` alone: a chunk that is not the last one of its
        prompt writes no logits, and one that may have written them has cleared it. To the length
        that the session had when `restorable` was opened; a session that was not, or to another
        length, may be left without a state: see `require_whole`.
        """
        self._drop_after(n_tokens)

    def lose(self) -> None:
        """To be called after a pass over it that failed: a state may be rewritten in part."""
        return

    @property
    def is_lost(self) -> bool:
        """Whether `require_whole` raises, and the session's bytes do not say so themselves."""
        return False

    def require_whole(self) -> None:
        """Raises DeviceFailed if a pass failed and left a state that is of no tokens."""
        return

    def restorable(self) -> AbstractContextManager[None]:
        """While open, the session can be brought back to the tokens that it has now, by `truncate`
        or `roll_back`, whatever its model."""
        return nullcontext()

    @abstractmethod
    def copied_nbytes(self, n_tokens: int) -> int:
        """Bytes, about, that `copy_from` copies of so many tokens."""

    def copy_from(
        self, source: Session, n_tokens: int, check: Callable[[], None] = nothing
    ) -> None:
        """Begins with the first `n_tokens` of `source`, a session of the same model.

        `check` is called between two parts and may raise; the session has no tokens then.
        ContextFull; ModelUnsupported for a part of what a model cannot take back.
        """
        self.require_room(n_tokens - self.n_tokens)
        self._require_whole_spans(source.spans, n_tokens)
        self._require_copyable(source, n_tokens)
        self.truncate(0)
        self._copy_bytes(source, n_tokens, check)
        whole = n_tokens == source.n_tokens and source.has_logits
        if whole:
            ctypes.memmove(self.base, source.base, 4 * self.layout.n_vocab)
        if self.top is not None:
            self.top.expire()
        self.tokens.extend(source.tokens[:n_tokens])
        self.spans = [it for it in source.spans if it.end <= n_tokens]
        self.has_logits = whole

    def _drop_after(self, n_tokens: int) -> None:
        del self.tokens[n_tokens:]
        if self.spans:
            self.spans = [it for it in self.spans if it.end <= n_tokens]

    def _require_whole_spans(self, spans: Sequence[Span], n_tokens: int) -> None:
        span = cut_span(spans, n_tokens)
        if span is not None:
            raise ModelUnsupported(
                f"{n_tokens} tokens end inside a picture or sound, which is kept whole or not at "
                f"all: keep {span.first} or {span.end}"
            )

    def _require_copyable(self, source: Session, n_tokens: int) -> None:
        """Raises if a session of this kind cannot take so many tokens of that one."""
        return

    @abstractmethod
    def _copy_bytes(self, source: Session, n_tokens: int, check: Callable[[], None]) -> None:
        """Copies what `n_tokens` of `source` left in its bytes, the logits aside."""

    def copy_logits(self, target: HostAddr) -> None:
        """Puts the logits elsewhere in the guest's memory as well."""
        self.binding.copy(target, self.base, 4 * self.layout.n_vocab)

    def close(self) -> None:
        """Lets go of the guest's bytes; a second call does nothing."""
        if self.closed:
            return
        self.owner.forget(self)
        self.closed = True
        self._release()
        self._hold.release()

    def _begin(self) -> None:
        """Begins what a session of this kind does in its bytes; `_release` ends it."""
        return

    def _release(self) -> None:
        """Ends what else a session of this kind has begun in its bytes."""
        return

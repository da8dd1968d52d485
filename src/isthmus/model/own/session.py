"""Sessions of models whose graphs Isthmus writes down: keys and values in planes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from isthmus.device.buffer import Binding, Rows
from isthmus.memory import Region
from isthmus.model.own.kv_cache import KvCache, KvLayout
from isthmus.model.session import COPY_NBYTES, Session, SessionOwner
from isthmus.model.shape.hparams import Hparams
from isthmus.units import DeviceAddr, GuestPtr, HostAddr


class OwnSession(Session):
    """See the module. `OwnModel` has settled its KV cache in the binding; `close` ends that."""

    layout: KvLayout

    kv_base = DeviceAddr(0)
    """Its KV cache as the device addresses it, where batches use that."""
    states_base = DeviceAddr(0)
    """The same of its states, if it has some."""
    _cache: KvCache | None = None

    def __init__(
        self,
        owner: SessionOwner,
        region: Region,
        binding: Binding,
        ptr: GuestPtr,
        layout: KvLayout,
        hparams: Hparams,
    ) -> None:
        self.hparams = hparams
        super().__init__(owner, region, binding, ptr, layout)

    @property
    def cache(self) -> KvCache:
        """The tensors of its KV cache, described when they are first needed."""
        if self._cache is None:
            device = self.owner.device
            self._cache = KvCache(device, self.binding, self.base, self.layout, self.hparams)
        return self._cache

    def rows(self, n_tokens: int) -> Rows:
        return self._cache_rows(n_tokens)

    def copied_nbytes(self, n_tokens: int) -> int:
        return n_tokens * self.layout.token_nbytes

    def fetch(self, first: int, n: int, *, with_logits: bool) -> None:
        """Has the guest see what a pass over `n` tokens wrote, where the device has a copy."""
        if not self.binding.copies:
            return
        for offset, nbytes in self.layout.rows(first, n):
            self.binding.fetch(HostAddr(self.base + offset), nbytes)
        if with_logits:
            self.binding.fetch(self.base, 4 * self.layout.n_vocab)
            if self.top is not None and self.owner.finds_top:
                self.binding.fetch(self.top.address, self.top.nbytes)

    def _copy_bytes(self, source: Session, n_tokens: int, check: Callable[[], None]) -> None:
        """Their rows of every layer are copied."""
        pairs = zip(self._cache_rows(n_tokens), own(source)._cache_rows(n_tokens), strict=True)
        for (to, nbytes), (origin, _) in pairs:
            for at in range(0, nbytes, COPY_NBYTES):
                part = min(COPY_NBYTES, nbytes - at)
                self.binding.copy(HostAddr(to + at), HostAddr(origin + at), part)
                check()
        self.binding.send(self.base, self.layout.nbytes)

    def _cache_rows(self, n_tokens: int) -> Rows:
        """Keys and values of its first tokens."""
        rows = self.layout.rows(0, n_tokens)
        return [(HostAddr(self.base + offset), nbytes) for offset, nbytes in rows]

    def _begin(self) -> None:
        binding, layout = self.binding, self.layout
        kv_base = HostAddr(self.base + layout.kv_offset)
        if self.owner.device.everywhere is not None:  # a batch writes here, and places no tensor
            binding.cover(self.base, layout.kv_offset)
            binding.cover(kv_base, layout.cache_nbytes)
            self.kv_base = binding.address(kv_base)
            if layout.states_nbytes:
                states_base = HostAddr(self.base + layout.states_offset)
                binding.cover(states_base, layout.states_nbytes)
                self.states_base = binding.address(states_base)
        binding.send(self.base, layout.nbytes)

    def _release(self) -> None:
        if self._cache is not None:
            self._cache.close()
        for offset in (self.layout.kv_offset, self.layout.states_offset):
            self.binding.unsettle(HostAddr(self.base + offset))


def own(session: Session) -> OwnSession:
    """A session as graphs of ours know it: they are given no other ones."""
    return cast("OwnSession", session)

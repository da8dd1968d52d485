"""An actor's linear memory over time: which chunks hold what, and the image it was frozen in.

::

    Region ── writes since ──► its own pages
       └──── everything else ─► Image (frozen), whose chunks' hashes are known or not

Freezing copies what is in use into an image and lets the Region go on over it, copy-on-write. The
bytes exist once afterwards, children map the same image, and the system tells which pages changed
since: the next snapshot need hash no others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from isthmus.errors import Overloaded, RegionError
from isthmus.memory import Image, LiveImage, Region, touched_chunks, used_chunks
from isthmus.memory.quota import FILES
from isthmus.native import libc
from isthmus.snapshot import CHUNK_NBYTES, Chunks, MemorySource
from isthmus.snapshot.chunk import hash_chunks, runs
from isthmus.units import HostAddr

Freeze = Callable[[HostAddr, int, Sequence[tuple[int, int]]], Image]
"""(base, nbytes, used): an image of the ranges `used` of the memory at `base`."""

_REFREEZE_ABOVE = 0.25
"""Freeze again once more than this share of the memory in use was written to since."""


class Pages:
    """See the module. Used while the guest runs nothing."""

    def __init__(self, region: Region, *, remappable: bool, freeze: Freeze = Image.freeze) -> None:
        """`freeze` makes an image; it may raise Overloaded."""
        self._region = region
        self._freeze = freeze
        self._remappable = remappable and region.remappable
        self._hashed: tuple[Image, Chunks] | None = None

    def load(
        self,
        image: Image | LiveImage,
        chunks: Chunks | None,
        apart: Sequence[tuple[int, int]] = (),
    ) -> int:
        """Makes the memory that of `image`, but for the ranges `apart`, (offset, nbytes), which
        become zero. Returns how many bytes were copied to do so."""
        n_copied = self._region.load(image, apart)
        self._hashed = None
        if chunks is not None and isinstance(image, Image):
            self._hashed = image, chunks
        return n_copied

    @property
    def lost(self) -> bool:
        """Whether the memory is neither what it was nor what was loaded last."""
        return self._region.lost

    def source(self) -> MemorySource:
        """The memory as it is now, with the hash of each chunk."""
        region = self._region
        known = self._known()
        touched = (used_chunks if known is None else touched_chunks)(region, CHUNK_NBYTES)
        chunks = hash_chunks(region.base, region.nbytes, touched, known)
        return MemorySource(region.base, region.nbytes, chunks)

    def freeze(self) -> Image:
        """An image of the memory as it is now; the Region goes on over it where it can.

        RegionError; Overloaded, if all actors together would have too much, for instance. The
        memory is what it was, unless it is `lost`.
        """
        region = self._region
        if region.image is None:  # a further file; otherwise the former image's is closed soon
            FILES.require_spare()
        image = self._freeze(region.base, region.nbytes, self._used())
        if self._remappable:
            with self._unless_short():
                self.load(image, None)
        return image

    def write(self, path: Path) -> tuple[Sequence[tuple[int, int]], Chunks | None]:
        """Copies the memory as it is now to a new file. Returns the ranges, (offset, nbytes), that
        are not zero, and the hashes of all chunks where few are to be hashed for that.

        RegionError, and no file is left.
        """
        region = self._region
        chunks = None if self._known() is None else self.source().chunks
        used = self._used() if chunks is None else list(runs(chunks))
        Image.write(path, region.base, region.nbytes, used)
        return used, chunks

    def track(self, source: MemorySource) -> None:
        """Has the next `source` hash only what changes from now on, or from not long ago."""
        if not self._remappable:
            return
        n_touched = len(touched_chunks(self._region, CHUNK_NBYTES))
        if self._known() is None or n_touched > _REFREEZE_ABOVE * len(source.chunks):
            used = list(runs(source.chunks))
            with self._unless_short():  # without it the next snapshot hashes more
                image = self._freeze(source.base, source.nbytes, used)
                self.load(image, source.chunks)

    @contextlib.contextmanager
    def _unless_short(self) -> Iterator[None]:
        """Leaves the memory as it is where mappings or files for an image of it are lacking."""
        try:
            yield
        except (RegionError, Overloaded):
            if self.lost:
                raise

    def _used(self) -> list[tuple[int, int]]:
        """The ranges, (offset, nbytes), of chunks that are not zero."""
        region = self._region
        return list(
            runs(
                int(n)
                for n in used_chunks(region, CHUNK_NBYTES)
                if not libc.is_zero(region.base + int(n) * CHUNK_NBYTES, CHUNK_NBYTES)
            )
        )

    def _known(self) -> Chunks | None:
        image = self._region.image
        hashed = self._hashed
        return hashed[1] if hashed and image is not None and hashed[0] is image else None

"""A picture or a sound as a model takes it: parts, each of tokens or of rows of embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from isthmus.abi import MediaKind
from isthmus.errors import ModelUnsupported
from isthmus.model.spans import Positions
from isthmus.native._mtmd import IMAGE, TEXT
from isthmus.native.mtmd import Mtmd
from isthmus.native.owned import Owned


@dataclass(frozen=True)
class Bitmap:
    """What a guest has decoded."""

    kind: MediaKind
    data: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    """u8 [height, width, 3] of a picture, f32 [n] of a sound."""

    @property
    def n_bytes(self) -> int:
        """Its size in memory."""
        return self.data.nbytes


@dataclass(frozen=True)
class Part:
    """See the module."""

    n_rows: int
    width: int
    """Numbers of a row; 1 for tokens."""
    chunk: int
    """The library's, which the medium owns; only for `Projector`."""
    ids: tuple[int, ...] | None = None
    """Token ids, or None for rows of embeddings."""
    whole: bool = False
    """Whether each row sees the others."""
    positions: Positions | None = None
    """i32 [3, n_rows], counted from a session's next position; None: rows follow each other."""


class Medium(Owned):
    """Owns the library's chunks of one medium. The projector that made it must live as long."""

    def __init__(self, mtmd: Mtmd, projector: int, chunks: int, width: int) -> None:
        """`width`: numbers of a row of embeddings. Raises ModelUnsupported."""
        super().__init__(chunks, partial(mtmd.mtmd_input_chunks_free))
        self._mtmd, self._projector, self._width = mtmd, projector, width
        try:
            count = mtmd.mtmd_input_chunks_size(chunks)
            each = [self._part(mtmd.mtmd_input_chunks_get(chunks, i)) for i in range(count)]
        except BaseException:
            self.close()
            raise
        self.parts = [it for it in each if it.n_rows]
        """In the order in which a session takes them."""

    def _part(self, chunk: int) -> Part:
        mtmd = self._mtmd
        kind = mtmd.mtmd_input_chunk_get_type(chunk)
        if kind == TEXT:
            ids = mtmd.ids(chunk)
            return Part(len(ids), 1, chunk, ids)
        n = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        whole = mtmd.mtmd_decode_use_non_causal(self._projector, chunk)
        positions = None
        if kind == IMAGE and mtmd.mtmd_decode_use_mrope(self._projector):
            positions = mtmd.positions(chunk)
        after = n if positions is None else int(positions.max()) + 1
        if mtmd.mtmd_input_chunk_get_n_pos(chunk) != after:
            raise ModelUnsupported("the projector counts positions in a way that is not known here")
        return Part(n, self._width, chunk, None, whole, positions)

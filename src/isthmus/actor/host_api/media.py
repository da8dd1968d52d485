"""The host functions of the group `media` in `abi/host.toml`, in its order."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import numpy.typing as npt

from isthmus import abi
from isthmus.abi import Errno, MediaKind, PartKind, SpanFlag
from isthmus.actor.ask import Aside, Prompt
from isthmus.actor.host_api.context import Context, flags_of
from isthmus.errors import GuestFault, SettingsError
from isthmus.model import Model
from isthmus.model.media.medium import Bitmap, Medium, Part
from isthmus.model.spans import AXES, Embeddings, Positions

_ALIGNMENT = 32
_KINDS = frozenset(kind.value for kind in MediaKind)
_MAX_POSITION = 1 << 24
"""Further on than any context ends."""
_COPIES = 4
"""Bytes of the host's memory for each byte of a medium, about: the library resizes a copy of it,
and turns its bytes into numbers."""


class MediaFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def prefill_embeddings(
        self, session: int, rows_ptr: int, n_rows: int, width: int, positions_ptr: int, flags: int
    ) -> int:
        c = self._c
        opened, wanted = c.session(session), flags_of(SpanFlag, flags)
        if n_rows == 0:
            raise GuestFault(Errno.EINVAL)
        opened.require_room(n_rows)  # before positions of so many are read
        nbytes = 4 * n_rows * width
        address = c.memory.check_aligned(rows_ptr, nbytes, _ALIGNMENT)
        c.require_no_session(rows_ptr, nbytes)
        positions = None
        if SpanFlag.PLACED in wanted:
            positions = self._positions(positions_ptr, n_rows) + np.int32(opened.next_position)
        given = Embeddings(address, n_rows, width, positions, SpanFlag.WHOLE not in wanted)
        c.require_tokens(n_rows, 0)
        start = time.perf_counter_ns()
        try:
            with c.explained():
                await Aside(c.message, partial(Model.of(opened).require_embeddings, opened, given))
                await c.prefill_embeddings(opened, given)
        finally:
            c.counters.host_ns += time.perf_counter_ns() - start
        return 0

    def media_rate(self, model: int) -> int:
        with self._c.explained():
            return self._c.model(model).sound_rate

    async def media_open(
        self, model: int, kind: int, data_ptr: int, width: int, height: int
    ) -> int:
        c = self._c
        opened = c.model(model)
        if kind not in _KINDS or not width or not height:
            raise GuestFault(Errno.EINVAL)
        with c.explained():
            opened.require_media(MediaKind(kind))
        n_open = len(c.handles.all(Medium))
        c.limit("media", n_open + 1, c.limits.media)
        c.handles.require_room()
        n_bytes = self._nbytes(opened, MediaKind(kind), width, height)
        c.memory.check_aligned(data_ptr, n_bytes, 4 if kind == MediaKind.PCM else 1)
        c.message.check_going_on()
        c.hold(_COPIES * n_bytes)
        read = partial(self._bitmap, MediaKind(kind), data_ptr, width, height)
        try:
            medium = await Aside(c.message, lambda: opened.open_medium(read()))
        except SettingsError as error:
            c.message.explained[Errno.EINVAL] = error
            raise
        return c.handles.add(medium, c.handles.model_of(model))

    def media_info(self, medium: int, part: int, part_ptr: int) -> int:
        c = self._c
        opened = c.handles.get(medium, Medium)
        c.memory.check_aligned(part_ptr, abi.MEDIA_PART.size, 4)
        found = _part(opened, part)
        kind = PartKind.EMBEDDINGS if found.ids is None else PartKind.TOKENS
        flags = SpanFlag.WHOLE if found.whole else SpanFlag(0)
        flags |= SpanFlag(0) if found.positions is None else SpanFlag.PLACED
        c.memory.write(part_ptr, abi.MEDIA_PART.pack(kind, found.n_rows, found.width, flags))
        return len(opened.parts)

    async def media_embed(
        self, medium: int, part: int, values_ptr: int, cap: int, positions_ptr: int
    ) -> int:
        c = self._c
        opened = c.handles.get(medium, Medium)
        found = _part(opened, part)
        count = found.n_rows * found.width
        room = c.memory.check_aligned(values_ptr, 4 * cap, _ALIGNMENT)
        if count > cap:
            return count
        c.require_no_session(values_ptr, 4 * count)
        if found.ids is not None:
            c.memory.write(values_ptr, np.array(found.ids, np.int32).tobytes())
            return count
        if found.positions is not None:
            nbytes = found.positions.nbytes
            c.memory.check_aligned(positions_ptr, nbytes, 4)
            c.require_no_session(positions_ptr, nbytes)
            c.memory.write(positions_ptr, found.positions.tobytes())
        c.message.check_going_on()
        model = c.granted.models[c.handles.model_of(medium)]
        start = time.perf_counter_ns()
        try:
            begin = partial(model.media_jobs, found, room)
            await Prompt(c.message, model, found.n_rows, begin)
        finally:
            c.counters.host_ns += time.perf_counter_ns() - start
        return count

    def media_close(self, medium: int) -> int:
        self._c.handles.remove(medium, Medium).close()
        return 0

    def close_all(self) -> None:
        """Closes what the guest left open; its handles mean nothing any more."""
        handles = self._c.handles
        for number in handles.numbers():
            if isinstance(handles.get(number, object), Medium):
                handles.remove(number, Medium).close()

    # ------------------------------------------------------------------ parts

    def _positions(self, ptr: int, n_rows: int) -> Positions:
        c = self._c
        c.memory.check_aligned(ptr, 4 * AXES * n_rows, 4)
        numbers = c.memory.read_i32_array(ptr, AXES * n_rows)
        found = np.array(numbers, dtype=np.int64).reshape(AXES, n_rows)
        if found.min() < 0 or found.max() > _MAX_POSITION:
            raise GuestFault(Errno.EINVAL)
        return found.astype(np.int32)

    def _nbytes(self, model: Model, kind: MediaKind, width: int, height: int) -> int:
        """The size of a medium. GuestFault if it is larger than the actor may have one."""
        c = self._c
        if kind is MediaKind.RGB:
            c.limit("media_pixels", width * height, c.limits.media_pixels)
            return 3 * width * height
        if height != 1:
            raise GuestFault(Errno.EINVAL)
        c.limit("media_seconds", -(-width // model.sound_rate), int(c.limits.media_seconds))
        return 4 * width

    def _bitmap(self, kind: MediaKind, ptr: int, width: int, height: int) -> Bitmap:
        c = self._c
        data: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
        if kind is MediaKind.PCM:
            data = np.frombuffer(c.memory.read(ptr, 4 * width), np.float32)
            if not np.isfinite(data).all():
                raise SettingsError("the sound has samples that are not numbers")
        else:
            raw = c.memory.read(ptr, 3 * width * height)
            data = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
        return Bitmap(kind, data)


def _part(medium: Medium, number: int) -> Part:
    if number >= len(medium.parts):
        raise GuestFault(Errno.EINVAL)
    return medium.parts[number]

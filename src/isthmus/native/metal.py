"""What Metal itself says about a buffer over our memory, through PyObjC (`isthmus[metal]`)."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

from isthmus.units import HostAddr


def is_installed() -> bool:
    """Whether PyObjC's Metal is there."""
    return find_spec("Metal") is not None


def no_copy_contents(base: HostAddr, nbytes: int) -> HostAddr:
    """`MTLBuffer.contents()` of a no-copy buffer over whole pages; 0 where Metal makes none.

    The same call as ggml's, made a second time so that somebody else tells the address.
    """
    import Metal  # type: ignore[import-not-found]  # noqa: PLC0415 - an optional dependency

    memory = (ctypes.c_ubyte * nbytes).from_address(base)
    buffer = (
        Metal.MTLCreateSystemDefaultDevice().newBufferWithBytesNoCopy_length_options_deallocator_(
            memory, nbytes, Metal.MTLResourceStorageModeShared, None
        )
    )
    if buffer is None:
        return HostAddr(0)
    view = memoryview(buffer.contents().as_buffer(nbytes))
    return HostAddr(ctypes.addressof(ctypes.c_ubyte.from_buffer(view)))

"""Page sizes, alignment, and the three kinds of address.

A wasm page is 65,536 bytes on every machine; an OS page is 4,096 or 16,384. Neither is ever
called just a page. An address is one of three things, and no function takes one for another:

=============  ======================================================================
`GuestPtr`     an offset in a guest's linear memory, what a guest calls a pointer
`HostAddr`     an address of this process
`DeviceAddr`   an address as the compute device sees it
=============  ======================================================================

On a device that shares memory as `same` a `HostAddr` and a `DeviceAddr` are equal numbers;
`isthmus verify` proves it.
"""

from __future__ import annotations

import mmap
from typing import NewType

GuestPtr = NewType("GuestPtr", int)
HostAddr = NewType("HostAddr", int)
DeviceAddr = NewType("DeviceAddr", int)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

WASM_PAGE = 65_536
MAX_NBYTES_32 = 4 * GIB - WASM_PAGE
"""What a 32-bit linear memory may have: one wasm page less than its pointers could reach."""
MAX_NBYTES_64 = 1024 * GIB
"""What a 64-bit one may have here: a process has 128 TiB of addresses, for all its actors."""
OS_PAGE = mmap.PAGESIZE
FIRST_ADDRESS = 1 << 16
ADDRESSES_NBYTES = (1 << 48) - FIRST_ADDRESS
"""From the first address of a process to the end of the last: 47 bits of addresses on x86-64, 48 on
arm64. Source: Linux's Documentation/arch/x86/x86_64/mm.rst and arch/arm64/memory.rst."""


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is at least `value`."""
    return (value + alignment - 1) // alignment * alignment


def format_nbytes(nbytes: float) -> str:
    """`nbytes` for people, in binary units: '23.4 MiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"

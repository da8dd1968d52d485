"""The processor as a device."""

from __future__ import annotations

from isthmus.device import Device


def test_every_address_of_a_process_is_in_its_buffer(device: Device) -> None:
    """A batch names rows of caches by their distance from its base; arm64 has 48 bits of them."""
    everywhere = device.everywhere
    assert everywhere is not None
    assert everywhere.base + everywhere.nbytes == 1 << 48

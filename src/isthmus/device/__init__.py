"""Compute devices: one file each, of the same name.

`open_device("cpu")`, `open_device("cuda:0")`: the word before the colon names a module of this
package that defines `open_device(library, settings, index)`.
"""

from __future__ import annotations

import importlib

from isthmus.config import DeviceSettings
from isthmus.device.base import Backend, Device, DeviceInfo
from isthmus.errors import DeviceUnavailable, SettingsError
from isthmus.native.loader import Library

__all__ = ["Backend", "Device", "DeviceInfo", "device_kinds", "open_device"]

_KINDS = ("cpu", "cuda", "metal", "null", "vulkan")
_BEST_FIRST = ("metal", "cuda", "vulkan", "cpu")


def device_kinds() -> list[str]:
    """The kinds of device that this release knows."""
    return list(_KINDS)


def open_device(name: str, library: Library, settings: DeviceSettings) -> Device:
    """Opens a device by name; `auto` takes the best that opens.

    Raises SettingsError for a name that means nothing, DeviceUnavailable where it is not here.
    """
    if name == "auto":
        return _open_best(library, settings)
    kind, _, index = name.partition(":")
    if kind not in device_kinds() or not (index or "0").isdecimal():
        raise SettingsError(
            f"there is no device {name!r}; this release knows {', '.join(device_kinds())} and auto"
        )
    if int(index or 0) and kind in ("cpu", "null"):
        raise DeviceUnavailable(f"there is no device {name!r}: there is one {kind}")
    module = importlib.import_module(f"isthmus.device.{kind}")
    device: Device = module.open_device(library, settings, int(index or 0))
    return device


def _open_best(library: Library, settings: DeviceSettings) -> Device:
    for kind in _BEST_FIRST[:-1]:
        try:
            return open_device(kind, library, settings)
        except DeviceUnavailable:
            continue
    return open_device(_BEST_FIRST[-1], library, settings)

"""Finds a graphics device among what the library offers, or says what is missing and what to do."""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.errors import DeviceUnavailable, SettingsError
from isthmus.native.loader import Library


@dataclass(frozen=True)
class Kind:
    """What one kind of device needs."""

    name: str
    registry: str
    """What ggml calls the backend."""
    driver: str
    """The driver's library, such as `libvulkan.so.1`; empty where the system always has it."""
    install_library: str
    install_driver: str
    nodes: str = ""
    """Pattern of the device files that the user must be allowed to open."""


class Ladder:
    """The ways in which a device may share memory, best first: the first one that works is taken.

    `notes` says why better ones were not.
    """

    def __init__(self, forced: str | None) -> None:
        self._forced = forced
        self.notes: list[str] = []

    def take(self, **ways: Callable[[], str]) -> str:
        """The first of `ways` that returns no reason against it; a forced one must be among them.

        Raises SettingsError, DeviceUnavailable.
        """
        if self._forced is not None and self._forced not in ways:
            raise SettingsError(
                f"this device cannot share as {self._forced!r}: give {', '.join(ways)}"
            )
        for way, why_not in ways.items():
            if self._forced not in (None, way):
                self.notes.append(f"not {way}: {self._forced} was asked for")
            elif reason := why_not():
                self.notes.append(f"not {way}: {reason}")
            else:
                return way
        raise DeviceUnavailable("; ".join(self.notes))


def find_device(library: Library, kind: Kind, index: int) -> int:
    """The ggml device number `index` of a kind; DeviceUnavailable says what is missing."""
    found = library.devices(kind.registry)
    if index < len(found):
        return found[index]
    if found:
        names = ", ".join(f"{kind.name}:{number}" for number in range(len(found)))
        raise DeviceUnavailable(f"there is no device {kind.name}:{index}; there is {names}")
    reasons = list(_reasons(library, kind))
    raise DeviceUnavailable(f"no {kind.name} device: " + "; ".join(reasons))


def _reasons(library: Library, kind: Kind) -> Sequence[str]:
    driver = _why_not_opened(kind.driver) if kind.driver else ""
    reasons = []
    if not library.has_backend(kind.registry):
        reasons.append(
            f"the library {library.path} ({library.source}) was built without {kind.registry}; "
            f"{kind.install_library}"
        )
    if driver:
        reasons.append(f"its driver is missing ({driver}); {kind.install_driver}")
    if locked := [node for node in glob.glob(kind.nodes) if not os.access(node, os.R_OK | os.W_OK)]:
        reasons.append(
            f"no permission to use {', '.join(sorted(locked))}; add the user to the file's group"
        )
    return reasons or [f"the driver is there and reports no device; {kind.install_driver}"]


def _why_not_opened(name: str) -> str:
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    return ""

"""Machines with addresses of their own on one host: network namespaces on a bridge.

::

    this process's threads   198.18.0.254 ─┐
    a server                 198.18.0.1   ─┤ bridge, in a namespace that only this process has
    a server                 198.18.0.2   ─┤
    the store                198.18.0.100 ─┘

Nothing of it is seen by the host's own network, and nothing leaves it: the bridge lies in a
namespace that the calling thread enters, with the threads and processes that it begins, and no
namespace has a way to another network. The addresses are those for benchmarks (RFC 2544). A cut is
a route that swallows packets: connections that are open fall silent, as if a cable was pulled.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable

_NEWNET = 0x40000000
_NET = "198.18.0"
_numbers = itertools.count()


class NotPermitted(Exception):
    """This system lets nobody make network namespaces, or has no `ip`. Says which."""


class Machine:
    """A namespace: what runs in it has this address, and reaches those of the same network."""

    def __init__(self, name: str, host: int) -> None:
        self.name = name
        self.address = f"{_NET}.{host}"
        self.prefix = ("ip", "netns", "exec", name)
        """What a command begins with that is to run there."""


class Cut:
    """What may come between a machine and others: they send it nothing any more, so neither way is
    there a connection."""

    def __init__(self, machine: Machine, others: Iterable[Machine]) -> None:
        self._machine = machine
        self._others = list(others)
        self._is_cut = False

    def cut(self) -> None:
        self._is_cut = True
        for other in self._others:
            _ip("-n", other.name, "route", "add", "blackhole", self._machine.address)

    def mend(self) -> None:
        if not self._is_cut:
            return
        self._is_cut = False
        for other in self._others:
            _ip("-n", other.name, "route", "del", "blackhole", self._machine.address)


class Network:
    """See the module. Owns the namespaces; `close` puts the calling thread back where it was."""

    def __init__(self) -> None:
        """NotPermitted. To be closed by the same thread."""
        if shutil.which("ip") is None:
            raise NotPermitted("there is no ip (Debian: iproute2)")
        self._machines: list[Machine] = []
        self._name = f"isthmus-{os.getpid()}-{next(_numbers)}"
        self._home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        self._libc = ctypes.CDLL(None, use_errno=True)
        if self._libc.unshare(_NEWNET) != 0:
            os.close(self._home)
            raise NotPermitted(f"unshare: {os.strerror(ctypes.get_errno())}")
        try:
            _ip("link", "set", "lo", "up")
            _ip("link", "add", "bridge", "type", "bridge")
            _ip("addr", "add", f"{_NET}.254/24", "dev", "bridge")
            _ip("link", "set", "bridge", "up")
            self.machine(253)
        except NotPermitted:
            self.close()
            raise

    def machine(self, host: int) -> Machine:
        """One more, whose address ends with that number. NotPermitted."""
        made = Machine(f"{self._name}-{host}", host)
        _ip("netns", "add", made.name)
        self._machines.append(made)
        _ip("link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", made.name)
        _ip("link", "set", f"to-{host}", "master", "bridge", "up")
        _ip("-n", made.name, "addr", "add", f"{made.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", made.name, "link", "set", device, "up")
        return made

    def close(self) -> None:
        for it in self._machines:
            with contextlib.suppress(NotPermitted):
                _ip("netns", "delete", it.name)
        self._libc.setns(self._home, _NEWNET)
        os.close(self._home)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotPermitted(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

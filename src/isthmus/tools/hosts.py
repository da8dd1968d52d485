"""Which hosts may be asked, by a list.

====================  =========================================================================
on the list           what may be asked
====================  =========================================================================
`example.org`         that name, at ports 80 and 443
`*.example.org`       names below it, at any depth, but not itself
`*`                   every name
`example.org:8080`    that name at that port alone; so with all others
`10.0.0.7`, `[::1]`   that address, which may be private; names that lead to it still have to be
`10.0.0.0/8`          on the list themselves. A network is all addresses in it
====================  =========================================================================

An address that is not on the list must be one of the public internet, whatever name led to it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from isthmus.errors import SettingsError, ToolFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_USUAL_PORTS = (80, 443)
_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_ENTRY = re.compile(r"(?P<host>\[[0-9a-f:.]+\](/\d+)?|[^\[\]:]+)(:(?P<port>\d{1,5}))?", re.I)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""Addresses of IPv6 that a gateway makes IPv4 of (RFC 6052)."""
_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IANA has allocated of IPv6 as public addresses (RFC 4291, section 2.4)."""
_HOSTS_OWN = (ipaddress.ip_network("168.63.129.16/32"),)
"""Public addresses by which a cloud's machines reach the host that they run on: Azure's
(learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16)."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str | None
    network: _Network | None
    ports: tuple[int, ...]

    def fits(self, host: str, address: Address | None, port: int) -> bool:
        """Whether it lets a host of a URL be asked, which may be an address."""
        if port not in self.ports:
            return False
        if address is not None:
            return self.network is not None and address in self.network
        if self.name is None:
            return False
        if self.name.startswith("*"):
            return host.endswith(self.name[1:])
        return host == self.name


class AllowedHosts:
    """See the module."""

    def __init__(self, entries: Iterable[str]) -> None:
        """SettingsError for what is no entry, or none at all."""
        self._texts = tuple(entries)
        self._entries = tuple(map(_entry, self._texts))
        if not self._entries:
            raise SettingsError("no host may be asked: give names such as example.org, or *")

    def __str__(self) -> str:
        return ", ".join(self._texts)

    def require(self, host: str, port: int) -> None:
        """ToolFailed unless a host, as a URL names it, may be asked at a port."""
        address = _address(host)
        if not any(it.fits(host, address, port) for it in self._entries):
            raise ToolFailed(f"{host} at port {port} may not be asked; what may be: {self}")

    def require_address(self, host: str, text: str) -> None:
        """ToolFailed unless an address, to which a host leads, is public or on the list."""
        address = ipaddress.ip_address(text.partition("%")[0])
        listed = (it.network for it in self._entries if it.network is not None)
        if not (_is_public(address) or any(address in it for it in listed)):
            raise ToolFailed(
                f"{host} leads to {address}, which is not of the public internet, nor on the list"
            )


def _entry(text: str) -> _Entry:
    found = _ENTRY.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    said = f"{text!r} is no host: give example.org, *.example.org, *, 10.0.0.7 or [::1], each "
    wrong = SettingsError(f"{said}maybe with :PORT")
    if found is None:
        raise wrong
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65536:
        raise wrong
    ports = _USUAL_PORTS if port is None else (port,)
    host = found["host"].replace("[", "").replace("]", "")
    try:
        return _Entry(None, ipaddress.ip_network(host), ports)
    except ValueError:
        if not _NAME.fullmatch(host) or "[" in found["host"]:
            raise wrong from None
    return _Entry(host, None, ports)


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_public(address: Address) -> bool:
    if (inside := _inside(address)) is not None:
        return _is_public(inside)
    if address.version == 6 and address not in _UNICAST:
        return False
    if any(address in it for it in _HOSTS_OWN):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    """The address of IPv4 that one of IPv6 stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo[1] if address.teredo is not None else None
    return address.ipv4_mapped or address.sixtofour or teredo

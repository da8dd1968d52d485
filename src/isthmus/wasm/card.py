"""What a guest says of itself: the ABI that it was built for, and its options.

`isthmus build` writes it, whatever the language, as the last section of the module:

1. a custom section called `isthmus`
2. in it JSON: {"abi": 1, "about": "…", "options": [{"name", "help", "default"}, …]}

A module without the section is a guest like any other.
"""

from __future__ import annotations

import msgspec

from isthmus.abi import ABI_VERSION
from isthmus.errors import GuestInvalid
from isthmus.units import KIB
from isthmus.wasm import binary
from isthmus.wasm.binary import leb

SECTION = "isthmus"
_PREFIX = leb(len(SECTION)) + SECTION.encode()
MAX_NBYTES = 64 * KIB


class GuestOption(msgspec.Struct, frozen=True):
    """An option that a guest takes, as `key=value`."""

    name: str
    help: str
    default: str = ""
    """Its value if it is not given; empty for none."""


class GuestCard(msgspec.Struct, frozen=True):
    """See the module."""

    abi: int = ABI_VERSION
    about: str = ""
    """What the guest does, in a sentence."""
    options: tuple[GuestOption, ...] = ()


def read_card(wasm: bytes) -> GuestCard | None:
    """A module's card; None if it has none. GuestInvalid, without the guest's name, if what it has
    is none.
    """
    try:
        for section in binary.read_sections(wasm):
            if section.kind == binary.CUSTOM and wasm.startswith(_PREFIX, section.begin):
                return _decoded(wasm[section.begin + len(_PREFIX) : section.end])
    except IndexError:
        pass  # whoever compiles it says so
    return None


def with_card(wasm: bytes, card: GuestCard) -> bytes:
    """The module with a card, in place of the one that it had."""
    contents = _PREFIX + msgspec.json.encode(card)
    return without_sections(wasm, (SECTION,)) + bytes([binary.CUSTOM]) + _sized(contents)


def without_sections(wasm: bytes, prefixes: tuple[str, ...]) -> bytes:
    """The module without the custom sections whose names begin so."""
    parts = [wasm[: binary.HEADER_NBYTES]]
    for section in binary.read_sections(wasm):
        if section.kind == binary.CUSTOM and section.reader(wasm).name().startswith(prefixes):
            continue
        parts.append(bytes([section.kind]) + _sized(section.contents(wasm)))
    return b"".join(parts)


def require_known_abi(wasm: bytes) -> None:
    """GuestInvalid, without the guest's name, if it was built for an ABI that is not this one."""
    card = read_card(wasm)
    if card is not None and card.abi != ABI_VERSION:
        newer = card.abi > ABI_VERSION
        hint = "update isthmus" if newer else "build it again with this version's SDK"
        raise GuestInvalid(
            f"was built for version {card.abi} of the guest ABI, and this Isthmus has version "
            f"{ABI_VERSION}: {hint}"
        )


def _decoded(contents: bytes) -> GuestCard:
    if len(contents) > MAX_NBYTES:
        raise GuestInvalid(
            f"has a section {SECTION!r} of {len(contents):,} bytes: {MAX_NBYTES:,} are the most"
        )
    try:
        return msgspec.json.decode(contents, type=GuestCard)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GuestInvalid(
            f"has a section {SECTION!r} that is no card of a guest: {error}"
        ) from None


def _sized(contents: bytes) -> bytes:
    return leb(len(contents)) + contents

"""What a message consists of: text or bytes, files before a text, or what a command reads."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from isthmus.errors import SettingsError


class BinaryFile(Protocol):
    """An open file of bytes, such as `sys.stdin.buffer`, of which nothing was read yet."""

    def fileno(self) -> int:
        """Its descriptor; OSError if it has none, as a file in memory."""

    def read(self, n: int, /) -> bytes:
        """At most `n` bytes; none at its end."""


Content: TypeAlias = "str | bytes | BinaryFile"
"""What a message consists of. Only a command takes a file."""


def with_files(text: str | bytes, *files: bytes) -> bytes:
    """A message of a text and of files before it, as the guest `chat` takes pictures and sounds:

    1. a zero byte
    2. each file: its length, 32 bits, little-endian, and its bytes
    3. a length of zero
    4. the text, UTF-8

    Raises SettingsError for a file that is empty.
    """
    if not all(files):
        raise SettingsError("a file of the message is empty")
    each = b"".join(len(it).to_bytes(4, "little") + it for it in files)
    return b"\0" + each + bytes(4) + _encoded(text)


def content_of(message: Content, *, takes_files: bool) -> tuple[bytes, BinaryFile | None]:
    """A message's bytes, or the file that they come from. SettingsError if it is neither bytes nor
    a text that UTF-8 can hold, nor, for a guest that takes one, an open file of bytes."""
    if isinstance(message, str | bytes | bytearray | memoryview):
        return _encoded(message), None
    is_file = hasattr(message, "read") and hasattr(message, "fileno")
    if is_file and takes_files and not hasattr(message, "encoding"):
        return b"", message
    found = type(message).__name__
    if is_file:
        found += "; only a command reads a file, and one that is opened for bytes"
    raise SettingsError(f"a message is text or bytes, not {found}")


def _encoded(message: str | bytes) -> bytes:
    try:
        return message.encode() if isinstance(message, str) else bytes(message)
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"the message has U+{ord(error.object[error.start]):04X} at {error.start}, half of a "
            "character: give a text that UTF-8 can hold, or bytes"
        ) from None

"""The manifest: what a snapshot says of itself, as strict frozen records.

A manifest is checked as a whole here: its parts, its version, and what its records say of each
other. See `records.py` for what each of them may say.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from isthmus.config import (
    MAX_GRAMMAR_NBYTES,
    MAX_GUEST_GLOBALS,
    MAX_GUEST_NBYTES,
)
from isthmus.errors import SnapshotInvalid, SnapshotUnsupported
from isthmus.snapshot.chunk import DIGEST_NBYTES
from isthmus.snapshot.records import (
    MAX_MESSAGE_NBYTES,
    ActorRecord,
    Big,
    DeviceRecord,
    GlobalRecord,
    GrammarRecord,
    GuestRecord,
    HandleRecord,
    MemoryRecord,
    ModelRecord,
    Most,
    Name,
    PartRecord,
    Record,
    SessionRecord,
    Sha256,
)
from isthmus.snapshot.versions import (
    FORMAT_VERSION,
    READABLE_VERSIONS,
    leave_out_newer,
    version_for,
)
from isthmus.units import MIB, format_nbytes

NUMBERS_PART = "chunk.numbers"
DIGESTS_PART = "chunk.sha256"
GUEST_PART = "guest"
NN_PART = "nn"
MAX_TEXT_NBYTES = 4 * MIB
MAX_NN_NBYTES = 64 * MIB


def tokens_part(handle: int) -> str:
    """The name of a session's token ids."""
    return f"session.{handle}.tokens"


def text_part(handle: int) -> str:
    """The name of a session's text."""
    return f"session.{handle}.text"


def positions_part(handle: int) -> str:
    """The name of the positions of a session's embeddings, if some have positions of their own."""
    return f"session.{handle}.positions"


def source_part(handle: int) -> str:
    """The name of a grammar's source."""
    return f"grammar.{handle}.source"


def accepted_part(handle: int) -> str:
    """The name of the token ids that a grammar accepted."""
    return f"grammar.{handle}.tokens"


class Manifest(Record, frozen=True):
    """All of it."""

    format_version: int
    isthmus: Name
    created_ns: Big
    parent: Sha256 | None
    memory: MemoryRecord
    guest: GuestRecord
    globals: Annotated[tuple[GlobalRecord, ...], Meta(max_length=MAX_GUEST_GLOBALS)]
    models: Annotated[tuple[ModelRecord, ...], Most]
    handles: Annotated[tuple[HandleRecord, ...], Most]
    sessions: Annotated[tuple[SessionRecord, ...], Most]
    actor: ActorRecord
    device: DeviceRecord
    parts: Annotated[tuple[PartRecord, ...], Most]
    grammars: Annotated[tuple[GrammarRecord, ...], Most] = ()

    def encode(self) -> str:
        """As JSON text."""
        held = msgspec.to_builtins(self)
        leave_out_newer(held, self.format_version)
        return msgspec.json.encode(held).decode()

    def require_parts(self) -> None:
        """SnapshotInvalid unless the parts are those that belong to the rest, in the right size."""
        expected = self._expected_parts()
        if sorted(expected) != sorted(part.name for part in self.parts):
            raise SnapshotInvalid("a part is missing, too many, or there twice")
        for part in self.parts:
            dtype, shape = expected[part.name]
            most = _most_nbytes(part.name)
            if part.dtype != dtype or part.shape != (shape or part.shape[:1]):
                raise SnapshotInvalid(f"the part {part.name} has another type or shape")
            if shape is None and part.nbytes > most:
                raise SnapshotInvalid(f"the part {part.name} has {format_nbytes(part.nbytes)}")
        for it in self.sessions:
            it.require_sound()

    def _expected_parts(self) -> dict[str, tuple[str, tuple[int, ...] | None]]:
        """Type and shape of each part, by name; no shape if the rest does not say it."""
        n = self.memory.n_chunks
        expected: dict[str, tuple[str, tuple[int, ...] | None]] = {GUEST_PART: ("U8", None)}
        expected |= {NUMBERS_PART: ("U32", (n,)), DIGESTS_PART: ("U8", (n, DIGEST_NBYTES))}
        for it in self.sessions:
            expected[tokens_part(it.handle)] = ("I32", (it.n_tokens,))
            expected[text_part(it.handle)] = ("U8", None)
            if it.n_positions:
                expected[positions_part(it.handle)] = ("I32", (it.n_positions,))
        for grammar in self.grammars:
            expected[source_part(grammar.handle)] = ("U8", None)
            expected[accepted_part(grammar.handle)] = ("I32", (grammar.n_tokens,))
        if self.actor.message is not None:
            expected |= self.actor.message.parts
        if self.has_nn:
            expected[NN_PART] = ("U8", None)
        return expected

    @property
    def has_nn(self) -> bool:
        """Whether a part tells what the guest has opened by wasi-nn."""
        return any(part.name == NN_PART for part in self.parts)

    def model(self, name: str) -> ModelRecord:
        """The model of that name; SnapshotInvalid where a handle names one that is not there."""
        for model in self.models:
            if model.name == name:
                return model
        raise SnapshotInvalid(f"the manifest names a model {name!r} and does not describe it")


def _most_nbytes(part: str) -> int:
    """The most bytes of a part whose size the rest does not say."""
    if part == GUEST_PART:
        return MAX_GUEST_NBYTES
    if part == NN_PART:
        return MAX_NN_NBYTES
    if part.startswith("message."):
        return MAX_MESSAGE_NBYTES
    return MAX_GRAMMAR_NBYTES if part.endswith(".source") else MAX_TEXT_NBYTES


class _Version(msgspec.Struct):
    format_version: int


# Made here: several threads that each describe the same type to msgspec first can crash it.
_VERSION = msgspec.json.Decoder(_Version)
_MANIFEST = msgspec.json.Decoder(Manifest)


def decode_manifest(text: str) -> Manifest:
    """A manifest from its JSON text. Raises SnapshotInvalid, SnapshotUnsupported."""
    try:
        version = _VERSION.decode(text).format_version
        if version not in READABLE_VERSIONS:
            readable = ", ".join(map(str, READABLE_VERSIONS))
            raise SnapshotUnsupported(
                f"the snapshot has format version {version}; this release reads {readable}"
            )
        manifest = _MANIFEST.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SnapshotInvalid(f"the manifest is malformed: {error}") from None
    if version == 1 and manifest.grammars:
        raise SnapshotInvalid("a snapshot of format version 1 has no grammars")
    actor, is_64, nn = manifest.actor, manifest.memory.is_64, manifest.has_nn
    needed = version_for(manifest.models, manifest.sessions, actor, is_64=is_64, nn=nn)
    if max(version, FORMAT_VERSION) != needed:
        raise SnapshotInvalid(
            f"the snapshot has format version {version}, and what it holds is of {needed}: 3 is "
            "that of adapters and of a 64-bit memory, 4 that of classes of width and of "
            "candidates, 5 that of graphs of a library, 6 that of states, caches of many shapes, "
            "embeddings, limits of media and wasi-nn, 7 that of commands, 8 that of "
            "answers that are not at their end"
        )
    if manifest.memory.nbytes > 2**32 and not manifest.memory.is_64:
        raise SnapshotInvalid("the manifest says more than 4 GiB of 32-bit memory")
    return manifest

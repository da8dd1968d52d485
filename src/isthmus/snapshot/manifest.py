"""The manifest: what a snapshot says of itself, as strict frozen records.

Everything in it may come from a stranger. Types, ranges and unknown fields are refused here; what
needs a model, a guest or the file's size to judge is judged by whoever restores.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from isthmus.errors import SnapshotInvalid, SnapshotUnsupported

FORMAT_VERSION = 1

Count = Annotated[int, Meta(ge=0, lt=2**32)]
Big = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(max_length=256)]
KvType = Literal["f16", "f32", "q8_0"]
Dtype = Literal["U8", "I32", "U32"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records."""


class MemoryRecord(Record, frozen=True):
    """The linear memory's image."""

    nbytes: Annotated[int, Meta(ge=0, le=2**32, multiple_of=65536)]
    n_chunks: Count
    """Chunks that are not all zero."""


class GuestRecord(Record, frozen=True):
    """The module that the actor is an instance of; its bytes are the part `guest`."""

    name: Name
    sha256: Sha256


class GlobalRecord(Record, frozen=True):
    """A mutable global's value."""

    index: Count
    type: Literal["i32", "i64", "f32", "f64", "v128"]
    bits: Annotated[str, Meta(pattern="^([0-9a-f]{2}){4,16}$")]
    """Hexadecimal, little-endian."""


class ModelRecord(Record, frozen=True):
    """A model that the actor had opened, and what its results depend on."""

    name: Name
    """The name under which the actor was given it."""
    file_name: Name
    architecture: Name
    weights_sha256: Sha256
    """Of the whole GGUF file."""
    tokenizer_sha256: Sha256
    kv_type: KvType
    prefill_chunk: Count
    deterministic: bool
    repack: bool


class HandleRecord(Record, frozen=True):
    """A handle that the guest holds of a model, or of one of a model's weights."""

    handle: Count
    model: Name
    weight: Name = ""


class SessionRecord(Record, frozen=True):
    """A session: where it lies and what it holds. Its tokens and text are parts."""

    handle: Count
    model: Name
    ptr: Count
    n_ctx: Annotated[int, Meta(ge=256, le=2**24, multiple_of=256)]
    n_layer: Annotated[int, Meta(ge=1, le=4096)]
    n_vocab: Annotated[int, Meta(ge=1, le=2**24)]
    kv_type: KvType
    row_nbytes: Annotated[int, Meta(ge=1, le=2**26)]
    kv_offset: Count
    n_tokens: Count
    has_logits: bool


class LimitsRecord(Record, frozen=True):
    """The actor's limits, as in `isthmus.Limits`."""

    memory_nbytes: Big
    kv_nbytes: Big | None
    tokens: Big | None
    output_nbytes: Big | None
    deadline_s: Annotated[float, Meta(ge=0)] | None
    sessions: Big


class ActorRecord(Record, frozen=True):
    """What the host keeps of an actor."""

    args: tuple[str, ...]
    tools: tuple[Name, ...]
    limits: LimitsRecord
    seed: Annotated[str, Meta(pattern="^-?[0-9]{1,80}$")]
    n_random_blocks: Big
    clock_ns: int
    log_position: Big
    n_messages: Big
    last_handle: Count


class DeviceRecord(Record, frozen=True):
    """What computed the bytes."""

    name: Name
    library: Name
    library_sha256: Sha256
    """Of its files."""
    features: tuple[Name, ...]
    threads: Count


class PartRecord(Record, frozen=True):
    """A named tensor behind the memory's image."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9.]{1,64}$")]
    dtype: Dtype
    shape: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=2)]
    sha256: Sha256

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        n = 1 if self.dtype == "U8" else 4
        for extent in self.shape:
            n *= extent
        return n


class Manifest(Record, frozen=True):
    """All of it."""

    format_version: int
    isthmus: Name
    created_ns: Big
    parent: Sha256 | None
    memory: MemoryRecord
    guest: GuestRecord
    globals: tuple[GlobalRecord, ...]
    models: tuple[ModelRecord, ...]
    handles: tuple[HandleRecord, ...]
    sessions: tuple[SessionRecord, ...]
    actor: ActorRecord
    device: DeviceRecord
    parts: tuple[PartRecord, ...]

    def encode(self) -> str:
        """As JSON text."""
        return msgspec.json.encode(self).decode()

    def model(self, name: str) -> ModelRecord:
        """The model of that name; SnapshotInvalid where a handle names one that is not there."""
        for model in self.models:
            if model.name == name:
                return model
        raise SnapshotInvalid(f"the manifest names a model {name!r} and does not describe it")


class _Version(msgspec.Struct):
    format_version: int


def decode_manifest(text: str) -> Manifest:
    """A manifest from its JSON text. Raises SnapshotInvalid, SnapshotUnsupported."""
    try:
        version = msgspec.json.decode(text, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise SnapshotUnsupported(
                f"the snapshot has format version {version}; this release reads {FORMAT_VERSION}"
            )
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SnapshotInvalid(f"the manifest is malformed: {error}") from None

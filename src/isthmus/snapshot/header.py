"""A snapshot as a safetensors file: which tensor lies where, and the header that says so.

1. u64, little-endian: length of the header, so that 8 + it is a multiple of 16,384
2. the header: JSON, padded with spaces

   * `__metadata__`: `format` = `isthmus-snapshot`, `manifest`, `sha256` of the manifest, and
     `hmac-sha256` of it where the snapshot is signed
   * for each tensor its `dtype`, `shape` and `data_offsets`

3. the linear memory's image, sparse: `session.H.logits`, `session.H.k.L`, `session.H.v.L` or
   `session.H.plane.P`, and `memory.OFFSET` for all that lies between. Not in a store's snapshots,
   whose memory is in packs.
4. the parts that the manifest lists, one behind the other

There is one way to write a header: a reader makes it anew from the manifest and compares the
bytes. So a flipped bit, an overlap or a tensor that points elsewhere cannot be there.

Specification: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from isthmus.errors import SettingsError, SnapshotInvalid, SnapshotUntrusted
from isthmus.snapshot.chunk import CHUNK_NBYTES
from isthmus.snapshot.manifest import Manifest, decode_manifest
from isthmus.snapshot.records import SessionRecord
from isthmus.units import MIB, align_up

FORMAT = "isthmus-snapshot"
SPAN_ALIGNMENT = 4096
"""Bytes at a multiple of which parts of a session begin, up to a remainder of their own."""
_BEGIN = b'{"__metadata__":{"format":"isthmus-snapshot"'
MAX_HEADER_NBYTES = 64 * MIB
MAX_TENSORS = 1 << 16
LENGTH = struct.Struct("<Q")
_DTYPES = {"f16": ("F16", 2), "f32": ("F32", 4), "q8_0": ("U8", 1), "q4_0": ("U8", 1)}
MIN_KEY_NBYTES = 16


@dataclass(frozen=True)
class Tensor:
    """A named range of the data section."""

    name: str
    dtype: str
    shape: Sequence[int]
    offset: int
    nbytes: int


def tensors_of(manifest: Manifest, *, with_memory: bool) -> list[Tensor]:
    """Every tensor in the order in which it lies in the data section, which they fill. Raises
    SnapshotInvalid for too many of them, and for a handle that two sessions have."""
    n_planes = sum(it.n_planes + len(it.memories) for it in manifest.sessions)
    if n_planes + len(manifest.parts) > MAX_TENSORS:
        raise SnapshotInvalid(f"it has more than {MAX_TENSORS} tensors")
    manifest.require_parts()
    tensors = list(_memory_tensors(manifest)) if with_memory else []
    at = manifest.memory.nbytes if with_memory else 0
    for part in manifest.parts:
        tensors.append(Tensor(part.name, part.dtype, part.shape, at, part.nbytes))
        at += part.nbytes
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise SnapshotInvalid("two sessions have the same handle")
    return tensors


def _memory_tensors(manifest: Manifest) -> Iterator[Tensor]:
    at, end = 0, manifest.memory.nbytes
    for session in sorted(manifest.sessions, key=lambda session: session.ptr):
        for tensor in _session_tensors(session):
            if tensor.offset < at or tensor.offset + tensor.nbytes > end:
                raise SnapshotInvalid(f"{tensor.name} overlaps another tensor or leaves the memory")
            if tensor.offset > at:
                yield _plain(at, tensor.offset)
            yield tensor
            at = tensor.offset + tensor.nbytes
    if at < end:
        yield _plain(at, end)


def _plain(begin: int, end: int) -> Tensor:
    return Tensor(f"memory.{begin:#010x}", "U8", [end - begin], begin, end - begin)


def _session_tensors(session: SessionRecord) -> Iterator[Tensor]:
    """Logits, and the planes of its KV cache, as `model/own/kv_cache.py` lays them out."""
    stem = f"session.{session.handle}"
    logits_nbytes = 4 * session.n_vocab
    yield Tensor(f"{stem}.logits", "F32", [session.n_vocab], session.ptr, logits_nbytes)
    if session.memories:
        yield from _library_tensors(session)
        return
    dtype, item_nbytes = _DTYPES[session.kv_type]
    at = session.ptr + session.kv_offset
    for plane, row_nbytes in enumerate(session.plane_rows):
        columns, rest = divmod(row_nbytes, item_nbytes)
        if rest:
            raise SnapshotInvalid("a row of the KV cache is no whole number of elements")
        name = f"plane.{plane}" if session.rows else f"{'kv'[plane % 2]}.{plane // 2}"
        nbytes = session.n_ctx * row_nbytes
        yield Tensor(f"{stem}.{name}", dtype, [session.n_ctx, columns], at, nbytes)
        at += nbytes


def _library_tensors(session: SessionRecord) -> Iterator[Tensor]:
    """The memories of a library's graph, as `model/adopted/layout.py` lays them out."""
    remainder = session.kv_offset % SPAN_ALIGNMENT
    end = session.outputs_nbytes
    for number, nbytes in enumerate(session.memories):
        begin = align_up(end, SPAN_ALIGNMENT) + remainder
        end = begin + nbytes
        name = f"session.{session.handle}.memory.{number}"
        yield Tensor(name, "U8", [nbytes], session.ptr + begin, nbytes)


def encode_header(
    manifest_text: str, tensors: Sequence[Tensor], signature: str | None = None
) -> bytes:
    """The length and the header: a multiple of 16,384 bytes."""
    metadata = {"format": FORMAT, "manifest": manifest_text, "sha256": digest(manifest_text)}
    if signature is not None:
        metadata["hmac-sha256"] = signature
    return encode_safetensors(metadata, tensors)


def encode_safetensors(metadata: dict[str, str], tensors: Sequence[Tensor]) -> bytes:
    """A safetensors header whose data section begins at a multiple of 16,384 bytes."""
    entries: dict[str, object] = {"__metadata__": metadata}
    for tensor in tensors:
        offsets = [tensor.offset, tensor.offset + tensor.nbytes]
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = msgspec.json.encode(entries)
    nbytes = align_up(LENGTH.size + len(text), CHUNK_NBYTES) - LENGTH.size
    return LENGTH.pack(nbytes) + text.ljust(nbytes)


def is_snapshot(head: bytes) -> bool:
    """Whether a file that begins with `head`, 64 bytes or more, is to be a snapshot, if damaged."""
    return head[LENGTH.size :].startswith(_BEGIN)


def digest(manifest_text: str) -> str:
    """A snapshot's id: the SHA-256 of its manifest, which names the hashes of all the rest."""
    return hashlib.sha256(manifest_text.encode()).hexdigest()


def require_key(key: object) -> None:
    """SettingsError unless it can sign: bytes, 16 or more."""
    if not isinstance(key, (bytes, bytearray)) or len(key) < MIN_KEY_NBYTES:
        found = f"{len(key)} bytes" if isinstance(key, (bytes, bytearray)) else type(key).__name__
        raise SettingsError(f"the key for snapshots is {found}: give 16 bytes or more")


def sign(manifest_text: str, key: bytes) -> str:
    """HMAC-SHA256 of the manifest."""
    return hmac.new(key, FORMAT.encode() + b"\0" + manifest_text.encode(), "sha256").hexdigest()


@dataclass(frozen=True)
class Header:
    """A header that was read and found to be exactly what its manifest says."""

    manifest: Manifest
    id: str
    signature: str | None
    has_memory: bool
    tensors: Sequence[Tensor]
    nbytes: int
    """Where the data section begins in the file."""

    @property
    def file_nbytes(self) -> int:
        """How long the file must be."""
        last = self.tensors[-1] if self.tensors else None
        return self.nbytes + (last.offset + last.nbytes if last else 0)


def decode_header(raw: bytes, key: bytes | None) -> Header:
    """Reads the length and the header, `raw`.

    Where `key` is given the snapshot must be signed with it. Raises SnapshotInvalid,
    SnapshotUnsupported, SnapshotUntrusted.
    """
    metadata = decode_metadata(raw)
    text, signature = metadata.get("manifest", ""), metadata.get("hmac-sha256")
    if metadata.get("format") != FORMAT:
        raise SnapshotInvalid("it is a safetensors file, but no snapshot of Isthmus")
    if metadata.get("sha256") != digest(text):
        raise SnapshotInvalid("the manifest is damaged: its SHA-256 is another")
    if key is not None:
        _require_signature(text, signature, key)
    manifest = decode_manifest(text)
    for has_memory in (True, False):
        tensors = tensors_of(manifest, with_memory=has_memory)
        if encode_header(text, tensors, signature) == raw:
            return Header(manifest, digest(text), signature, has_memory, tensors, len(raw))
    raise SnapshotInvalid("the header does not say what the manifest says")


def decode_metadata(raw: bytes) -> dict[str, str]:
    """The `__metadata__` of a safetensors header, all strings. Nothing else is unpacked. Raises
    SnapshotInvalid if there is none."""
    try:
        entries = _ENTRIES.decode(raw[LENGTH.size :])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise SnapshotInvalid("it is not a safetensors file, or its header is damaged") from None
    if not entries.metadata:
        raise SnapshotInvalid("it is a safetensors file, but no snapshot of Isthmus")
    return entries.metadata


class _Entries(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


_ENTRIES = msgspec.json.Decoder(_Entries)


def _require_signature(text: str, signature: str | None, key: bytes) -> None:
    if signature is None:
        raise SnapshotUntrusted(
            "the snapshot is not signed, and only those with the given key are taken"
        )
    if not hmac.compare_digest(sign(text, key).encode(), signature.encode()):
        raise SnapshotUntrusted("the snapshot is signed with another key, or was changed")

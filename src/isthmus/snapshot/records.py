"""Records of the manifest: what a snapshot says of each thing that it holds.

Everything in them may come from a stranger. Types, ranges and unknown fields are refused here; what
needs a model, a guest or the file's size to judge is judged by whoever restores.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from isthmus.config import (
    MAX_CHECKPOINTS,
    MAX_GRAMMAR_TOKENS,
)
from isthmus.errors import SnapshotInvalid
from isthmus.units import MAX_NBYTES_64, MIB

Count = Annotated[int, Meta(ge=0, lt=2**32)]
Big = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Handle = Annotated[int, Meta(ge=1, lt=2**31)]
Label = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,256}$")]
"""A name that is shown to people and to guests: no control characters."""
Text = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Most = Meta(max_length=4096)
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(max_length=256)]
RowNbytes = Annotated[int, Meta(ge=1, le=2**26)]
KvType = Literal["f16", "f32", "q8_0", "q4_0"]
GrammarName = Literal["json_schema", "gbnf", "regex", "lark"]
Dtype = Literal["U8", "I32", "U32"]
MESSAGE_PART, EMITTED_PART = "message.data", "message.emitted"
REPLY_PART, TOOL_RESULT_PART = "message.reply", "message.tool"
READ_PART, TOLD_PART, UNREAD_PART = "message.tokens", "message.tools", "message.unread"
MAX_MESSAGE_NBYTES = 256 * MIB
"""Of each part of a message."""
MEDIA_LIMITS = ("media", "media_pixels", "media_seconds")
"""Limits of pictures and sounds."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records."""


class MemoryRecord(Record, frozen=True):
    """The linear memory's image."""

    nbytes: Annotated[int, Meta(ge=0, le=MAX_NBYTES_64, multiple_of=65536)]
    n_chunks: Count
    """Chunks that are not all zero."""
    is_64: bool = False
    """Whether its pointers have 64 bits."""


class GuestRecord(Record, frozen=True):
    """The module that the actor is an instance of; its bytes are the part `guest`."""

    name: Label
    sha256: Sha256


class GlobalRecord(Record, frozen=True):
    """A mutable global's value."""

    index: Count
    type: Literal["i32", "i64", "f32", "f64", "v128"]
    bits: Annotated[str, Meta(pattern="^([0-9a-f]{2}){4,16}$")]
    """Hexadecimal, little-endian."""


class AdapterRecord(Record, frozen=True):
    """A LoRA adapter of a model, in the order in which they are added."""

    file_name: Name
    sha256: Sha256
    """Of the whole GGUF file."""
    scale: Annotated[float, Meta(ge=-1e6, le=1e6)]


class ModelRecord(Record, frozen=True):
    """A model that the actor was given, and what its results depend on."""

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
    adapters: Annotated[tuple[AdapterRecord, ...], Meta(max_length=8)] = ()
    """Those of every session of it."""
    width: Annotated[str, Meta(pattern="^([1-9][0-9]{0,3}-[1-9][0-9]{0,3}|[1-9][0-9]{0,3})?$")] = ""
    """The class of its steps, such as 9-128; empty for that of a step by itself."""
    graph: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{0,128}$")] = ""
    """The library that writes its graph down, with the versions on which the bytes of its sessions
    depend; empty if Isthmus does."""

    @property
    def added(self) -> list[tuple[str, float]]:
        """What adapters add to it: SHA-256 and scale, those of scale 0 left out."""
        return [(it.sha256, it.scale) for it in self.adapters if it.scale]


class HandleRecord(Record, frozen=True):
    """A handle that the guest holds of a model, or of one of a model's weights."""

    handle: Handle
    model: Name
    weight: Name = ""


class SpanRecord(Record, frozen=True):
    """Rows of a session that came of embeddings, and not of tokens: a picture or a sound."""

    first: Count
    n_rows: Annotated[int, Meta(ge=1, le=2**24)]
    after: Count
    """The position of what comes next."""
    placed: bool
    """Whether its rows have positions of their own: in time, height and width, one axis after the
    other, behind those of the spans before."""


class SessionRecord(Record, frozen=True):
    """A session: where it lies and what it holds. Its tokens and text are parts."""

    handle: Handle
    model: Name
    ptr: Annotated[int, Meta(ge=0, lt=MAX_NBYTES_64)]
    n_ctx: Annotated[int, Meta(ge=256, le=2**24, multiple_of=256)]
    n_layer: Annotated[int, Meta(ge=0, le=4096)]
    """0 if `rows` says more, or a library writes the graph down; so is `row_nbytes` then."""
    n_vocab: Annotated[int, Meta(ge=1, le=2**24)]
    kv_type: KvType
    row_nbytes: Annotated[int, Meta(ge=0, le=2**26)]
    kv_offset: Count
    n_tokens: Count
    has_logits: bool
    top_k: Annotated[int, Meta(ge=0, le=256)] = 0
    """Most probable tokens that lie at `top_ptr` after each pass; 0 for none."""
    top_ptr: Annotated[int, Meta(ge=0, lt=MAX_NBYTES_64)] = 0
    outputs_nbytes: Count = 0
    """Bytes of the logits' buffer, if a library writes the graph down."""
    memories: Annotated[
        tuple[Annotated[int, Meta(ge=1, lt=MAX_NBYTES_64)], ...], Meta(max_length=16)
    ] = ()
    """Bytes of each buffer in which that library keeps what it knows of the tokens."""
    rows: Annotated[tuple[RowNbytes, ...], Meta(max_length=8192)] = ()
    """Bytes of a row of each plane of the KV cache, if layers do not have keys and values alike."""
    states_nbytes: Annotated[int, Meta(ge=0, le=2**32)] = 0
    """What layers without attention keep of all tokens together."""
    n_checkpoints: Annotated[int, Meta(ge=0, le=MAX_CHECKPOINTS)] = 0
    """Copies of that which the session has room for."""
    spans: Annotated[tuple[SpanRecord, ...], Most] = ()
    """Where its tokens are those of no vocabulary, and what they are instead."""
    is_lost: bool = False
    """Whether a pass failed and left a library's states that are of no tokens."""

    @property
    def n_planes(self) -> int:
        """Planes of the KV cache."""
        return len(self.rows) or 2 * self.n_layer

    @property
    def plane_rows(self) -> tuple[int, ...]:
        """Bytes of a row of each plane."""
        return self.rows or (self.row_nbytes,) * (2 * self.n_layer)

    def require_sound(self) -> None:
        """SnapshotInvalid if it contradicts itself."""
        kinds = [self.memories, self.rows, self.n_layer and self.row_nbytes]
        if sum(map(bool, kinds)) != 1:
            raise SnapshotInvalid(f"session {self.handle} has no KV cache, or two")
        if self.n_tokens > self.n_ctx:
            raise SnapshotInvalid(
                f"session {self.handle} is too full: {self.n_tokens} tokens of {self.n_ctx}"
            )

    @property
    def n_positions(self) -> int:
        """Numbers in the part of its positions."""
        return 3 * sum(it.n_rows for it in self.spans if it.placed)

    @property
    def n_embedded(self) -> int:
        """How many of its tokens are rows of embeddings."""
        return sum(it.n_rows for it in self.spans)

    @property
    def kv_nbytes(self) -> int:
        """What the session keeps of its tokens, about; 0 in the memories of a library."""
        states_nbytes = (1 + self.n_checkpoints) * self.states_nbytes
        return sum(self.plane_rows) * self.n_ctx + states_nbytes

    @property
    def kv_nbytes_used(self) -> int:
        """What its tokens take in the KV cache; about, in the memories of a library."""
        if self.memories:
            return sum(self.memories) * self.n_tokens // self.n_ctx
        return sum(self.plane_rows) * self.n_tokens + self.states_nbytes


class GrammarRecord(Record, frozen=True):
    """A text that follows a grammar. Its source and the tokens it accepted are parts."""

    handle: Handle
    model: Name
    kind: GrammarName
    n_tokens: Annotated[int, Meta(ge=0, le=MAX_GRAMMAR_TOKENS)]


class LimitsRecord(Record, frozen=True):
    """The actor's limits, as in `isthmus.Limits`."""

    memory_nbytes: Big
    kv_nbytes: Big | None
    tokens: Big | None
    tokens_in: Big | None
    tokens_out: Big | None
    output_nbytes: Big | None
    fuel: Big | None
    deadline_s: Annotated[float, Meta(ge=0)] | None
    sessions: Big
    weight: Annotated[float, Meta(gt=0, le=1024)]
    on_failure: Literal["keep", "undo", "close"]
    grammars: Big = 4
    media: Big = 4
    media_pixels: Big = 2**26
    media_seconds: Annotated[float, Meta(ge=0)] = 600.0

    @property
    def has_usual_media(self) -> bool:
        """Whether those of pictures and sounds are the usual ones."""
        usual = {it.name: it.default for it in msgspec.structs.fields(LimitsRecord)}
        return all(getattr(self, name) == usual[name] for name in MEDIA_LIMITS)


class AnswerRecord(Record, frozen=True):
    """An answer that the host reads while a guest samples it. Its tokens, the tools that the model
    was told of and the text that the guest has not read are parts."""

    model: Name
    in_thought: bool
    forced: bool
    ended: bool
    n_tokens: Count
    ids: Annotated[tuple[Name, ...], Most] = ()
    """Of its calls, if it has ended."""


class ToolCallRecord(Record, frozen=True):
    """A call of a tool that the guest has made for the message."""

    name: Name
    seconds: Annotated[float, Meta(ge=0)]
    nbytes: Big
    error: Text = ""


class MessageRecord(Record, frozen=True):
    """The message in whose middle the actor is. What came in, what was emitted, the reply so far
    and the last tool's result are parts."""

    pending: Name
    """The host function that its guest calls next."""
    arguments: Annotated[tuple[Big, ...], Meta(max_length=16)]
    room: Annotated[int, Meta(ge=1, lt=MAX_NBYTES_64)]
    """Where the guest's stack lies in its memory."""
    n_outputs: Big
    output_nbytes: Big
    tokens_in: Big
    tokens_out: Big
    fuel: Big
    """Instructions that the guest has run for it."""
    seconds: Annotated[float, Meta(ge=0)]
    """Since its begin."""
    seconds_left: Annotated[float, Meta(ge=0)] | None
    """Until its deadline."""
    has_reply: bool
    has_tool_result: bool
    limits_reached: Annotated[tuple[tuple[Name, Big], ...], Meta(max_length=64)] = ()
    last_limit: Text = ""
    last_warning: Text = ""
    tool_calls: Annotated[tuple[ToolCallRecord, ...], Meta(max_length=256)] = ()
    answer: AnswerRecord | None = None

    @property
    def parts(self) -> dict[str, tuple[Dtype, tuple[int, ...] | None]]:
        """Type and shape of each of its parts, by name; no shape if that is not said."""
        found: dict[str, tuple[Dtype, tuple[int, ...] | None]]
        found = {MESSAGE_PART: ("U8", None), EMITTED_PART: ("U8", None)}
        found |= {REPLY_PART: ("U8", None)} if self.has_reply else {}
        found |= {TOOL_RESULT_PART: ("U8", None)} if self.has_tool_result else {}
        if self.answer is not None:
            found[READ_PART] = ("I32", (self.answer.n_tokens,))
            found |= {TOLD_PART: ("U8", None), UNREAD_PART: ("U8", None)}
        return found


class ActorRecord(Record, frozen=True):
    """What the host keeps of an actor."""

    args: tuple[Text, ...]
    """Options for the guest, `key=value`, or a command's variables."""
    tools: tuple[Name, ...]
    limits: LimitsRecord
    seed: Annotated[str, Meta(pattern="^-?[0-9]{1,20}$")]
    n_random_blocks: Big
    clock_ns: Big
    log_position: Big
    n_messages: Big
    last_handle: Annotated[int, Meta(ge=0, lt=2**31)]
    argv: tuple[Text, ...] | None = None
    """A command's arguments; None for any other guest."""
    message: MessageRecord | None = None


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

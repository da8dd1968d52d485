"""The guest ABI, as the host registers it: errno, constants, structs and host functions.

Generated from abi/host.toml by tools/generate_abi.py; do not edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

ABI_VERSION = 1
MODULE = "isthmus"


class Errno(IntEnum):
    """Why a call failed: it returns one, negated."""

    EINVAL = 1
    EFAULT = 2
    EALIGN = 3
    EBADF = 4
    ENOENT = 5
    ENOMEM = 6
    EBUSY = 7
    ECONTEXT = 8
    ETOKEN = 9
    ELIMIT = 10
    ENOTSUP = 11
    EIO = 12
    ECANCELED = 13


ERRNO_TEXT = {
    Errno.EINVAL: "an argument has a value that the call does not take",
    Errno.EFAULT: "a pointer and length do not lie inside linear memory",
    Errno.EALIGN: "a pointer is not aligned as the call requires",
    Errno.EBADF: "the handle was never opened, is closed, or is of another kind",
    Errno.ENOENT: "nothing of that name was given to this actor",
    Errno.ENOMEM: "a limit on memory, or the host's memory, is exhausted",
    Errno.EBUSY: "the bytes belong to a session that is open",
    Errno.ECONTEXT: "the session's context has no room for these tokens",
    Errno.ETOKEN: "a token id is not in the model's vocabulary",
    Errno.ELIMIT: "a limit of this actor is reached",
    Errno.ENOTSUP: "the model or device cannot do this",
    Errno.EIO: "the device or a tool failed",
    Errno.ECANCELED: "the caller wants no more of this answer: finish soon, or be cut off",
}


class TokenizeFlag(IntFlag):
    """Flags of tokenize."""

    ADD_SPECIAL = 1
    PARSE_SPECIAL = 2


class DetokenizeFlag(IntFlag):
    """Flags of detokenize."""

    RENDER_SPECIAL = 1


class ChatFlag(IntFlag):
    """Flags of chat_template."""

    ADD_GENERATION_PROMPT = 1


class AnswerFlag(IntFlag):
    """Flags of chat_tokens."""

    TOOLS = 1
    CALL = 2


class AnswerPart(IntEnum):
    """Parts of an answer, for answer_read."""

    TEXT = 0
    MESSAGE = 1
    CALL_ID = 2
    CALL_NAME = 3
    CALL_ARGUMENTS = 4


class ModelFlag(IntFlag):
    """Bits of model_info.flags."""

    ADD_BOS = 1
    CHAT_TEMPLATE = 2
    SESSIONS = 4
    EMBED = 8
    EMBED_TOKENS = 16
    RANK = 128
    PICTURES = 32
    SOUNDS = 64
    STATE = 256


class EmbedFlag(IntFlag):
    """Flags of embed."""

    NORMALISE = 1


class SpanFlag(IntFlag):
    """Flags of prefill_embeddings, and bits of media_part.flags."""

    WHOLE = 1
    PLACED = 2


class MediaKind(IntEnum):
    """What media_open takes."""

    RGB = 1
    PCM = 2


class PartKind(IntEnum):
    """What a part of a medium consists of."""

    TOKENS = 0
    EMBEDDINGS = 1


class TokenFlag(IntFlag):
    """Bits of the result of token_flags."""

    EOG = 1
    CONTROL = 2


class EmitFlag(IntFlag):
    """Bit of the result of emit_token."""

    END = 1073741824


class GrammarKind(IntEnum):
    """Languages in which a grammar is written."""

    JSON_SCHEMA = 1
    GBNF = 2
    REGEX = 3
    LARK = 4


class Dtype(IntEnum):
    """Element types of a tensor in linear memory."""

    F32 = 0
    F16 = 1
    I32 = 26


class Op(IntEnum):
    """Operations of compute.

    Shapes are [ne0, ne1, ne2, ne3], ne0 being the contiguous dimension.
    """

    MATMUL = 1
    ADD = 2
    MUL = 3
    SCALE = 4
    SILU = 5
    SOFTMAX = 6
    RMS_NORM = 7
    GET_ROWS = 8
    ARGMAX = 9


class LogLevel(IntEnum):
    """Levels of log."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


class ModelInfo(NamedTuple):
    """What a guest may know about a model."""

    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    token_bos: int
    token_eos: int
    token_eot: int
    flags: int


MODEL_INFO = Struct("<IIIIiiiI")
"""32 bytes: the fields of ModelInfo."""


class ChatMessage(NamedTuple):
    """One turn of a conversation, for chat_template. Both texts are UTF-8."""

    role_ptr: int
    role_nbytes: int
    content_ptr: int
    content_nbytes: int


CHAT_MESSAGE = Struct("<IIII")
"""16 bytes: the fields of ChatMessage."""
CHAT_MESSAGE_64 = Struct("<QQQQ")
"""32 bytes: the same where linear memory is 64-bit."""


class Sampler(NamedTuple):
    """Settings and random state of the host's sampler.

    It lies in guest memory, so a snapshot holds it.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    rng_state: int


SAMPLER = Struct("<fIfffIQ")
"""32 bytes: the fields of Sampler."""


class Tensor(NamedTuple):
    """A contiguous tensor, in linear memory or among a model's weights."""

    dtype: int
    weight: int
    data: int
    reserved: int
    ne0: int
    ne1: int
    ne2: int
    ne3: int


TENSOR = Struct("<IIIIIIII")
"""32 bytes: the fields of Tensor."""
TENSOR_64 = Struct("<IIQIIIIIxxxx")
"""40 bytes: the same where linear memory is 64-bit."""


class Candidate(NamedTuple):
    """One of the most probable tokens of a step, as session_top_k leaves them."""

    logit: float
    token: int


CANDIDATE = Struct("<fi")
"""8 bytes: the fields of Candidate."""


class Step(NamedTuple):
    """A token that decode_batch appends to a session."""

    session: int
    token: int


STEP = Struct("<Ii")
"""8 bytes: the fields of Step."""


class MediaPart(NamedTuple):
    """A part of a medium; a session takes the parts in order."""

    kind: int
    n_rows: int
    width: int
    flags: int


MEDIA_PART = Struct("<IIII")
"""16 bytes: the fields of MediaPart."""


class Operation(NamedTuple):
    """One step of compute. Tensors are given by offsets of isthmus_tensor_t."""

    op: int
    dst: int
    src0: int
    src1: int
    param: float
    reserved0: int
    reserved1: int
    reserved2: int


OPERATION = Struct("<IIIIfIII")
"""32 bytes: the fields of Operation."""
OPERATION_64 = Struct("<IxxxxQQQfIII")
"""48 bytes: the same where linear memory is 64-bit."""


class Param(NamedTuple):
    """A parameter of a host function: its name, and its type as abi/host.toml calls it."""

    name: str
    type: str


_WASM_TYPES = {
    "ptr": "i32",
    "nbytes": "i32",
    "count": "i32",
    "handle": "i32",
    "token": "i32",
    "flags": "i32",
    "status": "i32",
    "size": "i32",
    "size64": "i64",
    "address": "i64",
    "time": "i64",
}
_WIDE = ("ptr", "nbytes")
"""What has 64 bits where linear memory has."""


@dataclass(frozen=True)
class HostFunction:
    """A function that a guest imports."""

    group: str
    name: str
    params: tuple[Param, ...]
    result: str
    errors: tuple[Errno, ...]
    """Every errno that it may return."""

    @property
    def wasm_params(self) -> tuple[str, ...]:
        """The parameters' WebAssembly types, 'i32' or 'i64', where linear memory is 32-bit."""
        return tuple(_WASM_TYPES[param.type] for param in self.params)

    @property
    def wasm_params_64(self) -> tuple[str, ...]:
        """The same where linear memory is 64-bit."""
        return tuple(
            "i64" if param.type in _WIDE else _WASM_TYPES[param.type] for param in self.params
        )

    @property
    def wasm_result(self) -> str:
        """The result's WebAssembly type, 'i32' or 'i64'."""
        return _WASM_TYPES[self.result]


HOST_FUNCTIONS = (
    HostFunction(
        "model",
        "model_open",
        (Param("name_ptr", "ptr"), Param("name_nbytes", "nbytes")),
        "size",
        (Errno.EFAULT, Errno.EINVAL, Errno.ENOENT, Errno.ELIMIT),
    ),
    HostFunction(
        "model",
        "model_info",
        (Param("model", "handle"), Param("info_ptr", "ptr")),
        "status",
        (Errno.EBADF, Errno.EFAULT),
    ),
    HostFunction(
        "model",
        "model_close",
        (Param("model", "handle"),),
        "status",
        (Errno.EBADF, Errno.EBUSY),
    ),
    HostFunction(
        "model",
        "token_flags",
        (Param("model", "handle"), Param("token", "token")),
        "size",
        (Errno.EBADF, Errno.ETOKEN),
    ),
    HostFunction(
        "model",
        "tokenize",
        (
            Param("model", "handle"),
            Param("text_ptr", "ptr"),
            Param("text_nbytes", "nbytes"),
            Param("flags", "flags"),
            Param("tokens_ptr", "ptr"),
            Param("tokens_cap", "count"),
        ),
        "size",
        (Errno.EBADF, Errno.EFAULT, Errno.EALIGN, Errno.EINVAL, Errno.ETOKEN, Errno.ENOTSUP),
    ),
    HostFunction(
        "model",
        "detokenize",
        (
            Param("model", "handle"),
            Param("tokens_ptr", "ptr"),
            Param("n_tokens", "count"),
            Param("flags", "flags"),
            Param("text_ptr", "ptr"),
            Param("text_cap", "nbytes"),
        ),
        "size",
        (Errno.EBADF, Errno.EFAULT, Errno.EALIGN, Errno.EINVAL, Errno.ETOKEN, Errno.ENOTSUP),
    ),
    HostFunction(
        "model",
        "chat_template",
        (
            Param("model", "handle"),
            Param("messages_ptr", "ptr"),
            Param("n_messages", "count"),
            Param("flags", "flags"),
            Param("text_ptr", "ptr"),
            Param("text_cap", "nbytes"),
        ),
        "size",
        (Errno.EBADF, Errno.EFAULT, Errno.EALIGN, Errno.EINVAL, Errno.ENOTSUP),
    ),
    HostFunction(
        "model",
        "session_nbytes",
        (Param("model", "handle"), Param("n_ctx", "count")),
        "size64",
        (Errno.EBADF, Errno.EINVAL, Errno.ENOTSUP),
    ),
    HostFunction(
        "model",
        "session_open",
        (
            Param("model", "handle"),
            Param("n_ctx", "count"),
            Param("ptr", "ptr"),
            Param("nbytes", "nbytes"),
        ),
        "size",
        (
            Errno.EBADF,
            Errno.ENOTSUP,
            Errno.EINVAL,
            Errno.EALIGN,
            Errno.EFAULT,
            Errno.EBUSY,
            Errno.ELIMIT,
            Errno.ENOMEM,
        ),
    ),
    HostFunction(
        "model",
        "session_close",
        (Param("session", "handle"),),
        "status",
        (Errno.EBADF,),
    ),
    HostFunction(
        "model",
        "session_length",
        (Param("session", "handle"),),
        "size",
        (Errno.EBADF,),
    ),
    HostFunction(
        "model",
        "prefill",
        (Param("session", "handle"), Param("tokens_ptr", "ptr"), Param("n_tokens", "count")),
        "status",
        (
            Errno.EBADF,
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.EINVAL,
            Errno.ETOKEN,
            Errno.ECONTEXT,
            Errno.ELIMIT,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "model",
        "decode",
        (Param("session", "handle"), Param("token", "token")),
        "status",
        (Errno.EBADF, Errno.ETOKEN, Errno.ECONTEXT, Errno.ELIMIT, Errno.EIO, Errno.ECANCELED),
    ),
    HostFunction(
        "model",
        "decode_many",
        (
            Param("session", "handle"),
            Param("tokens_ptr", "ptr"),
            Param("n_tokens", "count"),
            Param("logits_ptr", "ptr"),
        ),
        "status",
        (
            Errno.EBADF,
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.EINVAL,
            Errno.EBUSY,
            Errno.ETOKEN,
            Errno.ECONTEXT,
            Errno.ELIMIT,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "model",
        "decode_batch",
        (Param("steps_ptr", "ptr"), Param("n_steps", "count")),
        "status",
        (
            Errno.EBADF,
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.EINVAL,
            Errno.ETOKEN,
            Errno.ECONTEXT,
            Errno.ELIMIT,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "model",
        "session_top_k",
        (Param("session", "handle"), Param("k", "count"), Param("candidates_ptr", "ptr")),
        "size",
        (Errno.EBADF, Errno.EINVAL, Errno.EFAULT, Errno.EALIGN, Errno.EBUSY),
    ),
    HostFunction(
        "model",
        "logits",
        (Param("session", "handle"),),
        "address",
        (Errno.EBADF, Errno.EINVAL),
    ),
    HostFunction(
        "model",
        "sample",
        (Param("session", "handle"), Param("sampler_ptr", "ptr")),
        "size",
        (Errno.EBADF, Errno.EFAULT, Errno.EALIGN, Errno.EINVAL),
    ),
    HostFunction(
        "model",
        "session_checkpoint",
        (Param("session", "handle"),),
        "size",
        (Errno.EBADF, Errno.ECANCELED),
    ),
    HostFunction(
        "model",
        "session_reach",
        (Param("session", "handle"), Param("n_tokens", "count")),
        "size",
        (Errno.EBADF,),
    ),
    HostFunction(
        "model",
        "truncate",
        (Param("session", "handle"), Param("n_tokens", "count")),
        "status",
        (Errno.EBADF, Errno.EINVAL, Errno.ENOTSUP, Errno.ECANCELED),
    ),
    HostFunction(
        "model",
        "session_copy",
        (Param("destination", "handle"), Param("source", "handle"), Param("n_tokens", "count")),
        "status",
        (Errno.EBADF, Errno.EINVAL, Errno.ECONTEXT, Errno.ENOTSUP),
    ),
    HostFunction(
        "model",
        "embed",
        (
            Param("model", "handle"),
            Param("tokens_ptr", "ptr"),
            Param("n_tokens", "count"),
            Param("flags", "flags"),
            Param("embedding_ptr", "ptr"),
            Param("embedding_cap", "count"),
        ),
        "size",
        (
            Errno.EBADF,
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.EINVAL,
            Errno.ETOKEN,
            Errno.ECONTEXT,
            Errno.EBUSY,
            Errno.ENOTSUP,
            Errno.ELIMIT,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "grammar",
        "grammar_open",
        (
            Param("model", "handle"),
            Param("kind", "count"),
            Param("source_ptr", "ptr"),
            Param("source_nbytes", "nbytes"),
        ),
        "size",
        (Errno.EBADF, Errno.EFAULT, Errno.EINVAL, Errno.ELIMIT, Errno.ENOTSUP, Errno.ECANCELED),
    ),
    HostFunction(
        "grammar",
        "grammar_mask",
        (Param("grammar", "handle"), Param("session", "handle")),
        "size",
        (Errno.EBADF, Errno.EINVAL),
    ),
    HostFunction(
        "grammar",
        "grammar_accept",
        (Param("grammar", "handle"), Param("token", "token")),
        "status",
        (Errno.EBADF, Errno.ETOKEN, Errno.EINVAL, Errno.ELIMIT),
    ),
    HostFunction(
        "grammar",
        "grammar_close",
        (Param("grammar", "handle"),),
        "status",
        (Errno.EBADF,),
    ),
    HostFunction(
        "media",
        "prefill_embeddings",
        (
            Param("session", "handle"),
            Param("rows_ptr", "ptr"),
            Param("n_rows", "count"),
            Param("width", "count"),
            Param("positions_ptr", "ptr"),
            Param("flags", "flags"),
        ),
        "status",
        (
            Errno.EBADF,
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.EINVAL,
            Errno.EBUSY,
            Errno.ECONTEXT,
            Errno.ENOTSUP,
            Errno.ELIMIT,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "media",
        "media_rate",
        (Param("model", "handle"),),
        "size",
        (Errno.EBADF, Errno.ENOTSUP),
    ),
    HostFunction(
        "media",
        "media_open",
        (
            Param("model", "handle"),
            Param("kind", "count"),
            Param("data_ptr", "ptr"),
            Param("width", "count"),
            Param("height", "count"),
        ),
        "size",
        (
            Errno.EBADF,
            Errno.EINVAL,
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.ENOTSUP,
            Errno.ELIMIT,
            Errno.ENOMEM,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "media",
        "media_info",
        (Param("medium", "handle"), Param("part", "count"), Param("part_ptr", "ptr")),
        "size",
        (Errno.EBADF, Errno.EINVAL, Errno.EFAULT, Errno.EALIGN),
    ),
    HostFunction(
        "media",
        "media_embed",
        (
            Param("medium", "handle"),
            Param("part", "count"),
            Param("values_ptr", "ptr"),
            Param("cap", "count"),
            Param("positions_ptr", "ptr"),
        ),
        "size",
        (
            Errno.EBADF,
            Errno.EINVAL,
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.EBUSY,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "media",
        "media_close",
        (Param("medium", "handle"),),
        "status",
        (Errno.EBADF,),
    ),
    HostFunction(
        "tensor",
        "weight_find",
        (
            Param("model", "handle"),
            Param("name_ptr", "ptr"),
            Param("name_nbytes", "nbytes"),
            Param("tensor_ptr", "ptr"),
        ),
        "status",
        (Errno.EBADF, Errno.EFAULT, Errno.EALIGN, Errno.EINVAL, Errno.ENOENT, Errno.ELIMIT),
    ),
    HostFunction(
        "tensor",
        "compute",
        (Param("operations_ptr", "ptr"), Param("n_operations", "count")),
        "status",
        (
            Errno.EFAULT,
            Errno.EALIGN,
            Errno.EBADF,
            Errno.EINVAL,
            Errno.EBUSY,
            Errno.ELIMIT,
            Errno.ENOTSUP,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "actor",
        "message_read",
        (Param("ptr", "ptr"), Param("cap", "nbytes")),
        "size",
        (Errno.EFAULT,),
    ),
    HostFunction(
        "actor",
        "emit",
        (Param("ptr", "ptr"), Param("nbytes", "nbytes")),
        "status",
        (Errno.EFAULT, Errno.ELIMIT, Errno.ENOMEM, Errno.ECANCELED),
    ),
    HostFunction(
        "actor",
        "emit_token",
        (
            Param("session", "handle"),
            Param("token", "token"),
            Param("text_ptr", "ptr"),
            Param("text_cap", "nbytes"),
        ),
        "size",
        (
            Errno.EBADF,
            Errno.EFAULT,
            Errno.ETOKEN,
            Errno.ECONTEXT,
            Errno.ELIMIT,
            Errno.ENOMEM,
            Errno.ENOTSUP,
            Errno.EIO,
            Errno.ECANCELED,
        ),
    ),
    HostFunction(
        "actor",
        "reply",
        (Param("ptr", "ptr"), Param("nbytes", "nbytes")),
        "status",
        (Errno.EFAULT, Errno.ELIMIT, Errno.ENOMEM, Errno.ECANCELED),
    ),
    HostFunction(
        "actor",
        "log",
        (Param("level", "count"), Param("ptr", "ptr"), Param("nbytes", "nbytes")),
        "status",
        (Errno.EFAULT, Errno.EINVAL, Errno.ELIMIT, Errno.ENOMEM),
    ),
    HostFunction(
        "actor",
        "clock_ns",
        (),
        "time",
        (),
    ),
    HostFunction(
        "actor",
        "random",
        (Param("ptr", "ptr"), Param("nbytes", "nbytes")),
        "status",
        (Errno.EFAULT, Errno.EINVAL),
    ),
    HostFunction(
        "tool",
        "tool_call",
        (
            Param("name_ptr", "ptr"),
            Param("name_nbytes", "nbytes"),
            Param("args_ptr", "ptr"),
            Param("args_nbytes", "nbytes"),
        ),
        "size",
        (Errno.EFAULT, Errno.EINVAL, Errno.ENOENT, Errno.EIO, Errno.ECANCELED),
    ),
    HostFunction(
        "tool",
        "tool_result",
        (Param("ptr", "ptr"), Param("cap", "nbytes")),
        "size",
        (Errno.EFAULT, Errno.EINVAL),
    ),
    HostFunction(
        "tool",
        "tool_list",
        (Param("ptr", "ptr"), Param("cap", "nbytes")),
        "size",
        (Errno.EFAULT,),
    ),
    HostFunction(
        "answer",
        "chat_tokens",
        (
            Param("model", "handle"),
            Param("messages_ptr", "ptr"),
            Param("messages_nbytes", "nbytes"),
            Param("flags", "flags"),
            Param("tokens_ptr", "ptr"),
            Param("tokens_cap", "count"),
        ),
        "size",
        (Errno.EBADF, Errno.EFAULT, Errno.EALIGN, Errno.EINVAL, Errno.ETOKEN, Errno.ENOTSUP),
    ),
    HostFunction(
        "answer",
        "answer_grammar",
        (Param("ptr", "ptr"), Param("cap", "nbytes")),
        "size",
        (Errno.EFAULT, Errno.EINVAL, Errno.ENOTSUP),
    ),
    HostFunction(
        "answer",
        "answer_feed",
        (Param("token", "token"),),
        "size",
        (Errno.EINVAL, Errno.ETOKEN, Errno.ELIMIT),
    ),
    HostFunction(
        "answer",
        "answer_end",
        (),
        "size",
        (Errno.EINVAL,),
    ),
    HostFunction(
        "answer",
        "answer_read",
        (
            Param("part", "flags"),
            Param("index", "count"),
            Param("ptr", "ptr"),
            Param("cap", "nbytes"),
        ),
        "size",
        (Errno.EFAULT, Errno.EINVAL),
    ),
)

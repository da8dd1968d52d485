"""The functions of `wasi_ephemeral_nn`, as WasmEdge's GGML backend has them.

::

    load_by_name ──► graph ──► init_execution_context ──► context ──► set_input, compute, get_output
    a model that                                          a session in
    the actor was given                                   the guest's own memory

Numbers of graphs and contexts count up from 0 and are never used again. All pointers for results
are checked before anything is done.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from isthmus.actor.ask import Aside
from isthmus.actor.host_api.context import MAX_NAME_NBYTES, MAX_TEXT_NBYTES, Context
from isthmus.actor.nn.contexts import Contexts
from isthmus.actor.nn.fault import NnFault, refused, unsupported
from isthmus.actor.nn.generation import Generation, metadata
from isthmus.actor.nn.memory import NnMemory
from isthmus.actor.nn.saving import restored, saved
from isthmus.actor.nn.settings import MAX_CONFIG_NBYTES, NnSettings, parsed
from isthmus.actor.nn.spans import Spans
from isthmus.actor.nn.state import Graph, NnContext
from isthmus.units import KIB
from isthmus.wasm.hostcalls import Handler
from isthmus.wasm.wasi_nn import N_PARAMS, NnErrno

_U32 = struct.Struct("<I")
_TENSOR = struct.Struct("<IIB3xII")
"""Where the dimensions are, and how many; the type; where the data is, and its bytes."""
_BUILDER = struct.Struct("<II")
_TYPES = range(6)
"""F16, F32, F64, U8, I32, I64: any of them is taken, and only the bytes count."""
_AUTODETECT, _GGML = 5, 6
_TARGETS = range(4)
_GGUF = b"GGUF"
_PRELOAD = "preload:"
_MAX_BUILDERS = 16
_SHORT_TEXT_NBYTES = 4 * KIB
"""Bytes of text that are tokenized in line, in about a millisecond."""
_PROMPT, _SETTINGS = 0, 1
_OUTPUT, _METADATA = 0, 1


class NnFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context, write: Callable[[int, bytes], None], library: str) -> None:
        """`write` takes bytes for standard output, 1; `library` is the version of llama.cpp."""
        self._c = context
        self._library = library
        self.memory = NnMemory()
        self._contexts = Contexts(context, self.memory)
        self._generation = Generation(context, self.memory, write)

    def save(self) -> bytes:
        """What the guest has opened, for `restore`; none if that is nothing."""
        self._contexts.state.free = self.memory.spans.free
        return saved(self._contexts.state)

    def restore(self, data: bytes, foreign: Collection[str] = ()) -> None:
        """Has the guest have opened what another one had; see `saving.restored`."""
        c = self._c
        state = restored(data, c.region.nbytes, c.granted.models, foreign)
        self._contexts.state, self.memory.spans = state, Spans(state.free)

    def handlers(self) -> dict[str, Handler]:
        """The functions by name."""
        return {name: self._answered(getattr(self, name)) for name in N_PARAMS}

    async def load(
        self, builders_ptr: int, n_builders: int, encoding: int, target: int, graph_ptr: int
    ) -> int:
        memory = self._c.memory
        memory.check(graph_ptr, _U32.size)
        if encoding not in (_AUTODETECT, _GGML):
            raise NnFault(NnErrno.INVALID_ENCODING)
        if target not in _TARGETS or not 1 <= n_builders <= _MAX_BUILDERS:
            raise refused()
        size = _BUILDER.size
        builders = [memory.unpack(_BUILDER, builders_ptr + size * i) for i in range(n_builders)]
        for each in builders:
            memory.check(*each)
        ptr, nbytes = builders[0]
        if memory.read(ptr, min(len(_GGUF), nbytes)) == _GGUF:
            raise unsupported(
                "load was given the bytes of a model: give the name of one that the host has opened"
            )
        name = memory.read_text(ptr, nbytes, MAX_NAME_NBYTES).removeprefix(_PRELOAD)
        config = self._config(*builders[1]) if n_builders > 1 else b""
        return self._load(name, config, graph_ptr)

    async def load_by_name(self, name_ptr: int, name_nbytes: int, graph_ptr: int) -> int:
        memory = self._c.memory
        memory.check(graph_ptr, _U32.size)
        return self._load(memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES), b"", graph_ptr)

    async def load_by_name_with_config(
        self, name_ptr: int, name_nbytes: int, config_ptr: int, config_nbytes: int, graph_ptr: int
    ) -> int:
        memory = self._c.memory
        memory.check(graph_ptr, _U32.size)
        name = memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        return self._load(name, self._config(config_ptr, config_nbytes), graph_ptr)

    async def unload(self, graph: int) -> int:
        self._contexts.unload(graph)
        return NnErrno.SUCCESS

    async def init_execution_context(self, graph: int, context_ptr: int) -> int:
        self._c.memory.check(context_ptr, _U32.size)
        number = self._contexts.open(graph)
        self._c.memory.write(context_ptr, _U32.pack(number))
        return NnErrno.SUCCESS

    async def finalize_execution_context(self, context: int) -> int:
        self._contexts.close(context)
        return NnErrno.SUCCESS

    async def set_input(self, context: int, index: int, tensor_ptr: int) -> int:
        opened = self._contexts.usable(context)
        memory = self._c.memory
        dims_ptr, n_dims, kind, data_ptr, nbytes = memory.unpack(_TENSOR, tensor_ptr)
        memory.check(dims_ptr, _U32.size * n_dims)
        memory.check(data_ptr, nbytes)
        if kind not in _TYPES or index not in (_PROMPT, _SETTINGS):
            raise refused()
        if nbytes > MAX_TEXT_NBYTES:
            raise NnFault(NnErrno.TOO_LARGE, f"an input has {nbytes} bytes")
        if index == _SETTINGS:
            settings = parsed(memory.read(data_ptr, nbytes), opened.settings)
            self._contexts.change(opened, settings)
        else:
            await self._set_prompt(opened, memory.read_text(data_ptr, nbytes, MAX_TEXT_NBYTES))
        return NnErrno.SUCCESS

    async def compute(self, context: int) -> int:
        return await self._generation.compute(self._contexts.usable(context))

    async def compute_single(self, context: int) -> int:
        return await self._generation.compute_single(self._contexts.usable(context))

    async def fini_single(self, context: int) -> int:
        self._contexts.usable(context).forget_output()
        return NnErrno.SUCCESS

    async def get_output(
        self, context: int, index: int, buffer: int, cap: int, nbytes_ptr: int
    ) -> int:
        opened = self._contexts.readable(context)
        return self._give(opened, opened.output, index, (buffer, cap, nbytes_ptr))

    async def get_output_single(
        self, context: int, index: int, buffer: int, cap: int, nbytes_ptr: int
    ) -> int:
        opened = self._contexts.readable(context)
        return self._give(opened, opened.last, index, (buffer, cap, nbytes_ptr))

    # ------------------------------------------------------------------ parts

    def _answered(self, function: Callable[..., Awaitable[int]]) -> Handler:
        """The function, answering a fault with its number, and the log with its reason."""

        async def answer(*arguments: int) -> int:
            try:
                return await function(*arguments)
            except NnFault as fault:
                if fault.said:
                    self._c.note(fault.said, logging.WARNING)
                return fault.errno

        return answer

    def _config(self, ptr: int, nbytes: int) -> bytes:
        """A configuration, unless it is so large that it is not even copied."""
        self._c.memory.check(ptr, nbytes)
        if nbytes > MAX_CONFIG_NBYTES:
            raise NnFault(NnErrno.TOO_LARGE, f"a configuration has {nbytes} bytes")
        return self._c.memory.read(ptr, nbytes)

    def _load(self, name: str, config: bytes, graph_ptr: int) -> int:
        """Opens a model by name, unless it is open: then that graph is given."""
        given = self._c.granted.models
        number = self._contexts.loaded(name)
        if number is None:
            if name not in given:
                raise NnFault(
                    NnErrno.NOT_FOUND,
                    f"the guest asks for a model named {name!r}, and it was given "
                    f"{', '.join(given) or 'none'}: give it by --model NAME=PATH",
                )
            if given[name].closed:
                raise NnFault(NnErrno.MODEL_NOT_FOUND, f"the model {name!r} was closed")
            settings = parsed(config, NnSettings()) if config else NnSettings()
            number = self._contexts.add(Graph(name, settings))
        self._c.memory.write(graph_ptr, _U32.pack(number))
        return NnErrno.SUCCESS

    async def _set_prompt(self, opened: NnContext, text: str) -> None:
        c = self._c
        tokenizer = c.granted.models[opened.model].tokenizer
        encode = partial(
            tokenizer.encode, text, add_special=True, parse_special=True, check=c.message.check
        )
        is_short = len(text) <= _SHORT_TEXT_NBYTES and tokenizer.is_warm
        opened.prompt = encode() if is_short else await Aside(c.message, encode)
        opened.is_streaming = False

    def _give(
        self, opened: NnContext, output: bytes, index: int, room: tuple[int, int, int]
    ) -> int:
        """Writes a result's size, and the result if the buffer has room for it."""
        buffer, cap, nbytes_ptr = room
        memory = self._c.memory
        memory.check(nbytes_ptr, _U32.size)
        memory.check(buffer, cap)
        if index not in (_OUTPUT, _METADATA):
            raise refused()
        data = metadata(opened, self._library) if index == _METADATA else output
        memory.write(nbytes_ptr, _U32.pack(len(data)))
        if len(data) > cap:
            return NnErrno.TOO_LARGE
        memory.write(buffer, data)
        return NnErrno.SUCCESS

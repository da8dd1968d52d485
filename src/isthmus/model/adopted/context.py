"""Contexts of libllama: each computes for one session, in whose bytes its buffers lie.

A context is no more than positions, graphs and addresses; all that a session *is* lies in its bytes
and in its list of tokens. So a context can be thrown away at any time, and another one opened over
the same bytes: libllama is told the tokens again while its backend computes nothing, which gives
each its position.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.errors import DeviceFailed, ModelUnsupported, SettingsError
from isthmus.model.adopted.feed import Feed, Given, as_feed, told_again
from isthmus.model.adopted.layout import AdoptedLayout, Plan
from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.adopted.parted import computed_in_jobs
from isthmus.model.jobs import Jobs
from isthmus.model.own.kv_cache import KV_TYPES, N_CTX_MULTIPLE, SPAN_ALIGNMENT
from isthmus.model.spans import Span, position_of
from isthmus.native.loader import Library
from isthmus.native.owned import Owned
from isthmus.native.placing import Place, Placed, placing_of
from isthmus.units import HostAddr, align_up

_FLASH_ATTENTION_ON = 1
MAX_AT_ONCE = 2048
"""Tokens that libllama is given at once where nothing is computed."""
_MAX_MASKED = 1 << 25
"""Elements of a mask, likewise: some tens of milliseconds."""


class Scratch:
    """Memory for what a pass needs while it runs: contexts that never compute at once share it.

    Each context that was opened over it keeps a reference; the last one gives the memory back.
    """

    def __init__(self, nbytes: int) -> None:
        self._mapping = mmap.mmap(-1, align_up(max(nbytes, 1), SPAN_ALIGNMENT))
        self._view = ctypes.c_char.from_buffer(self._mapping)
        self.base = ctypes.addressof(self._view)
        self.nbytes = len(self._mapping)


class Context(Owned):
    """Owns one context. Only for the device's thread; closed before the model."""

    def __init__(
        self,
        device: Device,
        model: LibraryModel,
        handle: int,
        placed: Placed,
        scratch: Scratch,
        logits: HostAddr,
        n_batch: int,
    ) -> None:
        """`logits` is where the library is to leave them: it is looked at after each pass.

        `n_batch` is the most tokens that the context takes at once.
        `scratch` may be another context's as well, but not while one of both is in a pass.
        """
        library = device.library
        super().__init__(handle, partial(_free, library, scratch))
        self._device = device
        self._library = library
        self._model = model
        self._path = model.path
        self.scratch = scratch
        self._backends = placed.backends
        self._placing = placing_of(library)
        self._memory = library.llama_get_memory(handle)
        self._logits = logits
        self._one = np.zeros(1, dtype=np.int32)
        self._silent = np.zeros(n_batch, dtype=np.int8)
        """Says of each token that nobody asks for logits after it."""
        self.n_tokens = 0
        """Tokens whose positions it knows."""
        if device.threadpool:
            library.llama_attach_threadpool(handle, device.threadpool, device.threadpool)

    def append(self, given: Given, *, with_logits: bool) -> None:
        """Computes tokens, i32 [n], or what else a `Feed` has, at most a chunk; `with_logits` those
        after the last one.

        Raises DeviceFailed; what the session holds is then undefined.
        """
        feed = as_feed(given)
        batch = feed.batch(None if with_logits else self._silent)
        with self._seeing(feed):
            status = self._device.timed(self._library.llama_decode, self.handle, batch)
        self._appended(feed.n, status, with_logits)

    def append_in_jobs(
        self, given: Given, jobs: Jobs, *, with_logits: bool
    ) -> Generator[None, None, None]:
        """As `append`, in jobs: see `parted`. Nobody may use its scratch until the last one."""
        feed = as_feed(given)
        batch = feed.batch(None if with_logits else self._silent)
        with self._seeing(feed):
            status = yield from computed_in_jobs(
                self._device,
                self._placing,
                self._backends,
                jobs,
                feed.n,
                lambda: self._library.llama_decode(self.handle, batch),
            )
        self._appended(feed.n, status, with_logits)

    @contextmanager
    def _seeing(self, feed: Feed) -> Iterator[None]:
        """Has rows see those after them meanwhile, if they are to."""
        if feed.causal:
            yield
            return
        self._library.llama_set_causal_attn(self.handle, False)
        try:
            yield
        finally:
            self._library.llama_set_causal_attn(self.handle, True)

    def _appended(self, n_tokens: int, status: int, with_logits: bool) -> None:
        if status != 0:
            raise DeviceFailed(f"libllama failed on {self._path} with status {status}")
        self.n_tokens += n_tokens
        if with_logits and self._library.llama_get_logits_ith(self.handle, -1) != self._logits:
            raise DeviceFailed(f"libllama left the logits of {self._path} in memory of its own")

    def append_one(self, token: int, position: int | None = None) -> None:
        """As `append`, of one token, with logits; at a position that is not the next one."""
        self._one[0] = token
        at = None if position is None else np.array([position], dtype=np.int32)
        self.append(Feed.of_tokens(self._one, at), with_logits=True)

    def know(self, tokens: Sequence[int], spans: Sequence[Span] = ()) -> None:
        """Has it know the positions of exactly these tokens, which lie in the session's bytes."""
        for _ in self.know_in_jobs(tokens, spans):
            pass

    def know_in_jobs(
        self, tokens: Sequence[int], spans: Sequence[Span] = ()
    ) -> Generator[None, None, None]:
        """As `know`, in jobs: libllama writes a mask of all tokens for each one, so a hundred
        thousand take seconds. Others may use its scratch between two of them."""
        n_tokens = len(tokens)
        if self.n_tokens > n_tokens and not self._forget(n_tokens, position_of(spans, n_tokens)):
            self._library.llama_memory_clear(self._memory, False)
            self.n_tokens = 0
        at_once = max(1, min(MAX_AT_ONCE, _MAX_MASKED // max(1, n_tokens)))
        feeds = told_again(tokens, spans, self.n_tokens, at_once, self._model)
        for i, feed in enumerate(feeds):
            if i > 0:
                yield
            with self._placing.computing_nothing(self._backends):
                self.append(feed, with_logits=False)

    def _forget(self, n_tokens: int, position: int) -> bool:
        """Forgets the tokens after the first `n_tokens`, which begin at `position`; False if the
        library cannot."""
        memory = self._memory
        gone = bool(self._library.llama_memory_seq_rm(memory, 0, position, -1))
        if gone:
            self.n_tokens = n_tokens
        return gone


def _free(library: Library, _scratch: Scratch, handle: int) -> None:
    """The scratch is given back once no context refers to it."""
    library.llama_free(handle)


class Contexts:
    """Opens contexts of one model, and learns how they are laid out. Safe to use from any thread.

    Only the device's thread computes with them, so they share one scratch; those that are opened
    `apart` have one of their own, so that they can be in a pass while the others are.
    """

    def __init__(self, device: Device, model: LibraryModel, settings: ModelSettings) -> None:
        self._device = device
        self._model = model
        self._settings = settings
        self._placing = placing_of(device.library)
        self._n_batch = max(MAX_AT_ONCE, settings.prefill_chunk)
        self._plans: dict[int, Plan] = {}
        """What was learned, by n_ctx."""
        self._states: tuple[int, ...] | None = None
        self._scratches: dict[bool, Scratch] = {}
        """By whether contexts are `apart`."""
        self._lock = threading.Lock()
        self._alignment: int = device.library.ggml_backend_buft_get_alignment(device.buffer_type)
        remainder = device.kv_alignment[1]
        self._remainder = 0 if remainder % self._alignment else remainder

    @property
    def has_axes(self) -> bool:
        """Whether the model gives rows of embeddings positions in time, height and width."""
        return self._model.has_axes

    @property
    def has_memory(self) -> bool:
        """Whether the model keeps sessions: others make embeddings alone."""
        return self._plan(N_CTX_MULTIPLE).has_memory

    @property
    def states(self) -> tuple[int, ...]:
        """Which of a session's memories, from 0 on, are states: a longer context has no larger
        ones. Empty if the model keeps no state; all of them if sizes do not tell."""
        if not self._model.keeps_state:
            return ()
        if self._states is None:
            few, more = self._plan(N_CTX_MULTIPLE), self._plan(2 * N_CTX_MULTIPLE)
            self._states = few.alike(more) or tuple(range(len(few.memories)))
        return self._states

    def layout(self, n_ctx: int) -> AdoptedLayout:
        """Where a session of at least `n_ctx` tokens keeps what."""
        n_ctx = align_up(n_ctx, N_CTX_MULTIPLE)
        return self._plan(n_ctx).layout(n_ctx, self._model.n_vocab, self._remainder)

    def require_remainder(self, remainder: int) -> None:
        """SettingsError unless a memory can begin there, modulo 4,096."""
        if not 0 <= remainder < SPAN_ALIGNMENT or remainder % self._alignment:
            raise SettingsError("the session's memories do not begin where they can")

    def open(self, base: HostAddr, layout: AdoptedLayout, *, apart: bool = False) -> Context:
        """A context without tokens whose buffers lie in a session's span at `base`.

        Nothing in the span is written. Raises DeviceFailed.
        """
        plan = self._plan(layout.n_ctx)
        places = {plan.outputs: base}
        for number, offset in zip(plan.memories, layout.offsets, strict=True):
            places[number] = HostAddr(base + offset)
        scratch = self._scratch_for(plan, places, apart)

        def place(number: int, nbytes: int) -> int:
            if number >= len(plan.sizes) or plan.sizes[number] != nbytes:
                raise DeviceFailed(
                    f"libllama opens a context of {self._model.path} in another way than before"
                )
            return places[number]

        handle, placed = self._new(layout.n_ctx, place)
        return Context(self._device, self._model, handle, placed, scratch, base, self._n_batch)

    def _plan(self, n_ctx: int) -> Plan:
        """What a context of exactly `n_ctx` tokens allocates: learned when it is first asked."""
        with self._lock:
            plan = self._plans.get(n_ctx)
            if plan is None:
                handle, placed = self._new(n_ctx, lambda _number, _nbytes: 0)
                keeps = bool(self._model.library.llama_get_memory(handle))
                has_memory = keeps and self._model.decodes
                self._model.library.llama_free(handle)
                plan = self._plans[n_ctx] = Plan.of(placed, has_memory=has_memory)
            return plan

    def is_apart(self, context: Context) -> bool:
        """Whether the context has the scratch of those that are opened apart now."""
        return context.scratch is self._scratches.get(True)

    def _scratch_for(self, plan: Plan, places: dict[int, HostAddr], apart: bool) -> Scratch:
        """A scratch, which grows; has `places` tell where each of the plan's buffers is in it."""
        end, offsets = 0, {}
        for number in plan.scratch:
            offsets[number], end = end, align_up(end + plan.sizes[number], SPAN_ALIGNMENT)
        scratch = self._scratches.get(apart)
        if scratch is None or scratch.nbytes < end:
            scratch = self._scratches[apart] = Scratch(end)
        for number, offset in offsets.items():
            places[number] = HostAddr(scratch.base + offset)
        return scratch

    def _new(self, n_ctx: int, place: Place) -> tuple[int, Placed]:
        model, settings = self._model, self._settings
        library = model.library
        params = library.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = self._n_batch
        params.n_ubatch = settings.prefill_chunk
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = self._device.settings.n_threads
        params.flash_attn_type = _FLASH_ATTENTION_ON
        params.type_k = params.type_v = KV_TYPES[settings.kv_type]
        params.swa_full = True
        with library.errors() as complaints, self._placing.open(place) as placed:
            handle = library.llama_init_from_model(model.handle, params)
        if not handle:
            raise ModelUnsupported(
                f"libllama opens no context of {n_ctx} tokens for {model.path}: "
                f"{'; '.join(complaints) or 'it does not say why'}"
            )
        return handle, placed

"""All that an actor is between two messages or two tokens, beside the bytes of its memory.

`read_handles` looks at a live actor's handles, `Reopen` opens them again in a new one. Forking
passes a state from actor to actor; a snapshot writes it down.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from isthmus.abi import GrammarKind
from isthmus.actor.handles import HandleTable
from isthmus.actor.operation import Weight
from isthmus.actor.paused import Paused
from isthmus.actor.virtual import SeededRandom, VirtualClock
from isthmus.config import Limits
from isthmus.device.buffer import Binding
from isthmus.errors import (
    Cancelled,
    DeadlineExceeded,
    DeviceFailed,
    IsthmusError,
    Overloaded,
    SnapshotInvalid,
    SnapshotMismatch,
)
from isthmus.memory import Region
from isthmus.model import Grammar, Model, Session
from isthmus.model.layout import Layout
from isthmus.model.own.kv_cache import SPAN_ALIGNMENT
from isthmus.model.sampling.top import MAX_TOP, PAIR_NBYTES, TOP_ALIGNMENT
from isthmus.model.spans import Span
from isthmus.units import GuestPtr
from isthmus.wasm import GlobalValue


@dataclass(frozen=True)
class OpenedModel:
    """A handle of a model, by the name under which the actor was given it."""

    handle: int
    model: str


@dataclass(frozen=True)
class OpenedWeight:
    """A handle of a model's weight."""

    handle: int
    model: str
    weight: str


@dataclass(frozen=True)
class OpenedSession:
    """A handle of a session; its bytes lie in the memory at `ptr`."""

    handle: int
    model: str
    ptr: int
    layout: Layout
    tokens: array[int]
    has_logits: bool
    top_k: int = 0
    """Candidates that lie at `top_ptr` after each pass; 0: the guest asks for none."""
    top_ptr: int = 0
    spans: tuple[Span, ...] = ()
    """Which of the tokens came of embeddings."""
    is_lost: bool = False
    """As `Session.is_lost`."""

    @property
    def end(self) -> int:
        """Where its span ends."""
        return self.ptr + self.layout.nbytes


@dataclass(frozen=True)
class OpenedGrammar:
    """A handle of a grammar, and how far its text is."""

    handle: int
    model: str
    kind: GrammarKind
    source: str
    tokens: array[int]


Opened = OpenedModel | OpenedWeight | OpenedSession | OpenedGrammar


@dataclass(frozen=True)
class ActorState:
    """See the module."""

    args: tuple[str, ...]
    """Options for the guest, or a command's variables."""
    globals: tuple[GlobalValue, ...]
    opened: tuple[Opened, ...]
    last_handle: int
    seed: int
    n_random_blocks: int
    clock_ns: int
    log_position: int
    n_messages: int
    nn: bytes = b""
    """What it has opened by wasi-nn, as `NnFunctions.save` has it."""
    argv: tuple[str, ...] | None = None
    """A command's arguments after the guest's name; None for any other guest."""
    message: Paused | None = None
    """The message in whose middle it is."""

    @property
    def sessions(self) -> list[OpenedSession]:
        """Its sessions, oldest first."""
        return [it for it in self.opened if isinstance(it, OpenedSession)]

    @property
    def grammars(self) -> list[OpenedGrammar]:
        """Its grammars, oldest first."""
        return [it for it in self.opened if isinstance(it, OpenedGrammar)]

    def clock(self) -> VirtualClock:
        """A clock that goes on where this one is."""
        return VirtualClock(self.clock_ns)

    def random(self) -> SeededRandom:
        """Random numbers that go on where these are."""
        return SeededRandom(self.seed, self.n_random_blocks)


def read_handles(handles: HandleTable) -> tuple[Opened, ...]:
    """What the guest has opened; models by the names under which they were given."""
    opened: list[Opened] = []
    for handle in handles.numbers():
        thing, name = handles.get(handle, object), handles.model_of(handle)
        if isinstance(thing, Session):
            opened.append(_describe(handle, name, thing))
        elif isinstance(thing, Grammar):
            opened.append(OpenedGrammar(handle, name, thing.kind, thing.source, thing.tokens[:]))
        elif isinstance(thing, Weight):
            opened.append(OpenedWeight(handle, name, thing.name))
        elif isinstance(thing, Model):
            opened.append(OpenedModel(handle, name))
    return tuple(opened)


def _describe(handle: int, model: str, session: Session) -> OpenedSession:
    top = session.top
    opened = handle, model, session.ptr, session.layout, session.tokens[:], session.has_logits
    asked, spans = (top.k, top.ptr) if top else (0, 0), tuple(session.spans)
    return OpenedSession(*opened, *asked, spans, session.is_lost)


@dataclass(frozen=True)
class Reopen:
    """Opens again what a state says was open, in a new actor's memory.

    Everything is checked: a state may come from a stranger. `replay` names the models that are not
    those of the state: sessions on them keep their tokens, and get their bytes computed anew.
    Sessions and grammars on the models in `drop` are not opened, since their tokens mean nothing to
    the new one.
    """

    models: Mapping[str, Model]
    limits: Limits
    region: Region
    binding: Binding
    grow: Callable[[int], int]
    """Makes linear memory so many bytes longer and returns where they begin."""
    prefill: Callable[[Session, Sequence[int]], None]
    """Appends tokens to a session. Raises if the actor is to begin no longer."""
    check: Callable[[], None]
    """Raises if the actor is to begin no longer."""
    replay: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()

    def fill(self, handles: HandleTable, state: ActorState) -> None:
        """Puts everything into an empty table; on an error what was opened is closed."""
        self._check_limits(state)
        try:
            for it in state.opened:
                has_tokens = isinstance(it, OpenedSession | OpenedGrammar)
                if not (has_tokens and it.model in self.drop):
                    handles.require_free(it.handle)
                    handles.put(it.handle, self._open(it), it.model)
            handles.set_last(state.last_handle)
        except BaseException:
            for session in handles.all(Session):
                session.close()
            raise

    def _check_limits(self, state: ActorState) -> None:
        if len(state.grammars) > self.limits.grammars:
            raise SnapshotMismatch(
                f"the snapshot has {len(state.grammars)} grammars; "
                f"{self.limits.grammars} are allowed"
            )
        sessions = sorted(state.sessions, key=lambda it: it.ptr)
        for first, second in itertools.pairwise(sessions):
            if first.end > second.ptr:
                raise SnapshotInvalid("two sessions of the snapshot overlap")
        for it in sessions:
            if it.ptr % SPAN_ALIGNMENT or it.end > self.region.nbytes:
                raise SnapshotInvalid("a session of the snapshot does not lie in its memory")
            self._check_top(it, sessions)
        kv_nbytes = sum(self._layout(it).kv_nbytes for it in sessions)
        if len(sessions) > self.limits.sessions:
            raise SnapshotMismatch(
                f"the snapshot has {len(sessions)} sessions; {self.limits.sessions} are allowed"
            )
        if self.limits.kv_nbytes is not None and kv_nbytes > self.limits.kv_nbytes:
            raise SnapshotMismatch(
                f"the snapshot's sessions take {kv_nbytes} bytes; "
                f"{self.limits.kv_nbytes} are allowed"
            )

    def _check_top(self, it: OpenedSession, sessions: Sequence[OpenedSession]) -> None:
        """SnapshotInvalid unless the candidates have a place that a guest could have given them."""
        end = it.top_ptr + PAIR_NBYTES * it.top_k
        if it.top_k > min(MAX_TOP, it.layout.n_vocab):
            raise SnapshotInvalid("a session of the snapshot asks for too many candidates")
        if it.top_ptr % TOP_ALIGNMENT or end > self.region.nbytes:
            raise SnapshotInvalid("candidates of the snapshot do not lie in its memory")
        if it.top_k and any(each.ptr < end and it.top_ptr < each.end for each in sessions):
            raise SnapshotInvalid("candidates of the snapshot lie in a session")

    def _layout(self, it: OpenedSession) -> Layout:
        """The session's, or the one that it will have."""
        replaced = it.model in self.replay and it.model not in self.drop
        return self.models[it.model].layout(it.layout.n_ctx) if replaced else it.layout

    def _open(self, it: Opened) -> object:
        model = self.models[it.model]
        if isinstance(it, OpenedModel):
            return model
        if isinstance(it, OpenedWeight):
            if model.weights.info(it.weight) is None:
                raise SnapshotMismatch(f"{model.name} has no weight {it.weight!r}")
            return Weight(model, it.weight)
        if isinstance(it, OpenedGrammar):
            return self._grammar(it, model)
        if it.model in self.replay:
            return self._replay(it, model)
        return self._resume(it, model)

    def _resume(self, it: OpenedSession, model: Model) -> Session:
        try:
            session = model.resume_session(
                self.region,
                self.binding,
                GuestPtr(it.ptr),
                it.layout,
                it.tokens,
                has_logits=it.has_logits,
                spans=it.spans,
            )
        except (DeviceFailed, Overloaded):
            raise
        except IsthmusError as error:
            raise SnapshotInvalid(f"a session of the snapshot cannot be opened: {error}") from None
        session.resume_top(it.top_k, GuestPtr(it.top_ptr))
        if it.is_lost:
            session.lose()
        return session

    def _replay(self, it: OpenedSession, model: Model) -> Session:
        """The same tokens with another model or another type of KV cache."""
        if it.spans:
            raise SnapshotMismatch(
                "a session of the snapshot holds a picture or a sound, of which there is no token "
                "to prefill again"
            )
        layout = self._layout(it)
        ptr = it.ptr if layout.nbytes <= it.layout.nbytes else self.grow(layout.nbytes)
        session = model.open_session(self.region, self.binding, GuestPtr(ptr), layout)
        session.resume_top(min(it.top_k, layout.n_vocab), GuestPtr(it.top_ptr))
        try:
            if it.tokens:
                self.prefill(session, it.tokens)
        except BaseException:
            session.close()
            raise
        session.has_logits = session.has_logits and it.has_logits
        return session

    def _grammar(self, it: OpenedGrammar, model: Model) -> Grammar:
        """The same text: its tokens are gone through again."""
        try:
            for token in (min(it.tokens), max(it.tokens)) if it.tokens else ():
                model.require_token(token)
            return model.grammars.open(it.kind, it.source, it.tokens, check=self.check)
        except (Cancelled, DeadlineExceeded):
            raise
        except IsthmusError as error:
            raise SnapshotInvalid(f"a grammar of the snapshot cannot be opened: {error}") from None

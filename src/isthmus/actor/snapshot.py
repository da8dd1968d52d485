"""Between an actor's state and a snapshot's manifest, and how exact a restored actor is.

============  ==================================================================================
level         what holds
============  ==================================================================================
exact         same build, device and settings: every byte and every next logit are equal
state-exact   all bytes are equal; next logits may differ in rounding, for the reasons given
replayed      another model or KV type: the tokens are the same and were prefilled again
============  ==================================================================================

A level is decided by comparing what the manifest says with what is here, never assumed.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import get_args

from isthmus.abi import GrammarKind
from isthmus.actor.differences import (
    device_differences,
    settings_differences,
    state_differences,
)
from isthmus.actor.host_api import Granted
from isthmus.actor.layouts import layout_of, span_records, spans_of
from isthmus.actor.message_record import parts_of, paused_in, record_of
from isthmus.actor.state import (
    ActorState,
    Opened,
    OpenedGrammar,
    OpenedModel,
    OpenedSession,
    OpenedWeight,
)
from isthmus.config import Level, Limits
from isthmus.device.base import Device
from isthmus.errors import SettingsError, SnapshotInvalid, SnapshotMismatch
from isthmus.file_hash import FileHashes
from isthmus.model import Model
from isthmus.model.spans import NO_TOKEN
from isthmus.printable import printable
from isthmus.snapshot import Draft, Manifest, MemorySource, Snapshot
from isthmus.snapshot.manifest import (
    GUEST_PART,
    MAX_TEXT_NBYTES,
    NN_PART,
    accepted_part,
    positions_part,
    source_part,
    text_part,
    tokens_part,
)
from isthmus.snapshot.records import (
    ActorRecord,
    AdapterRecord,
    DeviceRecord,
    Dtype,
    GlobalRecord,
    GrammarRecord,
    GuestRecord,
    HandleRecord,
    LimitsRecord,
    ModelRecord,
    SessionRecord,
)
from isthmus.snapshot.versions import version_for
from isthmus.wasm import GlobalValue, Guest

LEVELS: tuple[Level, ...] = get_args(Level)
"""From the best on."""


@dataclass(frozen=True)
class Restoration:
    """How an actor came back. `reasons` tell why it is not better than `level`."""

    level: Level
    reasons: tuple[str, ...]
    snapshot_id: str
    replayed: frozenset[str] = frozenset()
    """Models, by name, whose sessions' tokens are prefilled again."""
    foreign: frozenset[str] = frozenset()
    """Of these, the models to which the tokens mean nothing, or whose sessions hold pictures or
    sounds: the guest opens its sessions anew."""


# ---------------------------------------------------------------------------------- writing


def describe(
    guest: Guest,
    device: DeviceRecord,
    granted: Granted,
    state: ActorState,
    memory: MemorySource,
    parent: str | None,
    version: str,
) -> Draft:
    """A snapshot of an actor that runs nothing."""
    models = tuple(_model_record(name, granted.models[name]) for name in sorted(granted.models))
    parts = _parts(guest, granted, state)
    sessions = tuple(_session_record(it, granted.models[it.model]) for it in state.sessions)
    actor = _actor_record(state, granted)
    return Draft.make(
        memory,
        parts,
        format_version=version_for(models, sessions, actor, is_64=guest.is_64, nn=bool(state.nn)),
        is_64=guest.is_64,
        isthmus=version,
        created_ns=time.time_ns(),
        parent=parent,
        guest=GuestRecord(guest.name, guest.sha256),
        globals=tuple(GlobalRecord(it.index, it.type, it.bits.hex()) for it in state.globals),  # type: ignore[arg-type]
        models=models,
        handles=tuple(_handle_records(state.opened)),
        sessions=sessions,
        grammars=tuple(
            GrammarRecord(it.handle, it.model, it.kind.name.lower(), len(it.tokens))  # type: ignore[arg-type]
            for it in state.grammars
        ),
        actor=actor,
        device=device,
    )


def _parts(guest: Guest, granted: Granted, state: ActorState) -> dict[str, tuple[Dtype, bytes]]:
    parts: dict[str, tuple[Dtype, bytes]] = {GUEST_PART: ("U8", guest.wasm)}
    for it in state.sessions:
        parts[tokens_part(it.handle)] = ("I32", it.tokens.tobytes())
        parts[text_part(it.handle)] = ("U8", _text(granted.models[it.model], it.tokens))
        if positions := b"".join(span.positions for span in it.spans):
            parts[positions_part(it.handle)] = ("I32", positions)
    for grammar in state.grammars:
        parts[source_part(grammar.handle)] = ("U8", grammar.source.encode())
        parts[accepted_part(grammar.handle)] = ("I32", grammar.tokens.tobytes())
    if state.nn:
        parts[NN_PART] = ("U8", state.nn)
    if state.message is not None:
        parts |= parts_of(state.message)
    return parts


def _text(model: Model, tokens: array[int]) -> bytes:
    if not model.has_tokenizer:
        return b""
    known = [it for it in tokens if it != NO_TOKEN]
    return model.tokenizer.decode(known, render_special=True)[:MAX_TEXT_NBYTES]


def _model_record(name: str, model: Model) -> ModelRecord:
    return ModelRecord(
        name=name,
        file_name=printable(model.path.name),  # it may be no UTF-8
        architecture=model.hparams.architecture,
        weights_sha256=model.weights_sha256,
        tokenizer_sha256=model.tokenizer_sha256,
        kv_type=model.settings.kv_type,
        prefill_chunk=model.settings.prefill_chunk,
        deterministic=model.settings.deterministic,
        repack=model.settings.repack,
        adapters=tuple(
            AdapterRecord(printable(it.adapter.path.name), it.adapter.sha256, it.scale)
            for it in model.adaptation.applied
        ),
        width=model.width_name,
        graph=model.graph,
    )


def _handle_records(opened: tuple[Opened, ...]) -> Iterator[HandleRecord]:
    for it in opened:
        if isinstance(it, OpenedModel):
            yield HandleRecord(it.handle, it.model)
        elif isinstance(it, OpenedWeight):
            yield HandleRecord(it.handle, it.model, it.weight)


def _session_record(it: OpenedSession, model: Model) -> SessionRecord:
    layout = it.layout
    return SessionRecord(
        handle=it.handle,
        model=it.model,
        ptr=it.ptr,
        n_ctx=layout.n_ctx,
        n_vocab=layout.n_vocab,
        kv_type=model.settings.kv_type,
        kv_offset=layout.kv_offset,
        **layout.record(),
        n_tokens=len(it.tokens),
        has_logits=it.has_logits,
        top_k=it.top_k,
        top_ptr=it.top_ptr,
        spans=span_records(it.spans),
        is_lost=it.is_lost,
    )


def _actor_record(state: ActorState, granted: Granted) -> ActorRecord:
    return ActorRecord(
        args=state.args,
        tools=tuple(sorted(granted.tools)),
        limits=LimitsRecord(**asdict(granted.limits)),
        seed=str(state.seed),
        n_random_blocks=state.n_random_blocks,
        clock_ns=state.clock_ns,
        log_position=state.log_position,
        n_messages=state.n_messages,
        last_handle=state.last_handle,
        argv=state.argv,
        message=record_of(state.message) if state.message else None,
    )


def device_record(device: Device, hashes: FileHashes) -> DeviceRecord:
    """What computes here, as a manifest says it."""
    return DeviceRecord(
        name=device.info.name,
        library=device.info.library,
        library_sha256=device.library.build_sha256(hashes),
        features=device.info.features,
        threads=device.info.threads,
    )


# ---------------------------------------------------------------------------------- reading


def state_of(snapshot: Snapshot) -> ActorState:
    """The state that a snapshot holds. SnapshotInvalid where it contradicts itself."""
    manifest = snapshot.manifest
    record = manifest.actor
    opened: list[Opened] = [_open_record(snapshot, it) for it in manifest.sessions]
    opened += [_open_grammar(snapshot, it) for it in manifest.grammars]
    for handle in manifest.handles:
        manifest.model(handle.model)
        opened.append(
            OpenedWeight(handle.handle, handle.model, handle.weight)
            if handle.weight
            else OpenedModel(handle.handle, handle.model)
        )
    return ActorState(
        args=record.args,
        globals=tuple(
            GlobalValue(it.index, it.type, bytes.fromhex(it.bits)) for it in manifest.globals
        ),
        opened=tuple(sorted(opened, key=lambda it: it.handle)),
        last_handle=record.last_handle,
        seed=int(record.seed),
        n_random_blocks=record.n_random_blocks,
        clock_ns=record.clock_ns,
        log_position=record.log_position,
        n_messages=record.n_messages,
        nn=snapshot.part(NN_PART) if manifest.has_nn else b"",
        argv=record.argv,
        message=paused_in(snapshot),
    )


def _open_record(snapshot: Snapshot, record: SessionRecord) -> OpenedSession:
    model = snapshot.manifest.model(record.model)
    if model.kv_type != record.kv_type:
        raise SnapshotInvalid("a session has another KV type than its model")
    tokens = array("i", snapshot.part(tokens_part(record.handle)))
    place = record.handle, record.model, record.ptr, layout_of(record, model)
    asked, spans = (record.top_k, record.top_ptr), tuple(spans_of(snapshot, record))
    return OpenedSession(*place, tokens, record.has_logits, *asked, spans, record.is_lost)


def _open_grammar(snapshot: Snapshot, record: GrammarRecord) -> OpenedGrammar:
    snapshot.manifest.model(record.model)
    try:
        source = snapshot.part(source_part(record.handle)).decode()
    except UnicodeDecodeError:
        raise SnapshotInvalid(f"the source of grammar {record.handle} is not UTF-8") from None
    tokens = array("i", snapshot.part(accepted_part(record.handle)))
    kind = GrammarKind[record.kind.upper()]
    return OpenedGrammar(record.handle, record.model, kind, source, tokens)


def guest_of(snapshot: Snapshot) -> bytes:
    """The guest's module, as the snapshot carries it. Raises SnapshotInvalid if it is another than
    the manifest says."""
    wasm = snapshot.part(GUEST_PART)
    if hashlib.sha256(wasm).hexdigest() != snapshot.manifest.guest.sha256:
        raise SnapshotInvalid(f"{snapshot.path} carries another guest than its manifest says")
    return wasm


def limits_of(manifest: Manifest) -> Limits:
    """The limits that the actor had, but none wider than the usual ones. Raises SnapshotInvalid if
    they are none that an actor can have."""
    record = manifest.actor.limits
    try:
        limits = Limits(**{name: getattr(record, name) for name in record.__struct_fields__})
    except SettingsError as error:
        raise SnapshotInvalid(f"the snapshot has impossible limits: {error}") from None
    return limits.stricter(Limits())


def assess(snapshot: Snapshot, device: DeviceRecord, granted: Granted) -> Restoration:
    """How exact an actor would be that is restored with these. SnapshotMismatch where it cannot."""
    manifest = snapshot.manifest
    _require_all(manifest, granted)
    rounding = list(device_differences(manifest, device))
    replay: dict[str, list[str]] = {}
    foreign = set()
    for record in manifest.models:
        here = _model_record(record.name, granted.models[record.name])
        if changes := list(state_differences(record, here)):
            replay[record.name] = changes
        seen = changes and _has_seen(manifest, record.name)
        if seen or record.tokenizer_sha256 != here.tokenizer_sha256:
            foreign.add(record.name)
        rounding += settings_differences(record, here)
    if replay and manifest.actor.message is not None:
        raise SnapshotMismatch(
            "the snapshot is in the middle of an answer, which only its own models can end",
            tuple(reason for changes in replay.values() for reason in changes),
        )
    reasons = [reason for changes in replay.values() for reason in changes] + rounding
    level: Level = "replayed" if replay else "state-exact" if rounding else "exact"
    return Restoration(level, tuple(reasons), snapshot.id, frozenset(replay), frozenset(foreign))


def _has_seen(manifest: Manifest, model: str) -> bool:
    """Whether a session of a model holds embeddings, which cannot be prefilled again: only a guest
    that keeps the files can."""
    return any(it.spans for it in manifest.sessions if it.model == model)


def require_level(restoration: Restoration, require: str) -> None:
    """SnapshotMismatch where the level is below `require`; SettingsError where that is none."""
    if require not in LEVELS:
        raise SettingsError(f"require is {require!r}: give {', '.join(LEVELS)}")
    if LEVELS.index(restoration.level) > LEVELS.index(require):
        raise SnapshotMismatch(
            f"the actor would be {restoration.level}, and {require} is required "
            f"(require={restoration.level!r}, --require {restoration.level}, allows it)",
            restoration.reasons,
        )


def _require_all(manifest: Manifest, granted: Granted) -> None:
    missing = [
        f"the model {record.name!r} ({record.file_name}, SHA-256 {record.weights_sha256[:12]}…)"
        for record in manifest.models
        if record.name not in granted.models
    ]
    missing += [f"the tool {name!r}" for name in manifest.actor.tools if name not in granted.tools]
    if missing:
        raise SnapshotMismatch(
            f"the actor needs what it was not given: {', '.join(missing)} "
            "(models= and tools= give them, or on the command line --model NAME=PATH and "
            "--tool NAME=COMMAND)"
        )

"""The record of an agent that is what a snapshot from elsewhere holds."""

from __future__ import annotations

import time
from dataclasses import asdict

from isthmus.actor.snapshot import limits_of
from isthmus.config import Limits
from isthmus.errors import SnapshotInvalid
from isthmus.server.agents.guests import bundled_name
from isthmus.server.storage.record import Record, new_id
from isthmus.snapshot import Snapshot


def record_of(name: str, snapshot: Snapshot, models: dict[str, str], output_nbytes: int) -> Record:
    """A new agent at position 0, which emits `output_nbytes` for a message at most.
    SnapshotInvalid."""
    manifest = snapshot.manifest
    seed = int(manifest.actor.seed)
    if not -(2**63) <= seed < 2**64:
        raise SnapshotInvalid(f"the snapshot has an impossible seed: {seed}")
    limits = limits_of(manifest).stricter(Limits(output_nbytes=output_nbytes))
    return Record(
        id=new_id(),
        name=name,
        guest=bundled_name(manifest.guest.sha256) or manifest.guest.sha256,
        models=models,
        args=dict(it.partition("=")[::2] for it in manifest.actor.args),
        argv=manifest.actor.argv or (),
        limits=asdict(limits),
        seed=seed,
        created=time.time(),
        tools=manifest.actor.tools,
    )

"""What the commands about snapshots share: their options, and opening what a snapshot needs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from isthmus.actor import Actor
from isthmus.actor.snapshot import limits_of
from isthmus.cli.naming import model_path, named_models, named_projectors
from isthmus.cli.options import (
    add_device_options,
    add_key_option,
    add_mmproj_option,
    open_adapted,
    read_key,
    say,
)
from isthmus.config import GRAPHS, KV_TYPES, Environment, GraphBy
from isthmus.errors import ModelError, SettingsError, SnapshotError
from isthmus.file_hash import FileHashes
from isthmus.model import Model
from isthmus.printable import printable
from isthmus.runtime import Runtime
from isthmus.shards import model_files
from isthmus.snapshot import Snapshot, open_snapshot
from isthmus.snapshot.draft import require_target
from isthmus.snapshot.records import ModelRecord
from isthmus.snapshot.store import Store, resolve
from isthmus.tools import Tool
from isthmus.units import MIB

SNAPSHOT_HELP = "a snapshot's file, or STORE/NAME"
LEVELS = ("exact", "state-exact", "replayed")


def add_restore_options(parser: argparse.ArgumentParser) -> None:
    """How a snapshot is restored."""
    group = parser.add_argument_group("restoring")
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="the model it was given (default: looked for by its file name)",
    )
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="[NAME=]PATH[:SCALE]",
        help="an adapter of the model of that name (default: looked for by its file name)",
    )
    add_mmproj_option(group)
    group.add_argument(
        "--kv-type", choices=KV_TYPES, help="type of the KV cache (default: as it was)"
    )
    group.add_argument(
        "--graph",
        choices=GRAPHS,
        default="auto",
        help="who builds the graph of the forward pass (default: auto, as it was); another one "
        "than before needs --require replayed",
    )
    group.add_argument(
        "--require",
        default="state-exact",
        choices=LEVELS,
        help="refuse what is less exact; replayed allows another model (default: state-exact)",
    )
    group.add_argument(
        "--verify",
        default="full",
        choices=("full", "lazy"),
        help="lazy does not hash the memory of a file that you trust (default: full)",
    )
    group.add_argument(
        "--memory",
        type=int,
        metavar="MIB",
        help="most linear memory, in MiB; an actor with more than 4 GiB needs it (default: as it "
        "was, 4 GiB at most)",
    )
    add_key_option(group)
    add_device_options(parser)


def open_named(text: str, arguments: argparse.Namespace) -> Snapshot:
    """The snapshot that a user means."""
    return open_snapshot(resolve(text), read_key(arguments))


def signature(signed: bool, arguments: argparse.Namespace) -> str:
    """What is known of a snapshot's signature once it was opened."""
    if not signed:
        return "not signed"
    return "signature good" if read_key(arguments) else "signed, not checked without its key"


def restore(
    runtime: Runtime,
    text: str,
    arguments: argparse.Namespace,
    tools: Mapping[str, Tool] | None = None,
) -> Actor:
    """Restores a snapshot with its models, and says how exact it is. Raises SettingsError for
    models that the snapshot does not use."""
    snapshot = open_named(text, arguments)
    if snapshot.signed and read_key(arguments) is None:
        say("The snapshot is signed; without --key-file that is not checked, nor kept.")
    given = named_models(arguments.model)
    models: dict[str, Model] = {}
    names = [it.name for it in snapshot.manifest.models]
    projectors = named_projectors(arguments.mmproj, names)
    for record in snapshot.manifest.models:
        path = given.pop(record.name, None) or _find(
            record.file_name, record.weights_sha256, snapshot.path.parent
        )
        if path is not None:
            mmproj = projectors.get(record.name)
            models[record.name] = _load(runtime, path, record, arguments, mmproj)
    if given:
        raise SettingsError(f"the snapshot uses no model named {', '.join(given)}")
    models |= _adapted(runtime, models, snapshot, arguments.lora)
    allowed = limits_of(snapshot.manifest)
    if arguments.memory is not None:
        allowed = replace(allowed, memory_nbytes=arguments.memory * MIB)
    actor = runtime.restore(
        snapshot.path,
        models=models,
        tools=tools,
        limits=allowed,
        require=arguments.require,
        verify=arguments.verify,
    )
    assert actor.restored is not None
    reasons = "".join(f"\n  {printable(reason)}" for reason in actor.restored.reasons)
    say(f"Restored {printable(actor.guest.name)}, {actor.restored.level}.{reasons}")
    return actor


def _load(
    runtime: Runtime,
    path: str,
    record: ModelRecord,
    arguments: argparse.Namespace,
    mmproj: Path | None = None,
) -> Model:
    """A model, computed as it was when the snapshot was made; of another class of width if the
    device has none with these bounds."""
    # another file may have no graph of ours
    as_it_was: GraphBy = "adopted" if record.graph else "auto"
    given: GraphBy = arguments.graph
    graph = as_it_was if given == "auto" else given

    def load(width: str) -> Model:
        return runtime.load_model(
            model_path(path),
            kv_type=arguments.kv_type or record.kv_type,
            prefill_chunk=record.prefill_chunk,
            deterministic=record.deterministic,
            repack=record.repack,
            width=width,
            graph=graph,
            mmproj=mmproj,
        )

    if not record.width:
        return load("alone")
    try:
        return load(record.width)
    except SettingsError:
        return load("many")


def _adapted(
    runtime: Runtime, models: dict[str, Model], snapshot: Snapshot, texts: list[str]
) -> dict[str, Model]:
    """The models with adapters: those that were given, or those that there were, where found."""
    if texts:
        adapted = open_adapted(runtime, models, texts)
        if others := adapted.keys() - models.keys():
            raise SettingsError(f"the snapshot uses no model named {', '.join(sorted(others))}")
        return adapted
    found: dict[str, Model] = {}
    for record in snapshot.manifest.models:
        paths = [_find(it.file_name, it.sha256, snapshot.path.parent) for it in record.adapters]
        if record.name not in models or not paths or None in paths:
            continue
        base = models[record.name]
        adapters = [runtime.load_adapter(path, base) for path in paths if path]
        scales = [it.scale for it in record.adapters]
        found[record.name] = runtime.adapt(base, dict(zip(adapters, scales, strict=True)))
    return found


def _find(file_name: str, sha256: str, folder: Path) -> str | None:
    """A file of the same name, beside the snapshot, here, or among the models that were fetched."""
    if Path(file_name).name != file_name:
        return None
    candidates = [folder / file_name, Path(file_name)]
    cache = Environment.read().cache
    if cache.is_dir():
        candidates += sorted(cache.rglob(file_name))
    files = [path for path in candidates if path.is_file()]
    hashes = FileHashes(cache / "hashes")
    same = (path for path in files if _sha256(hashes, path) == sha256)
    found = next(same, files[0] if files else None)
    return None if found is None else str(found)


def _sha256(hashes: FileHashes, path: Path) -> str | None:
    """The hash of the model or adapter that a file names; None if shards of it are missing."""
    try:
        return hashes.sha256(model_files(path))
    except ModelError:
        return None


def target(text: str, name: str | None = None) -> tuple[Path | Store, str | None]:
    """Where to save: a file; a store, under a name; or STORE/NAME. Checked before any work.

    A store is a folder that is one, is empty, or whose name ends with a slash. Raises SnapshotError
    if nothing can be written there.
    """
    path = Path(text).expanduser()
    place: Path | Store = path
    if text.endswith("/") or path.is_dir() or name is not None:
        place = Store(path)
    elif (path.parent / "snapshots").is_dir():
        place, name = Store(path.parent), path.name.removesuffix(".safetensors")
    if isinstance(place, Store):
        file = place.path(name or "name")
        if name is not None:
            require_target(file)
    else:
        require_target(path)
    folder = place.folder if isinstance(place, Store) else path.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise SnapshotError(f"cannot write in {folder}: no such folder, or no right to")
    return place, name

"""`isthmus inspect`: what a snapshot holds."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from isthmus.cli.options import add_key_option
from isthmus.cli.restoring import SNAPSHOT_HELP, open_named, signature
from isthmus.printable import printable, printable_json
from isthmus.snapshot.manifest import GUEST_PART
from isthmus.snapshot.report import Inspection, excerpt, inspect
from isthmus.units import format_nbytes
from isthmus.wasm.resumable import is_resumable

HELP = "show what a snapshot holds, without a model or a device"
EXAMPLES = """\
  isthmus inspect ada.safetensors
  isthmus inspect agents/ada --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command's options."""
    parser.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, texts whole")
    add_key_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs it."""
    snapshot = open_named(arguments.snapshot, arguments)
    found, resumable = inspect(snapshot), is_resumable(snapshot.part(GUEST_PART))
    if arguments.json:
        print(printable_json({**asdict(found), "resumable": resumable}, indent=1))
    else:
        lines = _lines(found, signature(found.signed, arguments), resumable=resumable)
        print("\n".join(map(printable, lines)))
    return 0


def _lines(it: Inspection, signed: str, *, resumable: bool) -> list[str]:
    used, whole = format_nbytes(it.memory_nbytes_used), format_nbytes(it.memory_nbytes)
    kind = "one file" if it.self_contained else "in a store"
    lines = [
        f"snapshot   {it.id}",
        f"parent     {it.parent or 'none'}",
        f"made       {when(it.created_ns)} by isthmus {it.isthmus}, {kind}, {signed}",
        f"guest      {it.guest} {it.guest_sha256[:16]}, {format_nbytes(it.guest_nbytes)}"
        f"{', resumable' if resumable else ''}",
        f"{'options   ' if it.argv is None else 'variables '} {' '.join(it.args) or 'none'}",
        *([] if it.argv is None else [f"arguments  {' '.join(it.argv) or 'none'}"]),
        f"tools      {' '.join(it.tools) or 'none'}",
        f"messages   {it.n_messages}",
        f"memory     {used} in use of {whole}, {it.n_globals} globals",
        f"on disk    {format_nbytes(it.disk_nbytes)}",
        f"computed   on {it.device} by {it.library}",
    ]
    lines += [
        f"model      {model['name']}: {model['file_name']}, weights "
        f"{str(model['weights_sha256'])[:16]}, KV cache {model['kv_type']}"
        f"{_graph(model)}{_adapters(model)}"
        for model in it.models
    ]
    for session in it.sessions:
        lines.append(
            f"session {session.handle}  {session.n_tokens} of {session.n_ctx} tokens, "
            f"{format_nbytes(session.kv_nbytes_used)} of KV cache, on {session.model}"
            f"{_embedded(session.n_embedded)}"
        )
        lines += [f"  | {line}" for line in excerpt(session.text).splitlines()]
    if it.answered is not None:
        lines.append("answer     it is in the middle of one; isthmus restore goes on with it")
        lines += [f"  | {line}" for line in excerpt(it.answered).splitlines()]
    return lines


def _embedded(n_rows: int) -> str:
    """What a session holds that is no token, if it holds some."""
    return f"; {n_rows} of pictures or sounds, which only its guest can replay" if n_rows else ""


def _graph(model: dict[str, Any]) -> str:
    """What writes a model's graph down, if it is not Isthmus."""
    return f", graph of {model['graph']}" if model.get("graph") else ""


def _adapters(model: dict[str, Any]) -> str:
    """A model's adapters, where it has any."""
    return "".join(
        f", adapter {it['file_name']} {it['sha256'][:16]} by {it['scale']:g}"
        for it in model.get("adapters", ())
    )


def when(created_ns: int) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(created_ns / 1e9, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")

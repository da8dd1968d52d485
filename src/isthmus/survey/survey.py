"""What holds of the library's architectures: each is tried on a tiny model, in a child process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from isthmus.errors import ModelUnsupported, SettingsError
from isthmus.model.architectures import architectures, family_of
from isthmus.native.child import last_words
from isthmus.native.loader import Library
from isthmus.spelling import suggestion
from isthmus.survey.known_models import KNOWN_MODELS
from isthmus.survey.row import Findings, Row
from isthmus.survey.tiny import tiny_model
from isthmus.trial import Ending, TrialLimits, try_out
from isthmus.units import GIB, MIB

_SCRIPT = Path(__file__).with_name("checking.py")
_LIMITS = TrialLimits(
    cpu_s=120,
    memory_nbytes=1024 * GIB,
    stack_nbytes=8 * MIB,
    result_nbytes=64 * MIB,
    wall_s=600.0,
)
"""Addresses are plenty, since agents' memories reserve them; snapshots are as long as a result may
be."""


def survey(
    library: Library,
    names: Sequence[str],
    devices: Sequence[str],
    progress: Callable[[Row], None],
    check: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows of these architectures, tried on each of these devices.

    `progress` is told each row as it comes; `check` is called while this waits, and may raise.
    """
    rows = []
    for name in names:
        rows.append(examine(library, name, devices, check))
        progress(rows[-1])
    return rows


def require_names(library: Library, names: Sequence[str]) -> None:
    """SettingsError for a name that the library does not have."""
    known = library.architectures()
    for name in names:
        if name not in known:
            raise SettingsError(
                f"the library has no architecture {name!r}{suggestion(name, known)}"
            )


def examine(
    library: Library, name: str, devices: Sequence[str], check: Callable[[], None] = lambda: None
) -> Row:
    """The row of one architecture."""
    each = {device: _findings(library, name, device, check) for device in devices}
    first = each[devices[0]]
    own = name in architectures()
    return Row(
        name=name,
        way="refused" if first.problem else "own" if own else "adopted",
        models=family_of(name).models if own else KNOWN_MODELS.get(name, ""),
        devices=tuple(device for device, findings in each.items() if findings.holds),
        findings=first,
    )


def _findings(library: Library, name: str, device: str, check: Callable[[], None]) -> Findings:
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        path = Path(folder) / f"{name}.gguf"
        try:
            path.write_bytes(tiny_model(library, name))
        except ModelUnsupported as error:
            return Findings(problem=str(error))
        job = {
            "path": str(path),
            "folder": folder,
            "device": device,
            "library": str(library.path),
        }
        outcome = try_out(_SCRIPT, "check", json.dumps(job).encode(), _LIMITS, check, whole=True)
    if outcome.ending is Ending.DONE:
        findings = Findings(**json.loads(outcome.result))
        problem = findings.problem.removeprefix(f"{path} ")
        problem = problem.removeprefix(f"is of architecture {name!r}, which ")
        return replace(findings, problem=problem)
    words = last_words(outcome.said)
    return Findings(problem=f"the process {outcome.ending.value}{f': {words}' if words else ''}")

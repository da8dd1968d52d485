"""What holds of an architecture, as a row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

HEADS = (
    *("architecture", "way", "makes", "equal", "fork", "snapshot", "truncate", "devices"),
    "models",
)


@dataclass(frozen=True)
class Findings:
    """What was seen of one model. None: does not apply, or was not seen."""

    makes: str = ""
    """`text`, `embeddings`, or both by a comma."""
    equal: bool | None = None
    """Whether logits, or embeddings, are the bytes of libllama alone."""
    fork: bool | None = None
    """Whether a fork goes on with the same logits."""
    snapshot: bool | None = None
    """Whether an agent that was saved and restored goes on with the same logits."""
    truncate: bool | None = None
    """Whether logits are the same once more after tokens were taken back; None if the architecture
    keeps a state, of which no token can be taken back."""
    problem: str = ""
    """Why nothing was seen."""

    @property
    def makes_text(self) -> bool:
        """Whether the model has sessions."""
        return "text" in self.makes

    @property
    def holds(self) -> bool:
        """Whether everything that was seen is as it should be."""
        seen = (self.equal, self.fork, self.snapshot, self.truncate)
        needed = (self.equal, self.fork, self.snapshot) if self.makes_text else (self.equal,)
        return all(needed) and False not in seen


@dataclass(frozen=True)
class Row:
    """One architecture."""

    name: str
    way: str
    """`own`: computed by a graph of ours. `adopted`: by libllama's. `refused`: not at all."""
    models: str
    """Well-known models of this architecture; empty if none is known for sure."""
    devices: tuple[str, ...]
    """Devices on which everything holds."""
    findings: Findings
    """What was seen on the first device that was asked for."""

    @property
    def holds(self) -> bool:
        """Whether everything holds that such a model should do."""
        return self.way != "refused" and self.findings.holds

    def as_json(self) -> dict[str, Any]:
        """All of it, with the verdict."""
        outside = {"name": self.name, "way": self.way, "models": self.models}
        seen = asdict(self.findings)
        return {**outside, **seen, "devices": list(self.devices), "holds": self.holds}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Row:
        """The row that `as_json` gave."""
        found = {key: record[key] for key in Findings.__dataclass_fields__}
        outside = {key: record[key] for key in ("name", "way", "models")}
        return cls(**outside, devices=tuple(record["devices"]), findings=Findings(**found))

    def cells(self) -> tuple[str, ...]:
        """The row for people, under HEADS."""
        it = self.findings
        if self.way == "refused":
            return (self.name, self.way, "", "", "", "", "", "", it.problem)
        truncate = "no" if it.makes_text and it.truncate is None else _word(it.truncate)
        seen = (_word(it.equal), _word(it.fork), _word(it.snapshot), truncate)
        return (self.name, self.way, it.makes, *seen, " ".join(self.devices), self.models)


def _word(seen: bool | None) -> str:
    return {True: "exact", False: "WRONG", None: ""}[seen]


def summary(rows: Sequence[Row]) -> str:
    """How many rows hold, in one line."""
    own, adopted = (sum(it.holds and it.way == way for it in rows) for way in ("own", "adopted"))
    refused = sum(it.way == "refused" for it in rows)
    return (
        f"{own + adopted} of {len(rows)} architectures hold: {own} by graphs of ours, {adopted} by "
        f"libllama's; refused: {refused}"
    )

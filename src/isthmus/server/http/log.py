"""What the server says of itself: a line for people, or a JSON object for programs.

What guests say is `isthmus.guest[AGENT]: …` in a line, and has the event `guest` in an object.

An object has `time` (UTC), `level`, `event` and what belongs to it. `request` has the fields of
`entry.Entry`; `listening`, `model_loaded`, `model_unloaded`, `stopping`, `stopped`, `keys` say
their facts; `log` has a `message`.
Nothing that a client said is in any of them, but paths without their query.
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import Any

import msgspec

from isthmus.printable import LineFormatter, escape_json, printable

_log = logging.getLogger("isthmus.server")


def tell(event: str, text: str, **facts: Any) -> None:
    """Logs that something happened: `text` for people, `event` and `facts` for programs."""
    _log.info("%s", text, extra={"event": event, "facts": facts})


def use_format(name: str) -> None:
    """Has all of this process's log written so: `line` or `json`."""
    formatter = JsonFormatter() if name == "json" else TimedFormatter()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


class TimedFormatter(LineFormatter):
    """A line for people, with the time in UTC before it."""

    def format(self, record: logging.LogRecord) -> str:
        """See the module."""
        return f"{_time_of(record)} {super().format(record)}"


def _time_of(record: logging.LogRecord) -> str:
    made = datetime.fromtimestamp(record.created, timezone.utc)
    return made.isoformat("T", "milliseconds")


class JsonFormatter(logging.Formatter):
    """One JSON object, on one line, for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """See the module."""
        facts: dict[str, Any] | None = getattr(record, "facts", None)
        said = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
        }
        agent: str | None = getattr(record, "agent", None)
        if agent is not None:
            said |= {"event": "guest", "agent": agent or None}
        if facts is None:
            said |= {"logger": record.name, "message": printable(record.getMessage())}
        else:
            said |= facts
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return escape_json(msgspec.json.encode(said, enc_hook=str).decode())

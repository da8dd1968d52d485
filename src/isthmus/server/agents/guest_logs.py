"""The last lines that each agent has logged, for whoever looks at it. They are in memory only."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque

from isthmus.server.agents.replies import LogLine

_LINES = 100
"""Lines of one agent that are kept."""
_AGENTS = 256
"""Agents whose lines are kept: those that logged last."""
_CHARACTERS = 1000
"""Characters of one line that are kept."""
_GUESTS = "isthmus.guest"
"""The logger of what guests say; each record has its `agent`."""


class GuestLogs(logging.Handler):
    """See the module. It hears from `open` to `close`; its handler's lock guards the lines."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: OrderedDict[str, deque[LogLine]] = OrderedDict()

    def open(self) -> None:
        """Begins to listen."""
        logging.getLogger(_GUESTS).addHandler(self)

    def close(self) -> None:
        """Listens no longer."""
        logging.getLogger(_GUESTS).removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by whichever thread runs the guest, with the handler's lock."""
        agent: str | None = getattr(record, "agent", None)
        if not agent:
            return
        lines = self._lines.setdefault(agent, deque(maxlen=_LINES))
        self._lines.move_to_end(agent)
        text = record.getMessage()[:_CHARACTERS]
        lines.append({"at": record.created, "level": record.levelname.lower(), "text": text})
        if len(self._lines) > _AGENTS:
            self._lines.popitem(last=False)

    def lines(self, agent: str) -> list[LogLine]:
        """Those of an agent, oldest first."""
        with self.lock:  # type: ignore[union-attr]  # createLock has made it
            return list(self._lines.get(agent, ()))

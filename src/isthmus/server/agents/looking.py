"""What is in agents, and what they do now: nothing here changes one.

`/v1/activity` tells what a page shows while agents work, many times a minute. It counts for no
key's limits, and costs no more than a look at what is under way.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isthmus.machine import resident_nbytes
from isthmus.server.agents.guest_logs import GuestLogs
from isthmus.server.agents.memory_map import map_memory
from isthmus.server.agents.replies import Activity, AgentLog, Busy, MemoryMap, Totals
from isthmus.server.agents.requests import Position, Which
from isthmus.server.agents.routes import Agents, position_of
from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.endpoint import Endpoint, read_query
from isthmus.server.http.entry import current
from isthmus.server.storage.record import Record
from isthmus.snapshot.report import Difference, Inspection, diff, inspect

_BATCHES = re.compile(r"^isthmus_batch_size_(sum|count)\{[^\n]*\} (\S+)$", re.MULTILINE)


class WhichTwo(Which, kw_only=True):
    """Which two snapshots: of the agent, or of it and another."""

    other: str | None = None
    other_at: Position | None = None


class Looking:
    """The routes, over a shelf."""

    def __init__(self, shelf: Shelf, agents: Agents, logs: GuestLogs) -> None:
        self._shelf = shelf
        self._agents = agents
        self._logs = logs

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        one = "/v1/agents/{id}"
        return [
            Endpoint("GET", f"{one}/inspect", self.inspect, query=Which, gives=(Inspection,)),
            Endpoint("GET", f"{one}/diff", self.diff, query=WhichTwo, gives=(Difference,)),
            Endpoint("GET", f"{one}/memory", self.memory, query=WhichTwo, gives=(MemoryMap,)),
            Endpoint("GET", f"{one}/log", self.log, gives=(AgentLog,)),
            Endpoint("GET", "/v1/activity", self.activity, gives=(Activity,)),
        ]

    async def inspect(self, request: Request) -> Response:
        """What a snapshot holds."""
        record, position = self._agents.find(request, read_query(request, Which).at)
        shelf = self._shelf
        found = await shelf.in_thread(lambda: inspect(shelf.snapshot(record, position)))
        return JSONResponse(msgspec.to_builtins(asdict(found), str_keys=True, enc_hook=str))

    async def diff(self, request: Request) -> Response:
        """How two agents, or two positions of one, differ."""
        record = self._agents.record(request)
        asked = read_query(request, WhichTwo)
        other = await self._other(asked.other or record.id)
        at, other_at = position_of(record, asked.at), position_of(other, asked.other_at)
        shelf = self._shelf
        found = await shelf.in_thread(
            lambda: diff(shelf.snapshot(record, at), shelf.snapshot(other, other_at))
        )
        return JSONResponse(
            {**msgspec.to_builtins(asdict(found), str_keys=True, enc_hook=str), "same": found.same}
        )

    async def _other(self, id_: str) -> Record:
        """An agent that may be another server's. SnapshotNotFound."""
        await self._shelf.owning.look(id_)
        return self._shelf.record(id_)

    async def memory(self, request: Request) -> Response:
        """A map of the linear memory: what lies where, what changed last, what forks share."""
        asked = read_query(request, WhichTwo)
        record, position = self._agents.find(request, asked.at)
        other = None
        if asked.other is not None:
            found = await self._other(asked.other)
            other = found, position_of(found, asked.other_at)
        return JSONResponse(
            await self._shelf.in_thread(lambda: map_memory(self._shelf, record, position, other))
        )

    async def log(self, request: Request) -> Response:
        """What an agent has logged last, since the server began."""
        record = self._agents.record(request)
        told: AgentLog = {"id": record.id, "lines": self._logs.lines(record.id)}
        return JSONResponse(told)

    async def activity(self, _request: Request) -> Response:
        """Which agents answer now; what all of them have computed, for who may read metrics."""
        key, now = current().key, time.monotonic()
        mine = self._shelf.visible()
        answering: list[Busy] = [
            {
                "id": id_,
                "name": mine[id_].name,
                "seconds": round(now - answer.began, 1),
                "n_pieces": answer.n_pieces,
            }
            for id_, answer in self._agents.answers.running.items()
            if id_ in mine
        ]
        may_count = key is None or bool(key.limits.metrics)
        told: Activity = {"answering": answering, "totals": self._totals() if may_count else None}
        return JSONResponse(told)

    def _totals(self) -> Totals:
        """What is counted of all agents and requests since the server began."""
        runtime = self._shelf.runtime
        counted = runtime.counters()
        batches = {"sum": 0, "count": 0}
        for part, value in _BATCHES.findall(runtime.metrics()):
            batches[part] += int(float(value))
        return {
            "tokens_decoded": counted.tokens_decoded,
            "tokens_prefilled": counted.tokens_prefilled,
            "steps": batches["count"],
            "tokens_in_steps": batches["sum"],
            "bytes_copied": counted.bytes_copied,
            "in_memory": len(runtime.actors),
            "resident_nbytes": resident_nbytes(),
        }

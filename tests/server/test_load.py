"""Two thousand connections at once: `make test-load`. What it measured goes to standard output."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import resource
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from isthmus.units import MIB
from tests.server.conftest import Serving
from tests.server.process import resident_nbytes, watching

pytestmark = [pytest.mark.long, pytest.mark.model]
N_CONNECTIONS = 2000
N_SLOTS = 16
N_TOKENS = 200
"""Of the ordinary client's answers before and after the storm."""
N_QUIET = 3
"""Of its answers before."""
BODY = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me of the sea."}]}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Storm:
    """Clients of all kinds against one server, each a connection of its own."""

    def __init__(self, serving: Serving) -> None:
        self.host, _, port = serving.url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.seen: Counter[tuple[str, str]] = Counter()
        """How often each kind of client met with what."""
        self.n_open = self.most_open = 0
        self.all_open = asyncio.Event()

    async def run(self) -> None:
        kinds: list[Callable[[], Awaitable[str]]] = [
            self.chat, self.slow, self.leave, self.half, self.large, self.malformed, self.nowhere,
        ]  # fmt: skip
        clients = [kinds[n % len(kinds)] for n in range(N_CONNECTIONS)]
        random.Random(1).shuffle(clients)
        await asyncio.gather(*(self.client(it) for it in clients))

    async def client(self, kind: Callable[[], Awaitable[str]]) -> None:
        try:
            met = await asyncio.wait_for(kind(), 400)
        except asyncio.TimeoutError:
            met = "nothing"
        except OSError as error:
            met = type(error).__name__
        self.seen[kind.__name__, met] += 1  # type: ignore[attr-defined]

    async def open(self, head: str, body: bytes = b"") -> Streams:
        """All of them are open before the first says more than its head."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self.n_open += 1
        self.most_open = max(self.most_open, self.n_open)
        if self.n_open == N_CONNECTIONS:
            self.all_open.set()
        writer.write(f"{head}\r\nHost: {self.host}\r\n".encode())
        await asyncio.wait_for(self.all_open.wait(), 60)
        if body:
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return reader, writer

    async def status(self, streams: Streams, *, whole: bool = True) -> str:
        """The status, and whether one who is refused is told when to come again."""
        reader, writer = streams
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = head.split(b" ", 2)[1].decode()
        if status in ("429", "503"):
            status += " retry" if b"retry-after: " in head else " mute"
        while whole and await reader.read(65536):
            pass
        writer.close()
        return status

    def asked(self, **how: object) -> bytes:
        return json.dumps({**BODY, "max_tokens": 4, "stream": True, **how}).encode()

    async def chat(self) -> str:
        head = "POST /v1/chat/completions HTTP/1.1\r\nConnection: close"
        return await self.status(await self.open(head, self.asked()))

    async def slow(self) -> str:
        """Reads its answer a few bytes at a time."""
        head = "POST /v1/chat/completions HTTP/1.1\r\nConnection: close"
        streams = await self.open(head, self.asked())
        met = await self.status(streams, whole=False)
        while await streams[0].read(64):
            await asyncio.sleep(0.02)
        return met

    async def leave(self) -> str:
        """Leaves while it waits."""
        head = "POST /v1/chat/completions HTTP/1.1"
        _, writer = await self.open(head, self.asked(max_tokens=400))
        await writer.drain()
        await asyncio.sleep(random.Random(id(writer)).random())
        writer.transport.abort()
        return "left"

    async def half(self) -> str:
        """Never ends its headers."""
        return await self.status(await self.open("GET /healthz HTTP/1.1"))

    async def large(self) -> str:
        head = "POST /v1/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: 999999999"
        reader, writer = await self.open(head)
        writer.write(b"\r\n" + b"x" * 65536)
        return await self.status((reader, writer))

    async def malformed(self) -> str:
        head = "POST /v1/chat/completions HTTP/1.1\r\nConnection: close"
        return await self.status(await self.open(head, b'{"model": "smollm2", "messages": ['))

    async def nowhere(self) -> str:
        head = "POST /v1/nothing HTTP/1.1\r\nConnection: close"
        return await self.status(await self.open(head, b"{}"))


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard > N_CONNECTIONS + 200, f"this process may open {hard} files: raise ulimit -Hn"
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def gaps(
    url: str, n_tokens: int = N_TOKENS, ended: asyncio.Event | None = None
) -> list[float]:
    """Seconds between the tokens of one answer, as an ordinary client sees them, to its end or
    that of something else."""
    times: list[float] = []
    body = {**BODY, "max_tokens": n_tokens, "stream": True, "temperature": 0, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=url, timeout=300) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as stream,
    ):
        assert stream.status_code == 200, await stream.aread()
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
            if ended is not None and ended.is_set():
                break
    return [b - a for a, b in itertools.pairwise(times)]


async def among_others(url: str) -> list[float]:
    """The same while as many as there are slots have their answers computed, and behave."""
    ended = asyncio.Event()
    others = [asyncio.ensure_future(gaps(url, 3500, ended)) for _ in range(N_SLOTS - 1)]
    await asyncio.sleep(4)  # their prompts
    found = await gaps(url)
    ended.set()
    await asyncio.gather(*others)
    return found


async def healthy(url: str, until: asyncio.Event) -> list[float]:
    """Seconds that /healthz took, asked again and again."""
    took = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while not until.is_set():
            start = time.perf_counter()
            assert (await client.get("/healthz")).status_code == 200
            took.append(time.perf_counter() - start)
            await asyncio.sleep(0.2)
    return took


async def stormed(serving: Serving) -> dict[str, object]:
    quiet = [gap for _ in range(N_QUIET) for gap in await gaps(serving.url)]
    busy = await among_others(serving.url)
    ended, storm = asyncio.Event(), Storm(serving)
    health = asyncio.ensure_future(healthy(serving.url, ended))
    during = asyncio.ensure_future(gaps(serving.url, 3500, ended))
    await asyncio.sleep(0.3)  # the ordinary client has begun
    start = time.perf_counter()
    await storm.run()
    seconds = time.perf_counter() - start
    ended.set()
    in_storm = await during
    after = await gaps(serving.url)
    assert storm.most_open == N_CONNECTIONS
    for (kind, met), n in storm.seen.items():
        assert (kind, met) in EXPECTED, (kind, met, n)
    return {
        "met": {f"{kind}: {met}": n for (kind, met), n in sorted(storm.seen.items())},
        "storm_s": round(seconds, 1),
        "health_most_s": round(max(await health), 3),
        "between_tokens_quiet_ms": milliseconds(quiet),
        "between_tokens_busy_ms": milliseconds(busy),
        "between_tokens_storm_ms": milliseconds(in_storm),
        "between_tokens_after_ms": milliseconds(after),
        "tokens_in_storm": len(in_storm),
        "ratio_p50": round(statistics.median(in_storm) / statistics.median(quiet), 2),
        "ratio_p50_to_busy": round(statistics.median(in_storm) / statistics.median(busy), 2),
        "ratio_mean": round(statistics.mean(in_storm) / statistics.mean(quiet), 2),
        "ratio_after": round(statistics.median(after) / statistics.median(quiet), 2),
    }


EXPECTED = {
    *((kind, met) for kind in ("chat", "slow") for met in ("200", "503 retry")),
    ("leave", "left"),
    ("half", "408"),
    *(("large", met) for met in ("413", "ConnectionResetError")),
    ("malformed", "400"),
    ("nowhere", "404"),
}
"""Hanging up on a body that is too large is as good as saying so."""


def milliseconds(seconds: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(seconds, n=20)
    found = {"p50": statistics.median(seconds), "p95": tenths[18], "most": max(seconds)}
    return {name: round(1e3 * value, 1) for name, value in found.items()}


def test_two_thousand_connections(smollm2: Path, tmp_path: Path, many_files: None) -> None:
    config = tmp_path / "server.toml"
    config.write_text(f"waiting = 600\nslots = {N_SLOTS}\n")
    serving = Serving(tmp_path / "data", "--model", f"smollm2={smollm2}", "--config", str(config))
    pid = serving.process.pid
    try:
        asyncio.run(gaps(serving.url))
        with watching(pid) as peak:
            found = asyncio.run(stormed(serving))
    except BaseException:
        serving.kill()
        raise
    time.sleep(1)
    found["resident_mib"] = {
        "before": peak.before // MIB,
        "most": peak.most // MIB,
        "after": resident_nbytes(pid) // MIB,
    }
    print(json.dumps(found, indent=1))
    assert serving.process.poll() is None
    assert serving.get("/healthz")["status"] == "ok"
    assert peak.grown < 512 * MIB, peak.grown / MIB
    assert serving.stop() == 0

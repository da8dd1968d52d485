"""Attackers, each with a key of its own: what they send again and again until the siege ends.

They are a process of their own, as they would be elsewhere: what they do for it takes no time from
the honest client, and little from the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import wasmtime

_NICE = 19
"""Niceness of the attackers: the processors here are meant to be the server's alone."""
ENDLESS = "(loop $l (br $l))"
GUEST = """(module {imports} (memory (export "memory") 1) {data}
  (func (export "_initialize") {initialize})
  (func (export "on_message") (param i32) (result i32) {body} (i32.const 0)))"""
EMIT = '(import "isthmus" "emit" (func $e (param i32 i32) (result i32)))'
FLOOD = "(loop $l (drop (call $e (i32.const 0) (i32.const 65536))) (br $l))"
WRITE = """(import "wasi_snapshot_preview1" "fd_write"
  (func $w (param i32 i32 i32 i32) (result i32)))"""
LOG = "(drop (call $w (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))" * 100
LOGGED = (
    '(data (i32.const 16) "\\1b[2J\\0aisthmus.server: x") (data "\\10\\00\\00\\00\\14\\00\\00\\00")'
)


def wat(**parts: str) -> bytes:
    given = {"imports": "", "data": "", "initialize": "", "body": "", **parts}
    return bytes(wasmtime.wat2wasm(GUEST.format(**given)))


def nested_blocks(n: int) -> str:
    return "(block " * n + ")" * n


class Siege:
    """All attacks against one server, but for those whose names are `without`."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        """`keys` are those of the attacks, by their names."""
        self.url = url
        self.keys = keys
        self.names = list(keys)
        self.seen: Counter[tuple[str, int]] = Counter()
        """How often each attack met with each status; 0 for a connection that was closed."""
        self.ended = asyncio.Event()

    async def run(self, seconds: float) -> None:
        """All attacks at once, for so long."""
        asyncio.get_running_loop().call_later(seconds, self.ended.set)
        await asyncio.gather(*(self._attack(name) for name in self.names for _ in range(2)))

    def met(self) -> dict[str, dict[int, int]]:
        """By attack, how often it met with each status; see `seen`."""
        return {
            name: {status: n for (it, status), n in sorted(self.seen.items()) if it == name}
            for name in self.names
        }

    async def _attack(self, name: str) -> None:
        headers = {"Authorization": f"Bearer {self.keys[name]}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=10) as client:
            while not self.ended.is_set():
                try:
                    found = await asyncio.wait_for(ATTACKS[name](self, client), 30)
                    statuses = [found] if isinstance(found, int) else found
                except (OSError, httpx.HTTPError, asyncio.TimeoutError):
                    statuses = [0]
                self.seen.update((name, status) for status in statuses)
                await asyncio.sleep(0.02)


async def _bring(client: httpx.AsyncClient, wasm: bytes, message: str | None = "x") -> list[int]:
    """Brings a guest, makes an agent of it, tells it something, and removes both."""
    made = await client.post("/v1/guests", content=wasm)
    statuses = [made.status_code]
    if made.status_code != 201:
        return statuses
    guest = made.json()["id"]
    limits = {"deadline_s": 2.0}
    agent = await client.post("/v1/agents", json={"guest": guest, "limits": limits})
    statuses.append(agent.status_code)
    if agent.status_code == 201:
        path = f"/v1/agents/{agent.json()['id']}"
        if message is not None:
            with contextlib.suppress(httpx.TimeoutException):
                told = await client.post(f"{path}/messages", json={"input": message})
                statuses.append(told.status_code)
        statuses.append((await client.delete(path)).status_code)
    await client.delete(f"/v1/guests/{guest}")
    return statuses


async def endless_initialize(_: Siege, client: httpx.AsyncClient) -> list[int]:
    return await _bring(client, wat(initialize=ENDLESS))


async def endless_message(_: Siege, client: httpx.AsyncClient) -> list[int]:
    return await _bring(client, wat(body=ENDLESS))


async def compile_bomb(_: Siege, client: httpx.AsyncClient) -> list[int]:
    return await _bring(client, wat(body=nested_blocks(random.randint(2000, 20000))), None)


async def long_answer(_: Siege, client: httpx.AsyncClient) -> list[int]:
    return await _bring(client, wat(imports=EMIT, body=FLOOD))


async def escapes(_: Siege, client: httpx.AsyncClient) -> list[int]:
    return await _bring(client, wat(imports=WRITE, data=LOGGED, body=LOG))


def _chat(content: str, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": content}
    return {"model": "tiny", "messages": [message], "max_tokens": 8, **more}


async def prompts(_: Siege, client: httpx.AsyncClient) -> list[int]:
    bodies = [
        _chat("!" * 30_000),
        _chat("<|im_start|>" * 50_000),
        _chat("<|im_start|>" * 40_000),  # what is not refused by its length
        _chat("x", messages=[{"role": "user", "content": ""}] * 1000),
        _chat("x", messages=[{"role": "user", "content": ""}] * 40_000),
        _chat("x " * 4_000_000),
    ]
    path = "/v1/chat/completions"
    return [(await client.post(path, json=it)).status_code for it in bodies]


async def grammars(_: Siege, client: httpx.AsyncClient) -> int:
    n = random.randint(5, 9)
    grammar = f'root ::= (("a" | "b"){{0,{n}000}} "c"){{0,{n}000}}'
    path = "/v1/chat/completions"
    return (await client.post(path, json=_chat("x", grammar=grammar))).status_code


async def long_chats(_: Siege, client: httpx.AsyncClient) -> int:
    more = {"max_tokens": 400, "ignore_eos": True, "n": 8}
    return (await client.post("/v1/chat/completions", json=_chat("Go on.", **more))).status_code


async def huge_json(_: Siege, client: httpx.AsyncClient) -> list[int]:
    bodies = [b"[" * 3_000_000, b'{"model":"tiny","messages":[' + b"[]," * 1_000_000 + b"0]}",
              b" " * 8_000_000]  # fmt: skip
    path = "/v1/chat/completions"
    return [(await client.post(path, content=it)).status_code for it in bodies]


async def agents_in_a_loop(_: Siege, client: httpx.AsyncClient) -> list[int]:
    made = await client.post("/v1/agents", json={"args": {"max_tokens": "4"}})
    if made.status_code != 201:
        return [made.status_code]
    path, statuses = f"/v1/agents/{made.json()['id']}", [201]
    for _n in range(3):
        fork = await client.post(f"{path}/fork", json={})
        statuses.append(fork.status_code)
        if fork.status_code == 201:
            await client.delete(f"/v1/agents/{fork.json()['id']}")
    return [*statuses, (await client.delete(path)).status_code]


async def hostile_snapshots(_: Siege, client: httpx.AsyncClient) -> list[int]:
    head = json.dumps({"__metadata__": {"isthmus": "x" * 1000}}).encode()
    files = [b"x" * 4_000_000, len(head).to_bytes(8, "little") + head, b"\xff" * 8 + b"{" * 9999]
    path = "/v1/agents/restore"
    return [(await client.post(path, content=it)).status_code for it in files]


async def malformed_http(siege: Siege, _: httpx.AsyncClient) -> int:
    sent = random.choice([b"\x00" * 9999, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/agents HTTP/1.1\r\n"
                          b"Content-Length: 99999\r\n\r\n{", b"GET /" + b"x" * 99999])  # fmt: skip
    return await _raw(siege, sent, 2)


async def slow_readers(siege: Siege, client: httpx.AsyncClient) -> int:
    body = json.dumps(_chat("x", stream=True, max_tokens=300, ignore_eos=True)).encode()
    key = client.headers["authorization"]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n"
    return await _raw(siege, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, 3)


async def _raw(siege: Siege, sent: bytes, hold_s: float) -> int:
    host, _, port = siege.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(sent)
    await asyncio.sleep(hold_s)
    try:
        data = await asyncio.wait_for(reader.read(12), 5)
        return int(data[9:12] or b"0")
    finally:
        writer.transport.abort()


ATTACKS: dict[str, Callable[[Siege, httpx.AsyncClient], Awaitable[int | list[int]]]] = {
    it.__name__.replace("_", "-"): it
    for it in (endless_initialize, endless_message, compile_bomb, long_answer, escapes, prompts,
               grammars, long_chats, huge_json, agents_in_a_loop, hostile_snapshots,
               malformed_http, slow_readers)
}  # fmt: skip


def tree_nbytes(pid: int) -> int:
    """Bytes of their own that a process and its children have in memory."""
    nbytes, todo = 0, [pid]
    while todo:
        folder = Path(f"/proc/{todo.pop()}")
        with contextlib.suppress(OSError):
            lines = (folder / "status").read_text().splitlines()
            nbytes += sum(int(it.split()[1]) << 10 for it in lines if it.startswith("RssAnon:"))
            for task in (folder / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return nbytes


def begin(url: str, keys: dict[str, str], seconds: float) -> subprocess.Popen[str]:
    """The process of a siege, which prints at its end what `Siege.met` says, as JSON."""
    script = f"from tests.server import siege; siege.main({url!r}, {keys!r}, {seconds})"
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def main(url: str, keys: dict[str, str], seconds: float) -> None:
    """See `begin`."""
    os.nice(_NICE)

    async def run() -> Siege:
        siege = Siege(url, keys)
        await siege.run(seconds)
        return siege

    print(json.dumps(asyncio.run(run()).met()))

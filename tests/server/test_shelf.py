"""The moment at which a message is done, and who may come between."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import msgspec
import pytest
import wasmtime
from starlette.requests import Request

from isthmus import Runtime
from isthmus.errors import Overloaded, SnapshotInvalid
from isthmus.server.agents import Agents, NewMessage
from isthmus.server.record import Record
from isthmus.server.settings import ServerSettings
from isthmus.server.shelf import Shelf
from isthmus.snapshot import open_snapshot
from isthmus.wasm import loading

COUNTS = """(module (import "isthmus" "reply" (func $r (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 8) "@")
  (func (export "on_message") (param i32) (result i32)
    (i32.store8 (i32.const 8) (i32.add (i32.load8_u (i32.const 8)) (i32.const 1)))
    (call $r (i32.const 8) (i32.const 1))))"""


def test_a_caller_who_is_cancelled_while_it_is_saved_lets_nobody_between(
    null_runtime: Runtime, tmp_path: Path
) -> None:
    settings = ServerSettings(data=tmp_path)
    shelf = Shelf(null_runtime, {}, settings)
    saving, go_on = threading.Event(), threading.Event()
    write = shelf.write

    def slowly(record: Record) -> None:
        if record.position == 1:
            saving.set()
            assert go_on.wait(20)
        write(record)

    async def live() -> Record:
        guest = shelf.add_guest(bytes(wasmtime.wat2wasm(COUNTS)))
        record = await shelf.create("", guest, {}, {}, {}, 1)
        shelf.write = slowly  # type: ignore[method-assign]
        agents = Agents(shelf, settings)

        async def tell() -> None:
            async with shelf.holding(record.id) as held:
                async for _ in agents._answer(held, NewMessage(input="x")):
                    pass

        first = asyncio.ensure_future(tell())
        await asyncio.to_thread(saving.wait, 20)
        first.cancel()
        second = asyncio.ensure_future(tell())
        await asyncio.sleep(0.1)
        assert not second.done()  # the first is still being saved
        go_on.set()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        await second
        await shelf.close()
        return shelf.record(record.id)

    record = asyncio.run(live())
    assert [(turn.position, turn.output) for turn in record.turns] == [(1, "A"), (2, "B")]


def test_what_never_happened_is_swept_at_the_start(null_runtime: Runtime, tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path)
    shelf = Shelf(null_runtime, {}, settings)
    with null_runtime.spawn(bytes(wasmtime.wat2wasm(COUNTS))) as actor:
        actor.snapshot(shelf.store, name="aaaaaaaaaaaa.1")
    packs = tmp_path / "store" / "packs"
    assert list(packs.iterdir())
    asyncio.run(shelf.close())
    again = Shelf(null_runtime, {}, settings)
    assert again.store.names() == []
    assert list(packs.iterdir()) == []
    asyncio.run(again.close())


def test_a_seed_that_no_record_holds_is_refused(null_runtime: Runtime, tmp_path: Path) -> None:
    shelf = Shelf(null_runtime, {}, ServerSettings(data=tmp_path / "data"))
    with null_runtime.spawn(bytes(wasmtime.wat2wasm(COUNTS))) as actor:
        snapshot = open_snapshot(actor.snapshot(tmp_path / "a.safetensors").path)
    manifest, replace = snapshot.manifest, msgspec.structs.replace
    snapshot.manifest = replace(manifest, actor=replace(manifest.actor, seed="9" * 20))

    async def adopt() -> None:
        with pytest.raises(SnapshotInvalid, match="impossible seed"):
            await shelf.adopt("", snapshot, {}, "state-exact")
        assert shelf.records == {}
        await shelf.close()

    asyncio.run(adopt())


def test_modules_that_compile_for_long_leave_threads_to_others(
    null_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slowly(_wasm: bytes, _kind: object) -> bytes:
        assert go_on.wait(120)
        raise Overloaded("never mind")

    def posted(text: bytes) -> Request:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": text, "more_body": False}

        return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)

    async def live() -> int:
        settings = ServerSettings(data=tmp_path)
        shelf = Shelf(null_runtime, {}, settings)
        agents = Agents(shelf, settings)
        module = bytes(wasmtime.wat2wasm(COUNTS))
        bringing = [
            asyncio.ensure_future(agents.bring(posted(module + bytes([0, 2, 1, i]))))
            for i in range(64)
        ]
        await asyncio.sleep(0.2)
        try:
            return await asyncio.wait_for(shelf.in_thread(lambda: 7), 60)
        finally:
            go_on.set()
            await asyncio.gather(*bringing, return_exceptions=True)
            await shelf.close()

    monkeypatch.setattr(loading, "compile_apart", slowly)
    assert asyncio.run(live()) == 7

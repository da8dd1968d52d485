"""Models that come when they are asked for: who waits, who goes, and what everybody is told."""

from __future__ import annotations

import asyncio
import os
import threading
from argparse import Namespace
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isthmus import Runtime
from isthmus.cli.serving import catalog_of
from isthmus.config import Environment, ModelSettings
from isthmus.download import KNOWN, Progress, Watch
from isthmus.errors import (
    DeviceFailed,
    DownloadError,
    IsthmusError,
    ModelBusy,
    ModelClosed,
    ModelFileError,
    Overloaded,
    SettingsError,
)
from isthmus.file_hash import FileHashes, file_identity
from isthmus.model import Model
from isthmus.model.files import opening
from isthmus.native.loader import Library
from isthmus.server.http.entry import Entry, begin, current, in_thread
from isthmus.server.http.errors import HttpError, body_of
from isthmus.server.http.key import Key, KeyLimits
from isthmus.server.models import files
from isthmus.server.models.card import Card
from isthmus.server.models.catalog import Catalog, Source
from isthmus.server.models.memory import default_n_ctx, stateless_nbytes
from isthmus.server.models.models import Models
from isthmus.server.models.opener import Opener
from isthmus.server.models.pulls import Pulling, Pulls
from isthmus.server.models.resident import State
from isthmus.server.settings import ServerSettings
from isthmus.units import GIB, MIB
from tests.download.hub import FakeHub, served
from tests.split_gguf import split
from tests.tiny_gguf import TinyLlama

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of 1.3 MiB each, of which 3 MiB hold two."""
    path = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        TinyLlama(with_tokenizer=True, n_vocab=4096, seed=seed).write(path / f"{name}.gguf")
    return path


def catalog(folder: Path, *at_start: str) -> Catalog:
    given = [Source(folder / f"{it}.gguf", {it: ()}, at_start=True) for it in at_start]
    return Catalog(given, folder, {"alias": "a"})


@contextmanager
def request(owner: str | None = None) -> Any:
    """A request, for as long as it is open."""
    entry = Entry("-", "POST", "/")
    entry.key = None if owner is None else Key(owner, "")
    begin(entry)
    with entry.working():
        yield entry


def with_models(
    runtime: Runtime,
    folder: Path,
    work: Callable[[Models], Awaitable[None]],
    *at_start: str,
    **said: Any,
) -> None:
    """Does something with models of which two fit."""

    async def run() -> None:
        settings = ServerSettings(**{"models_nbytes": 3 * MIB, **said})
        models = Models(runtime, catalog(folder, *at_start), settings)
        models.load_at_start()
        keeping = asyncio.ensure_future(models.keep())
        try:
            await asyncio.wait_for(work(models), 60)
        finally:
            keeping.cancel()
            await models.close()
            for it in models.files.all():
                if it.served:
                    runtime.unload_model(it.model)

    asyncio.run(run())


async def ask(models: Models, *names: str, until: asyncio.Event | None = None) -> list[Model]:
    """One request that uses models until something happens."""
    with request():
        served = await models.use_all(names)
        if until is not None:
            await until.wait()
        return [it.model for it in served]


def states(models: Models) -> str:
    """The state of each model by its first letter, in order: u, l (loading), L (loaded)."""
    letters = {State.UNLOADED: "u", State.LOADING: "l", State.LOADED: "L", State.LEAVING: "u"}
    return "".join(letters[it.state] for it in sorted(models.files.all(), key=lambda it: it.name))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def counting(monkeypatch: pytest.MonkeyPatch, gate: threading.Event | None = None) -> list[str]:
    """The names of files that are opened from now on, each once the gate is open."""
    opened: list[str] = []
    real = Opener.open

    def open_(self: Opener, source: Source) -> Any:
        opened.append(source.name)
        assert gate is None or gate.wait(30)
        return real(self, source)

    monkeypatch.setattr(Opener, "open", open_)
    return opened


# ------------------------------------------------------------------ coming and going


def test_who_asks_at_once_has_one_load(
    null_runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = counting(monkeypatch)

    async def work(models: Models) -> None:
        assert states(models) == "uuu"
        found = await asyncio.gather(*(ask(models, "alias") for _ in range(8)))
        assert len({id(it) for [it] in found}) == 1
        assert opened == ["a"]
        assert states(models) == "Luu"
        assert await ask(models, "a") == found[0]
        assert opened == ["a"]

    with_models(null_runtime, folder, work)


def test_the_one_that_was_used_longest_ago_makes_room(null_runtime: Runtime, folder: Path) -> None:
    async def work(models: Models) -> None:
        await ask(models, "a")
        await ask(models, "b")
        await ask(models, "a")
        await ask(models, "c")
        assert states(models) == "LuL"
        assert await ask(models, "b") != await ask(models, "c")

    with_models(null_runtime, folder, work)


def test_those_that_are_to_stay_leave_last(null_runtime: Runtime, folder: Path) -> None:
    async def work(models: Models) -> None:
        assert states(models) == "Luu"
        await ask(models, "b")
        await ask(models, "c")
        assert states(models) == "LuL"
        await asyncio.gather(ask(models, "b"), ask(models, "c"))
        assert states(models) == "uLL"  # nobody is refused for them

    with_models(null_runtime, folder, work, "a")


def test_a_model_leaves_after_its_time_and_not_while_it_is_used(
    null_runtime: Runtime, folder: Path
) -> None:
    async def work(models: Models) -> None:
        enough = asyncio.Event()
        asking = asyncio.ensure_future(ask(models, "a", until=enough))
        await ask(models, "b")
        await until(lambda: states(models) == "Luu")
        await asyncio.sleep(0.15)
        assert states(models) == "Luu"
        enough.set()
        [model] = await asking
        await until(lambda: states(models) == "uuu" and model.closed)
        with request():
            await models.use("a")
            models.keep_for("a", 0)
            assert states(models) == "Luu"
        await until(lambda: states(models) == "uuu")

    with_models(null_runtime, folder, work, keep_alive_s=0.05)


def test_what_works_for_a_request_that_has_ended_keeps_its_model(
    null_runtime: Runtime, folder: Path
) -> None:
    async def work(models: Models) -> None:
        begun, gate = threading.Event(), threading.Event()

        async def left() -> None:
            with request():
                model = (await models.use("a")).model

                def tokenize() -> int:
                    begun.set()
                    gate.wait(30)
                    return len(model.tokenizer.encode("hello"))

                await in_thread(tokenize)

        task = asyncio.ensure_future(left())
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.wait([task])
        await models.unload("a")
        assert states(models) == "Luu"
        gate.set()
        await until(lambda: states(models) == "uuu")

    with_models(null_runtime, folder, work)


def test_unloading_closes_agents_with_the_model(null_runtime: Runtime, folder: Path) -> None:
    before = null_runtime.metrics()
    model = null_runtime.load_model(folder / "a.gguf")
    other = null_runtime.load_model(folder / "b.gguf")
    args = {"n_ctx": "256"}
    actors = [
        null_runtime.spawn("bench", models={"default": it}, args=args) for it in (model, other)
    ]
    null_runtime.unload_model(model)
    assert [it.state for it in actors] == ["closed", "idle"]
    assert (model.closed, other.closed) == (True, False)
    with pytest.raises(ModelClosed):
        _ = model.tokenizer
    null_runtime.unload_model(model)
    null_runtime.unload_model(other)
    assert null_runtime.memory_limit_nbytes > 0
    assert "isthmus_models_loaded 0.0" in null_runtime.metrics()
    assert "isthmus_models_bytes 0.0" in null_runtime.metrics()

    def count(text: str, name: str) -> float:
        return float(text.split(f"\nisthmus_{name} ")[1].split("\n", maxsplit=1)[0])

    for name in ("model_loads_total", "model_unloads_total", "model_load_seconds_count"):
        assert count(null_runtime.metrics(), name) == count(before, name) + 2


# ------------------------------------------------------------------ who waits


def test_a_stream_of_requests_does_not_keep_others_out(
    null_runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.server.models.models._MIN_PATIENCE_S", 0.1)

    async def work(models: Models) -> None:
        done = asyncio.Event()

        async def flood() -> int:
            n = 0
            while not done.is_set():
                with request():
                    await models.use("a")
                    await asyncio.sleep(0.02)
                n += 1
            return n

        floods = [asyncio.ensure_future(flood()) for _ in range(4)]
        await until(lambda: states(models) == "Luu")
        for _ in range(3):
            await ask(models, "b")
        done.set()
        assert sum(await asyncio.gather(*floods)) > 4

    with_models(null_runtime, folder, work, models_nbytes=2 * MIB)


def test_two_that_need_two_models_do_not_wait_for_each_other(
    null_runtime: Runtime, folder: Path
) -> None:
    async def work(models: Models) -> None:
        wanted = [("a", "b"), ("b", "c"), ("c", "a")] * 3
        found = await asyncio.gather(*(ask(models, *it) for it in wanted))
        assert all(len(set(it)) == 2 for it in found)
        with request(), pytest.raises(Overloaded, match=r"a, b, c: .* models may have 3"):
            await models.use_all(NAMES)

    with_models(null_runtime, folder, work)


def test_a_wait_has_an_end_and_a_bound(null_runtime: Runtime, folder: Path) -> None:
    async def work(models: Models) -> None:
        enough = asyncio.Event()
        asking = asyncio.ensure_future(ask(models, "a", until=enough))
        await until(lambda: states(models) == "Luu")

        async def wait(owner: str | None) -> None:
            with request(owner):
                await models.use("b")

        await models.files.cards()
        models._settings = replace(models._settings, deadline_s=0.4)
        evil = [asyncio.ensure_future(wait("evil")) for _ in range(3)]
        await until(evil[2].done)
        ada = asyncio.ensure_future(wait("ada"))
        refused = [it for it in evil if it.done()]
        with pytest.raises(Overloaded, match="wait for models already"):
            await refused[0]
        with pytest.raises(
            Overloaded, match=r"model b was not in memory after 0.4 s: .* a were in"
        ):
            await ada
        assert sum(isinstance(it.exception(), Overloaded) for it in evil if it.done()) >= 2
        enough.set()
        await asyncio.gather(asking, *evil, return_exceptions=True)
        models._settings = replace(models._settings, deadline_s=60)
        await ask(models, "b")

    with_models(null_runtime, folder, work, models_nbytes=2 * MIB, waiting=2)


def test_a_caller_who_leaves_costs_nobody_anything(
    null_runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    opened = counting(monkeypatch, gate)

    async def work(models: Models) -> None:
        first = asyncio.ensure_future(ask(models, "a"))
        second = asyncio.ensure_future(ask(models, "a"))
        await until(lambda: opened == ["a"])
        first.cancel()
        await asyncio.wait([first])
        gate.set()
        assert len(await second) == 1
        third = asyncio.ensure_future(ask(models, "b"))
        await until(lambda: opened == ["a", "b"])
        third.cancel()
        await until(lambda: states(models) == "uuu")  # which nobody wants any more
        assert all(not it.n_users for it in models.files.all())

    with_models(null_runtime, folder, work, keep_alive_s=0)


def test_a_load_that_fails_is_told_to_all_and_tried_again(
    null_runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fails = Opener.open, [ModelFileError(f"{folder}/a.gguf is damaged"), ValueError("hidden")]

    def open_(self: Opener, source: Source) -> Any:
        if fails:
            raise fails.pop(0)
        return real(self, source)

    monkeypatch.setattr(Opener, "open", open_)

    async def work(models: Models) -> None:
        await models.files.cards()
        found = await asyncio.gather(*(ask(models, "a") for _ in range(3)), return_exceptions=True)
        said = {str(it) for it in found if isinstance(it, HttpError)}
        assert said == {"the model a cannot be loaded: a.gguf is damaged"}
        assert len(found) == 3
        with pytest.raises(HttpError, match="the server's log says why"):
            await ask(models, "a")
        assert states(models) == "uuu"
        await ask(models, "a")
        assert models.files.known("a").error is None

    with_models(null_runtime, folder, work)


def test_a_device_without_room_has_another_model_leave(
    null_runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(models: Models) -> None:
        await ask(models, "a")
        real = Opener.open

        def open_(self: Opener, source: Source) -> Any:
            if states(models)[0] == "L":
                raise DeviceFailed("out of memory")
            return real(self, source)

        monkeypatch.setattr(Opener, "open", open_)
        await ask(models, "b")
        assert states(models) == "uLu"

    with_models(null_runtime, folder, work)


def test_a_model_that_cannot_be_closed_stays_and_is_tried_again(
    null_runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.server.models.models._AGAIN_S", 0.05)

    real, fails = Runtime.unload_model, [ModelBusy("an agent begins"), ModelBusy("again")]

    def unload(self: Runtime, model: Model) -> None:
        if fails:
            raise fails.pop(0)
        real(self, model)

    monkeypatch.setattr(Runtime, "unload_model", unload)

    async def work(models: Models) -> None:
        await ask(models, "a")
        await ask(models, "b")
        assert states(models) == "uLu"
        assert not fails

    with_models(null_runtime, folder, work, models_nbytes=2 * MIB)


# ------------------------------------------------------------------ which there are


def test_files_come_and_go(null_runtime: Runtime, folder: Path, tmp_path: Path) -> None:
    async def work(models: Models) -> None:
        with pytest.raises(
            HttpError, match="there is no model 'a'; this server has none"
        ) as caught:
            models.files.known("a")
        assert caught.value.status == 404
        data = (folder / "a.gguf").read_bytes()
        (tmp_path / "a.gguf").write_bytes(data)
        (tmp_path / "bad.gguf").write_bytes(b"GGUF")
        [(resident, card)] = await models.files.cards()
        assert resident.name == "a"
        assert (card.generates, card.embeds, card.n_vocab) == (True, False, 4096)
        assert card.nbytes == pytest.approx(1.33 * MIB, rel=0.05)
        with request(), pytest.raises(HttpError, match=r"bad cannot be loaded: bad.gguf"):
            await models.use("bad")
        await ask(models, "a")
        (tmp_path / "a.gguf").unlink()
        await ask(models, "a")  # its weights are mapped
        await models.unload("a")
        with request(), pytest.raises(HttpError, match="there is no model 'a'"):
            await models.use("a")

    with_models(null_runtime, tmp_path, work)


def test_a_name_is_looked_up_without_a_look_at_other_files(
    null_runtime: Runtime, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands, and the event loop waits."""
    data = (folder / "a.gguf").read_bytes()
    given, pulled = KNOWN["smollm2"].file_name, tmp_path / "given.gguf"
    pulled.write_bytes(data)
    found = Catalog([Source(pulled, {"mine": ()})], tmp_path)
    monkeypatch.setattr(Path, "iterdir", None)
    for name in ("new", "smollm2", Path(given).stem, "given", "split"):
        assert found.find(name) is None
    for file_name in ("new.gguf", given, "split-00001-of-00002.gguf", "split-00002-of-00002.gguf"):
        (tmp_path / file_name).write_bytes(data)
    assert found.find("new") == Source(tmp_path / "new.gguf", {"new": ()})
    assert found.find("smollm2") == Source(tmp_path / given, {"smollm2": ()})
    assert found.find("split") == Source(tmp_path / "split-00001-of-00002.gguf", {"split": ()})
    assert found.find("mine") is found.given[0]
    for name in ("given", Path(given).stem, "split-00001-of-00002", "", ".", "..", "x" * 5000):
        assert found.find(name) is None
    outside = f"../{tmp_path.name}/new"
    assert (tmp_path / f"{outside}.gguf").is_file()
    for name in (outside, str(tmp_path / "new"), "new\0", "\ud800"):
        assert found.find(name) is None


def test_a_split_model_is_one_entry(null_runtime: Runtime, folder: Path, tmp_path: Path) -> None:
    shards = split(folder / "a.gguf", tmp_path, "big")
    split(folder / "a.gguf", tmp_path, "headless")[0].unlink()
    split(folder / "a.gguf", tmp_path, "holed")[2].unlink()

    async def work(models: Models) -> None:
        found = await models.files.cards()
        assert [it.name for it, _ in found] == ["big"]
        (_, card), data = found[0], Card.read(*_card_of(null_runtime, folder / "a.gguf"))
        assert card.nbytes == data.nbytes
        assert card.file_nbytes == sum(it.stat().st_size for it in shards)
        assert await ask(models, "big")
        with request(), pytest.raises(HttpError, match="its folder lacks 1: holed-00003"):
            await models.use("holed")
        sha256 = null_runtime.file_hashes.sha256(shards)
        assert models.files.find_same(sha256, []) == "big"
        os.utime(shards[2], (1, 1))
        assert not card.is_of(shards[0])

    with_models(null_runtime, tmp_path, work)


def _card_of(runtime: Runtime, path: Path) -> tuple[Library, Path, FileHashes, ModelSettings]:
    return runtime.library, path, runtime.file_hashes, ModelSettings()


def test_a_whole_file_wins_over_shards_of_its_name(folder: Path, tmp_path: Path) -> None:
    split(folder / "a.gguf", tmp_path, "a")
    (tmp_path / "a.gguf").write_bytes((folder / "a.gguf").read_bytes())
    whole, found = Source(tmp_path / "a.gguf", {"a": ()}), Catalog(folder=tmp_path)
    assert found.sources() == [whole]
    assert found.find("a") == whole


def test_a_file_that_is_pulled_by_another_name_gets_an_alias(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    found = Catalog(folder=tmp_path, aliases={"x": "a"})
    for _ in range(2):
        found.add(Source(tmp_path / "a.gguf", {"hf:org/a:Q8_0": ()}))
    assert [it.name for it in found.sources()] == ["a"]
    assert found.aliases == {"x": "a", "hf:org/a:Q8_0": "a"}


def test_a_file_name_that_is_no_text_is_no_name(folder: Path, tmp_path: Path) -> None:
    """A list that has it could not be written."""
    odd = tmp_path / os.fsdecode(b"\xff.gguf")
    try:
        odd.write_bytes((folder / "a.gguf").read_bytes())
    except OSError:
        pytest.skip("file names are UTF-8 here")
    assert Catalog(folder=tmp_path).sources() == []
    assert Catalog(folder=tmp_path).find(odd.stem) is None


def test_a_file_is_read_once_however_many_ask_for_lists(
    null_runtime: Runtime, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be read costs seconds: it is tried again once it is another, or later."""
    bad, read = tmp_path / "bad.gguf", []
    bad.write_bytes(b"bad")
    (tmp_path / "a.gguf").write_bytes(b"good")
    runtime = null_runtime
    card = Card.read(runtime.library, folder / "a.gguf", runtime.file_hashes, ModelSettings())

    def counted(_library: Library, path: Path, *_more: Any) -> Card:
        read.append(path.name)
        if path.read_bytes() != b"good":
            raise ModelFileError("damaged")
        return replace(card, identity=file_identity(path.stat()))

    monkeypatch.setattr(Card, "read", staticmethod(counted))
    monkeypatch.setattr(files, "open_headers", lambda _, paths: [None] * len(paths))

    async def work(models: Models) -> None:
        listings = [asyncio.ensure_future(models.files.cards()) for _ in range(5)]
        await asyncio.sleep(0)
        listings.pop().cancel()
        found = await asyncio.gather(*listings)
        assert {len(it) for it in found} == {1}
        assert sorted(read) == ["a.gguf", "bad.gguf"]
        with request(), pytest.raises(HttpError, match="bad cannot be loaded"):
            await models.use("bad")
        assert len(read) == 2
        bad.write_bytes(b"good")
        assert len(await models.files.cards()) == 2
        assert len(read) == 3
        bad.write_bytes(b"damaged")
        assert len(await models.files.cards()) == 1
        models.files.known("bad").refuse(until=0.0)
        await models.files.cards()
        assert len(read) == 5

    with_models(null_runtime, tmp_path, work)


def test_many_files_are_listed_by_their_headers(
    null_runtime: Runtime, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is tried whole, and each is read once; one that is loaded is tried then."""
    headers: list[str] = []
    tried: list[str] = []
    real_headers, real_tried = files.open_headers, opening.try_out
    for n in range(20):
        (tmp_path / f"{n}.gguf").write_bytes((folder / "a.gguf").read_bytes())
    (tmp_path / "bad.gguf").write_bytes(b"bad")

    def counted(library: Library, paths: list[Path]) -> Any:
        headers.extend(it.stem for it in paths)
        return real_headers(library, paths)

    def counted_whole(script: Path, function: str, job: bytes, *more: Any) -> Any:
        tried.append(Path(os.fsdecode(job)).stem)
        return real_tried(script, function, job, *more)

    monkeypatch.setattr(files, "open_headers", counted)
    monkeypatch.setattr(opening, "try_out", counted_whole)

    async def work(models: Models) -> None:
        for _ in range(2):
            assert len(await models.files.cards()) == 20
            assert (len(headers), tried) == (21, [])
        assert "bad.gguf is not a usable GGUF file" in str(models.files.known("bad").error)
        await ask(models, "7")
        assert (len(headers), tried) == (21, ["7"])

    with_models(null_runtime, tmp_path, work)


def test_an_alias_of_nothing_is_told(
    null_runtime: Runtime, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = replace(catalog(folder), aliases={"gpt": "a", "ghost": "nobody"})
    models = Models(null_runtime, known, ServerSettings())
    said = "there is no model 'nobody', for which the alias 'ghost' stands"
    with pytest.raises(HttpError, match=f"{said}; this server has a, b, .*gpt$"):
        models.files.known("ghost")
    warned = [it.getMessage() for it in caplog.records if it.levelname == "WARNING"]
    assert warned == ["the alias 'ghost' stands for 'nobody': there is no such model yet"]


def test_a_file_that_comes_while_others_are_listed_is_known(
    null_runtime: Runtime, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, goes_on, real = threading.Event(), threading.Event(), Catalog.sources

    def slow(self: Catalog) -> list[Source]:
        found = real(self)
        looked.set()
        assert goes_on.wait(30)
        return found

    async def work(models: Models) -> None:
        monkeypatch.setattr(Catalog, "sources", slow)
        listing = asyncio.ensure_future(models.files.cards())
        await until(looked.is_set)
        (tmp_path / "a.gguf").write_bytes((folder / "a.gguf").read_bytes())
        resident = models.files.known("a")
        goes_on.set()
        await listing
        assert models.files.get("a") is resident

    with_models(null_runtime, tmp_path, work)


def test_a_card_says_what_the_model_says(null_runtime: Runtime, folder: Path) -> None:
    path = folder / "a.gguf"
    card = Card.read(null_runtime.library, path, null_runtime.file_hashes, ModelSettings())
    model = null_runtime.load_model(path)
    try:
        assert card.hparams == model.hparams
        assert (card.nbytes, card.n_vocab) == (model.weights.nbytes, model.n_vocab)
        for n_ctx in (256, 1024):
            assert 0 <= card.agent_nbytes(n_ctx) - model.layout(n_ctx).nbytes - 64 * MIB < 2 * MIB
    finally:
        null_runtime.unload_model(model)


def test_a_context_is_the_models_as_far_as_memory_allows(
    null_runtime: Runtime, folder: Path
) -> None:
    path = folder / "a.gguf"
    card = Card.read(null_runtime.library, path, null_runtime.file_hashes, ModelSettings())
    assert default_n_ctx(card, GIB) == card.hparams.n_ctx_train == 1024
    large = replace(card, hparams=replace(card.hparams, n_ctx_train=131_072), token_nbytes=65_536)
    assert default_n_ctx(large, 64 * GIB) == 32_768  # all that fits into a 32-bit memory
    assert default_n_ctx(large, 2 * GIB) == 16_384
    assert default_n_ctx(large, MIB) == 4096
    large = replace(large, token_nbytes=1024)
    assert default_n_ctx(large, 64 * GIB) == 131_072
    odd = replace(large, hparams=replace(card.hparams, n_ctx_train=6000))
    assert default_n_ctx(odd, MIB) == 4096


@pytest.mark.parametrize(("caches", "nbytes"), [("guest", 32 * GIB), ("own", 4 * GIB)])
def test_a_card_that_has_kv_caches_bounds_contexts(caches: str, nbytes: int) -> None:
    info = SimpleNamespace(caches=caches, memory_nbytes=16 * GIB)
    runtime = SimpleNamespace(memory_limit_nbytes=64 * GIB, device=SimpleNamespace(info=info))
    assert stateless_nbytes(runtime) == nbytes  # type: ignore[arg-type]


def test_what_cannot_be_is_said_at_the_start(null_runtime: Runtime, folder: Path) -> None:
    sources = [Source(folder / "a.gguf", {"a": ()}), Source(folder / "b.gguf", {"a": ()})]
    with pytest.raises(SettingsError, match="two models have the name 'a'"):
        Catalog(sources)
    with pytest.raises(SettingsError, match="'a' is a model's name already"):
        Catalog(sources[:1], None, {"a": "b"})
    with pytest.raises(SettingsError, match="of another alias"):
        Catalog((), None, {"x": "y", "y": "z"})
    settings = ServerSettings(models_nbytes=MIB)
    with pytest.raises(SettingsError, match=r"a: 1\.\d MiB of weights, and models may have 1"):
        Models(null_runtime, catalog(folder, "a"), settings).load_at_start()
    unbounded = Models(null_runtime, catalog(folder), ServerSettings())
    assert unbounded.limit_nbytes == null_runtime.memory_limit_nbytes * 3 // 4


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ({"keep_alive_s": -2}, "-1 for never"),
        ({"keep_alive_s": True}, "seconds"),
        ({"models_nbytes": 5}, "1048576 or more"),
        ({"models": {"a": 1}}, "file ="),
        ({"models": {"a": {"file": "x", "lode": True}}}, "file ="),
        ({"models": {"": "x"}}, "file ="),
        ({"models": ["x"]}, "a table"),
        ({"aliases": {"a": 1}}, "a table"),
        ({"n_ctx": 0}, "1 or more"),
        ({"models_folder": "s3://x/y"}, "local"),
    ],
)
def test_settings_that_cannot_be(said: dict[str, Any], allowed: str) -> None:
    with pytest.raises(SettingsError, match=allowed):
        ServerSettings(**said)


def test_nothing_is_used_outside_of_a_request() -> None:
    async def run(work: Coroutine[Any, Any, None]) -> None:
        await work

    async def use() -> None:
        begin(Entry("-", "-", "-"))
        with pytest.raises(RuntimeError):
            current().use(threading.Lock())  # type: ignore[arg-type]

    asyncio.run(run(use()))
    assert KeyLimits.parse(["models=1"]).models == 1


# ------------------------------------------------------------------ pulls


def test_a_pull_that_fails_is_no_fault_of_the_caller() -> None:
    status, body = body_of(DownloadError("cannot fetch it. Check the network"))
    assert (status, body["error"]["code"]) == (502, "download")
    assert "network" in body["error"]["message"]


@pytest.mark.parametrize("wanted", ["smollm2", "llama3.2:1b", "hf.co/org/repo:Q8_0"])
def test_a_pull_is_told_and_then_served(
    wanted: str,
    null_runtime: Runtime,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, n_pulls = threading.Event(), 0

    def pull(name: str, _environment: object, _report: object, watch: Watch) -> Path:
        nonlocal n_pulls
        n_pulls += 1
        watch(Progress("a.gguf", "5" * 64, 40, 100))
        assert gate.wait(30)
        assert name == wanted
        return folder / "a.gguf"

    monkeypatch.setattr("isthmus.server.models.pulls.pull", pull)

    async def work(models: Models) -> None:
        pulls = Pulls(models)
        said: list[list[Pulling]] = [[], []]

        async def follow(mine: list[Pulling]) -> None:
            async for word in pulls.follow(wanted):
                mine.append(word)

        both = [asyncio.ensure_future(follow(it)) for it in said]
        await until(lambda: all("completed" in mine[-1] for mine in said if mine) and said[0] != [])
        gate.set()
        await asyncio.gather(*both)
        assert {mine[0]["status"] for mine in said} <= {"pulling manifest", "pulling 555555555555"}
        assert all(mine[-1] == {"status": "success"} for mine in said)
        known = [word for mine in said for word in mine if "total" in word]
        assert {(word["completed"], word["total"]) for word in known} == {(40, 100)}
        assert {word["digest"] for word in known} == {f"sha256:{'5' * 64}"}
        assert n_pulls == 1
        assert await ask(models, wanted)
        for name, said in (("http://a/b/c", "cannot pull 'http://a/b/c'"), ("hf:a", "of the form")):
            with pytest.raises(HttpError, match=said) as caught:
                await anext(pulls.follow(name))
            assert caught.value.status == 404

    with_models(null_runtime, tmp_path, work)


def test_a_server_that_ends_ends_its_pulls(
    null_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def pull(_name: str, _environment: object, _report: object, watch: Watch) -> Path:
        begun.set()
        while True:
            watch(Progress("a.gguf", "5" * 64, 40, 100))

    monkeypatch.setattr("isthmus.server.models.pulls.pull", pull)

    async def work(models: Models) -> None:
        pulls = Pulls(models)

        async def follow() -> None:
            async for _ in pulls.follow("smollm2"):
                pass

        following = asyncio.ensure_future(follow())
        await until(begun.is_set)
        await pulls.close()
        with pytest.raises(DownloadError, match="the next pull of smollm2 goes on from here"):
            await following

    with_models(null_runtime, tmp_path, work)


def test_a_pull_from_a_hub_is_served_under_its_name(folder: Path, tmp_path: Path) -> None:
    hub, cache = FakeHub(), tmp_path / "cache"
    shards = split(folder / "a.gguf", tmp_path, "a-Q8_0")
    hub.repos["org/repo"] = {it.name: it.read_bytes() for it in shards}

    async def work(models: Models) -> None:
        words = [word async for word in Pulls(models).follow("hf:org/repo")]
        assert words[-1] == {"status": "success"}
        assert await ask(models, "hf:org/repo")
        assert await ask(models, "a-Q8_0")
        assert len(models.files.all()) == 1

    async def later(models: Models) -> None:
        assert await ask(models, "hf.co/org/repo:Q8_0")
        assert models.files.names() == ["a-Q8_0"]
        for name in ("hf:org/other", "hf:org/repo:Q2_K", "hf:no", "hf:../x"):
            with pytest.raises(HttpError, match="there is no model"):
                models.files.known(name)

    with served(hub):
        environment = Environment(cache=cache, hub_url=hub.url)
        with Runtime(device="null", threads=1, environment=environment) as runtime:
            (cache / "models").mkdir()
            with_models(runtime, cache / "models", work)
            with_models(runtime, cache / "models", later)  # as after a restart


# ------------------------------------------------------------------ the command


def given(**said: Any) -> Namespace:
    return Namespace(**{"model": [], "lora": [], "alias": [], "mmproj": [], **said})


def test_the_models_of_options_and_settings(folder: Path, tmp_path: Path) -> None:
    a, b, c = (str(folder / f"{it}.gguf") for it in NAMES)
    lora = tmp_path / "poet.gguf"
    lora.write_bytes(b"")
    settings = ServerSettings(
        models={"late": b, "early": {"file": c, "load": True}}, aliases={"x": "late"}
    )
    options = given(
        model=[a], lora=[str(lora), f"two={lora}:0.5", f"late={lora}"], alias=["gpt-4o=a", "x=a"]
    )
    found = catalog_of(options, settings)
    poet = ((str(lora), 1.0),)
    assert [(it.path, dict(it.names), it.at_start) for it in found.sources()] == [
        (Path(a), {"a": (), "poet": poet, "two": ((str(lora), 0.5),)}, True),
        (Path(b), {"late": poet}, False),
        (Path(c), {"early": ()}, True),
    ]
    assert found.aliases == {"gpt-4o": "a", "x": "a"}
    whole = catalog_of(given(), ServerSettings(models_folder=folder))
    assert [it.name for it in whole.sources()] == list(NAMES)


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({"alias": ["x"]}, {}, "NAME=MODEL"),
        ({"alias": ["=x"]}, {}, "NAME=MODEL"),
        ({"model": ["a=a.gguf", "a=b.gguf"]}, {}, "used twice"),
        ({"model": ["a=a.gguf"]}, {"models": {"a": "b.gguf"}}, "among the options"),
        ({"lora": ["p=a.gguf"]}, {}, "give --model too"),
        ({}, {"models": {"a": "none.gguf"}}, "there is no file none.gguf"),
        ({}, {"models_folder": "none"}, "no such folder"),
        ({}, {"models_folder": __file__}, "it is a file; --model takes one"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any],
    settings: dict[str, Any],
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(IsthmusError, match=said):
        catalog_of(given(**options), ServerSettings(**{"models_folder": folder, **settings}))

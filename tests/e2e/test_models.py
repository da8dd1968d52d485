"""Several models in one runtime, and in one guest: each session is what it would be alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from isthmus import Limits, Model, Runtime
from isthmus.abi import Errno
from isthmus.errors import ModelBusy, SnapshotMismatch
from tests.attacks.proxy import Proxy, proxy_wat
from tests.exact.digest import digest
from tests.tiny_gguf import TinyLlama

WASM = bytes(wasmtime.wat2wasm(proxy_wat()))
PLACES = {"large": 1 << 20, "small": 2 << 20}
TOKENS = {"large": [399, 7, 320, 11], "small": [319, 7, 5]}
"""Ids above 319 are in the large vocabulary only."""
HANDLES = {"large": (1, 2), "small": (3, 4)}
"""Of each model and its session, in `opened`."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def models(shared: Runtime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Of two architectures, shapes, vocabularies, types of weights and of KV caches."""
    folder = tmp_path_factory.mktemp("models")
    large = TinyLlama("qwen2", n_layer=3, n_vocab=400, quantisation="Q8_0", with_tokenizer=True)
    small = TinyLlama(n_vocab=320, with_tokenizer=True)
    return {
        "large": shared.load_model(large.write(folder / "large.gguf"), kv_type="q8_0"),
        "small": shared.load_model(small.write(folder / "small.gguf")),
    }


def opened(runtime: Runtime, models: dict[str, Model]) -> Proxy:
    """A guest with a session of each model that it is given, prefilled."""
    proxy = Proxy(runtime, WASM, models=models, tools={})
    for name in models:
        model = proxy.open_model(name)
        session = proxy.open_session(model, PLACES[name])
        assert session == model + 1
        proxy.write(512, struct.pack(f"<{len(TOKENS[name])}i", *TOKENS[name]))
        assert proxy.call("prefill", session, 512, len(TOKENS[name])) == 0
    return proxy


def go_on(proxy: Proxy, names: list[str], n: int = 20) -> None:
    """Greedy tokens, the sessions taking turns."""
    for _ in range(n):
        for name in names:
            opened = proxy.actor.body.context.handles
            handle = next(
                it for it in opened.numbers() if it % 2 == 0 and opened.model_of(it) == name
            )
            session = next(s for s in proxy.actor.sessions if s.ptr == PLACES[name])
            assert proxy.call("decode", handle, int(session.logits.argmax())) == 0


def states(proxy: Proxy) -> dict[int, object]:
    """Of each session, by its place: hashes of KV cache and logits, and the tokens."""
    sessions = digest(proxy.actor)["sessions"]
    return {it.ptr: said for it, said in zip(proxy.actor.sessions, sessions, strict=True)}


def test_two_models_in_one_guest_as_in_two(shared: Runtime, models: dict[str, Model]) -> None:
    both = opened(shared, models)
    go_on(both, [*models])
    for name, model in models.items():
        alone = opened(shared, {name: model})
        go_on(alone, [name])
        assert states(alone) == {PLACES[name]: states(both)[PLACES[name]]}
        alone.actor.close()
    both.actor.close()


def test_each_has_its_own_vocabulary_and_shape(shared: Runtime, models: dict[str, Model]) -> None:
    proxy = opened(shared, models)
    assert proxy.call("decode", 4, 320) == -Errno.ETOKEN
    assert proxy.call("decode", 2, 320) == 0
    assert proxy.call("session_copy", 4, 2, 1) == -Errno.EINVAL
    assert proxy.call("token_flags", 3, 399) == -Errno.ETOKEN
    assert proxy.session_nbytes(1) != proxy.session_nbytes(3)
    sizes = []
    for model in (1, 3):
        assert proxy.call("model_info", model, 512) == 0
        sizes.append(struct.unpack("<4I", proxy.read(512, 16)))
    assert [it[0] for it in sizes] == [400, 320]
    assert [it[3] for it in sizes] == [3, 2]


def test_saved_forked_and_restored_with_both(
    shared: Runtime, models: dict[str, Model], tmp_path: Path
) -> None:
    proxy = opened(shared, models)
    go_on(proxy, [*models], 3)
    saved = proxy.actor.snapshot(tmp_path / "both.safetensors")
    others = [proxy.actor.fork()[0], shared.restore(saved, models=models)]
    assert all(digest(other) == digest(proxy.actor) for other in others)
    go_on(proxy, [*models], 9)
    for other in others:
        go_on(Proxy.of(other), [*models], 9)
        assert digest(other) == digest(proxy.actor)
        other.close()
    with pytest.raises(SnapshotMismatch, match=r"was not given: the model 'small'"):
        shared.restore(saved, models={"large": models["large"]})
    swapped = {"large": models["small"], "small": models["large"]}
    with pytest.raises(SnapshotMismatch, match="replayed"):
        shared.restore(saved, models=swapped)


def test_closing_one_leaves_the_other(models: dict[str, Model], tmp_path: Path) -> None:
    with Runtime(device="cpu", threads=1) as runtime:
        given = {name: runtime.load_model(it.path) for name, it in models.items()}
        proxy, untouched = opened(runtime, given), opened(runtime, given)
        assert proxy.call("model_close", 1) == -Errno.EBUSY
        assert proxy.call("session_close", 2) == 0
        assert proxy.call("model_close", 1) == 0
        assert proxy.call("decode", 2, 1) == -Errno.EBADF
        with pytest.raises(ModelBusy, match="1 sessions"):
            given["large"].close()
        go_on(untouched, ["large", "small"])
        go_on(proxy, ["small"])
        assert states(proxy) == {PLACES["small"]: states(untouched)[PLACES["small"]]}
        again = Proxy.of(runtime.restore(proxy.actor.snapshot(tmp_path / "a"), models=given))
        untouched.actor.close()
        given["large"].close()
        go_on(proxy, ["small"], 2)
        go_on(again, ["small"], 2)
        assert states(again) == states(proxy)


def test_limits_are_of_all_sessions_together(shared: Runtime, models: dict[str, Model]) -> None:
    nbytes = [models[name].layout(256).kv_nbytes for name in models]
    proxy = Proxy(shared, WASM, models=models, limits=Limits(kv_nbytes=sum(nbytes) - 1))
    for name, result in (("large", 2), ("small", -Errno.ELIMIT)):
        assert proxy.open_session(proxy.open_model(name), PLACES[name]) == result


def test_many_tokens_leave_their_logits_where_asked(
    shared: Runtime, models: dict[str, Model]
) -> None:
    """And nothing around them, in one pass where that is exact."""
    room, canary = 512 << 10, b"isthmus!" * 8
    for name, place in PLACES.items():
        given = {name: models[name]}
        many, alone = opened(shared, given), opened(shared, given)
        n, nbytes, exact = 7, 4 * models[name].n_vocab, models[name].rows_at_once >= 7
        for at in (room - len(canary), room + (n - 1) * nbytes):
            many.write(at, canary)
        tokens = range(1, n + 1)
        many.write(512, struct.pack(f"<{n}i", *tokens))
        submissions = shared.device.counters.submissions
        assert many.call("decode_many", 2, 512, n, room) == 0
        one_pass = shared.device.counters.submissions == submissions + 1
        assert one_pass == exact
        for i, token in enumerate(tokens):
            assert alone.call("decode", 2, token) == 0
            row = alone.read(place, nbytes)
            assert many.read(room + i * nbytes if i < n - 1 else place, nbytes) == row
        assert states(many) == states(alone)
        for at in (room - len(canary), room + (n - 1) * nbytes):
            assert many.read(at, len(canary)) == canary
        assert many.call("decode_many", 2, 512, 1, 0) == 0  # no row, and no room needed


def test_many_tokens_beyond_the_context(shared: Runtime, models: dict[str, Model]) -> None:
    proxy = opened(shared, {"small": models["small"]})
    proxy.write(512, struct.pack("<32i", *range(32)))
    for _ in range(7):
        assert proxy.call("decode_many", 2, 512, 32, 512 << 10) == 0
    before = states(proxy)
    assert proxy.call("decode_many", 2, 512, 30, 512 << 10) == -Errno.ECONTEXT
    assert states(proxy) == before
    assert proxy.call("decode_many", 2, 512, 29, 512 << 10) == 0
    assert proxy.actor.sessions[0].n_tokens == 256


def test_one_model_under_two_names(
    shared: Runtime, models: dict[str, Model], tmp_path: Path
) -> None:
    """Each session remembers by which of them it was opened."""
    one, path = models["small"], tmp_path / "other.gguf"
    other = shared.load_model(TinyLlama(n_vocab=320, with_tokenizer=True, seed=7).write(path))
    proxy = Proxy(shared, WASM, models={"first": one, "second": one}, tools={})
    for name, place in zip(("first", "second"), PLACES.values(), strict=True):
        session = proxy.open_session(proxy.open_model(name), place)
        assert proxy.call("decode", session, 5) == 0
    saved = proxy.actor.snapshot(tmp_path / "two.safetensors")
    with shared.restore(saved, models={"first": one, "second": one}) as again:
        assert digest(again) == digest(proxy.actor)
    given = {"first": one, "second": other}
    with shared.restore(saved, models=given, require="replayed") as again:
        assert [session.owner for session in again.sessions] == [one, other]
        assert [session.tokens.tolist() for session in again.sessions] == [[5], [5]]


def test_agents_of_two_models_at_once(shared: Runtime, models: dict[str, Model]) -> None:
    def ask(names: list[str]) -> list[str]:
        actors = [
            shared.spawn("bench", models={"default": models[name]}, args=["n_ctx=256"], seed=1)
            for name in names
        ]
        for actor in actors:
            actor.send("prefill 20 3")
        streams = [actor.stream("hash 60") for actor in actors]
        answers = ["".join(stream) or stream.reply.text for stream in streams]
        for actor in actors:
            actor.close()
        return answers

    alone = {name: ask([name])[0] for name in models}
    names = [*models, *models]
    assert ask(names) == [alone[name] for name in names]

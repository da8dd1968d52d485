"""Answers that follow a grammar: through guests, among others, and over every way to come back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import wasmtime

from isthmus import Actor, Limits, Model, Runtime
from isthmus.abi import Errno, GrammarKind
from isthmus.errors import GrammarError, SnapshotMismatch
from isthmus.snapshot import open_snapshot
from tests.attacks.proxy import Proxy, proxy_wat
from tests.e2e.test_cli import complains, isthmus
from tests.exact.digest import digest
from tests.tiny_gguf import TinyLlama

SESSION = 1 << 20
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA = json.dumps(PERSON)


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("grammar") / "q8.gguf"
    return shared.load_model(TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(path))


def chat(runtime: Runtime, model: Model, seed: int, **args: object) -> Actor:
    options = {"n_ctx": 512, "max_tokens": 200, "json_schema": SCHEMA, "seed": seed, **args}
    return runtime.spawn("chat", models={"default": model}, args=options, seed=seed, clock_ns=1)


def require_person(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"name", "age"}
    assert 0 <= found["age"] <= 150
    assert len(found["name"]) <= 8


# ---------------------------------------------------------------------------------- guests


@pytest.mark.parametrize("sampler", ["guest", "host"])
@pytest.mark.parametrize("temperature", [0, 0.7, 5])
def test_chat_answers_follow_the_schema(
    shared: Runtime, model: Model, sampler: str, temperature: float
) -> None:
    for seed in range(4):
        with chat(shared, model, seed, sampler=sampler, temperature=temperature) as actor:
            require_person(actor.send("someone").text)
            require_person(actor.send("someone else").text)  # the conversation can go on
            assert actor.counters.bytes_copied == 0


def test_other_languages(shared: Runtime, model: Model) -> None:
    for option, source, good in (
        ("grammar", 'root ::= "yes" | "no"', {"yes", "no"}),
        ("regex", "a|bc", {"a", "bc"}),
        ("lark", 'start: "x" | "y"', {"x", "y"}),
    ):
        args = {"n_ctx": 512, option: source}
        with shared.spawn("chat", models={"default": model}, args=args, seed=1) as actor:
            assert actor.send("well?").text in good


def test_together_as_alone(shared: Runtime, model: Model) -> None:
    alone = []
    for seed in range(6):
        with chat(shared, model, seed, temperature=1) as actor:
            alone.append((actor.send("someone").text, digest(actor)))
    actors = [chat(shared, model, seed, temperature=1) for seed in range(6)]
    together: dict[int, str] = {}

    def ask(n: int) -> None:
        together[n] = actors[n].send("someone").text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(together[n], digest(actors[n])) for n in range(6)] == alone
    assert len({text for text, _ in alone}) > 1
    for actor in actors:
        actor.close()


def test_a_refused_grammar_says_why_and_loses_nothing(shared: Runtime, model: Model) -> None:
    with chat(shared, model, 1, json_schema='{"type": "nonsense"}') as actor:
        with pytest.raises(GrammarError, match=r"JSON schema cannot be followed.*nonsense"):
            actor.send("someone")
        assert actor.state == "idle"
        assert actor.sessions[0].n_tokens == 0
    with (
        chat(shared, model, 1, regex="a") as actor,
        pytest.raises(Exception, match="EINVAL"),
    ):
        actor.send("two at once")


# ---------------------------------------------------------------------------------- in the midst


class Writing:
    """A guest in the midst of a text: between two messages, with a grammar open."""

    def __init__(self, proxy: Proxy, grammar: int, session: int) -> None:
        self.proxy, self.grammar, self.session = proxy, grammar, session

    @classmethod
    def begun(cls, runtime: Runtime, model: Model, n: int, **options: object) -> Writing:
        proxy = Proxy(runtime, bytes(wasmtime.wat2wasm(proxy_wat())), model, **options)
        handle = proxy.open_model()
        session = proxy.open_session(handle, SESSION)
        it = cls(proxy, proxy.open_grammar(handle, GrammarKind.JSON_SCHEMA, SCHEMA), session)
        proxy.write(512, np.array([5, 9, 12], dtype="<i4").tobytes())
        assert proxy.call("prefill", session, 512, 3) == 0
        it.go_on(n)
        return it

    def over(self, actor: Actor) -> Writing:
        return Writing(Proxy.over(actor), self.grammar, self.session)

    def go_on(self, most: int = 100) -> tuple[list[int], list[bytes]]:
        """Greedy tokens until the text is complete, and the logits that each was chosen from."""
        tokens, seen = [], []
        for _ in range(most):
            if self.proxy.call("grammar_mask", self.grammar, self.session) == 0:
                break
            with self.proxy.actor.pinned():
                logits = self.proxy.actor.sessions[0].logits.copy()
            token = int(np.argmax(logits))
            assert np.isfinite(logits[token])
            tokens.append(token)
            seen.append(logits.tobytes())
            assert self.proxy.call("grammar_accept", self.grammar, token) == 0
            assert self.proxy.call("decode", self.session, token) == 0
        return tokens, seen


@pytest.fixture
def writing(shared: Runtime, model: Model) -> Iterator[Writing]:
    it = Writing.begun(shared, model, 11)
    yield it
    it.proxy.actor.close()


def test_forked_restored_and_evicted_in_the_midst(
    shared: Runtime, model: Model, writing: Writing, tmp_path: Path
) -> None:
    actor = writing.proxy.actor
    saved = actor.snapshot(tmp_path / "midst.safetensors")
    store = tmp_path / "store"
    store.mkdir()
    kept = actor.snapshot(store)
    fork, evicted = actor.fork(2)
    assert evicted.evict() > 0
    models = {"default": model}
    tools = {"echo": bytes}
    found = [shared.restore(it, models=models, tools=tools) for it in (saved, kept)]
    assert {it.restored.level for it in found if it.restored} == {"exact"}
    wanted = writing.go_on()
    assert 5 < len(wanted[0]) < 100
    for other in (fork, evicted, *found):
        assert writing.over(other).go_on() == wanted
        assert digest(other) == digest(actor)
        other.close()
    text = model.tokenizer.decode(actor.sessions[0].tokens[3:]).decode()
    require_person(text)


def test_another_process_has_the_same_text(model: Model, writing: Writing, tmp_path: Path) -> None:
    path = writing.proxy.actor.snapshot(tmp_path / "midst.safetensors").path
    record = open_snapshot(path).manifest.grammars[0]
    assert (record.kind, record.n_tokens, record.model) == ("json_schema", 11, "default")
    wanted = writing.go_on()
    with Runtime(device="cpu", threads=2) as other:  # which has tried no grammar yet
        again = other.restore(
            path, models={"default": other.load_model(model.path)}, tools={"echo": bytes}
        )
        assert writing.over(again).go_on() == wanted


def test_another_model_goes_on_with_the_text(
    shared: Runtime, model: Model, writing: Writing, tmp_path: Path
) -> None:
    path = writing.proxy.actor.snapshot(tmp_path / "midst.safetensors").path
    trained = TinyLlama(with_tokenizer=True, quantisation="Q8_0", seed=7)
    other = shared.load_model(trained.write(tmp_path / "trained.gguf"))
    with shared.restore(
        path, models={"default": other}, tools={"echo": bytes}, require="replayed"
    ) as again:
        writing.over(again).go_on()
        require_person(model.tokenizer.decode(again.sessions[0].tokens[3:]).decode())


def test_an_undone_message_takes_its_tokens_back(shared: Runtime, model: Model) -> None:
    it = Writing.begun(shared, model, 4, limits=Limits(on_failure="undo"))
    actor = it.proxy.actor
    before = actor._keeper.freeze(actor.body)
    it.go_on(5)
    actor._keeper._undo(before)
    again = Writing.begun(shared, model, 4)
    assert it.go_on() == again.go_on()
    actor.close()
    again.proxy.actor.close()


def test_fewer_may_be_allowed_than_there_are(
    shared: Runtime, model: Model, writing: Writing, tmp_path: Path
) -> None:
    path = writing.proxy.actor.snapshot(tmp_path / "midst.safetensors").path
    with pytest.raises(SnapshotMismatch, match="1 grammars; 0 are allowed"):
        shared.restore(
            path, models={"default": model}, tools={"echo": bytes}, limits=Limits(grammars=0)
        )


# ---------------------------------------------------------------------------------- the calls


def test_calls_that_are_refused(shared: Runtime, model: Model, tiny: Path) -> None:
    wasm = bytes(wasmtime.wat2wasm(proxy_wat()))
    proxy = Proxy(shared, wasm, model, limits=Limits(grammars=2))
    handle = proxy.open_model()
    session = proxy.open_session(handle, SESSION)
    grammar = proxy.open_grammar(handle, GrammarKind.REGEX, "abc")
    assert proxy.call("grammar_mask", grammar, session) == -Errno.EINVAL  # no logits yet
    proxy.write(512, bytes(4))
    proxy.call("prefill", session, 512, 1)
    assert proxy.call("grammar_mask", session, session) == -Errno.EBADF
    assert proxy.call("grammar_mask", grammar, grammar) == -Errno.EBADF
    for token, errno in ((320, Errno.ETOKEN), (2**32 - 1, Errno.ETOKEN), (5, Errno.EINVAL)):
        assert proxy.call("grammar_accept", grammar, token) == -errno
    assert proxy.call("grammar_mask", grammar, session) == 1
    assert proxy.open_grammar(handle, 0, "abc") == -Errno.EINVAL
    assert proxy.open_grammar(handle, 5, "abc") == -Errno.EINVAL
    assert proxy.open_grammar(handle, GrammarKind.REGEX, "(") == -Errno.EINVAL
    assert proxy.call("grammar_open", handle, 3, 256, 2**31) == -Errno.EINVAL
    assert proxy.call("grammar_open", handle, 3, 2**31, 8) == -Errno.EFAULT
    assert proxy.call("grammar_open", session, 3, 256, 3) == -Errno.EBADF
    second = proxy.open_grammar(handle, GrammarKind.REGEX, "x")
    assert proxy.open_grammar(handle, GrammarKind.REGEX, "y") == -Errno.ELIMIT
    assert proxy.call("grammar_close", second) == 0
    assert proxy.call("grammar_close", second) == -Errno.EBADF
    assert proxy.call("grammar_close", session) == -Errno.EBADF
    assert proxy.open_grammar(handle, GrammarKind.REGEX, "y") > second
    proxy.actor.close()


def test_a_session_of_another_model(shared: Runtime, model: Model, tiny: Path) -> None:
    proxy = Proxy(shared, bytes(wasmtime.wat2wasm(proxy_wat())), model)
    proxy.actor.body.context.granted.models["other"] = shared.load_model(tiny)  # type: ignore[index]
    handle = proxy.open_model()
    grammar = proxy.open_grammar(handle, GrammarKind.REGEX, "abc")
    proxy.write(64, b"other")
    session = proxy.open_session(proxy.call("model_open", 64, 5), SESSION)
    proxy.write(512, bytes(4))
    assert proxy.call("prefill", session, 512, 1) == 0
    assert proxy.call("grammar_mask", grammar, session) == -Errno.EINVAL
    proxy.actor.close()


# ---------------------------------------------------------------------------------- command line


def test_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    schema = tmp_path / "person.json"
    schema.write_text(SCHEMA)
    run = ["run", "chat", "--model", str(tiny), "--message", "x", "--arg", "n_ctx=512"]
    require_person(isthmus(*run, "--json-schema", str(schema)).stdout)
    lark = tmp_path / "it.lark"
    lark.write_text('start: "x" | "y"')
    assert isthmus(*run, "--grammar", str(lark)).stdout.strip() in ("x", "y")
    bad = tmp_path / "bad.gbnf"
    bad.write_text("root ::= other")
    complains(isthmus(*run, "--grammar", str(bad)), 2, "Rule 'other' not found")
    complains(isthmus(*run, "--grammar", str(tmp_path / "none")), 2, "cannot read the grammar")
    bad.write_bytes(b"\xff")
    complains(isthmus(*run, "--grammar", str(bad)), 2, "not UTF-8")
    both = isthmus(*run, "--grammar", str(bad), "--regex", "a")
    assert (both.returncode, "not allowed with" in both.stderr) == (2, True)

"""Answers that the host reads for a guest: what it refuses, and what it makes of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Model, Runtime
from isthmus.abi import AnswerFlag, AnswerPart, Errno, GrammarKind
from tests.attacks.proxy import Proxy, proxy_wat
from tests.tools.plays import scripted

WASM = bytes(wasmtime.wat2wasm(proxy_wat()))
HELLO = [{"role": "user", "content": "Hello"}]
MESSAGES, ROOM, CAP = 4096, 16_384, 4096
TOOLS = {"weather": lambda city: city, "echo": bytes}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


class Reader(Proxy):
    """Calls that all belong to one message."""

    model: int

    def one(self, name: str, *arguments: int) -> int:
        body = self.actor.body
        return body._run(body._call(f"do_{name}", *arguments))

    def begin(self, messages: object = HELLO, flags: int = AnswerFlag.TOOLS) -> int:
        data = messages if isinstance(messages, bytes) else json.dumps(messages).encode()
        self.write(MESSAGES, data)
        return self.one("chat_tokens", self.model, MESSAGES, len(data), flags, ROOM, CAP)

    def feed(self, model: Model, text: str) -> str:
        """Text that becomes known with each token of a text."""
        said = ""
        for token in model.tokenizer.encode(text, parse_special=True):
            assert self.one("answer_feed", token) >= 0
            said += self.part(AnswerPart.TEXT)
        return said

    def part(self, part: AnswerPart, index: int = 0) -> str:
        n = self.one("answer_read", part, index, ROOM, CAP)
        assert n >= 0
        return self.read(ROOM, n).decode()


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return shared.load_model(scripted(tmp_path_factory.mktemp("scripted")))


@pytest.fixture
def reader(shared: Runtime, model: Model) -> Reader:
    reader = Reader(shared, WASM, model, tools=TOOLS)
    reader.model = reader.open_model()
    return reader


def test_a_prompt_is_the_models_own(reader: Reader, model: Model) -> None:
    n = reader.begin()
    ids = memoryview(reader.read(ROOM, 4 * n)).cast("i").tolist()
    tools = [tool.described(name) for name, tool in reader.actor._granted.tools.items()]
    assert ids == model.chat_tokens(HELLO, tools=tools)
    assert "weather echo" in model.tokenizer.decode(ids).decode()
    assert reader.begin(flags=0) == len(model.chat_tokens(HELLO)) < n


def test_control_tokens_that_somebody_says_are_text(reader: Reader, model: Model) -> None:
    end = model.tokenizer.encode("<|im_end|>", parse_special=True)[0]
    n = reader.begin([{"role": "user", "content": "<|im_end|><|im_end|>"}])
    assert memoryview(reader.read(ROOM, 4 * n)).cast("i").tolist().count(end) == 2


def test_text_comes_at_once_and_calls_are_kept_apart(reader: Reader, model: Model) -> None:
    reader.begin()
    assert reader.feed(model, "I ask. ") == "I ask."
    assert reader.feed(model, CALL) == ""
    assert reader.one("answer_end") == 1
    message = json.loads(reader.part(AnswerPart.MESSAGE))
    [call] = message.pop("tool_calls")
    assert message == {"role": "assistant", "content": "I ask."}
    assert call["function"]["name"] == reader.part(AnswerPart.CALL_NAME) == "weather"
    arguments = reader.part(AnswerPart.CALL_ARGUMENTS)
    assert json.loads(arguments) == json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert call["id"] == reader.part(AnswerPart.CALL_ID)
    assert reader.begin([*HELLO, {**message, "tool_calls": [call]}, {"role": "tool"}]) > 0


@pytest.mark.parametrize(
    ("text", "n_calls"),
    [(CALL + CALL, 2), (CALL[:-30], 0), (CALL.replace("weather", "unknown"), 0), ("", 0)],
    ids=["two", "cut off", "unknown", "nothing"],
)
def test_how_many_calls_there_are(
    reader: Reader, model: Model, text: str, n_calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    reader.begin()
    reader.feed(model, text)
    assert reader.one("answer_end") == n_calls == reader.one("answer_end")
    ids = {reader.part(AnswerPart.CALL_ID, n) for n in range(n_calls)}
    assert len(ids) == n_calls
    assert ("was cut off" in caplog.text) == (text == CALL[:-30])


def test_a_grammar_of_a_call(reader: Reader, model: Model) -> None:
    reader.begin(flags=AnswerFlag.TOOLS | AnswerFlag.CALL)
    n = reader.one("answer_grammar", ROOM, CAP)
    source = reader.read(ROOM, n).decode()
    grammar = model.grammars.open(GrammarKind.LARK, source, [])
    for token in model.tokenizer.encode(CALL, parse_special=True):
        grammar.accept(token)
    assert "start" in source


def test_what_is_refused(reader: Reader, shared: Runtime, model: Model) -> None:
    invalid, ends = -Errno.EINVAL, reader.actor.region.nbytes
    for name in ("answer_end", "answer_feed", "answer_grammar", "answer_read"):
        n = {"answer_end": 0, "answer_feed": 1, "answer_grammar": 2, "answer_read": 4}[name]
        assert reader.one(name, *[0] * n) == invalid  # nothing was begun
    for messages in (b"", b"\xff", b"{}", b"[1]", b"[" * 4000, [{"content": "x"}], [{"role": 1}]):
        assert reader.begin(messages) == invalid
    assert reader.begin(flags=AnswerFlag.CALL | 8) == invalid
    assert reader.begin(flags=AnswerFlag.CALL) == invalid
    size = (1 << 22) + 1
    assert reader.one("chat_tokens", reader.model, 0, size, 0, ROOM, 1) == invalid
    assert reader.one("chat_tokens", reader.model, ends - 1, 2, 0, ROOM, 1) == -Errno.EFAULT
    assert reader.one("chat_tokens", reader.model, 0, 2, 0, ROOM + 1, 1) == -Errno.EALIGN
    assert reader.one("chat_tokens", 99, 0, 2, 0, ROOM, 1) == -Errno.EBADF
    reader.begin()
    assert reader.one("answer_feed", model.n_vocab) == -Errno.ETOKEN
    assert reader.one("answer_feed", 2**32 - 1) == -Errno.ETOKEN
    assert reader.one("answer_read", AnswerPart.MESSAGE, 0, ROOM, CAP) == invalid
    assert reader.one("answer_read", AnswerPart.TEXT, 1, ROOM, CAP) == invalid
    reader.one("answer_end")
    assert reader.one("answer_feed", 5) == invalid
    assert reader.one("answer_read", AnswerPart.CALL_ID, 0, ROOM, CAP) == invalid
    assert reader.one("answer_read", 9, 0, ROOM, CAP) == invalid
    assert reader.one("answer_read", AnswerPart.MESSAGE, 0, ends, 1) == -Errno.EFAULT
    bare = Reader(shared, WASM, model, tools={})
    bare.model = bare.open_model()
    assert bare.begin() > 0
    assert bare.one("answer_grammar", ROOM, CAP) == invalid


def test_schemas_that_cannot_be_forced(shared: Runtime, model: Model, tmp_path: Path) -> None:
    from isthmus.tools import FunctionTool

    strange: dict[str, Any] = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
    tool = FunctionTool(function=bytes, parameters=strange)
    reader = Reader(shared, WASM, model, tools={"strange": tool})
    reader.model = reader.open_model()
    assert reader.begin(flags=3) > 0
    assert reader.one("answer_grammar", ROOM, CAP) == -Errno.ENOTSUP


def test_an_answer_has_an_end(
    reader: Reader, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.actor.host_api.answer.MAX_NBYTES", 100)
    reader.begin()
    codes = [reader.one("answer_feed", 70) for _ in range(10)]
    assert codes[:6] == list(range(1, 7))
    assert codes[-1] == -Errno.ELIMIT

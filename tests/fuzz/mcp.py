"""MCP servers that answer as they like: a program that says, line by line, what a case wants.

An input is JSON: for each method of the protocol, the lines that it is answered with. In them
`$ID` and `$VERSION` stand for what was asked. A line that ends with "…" is said again for ever.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from isthmus.errors import Cancelled, IsthmusError, ToolFailed
from isthmus.printable import printable
from isthmus.tools import ToolLimits
from isthmus.tools import mcp as product
from isthmus.tools.mcp import McpServer
from isthmus.tools.process import Program
from tests.fuzz.surface import MIB, Surface

_CALL_S = 4.0
_ENDLESS = "\u2026"
_MAX_ERROR = 1500
_SERVER = f'''
import json, sys
said = json.load(open(sys.argv[1], encoding="utf-8"))
out = sys.stdout.buffer
for line in sys.stdin.buffer:
    asked = json.loads(line)
    unknown = '{{"jsonrpc":"2.0","id":$ID,"error":{{"code":-32601,"message":"no such method"}}}}'
    for text in said.get(asked.get("method"), [unknown] if "id" in asked else []):
        version = asked.get("params", {{}}).get("protocolVersion", "")
        text = text.replace("$ID", json.dumps(asked.get("id"))).replace("$VERSION", version)
        data = text.rstrip("{_ENDLESS}").encode("latin-1", "replace") + b"\\n"
        while True:
            out.write(data)
            out.flush()
            if not text.endswith("{_ENDLESS}"):
                break
'''
"""The program; it ends with its input, or if nobody reads what it says."""
Lines = dict[str, list[str]]
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 0.5, "", "\x1b[2J", "x" * 100_000, [], {}, [[]]),
    *("\ud800", "../x", {"type": "object"}, {"$ref": "#"}),
)
_NOISE = (
    *("", "x", "[" * 100_000, '{"a":' * 100_000, "\xff\xfe\x00", "null", "[]", "{}", "1" * 5000),
    '{"jsonrpc":"2.0","id":$ID}',
    '{"jsonrpc":"2.0","id":$ID,"error":{"code":1e999,"message":"\\u001b[2J"}}',
    '{"jsonrpc":"2.0","id":$ID,"error":{"code":-32000,"message":"' + "y" * 90_000 + '"}}',
    '{"jsonrpc":"2.0","id":99,"result":{}}',
    '{"jsonrpc":"2.0","id":"$ID","result":{}}',
    '{"jsonrpc":"2.0","id":7,"method":"ping"}',
    '{"jsonrpc":"2.0","id":8,"method":"sampling/createMessage","params":{"messages":[]}}',
    '{"jsonrpc":"2.0","id":9,"method":"roots/list"}',
    '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}',
    '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":$ID}}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":$ID}}',
    '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"z"}}'
    + _ENDLESS,
)


def _result(result: Any) -> str:
    text = json.dumps({"jsonrpc": "2.0", "id": "$ID", "result": result})
    return text.replace('"$ID"', "$ID")


def _good() -> dict[str, Any]:
    """What an honest server says, by method."""
    server = {"name": "fuzz", "version": "1"}
    tool = {"name": "echo", "description": "Says it again.", "inputSchema": {"type": "object"}}
    return {
        "initialize": {
            "protocolVersion": "$VERSION",
            "capabilities": {"tools": {}},
            "serverInfo": server,
        },
        "tools/list": {"tools": [tool]},
        "tools/call": {"content": [{"type": "text", "text": "words"}], "isError": False},
    }


def said(**lines: list[str]) -> Callable[[], bytes]:
    """An input: the honest answers, but for those of some methods (`_` for `/`)."""
    given = {name.replace("_", "/"): it for name, it in lines.items()}
    good = {name: [_result(it)] for name, it in _good().items()}
    return lambda: json.dumps({**good, **given}).encode()


class Fuzz(Surface):
    """Lists a server's tools and calls the first twice. Errors are typed, short and printable."""

    corpus: ClassVar = {
        "good": said(),
        "flood-after-its-call": said(tools_call=[_result(_good()["tools/call"]), _NOISE[-1]]),
        "flood-instead": said(tools_call=[_NOISE[-1]]),
        "100000-brackets": said(tools_call=["[" * 100_000]),
        "no-object": said(initialize=["null"]),
        "deep-schema": said(
            tools_list=[
                '{"jsonrpc":"2.0","id":$ID,"result":{"tools":[{"name":"a","inputSchema":'
                + '{"type":"object","x":' * 900
                + "1"
                + "}" * 900
                + "}]}}"
            ]
        ),
        "escapes": said(tools_call=[_NOISE[10]]),
        "half-a-character": said(
            tools_call=[_result({"content": [{"type": "text", "text": "\ud800"}]})]
        ),
    }
    cpu_s = 30.0
    wall_s = 90.0
    memory_nbytes = 600 * MIB
    n_short = 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        product._OPEN_S = 2 * _CALL_S
        (folder / "server.py").write_text(_SERVER)

    def make(self, rng: random.Random) -> bytes:
        good = _good()
        for name in rng.sample(list(good), rng.choice([0, 1, 1, 2])):
            holders = list(_holders(good[name]))
            for _ in range(rng.choice([1, 1, 3])):
                holder = rng.choice(holders)
                keys: Any = list(holder) if isinstance(holder, dict) else range(len(holder))
                if len(keys):
                    holder[rng.choice(keys)] = rng.choice(_VALUES)
        lines: Lines = {name: [_result(it)] for name, it in good.items()}
        for _ in range(rng.choice([0, 1, 1, 2])):
            answers = lines[rng.choice(list(lines))]
            answers.insert(rng.randrange(len(answers) + 1), rng.choice(_NOISE))
        return json.dumps(lines).encode()

    def run(self, data: bytes) -> str:
        path = self.folder / "said.json"
        path.write_bytes(data)
        program = Program((sys.executable, str(self.folder / "server.py"), str(path)))
        limits = ToolLimits(deadline_s=_CALL_S, output_nbytes=MIB)
        end = time.monotonic() + 4 * _CALL_S
        done = []

        def check() -> None:
            if time.monotonic() > end:
                raise Cancelled("the case takes too long")

        try:
            with McpServer(program, limits=limits) as server:
                tool = next(iter(server.tools.values()))
                for _ in range(2):
                    done.append(self._call(lambda: tool.run(b"{}", check)))
        except IsthmusError as error:
            done.append(self._named(error))
        return " ".join(done)

    def _call(self, call: Callable[[], bytes]) -> str:
        try:
            return f"{len(call()) > 0}"
        except IsthmusError as error:
            return self._named(error)

    @staticmethod
    def _named(error: IsthmusError) -> str:
        text = str(error)
        assert text, "an error that says nothing"
        if not isinstance(error, ToolFailed):  # a tool's own words are for the model
            assert len(text) <= _MAX_ERROR, f"an error of {len(text)} characters"
            assert text == printable(text), "an error that is obeyed"
            assert "\n" not in text, "an error of several lines"
        return type(error).__name__


def _holders(value: Any) -> Iterator[Any]:
    """Each object and list in a value."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)

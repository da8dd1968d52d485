"""An MCP server by hand, which does what it should not: `python liar.py KIND`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

KIND = sys.argv[1]
OBJECT = {"type": "object"}
GOOD = {"name": "echo", "inputSchema": OBJECT, "description": "Says it again."}
LISTS: dict[str, list[dict[str, Any]]] = {
    "good": [
        {**GOOD, "name": name}
        for name in ("echo", "die", "hang", "line", "odd", "fail", "long", "flood")
    ],
    "names": [
        GOOD,
        GOOD,
        {**GOOD, "name": "a b"},
        {**GOOD, "name": "x" * 65},
        {**GOOD, "name": ""},
        {**GOOD, "name": "large", "inputSchema": {**OBJECT, "title": "x" * 70_000}},
        {**GOOD, "name": "told", "description": "y" * 10_000},
    ],
    "many": [{**GOOD, "name": f"n{n}"} for n in range(300)],
    "none": [],
    "array": [{**GOOD, "inputSchema": {"type": "array"}}],
}


def say(message: dict[str, Any]) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def flood() -> None:
    """Says what nobody has asked for, as fast as somebody reads it."""
    note = {"method": "notifications/message", "params": {"level": "info", "data": "x"}}
    while True:
        say(note)


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}], **more}


def called(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name == "die":
        sys.exit(3)
    if name == "hang":
        time.sleep(600)
    if name == "line":
        while True:
            sys.stdout.write("x" * 65536)
    if name == "odd":
        return {"content": 3}
    if name == "flood":
        begins = threading.Timer(0.2, flood)  # its answer is not behind what it floods with
        begins.daemon = True
        begins.start()
    if name == "fail":
        return text("it broke", isError=True)
    if name == "long":
        return text("x" * 5000)
    return text(json.dumps(arguments))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    method, given = asked["method"], asked.get("params", {})
    if method == "initialize":
        return {
            "protocolVersion": given["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "liar", "version": "1"},
        }
    if method == "tools/list":
        if KIND == "endless":
            n = int(given.get("cursor", 0))
            return {"tools": [{**GOOD, "name": f"n{n}"}], "nextCursor": str(n + 1)}
        return {"tools": LISTS[KIND]}
    if method == "tools/call":
        return called(given["name"], given["arguments"])
    raise LookupError


if KIND == "exits":
    sys.exit(0)
if KIND == "silent":
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(str(os.getpid()))
    time.sleep(600)
if KIND == "nonsense":
    print("this is no JSON", flush=True)
    sys.exit(0)
if len(sys.argv) > 2:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(sys.argv[2]).write_text(str(child.pid))
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked and "method" in asked:
        try:
            say({"id": asked["id"], "result": answer(asked)})
        except LookupError:
            say({"id": asked["id"], "error": {"code": -32601, "message": "no such method"}})

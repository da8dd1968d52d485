"""How fast is the server, against llama.cpp's own with the same library, model and threads?

Both run in processes of their own, with as many slots as the most clients; they are asked in turns,
by the same clients, with prompts that neither has seen. A token counts when it arrives.

The fewest clients ask our server once more in each turn, with a tool that the model may call: text
must come as early then, although it might be the beginning of a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isthmus.benchmarks.record import Plan, Record, describe_run, median_ratio
from isthmus.errors import VerificationFailed
from isthmus.model import Model
from isthmus.runtime import Runtime

CLIENTS = (1, 8, 32)
_TOKENS = 48
_N_CTX = 512
_PROMPT = (
    "Request {nonce}: a traveller who crosses the isthmus asks the ferryman for advice. Tell the "
    "story of what he answers, in as many words as you can, beginning with the weather."
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_RIVAL = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = int(sys.argv[2]) * int(sys.argv[3]), int(sys.argv[3])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[4])
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
params.n_gpu_layers = 0
params.port = 0
params.verbosity = 0
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
time.sleep(1e9)
"""


@dataclass
class _Round:
    """What clients saw at one time."""

    seconds: float = 0.0
    n_tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)


def bench_serve(runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]) -> Record:
    """Tokens per second of all clients, time to the first token and between tokens."""
    most, results = max(plan.sizes), []
    threads = runtime.device.settings.n_threads
    with tempfile.TemporaryDirectory() as data, contextlib.ExitStack() as stack:
        slots = ["--slots", str(most), "--n-ctx", str(_N_CTX), "--threads", str(threads)]
        ours = [sys.executable, "-m", "isthmus", "serve", "--port", "0", "--data", data, *slots]
        ours += ["--model", f"m={model.path}", "--device", runtime.device.name]
        rival = [
            sys.executable,
            "-c",
            _RIVAL,
            str(model.path),
            str(_N_CTX),
            str(most),
            str(threads),
        ]
        urls = {
            "ours": stack.enter_context(_started(ours)),
            "llama.cpp": stack.enter_context(_started(rival)),
        }
        for url in urls.values():
            asyncio.run(_ask_all(url, 2, "warm up"))
        for n in plan.sizes:
            rounds: dict[str, list[_Round]] = {name: [] for name in urls}
            with_tools: list[_Round] = []
            for turn in range(plan.repeats):
                for name in urls if turn % 2 else reversed(list(urls)):
                    rounds[name].append(asyncio.run(_ask_all(urls[name], n, f"{n}.{turn}")))
                if n == min(plan.sizes):
                    asked = _ask_all(urls["ours"], n, f"{n}.{turn}.tool", [_TOOL])
                    with_tools.append(asyncio.run(asked))
                progress()
            results.append({**_result(n, rounds), **_tools_result(rounds["ours"], with_tools)})
    return {**describe_run(runtime.device.info), "model": model.path.name, "results": results}


def _result(n: int, rounds: dict[str, list[_Round]]) -> Record:
    speeds = {name: [it.n_tokens / it.seconds for it in each] for name, each in rounds.items()}
    record: Record = {
        "clients": n,
        "ours_tokens_per_s": float(np.median(speeds["ours"])),
        "llama_cpp_tokens_per_s": float(np.median(speeds["llama.cpp"])),
        "ratio": median_ratio(speeds["ours"], speeds["llama.cpp"]),
    }
    for name, each in rounds.items():
        whose = name.replace(".", "_")
        for what in ("first_s", "between_s"):
            values = [value for it in each for value in getattr(it, what)]
            for percent in (50, 99):
                key = f"{whose}_{what.removesuffix('_s')}_p{percent}_ms"
                record[key] = 1e3 * float(np.percentile(values, percent))
    return {**record, "samples_tokens_per_s": speeds}


def _tools_result(without: list[_Round], with_tools: list[_Round]) -> Record:
    """How much later the first text comes if the model may call a tool."""
    if not with_tools:
        return {}
    first = [[float(np.median(it.first_s)) for it in each] for each in (with_tools, without)]
    return {"ours_first_with_tools_ratio": median_ratio(*first)}


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[str]:
    """A server in a process of its own; gives its address."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://[\w.:]+", line):
                yield found[0]
                return
        raise VerificationFailed(f"a server did not start: {''.join(said[-5:])}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _ask_all(url: str, n: int, nonce: str, tools: Sequence[dict[str, Any]] = ()) -> _Round:
    seen = _Round()
    start = time.perf_counter()
    await asyncio.gather(*(_ask(url, f"{nonce}.{client}", tools, seen) for client in range(n)))
    seen.seconds = time.perf_counter() - start
    return seen


async def _ask(url: str, nonce: str, tools: Sequence[dict[str, Any]], seen: _Round) -> None:
    """One streaming client, by hand: it is to cost the machine as little as can be."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": _PROMPT.format(nonce=nonce)}],
            "max_tokens": _TOKENS,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            **({"tools": tools} if tools else {}),
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    start = time.perf_counter()
    writer.write(head.encode() + body)
    last = None
    try:
        while line := await reader.readline():
            if line.startswith(b"HTTP/") and b" 200" not in line:
                raise VerificationFailed(f"a server answered {line.decode().strip()}")
            if not line.startswith(b"data: {") or not _has_text(line):
                continue
            now = time.perf_counter()
            (seen.first_s if last is None else seen.between_s).append(now - (last or start))
            seen.n_tokens += 1
            last = now
    finally:
        writer.close()


def _has_text(line: bytes) -> bool:
    choices = json.loads(line[6:]).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))

"""Another process: `python -m tests.exact.worker REQUEST`, where REQUEST is JSON.

Begins or restores an actor, sends it messages, saves it if asked, prints its digest as one line,
and then waits to be killed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from isthmus import Capacity, Model, Runtime
from tests.exact.digest import digest


def main(request: dict[str, Any]) -> None:
    patient = Capacity(initialize_s=600)
    with Runtime(device="cpu", threads=request["threads"], capacity=patient) as runtime:
        model = runtime.load_model(request["model"], **request.get("settings", {}))
        if request.get("adapter"):
            adapter = runtime.load_adapter(request["adapter"], model)
            model = runtime.adapt(model, {adapter: 0.7})
        models = {"default": model}
        if "resume" in request:
            print(json.dumps({"resumed": resumed(runtime, models, request["resume"])}), flush=True)
            signal.pause()
        if "restore" in request:
            actor = runtime.restore(request["restore"], models=models, require="exact")
        else:
            actor = runtime.spawn(
                request["guest"], models=models, args=request["args"], seed=5, clock_ns=10**18
            )
        prefilled_by_restoring = model.executor.counters.tokens_prefilled
        replies = [actor.send(message).text for message in request["messages"]]
        if "snapshot" in request:
            actor.snapshot(request["snapshot"])
        answer = {
            "digest": digest(actor),
            "replies": replies,
            "prefilled_by_restoring": prefilled_by_restoring,
            "prefilled": model.executor.counters.tokens_prefilled,
            "level": actor.restored.level if actor.restored else None,
        }
        print(json.dumps(answer), flush=True)
        signal.pause()


def resumed(
    runtime: Runtime, models: dict[str, Model], files: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """What becomes of each answer that snapshots are in the middle of."""
    ends = {}
    for name, path in files.items():
        with runtime.restore(path, models=models, require="exact") as actor:
            stream = actor.resume()
            for _ in stream:
                pass
            ends[name] = {**digest(actor), "text": stream.reply.text}
            ends[name]["n_tokens"] = stream.reply.n_tokens
            for changed in ("memory", "memory_nbytes", "globals"):
                del ends[name][changed]
    return ends


def ask(**request: Any) -> dict[str, Any]:
    """What a new process answers; it is killed with SIGKILL once it has."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.exact.worker", json.dumps(request)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the worker failed; see its standard error"
        answer: dict[str, Any] = json.loads(line)
        return answer
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

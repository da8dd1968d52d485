"""All that an agent does with a GPU, in a process of its own, on the stand-in for Metal.

    python metal_exercise.py FOLDER    FOLDER has a model, x.gguf

Exits with 0 and the word `done` if every answer is right.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from isthmus import Actor, Model, Runtime
from isthmus.units import KIB
from isthmus.verification import prove_sizes


def spawn(runtime: Runtime, model: Model, n_tokens: int = 24) -> Actor:
    actor = runtime.spawn("bench", models={"default": model}, args=["n_ctx=512"], seed=1)
    actor.send(f"prefill {n_tokens} {n_tokens}")
    return actor


def compare(gpu: Runtime, plain: Runtime, path: Path) -> None:
    """Prefill and decode, against the processor; forks and restored agents, against the agent."""
    model = gpu.load_model(path, prefill_chunk=64)
    other = plain.load_model(path, prefill_chunk=64)
    with spawn(gpu, model) as actor, spawn(plain, other) as expected:
        for message in ("tokens 3 1 4", "branch 3 4", "tokens 1 5"):
            actor.send(message)
            expected.send(message)
            theirs = expected.sessions[0].logits
            error = np.linalg.norm(actor.sessions[0].logits - theirs) / np.linalg.norm(theirs)
            assert error < 1e-2, f"logits after {message!r} are {error:.2f} from the processor's"
        assert actor.binding.n_segments > 1, "its memory grew"
        saved = actor.snapshot(path.with_name("a.safetensors"))
        with actor.fork()[0] as fork, gpu.restore(saved, models={"default": model}) as again:
            assert len({it.send("hash 5").text for it in (actor, fork, again)}) == 1
        assert actor.send("truncate 9").text == expected.send("truncate 9").text
        assert gpu.device.counters.bytes_copied == 0
    model.close()


def main(folder: Path) -> None:
    """Runs everything once."""
    with Runtime(device="metal") as gpu, Runtime(device="cpu", threads=1) as plain:
        compare(gpu, plain, folder / "x.gguf")
        for proof in prove_sizes(gpu, [64 * KIB], 1, lambda: None):
            assert proof.holds
            assert proof.wrong == 0 < proof.checked
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

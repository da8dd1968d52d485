"""Finds out what holds of one model, in a process of its own: see `survey`.

The model runs as every model does: an agent of the bundled guest `bench` has a session of it, is
forked, saved and restored. Beside it libllama runs alone, on the same file.

This file is what that process runs.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np

from isthmus.actor import Actor
from isthmus.benchmarks.rival import Libllama
from isthmus.errors import IsthmusError
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.survey.row import Findings

_N_CTX = 256
_N_PROMPT = 70
_CHUNK = 48
"""Tokens of a prefill's pass: the prompt takes two."""
_N_STEPS = 4


def check(job: bytes) -> bytes:
    """Findings as JSON, of {"path", "device", "library", "folder"} as JSON.

    What the library does not survive ends the process.
    """
    os.environ["GGML_NO_BACKTRACE"] = "1"
    asked = json.loads(job)
    with Runtime(device=asked["device"], threads=1, library=asked["library"]) as runtime:
        try:
            model = runtime.load_model(asked["path"], prefill_chunk=_CHUNK)
            findings = _examine(runtime, model, Path(asked["folder"]))
        except IsthmusError as error:
            findings = Findings(problem=str(error))
    return json.dumps(asdict(findings)).encode()


def _examine(runtime: Runtime, model: Model, folder: Path) -> Findings:
    embeddings = _embeddings(runtime, model) if model.hparams.pooling is not None else None
    if not model.generates:
        return Findings(makes="embeddings", equal=embeddings)
    talk = _Talk(runtime.spawn("bench", models={"default": model}, args={"n_ctx": _N_CTX}, seed=1))
    talk.prefill(_prompt(model))
    straight = talk.decode(_N_STEPS)
    saved = talk.actor.snapshot(folder / "agent.isthmus")
    (fork,) = talk.actor.fork()
    restored = runtime.restore(saved, models={"default": model})
    further = talk.decode(_N_STEPS)
    return Findings(
        makes="text" if embeddings is None else "text, embeddings",
        equal=straight == _libllama(runtime, model) and embeddings is not False,
        fork=_Talk(fork).decode(_N_STEPS) == further,
        snapshot=_Talk(restored).decode(_N_STEPS) == further,
        truncate=_truncated(talk, further) if model.truncates else None,
    )


def _truncated(talk: _Talk, further: list[bytes]) -> bool:
    """Whether the last steps are the same once more, after their tokens were taken back."""
    n_tokens = _N_PROMPT + _N_STEPS
    last = talk.actor.sessions[0].tokens[n_tokens - 1]
    talk.actor.send(f"truncate {n_tokens - 1}")
    talk.prefill([last])
    return talk.decode(_N_STEPS) == further


def _embeddings(runtime: Runtime, model: Model) -> bool:
    """Whether an embedding is the bytes of libllama alone."""
    tokens = _prompt(model)
    (ours,) = model.embed([tokens], normalised=False)
    with Libllama(runtime.device, model.path, _N_CTX, model.settings, embeddings=True) as rival:
        return ours.tobytes() == rival.embed(tokens).tobytes()


def _libllama(runtime: Runtime, model: Model) -> list[bytes]:
    """The logits that libllama alone has, each time with the most probable token appended."""
    with Libllama(runtime.device, model.path, _N_CTX, model.settings) as rival:
        rival.prefill(_prompt(model))
        logits = [rival.logits.tobytes()]
        for _ in range(_N_STEPS):
            rival.decode(int(np.argmax(rival.logits)))
            logits.append(rival.logits.tobytes())
    return logits


def _prompt(model: Model) -> list[int]:
    rng = random.Random(1)
    return [rng.randrange(model.n_vocab) for _ in range(_N_PROMPT)]


class _Talk:
    """An agent of the guest `bench`, and the logits of its session."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def prefill(self, tokens: list[int]) -> None:
        """Appends tokens."""
        self.actor.send(f"tokens {' '.join(map(str, tokens))}")

    def decode(self, n_steps: int) -> list[bytes]:
        """The logits before the first and after each step, f32 [n_vocab] each."""
        logits = [self._logits()]
        for _ in range(n_steps):
            self.actor.send("decode 1")
            logits.append(self._logits())
        return logits

    def _logits(self) -> bytes:
        with self.actor.pinned():
            return self.actor.sessions[0].logits.tobytes()

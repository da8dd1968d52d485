"""More than 4 GiB of KV cache, all of it written: the same bits as libllama, saved and restored.

Takes 9 GB of memory, 5 GB of disk and some minutes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isthmus import Limits
from isthmus.benchmarks.rival import Libllama
from isthmus.runtime import Runtime
from isthmus.runtime.memory64 import fitting_guest
from isthmus.units import GIB
from tests.tiny_gguf import TinyLlama

pytestmark = pytest.mark.long
N_TOKENS, N_DECODED = 930, 6


def test_more_than_4_gib_of_kv_written(tmp_path: Path) -> None:
    wide = TinyLlama(n_layer=36, n_head=256, n_head_kv=256, head_dim=128, quantisation="F16")
    path = wide.write(tmp_path / "wide.gguf")
    tokens = [int(it) for it in np.random.default_rng(1).integers(3, 300, N_TOKENS)]
    with Runtime(device="cpu") as runtime:
        model = runtime.load_model(path)
        expected, following = [], []
        with Libllama(runtime.device, path, 1024, model.settings) as rival:
            rival.prefill(tokens)
            for _ in range(N_DECODED + 1):
                expected.append(rival.logits.tobytes())
                following.append(int(rival.logits.argmax()))
                rival.decode(following[-1])
        guest, limits = fitting_guest("bench", model, 1024, Limits())
        assert guest == "bench64"
        models = {"default": model}
        actor = runtime.spawn(guest, models=models, args={"n_ctx": 1024}, limits=limits)
        actor.send("tokens " + " ".join(map(str, tokens)))
        session = actor.sessions[0]
        assert N_TOKENS * session.layout.token_nbytes > 4 * GIB
        for i in range(N_DECODED // 2):
            assert actor.sessions[0].logits.tobytes() == expected[i], i
            actor.send("decode 1")
        saved = actor.snapshot(tmp_path / "wide.safetensors")
        actor.close()
        again = runtime.restore(saved, models=models, limits=limits)
        for i in range(N_DECODED // 2, N_DECODED + 1):
            assert again.sessions[0].logits.tobytes() == expected[i], i
            again.send("decode 1")
        assert list(again.sessions[0].tokens)[N_TOKENS : N_TOKENS + N_DECODED + 1] == following
        assert again.counters.bytes_copied == 0

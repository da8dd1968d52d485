"""What a graphics device has no kernel for, and branches of one guest on it: see test_gpu.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus import Runtime
from isthmus.errors import GuestFailed
from tests.device.test_gpu import REFUSED, gpu, path, spawn, tiny

__all__ = ["gpu", "path"]  # fixtures
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused(name: str, gpu: Runtime, tmp_path: Path) -> None:
    model = gpu.load_model(tiny(name, tmp_path), prefill_chunk=64)
    with pytest.raises(GuestFailed, match="ENOTSUP"):
        spawn(gpu, model, 150)


def test_branches_of_one_guest_have_the_bits_of_single_steps(gpu: Runtime, path: Path) -> None:
    model = gpu.load_model(path, width="many")
    with spawn(gpu, model) as actor:
        branches = actor.send("branch 4 12").text.splitlines()
        assert len(branches) == 4
        for branch in branches:
            first, *rest = branch.split()
            with actor.fork(1)[0] as alone:
                alone.send(f"tokens {first}")
                assert alone.send(f"sequence {len(rest)}").text.split() == rest
    model.close()

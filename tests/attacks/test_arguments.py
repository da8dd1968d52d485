"""Limits, options and deadlines of kinds that they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isthmus import Capacity, Limits, Runtime
from isthmus.errors import DeadlineExceeded, LimitExceeded, SettingsError
from isthmus.units import WASM_PAGE
from tests.attacks.test_agents import QUICK


@pytest.mark.parametrize(
    "wrong",
    [
        {"deadline_s": "30"},
        {"deadline_s": float("nan")},
        {"tokens_out": "24"},
        {"fuel": 1.5},
        {"sessions": None},
        {"memory_nbytes": None},
        {"weight": "1"},
        {"weight": float("nan")},
    ],
)
def test_limits_of_another_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Limits(**wrong)


def test_deadlines_that_are_none(null_runtime: Runtime) -> None:
    actor = null_runtime.spawn(QUICK, limits=Limits(deadline_s=float("inf")))
    for deadline_s in (None, float("inf"), 1e12, 60):
        actor.send("x", deadline_s=deadline_s)
    for wrong in (float("nan"), -1, "5"):
        with pytest.raises(SettingsError, match="deadline_s"):
            actor.send("x", deadline_s=wrong)  # type: ignore[arg-type]
    with pytest.raises((DeadlineExceeded, LimitExceeded)):
        actor.send("x", deadline_s=0)


def test_what_spawn_is_not_given(null_runtime: Runtime, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"models": {"default": "model.gguf"}},
        {"models": object()},
        {"limits": {"tokens": 5}},
        {"args": "max_tokens=5"},
        {"args": ["temperature"]},
        {"args": [5]},
    ]
    for given in wrong:
        with pytest.raises(SettingsError):
            null_runtime.spawn(QUICK, **given)
    assert null_runtime.spawn(QUICK, args={"a": 1, "b": "x=y"}).args == ("a=1", "b=x=y")
    with Runtime(device="null", threads=1, capacity=Capacity(folder=str(tmp_path))) as runtime:  # type: ignore[arg-type]
        assert runtime.spawn(QUICK).evict() == WASM_PAGE

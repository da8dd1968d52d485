"""A rebuilt guest that is sent what was said: it takes over what its agent before has computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus import Actor, Model, Runtime
from isthmus.actor.host_api.context import MIN_INHERITED

SAID = ("A long message that a model reads once. " * 4, "And a second one, which goes on.")
MORE = "Something else is said now."


def spawn(runtime: Runtime, model: Model, **options: object) -> Actor:
    args = {"temperature": 0, "max_tokens": 8, "n_ctx": 512, **options}
    return runtime.spawn("chat", models={"default": model}, seed=3, args=args)


@pytest.fixture
def model(runtime: Runtime, tiny: Path) -> Model:
    return runtime.load_model(tiny)


def tell(runtime: Runtime, actor: Actor, *said: str) -> tuple[list[str], int]:
    """The answers, and how many tokens of prompts were computed for them."""
    before = runtime.counters().tokens_prefilled
    answers = [actor.send(it).text for it in said]
    return answers, runtime.counters().tokens_prefilled - before


def test_what_is_in_common_is_not_computed_again(runtime: Runtime, model: Model) -> None:
    with spawn(runtime, model) as old:
        answers, n_computed = tell(runtime, old, *SAID)
        assert n_computed == old.usage.tokens_in > 100
        with spawn(runtime, model) as new:
            with new.inheriting(old):
                again, n_again = tell(runtime, new, *SAID)
                assert old.state == "held"
            assert again == answers
            assert n_again <= 2 * MIN_INHERITED
            assert new.usage.tokens_in == n_computed  # limits count them all the same
            assert old.state == "idle"
            after = tell(runtime, new, MORE), tell(runtime, old, MORE)
        assert after[0] == after[1]
        assert after[0][1] > MIN_INHERITED  # it goes on by itself


def test_from_where_it_differs_all_is_computed(runtime: Runtime, model: Model) -> None:
    with spawn(runtime, model) as old, spawn(runtime, model) as alone:
        tell(runtime, old, *SAID)
        changed = (SAID[0] + "But it ends otherwise.", SAID[1])
        expected, n_alone = tell(runtime, alone, *changed)
        with spawn(runtime, model) as new, new.inheriting(old):
            found, n = tell(runtime, new, *changed)
        assert found == expected
        assert 0 < n_alone - n < old.usage.tokens_in


@pytest.mark.parametrize("options", [{"n_ctx": 768}, {"system": "Another beginning of it all."}])
def test_nothing_in_common(runtime: Runtime, model: Model, options: dict[str, object]) -> None:
    """Other sessions, or other tokens from the first on."""
    with spawn(runtime, model) as old:
        tell(runtime, old, *SAID)
        with spawn(runtime, model, **options) as new, new.inheriting(old):
            _, n = tell(runtime, new, *SAID)
            assert n > new.usage.tokens_in - 3 * MIN_INHERITED

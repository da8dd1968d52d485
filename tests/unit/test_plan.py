"""Who goes first if more ask than fit, and how long prompts keep steps waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from isthmus.actor import plan
from isthmus.actor.shares import Share, Shares
from isthmus.model.jobs import JOB_S
from isthmus.model.probes.pack_probe import MAX_PACKED
from isthmus.model.probes.widths import Width, Widths

Ask = Any
"""What `plan` looks at: a share, tokens, a key, and for prompts a chunk."""


def ask(
    n_tokens: int = 1, *, share: Share | None = None, key: object = 0, alone: bool = False
) -> Ask:
    chunk = None if alone else object()
    return SimpleNamespace(share=share or Share(), n_tokens=n_tokens, key=key, chunk=chunk)


def key_of(asked: Ask) -> Any:
    return asked.key


def batches(asks: Sequence[Ask], most: int, n: int, shares: Shares | None = None) -> Counter[int]:
    """How often each is chosen in `n` batches, if all of them always ask."""
    chosen: Counter[int] = Counter()
    shares = Shares() if shares is None else shares
    for _ in range(n):
        taken = plan.batch(asks, shares, most, key_of)
        chosen.update(asks.index(it) for it in taken)
    return chosen


# ---------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("sizes", "keys", "most", "chosen"),
    [
        ([1], [0], 1, [0]),
        ([1, 1, 1], [0, 0, 0], 3, [0, 1, 2]),
        ([1, 1, 1], [0, 0, 0], 2, [0, 1]),
        ([1, 1, 1], [0, 0, 0], 1, [0]),
        ([1, 1, 1, 1], [0, 1, 0, 1], 32, [0, 2]),
        ([2, 2, 1], [0, 0, 0], 3, [0]),  # the second keeps the small one out
        ([2, 2, 1], [0, 1, 0], 3, [0, 2]),  # unless it could not go with the first anyway
        ([32, 1], [0, 0], 32, [0]),
        ([40], [0], 32, [0]),  # one that is too large goes alone
        ([1, 40], [0, 0], 32, [0]),
    ],
)
def test_a_batch_of_those_that_fit(
    sizes: list[int], keys: list[int], most: int, chosen: list[int]
) -> None:
    asks = [ask(n, key=key) for n, key in zip(sizes, keys, strict=True)]
    taken = plan.batch(asks, Shares(), most, key_of)
    assert [asks.index(it) for it in taken] == chosen


def test_a_batch_is_charged() -> None:
    asks, shares = [ask(3), ask(1, share=Share(2.0)), ask(1, key=1)], Shares()
    plan.batch(asks, shares, 32, key_of)
    assert [shares.of(it.share) for it in asks] == [3.0, 0.5, 0.0]


def test_weights_are_shares() -> None:
    chosen = batches([ask(share=Share(weight)) for weight in (1, 1, 4)], 1, 120)
    assert [chosen[i] for i in range(3)] == pytest.approx([20, 20, 80], abs=2)


def test_nobody_starves() -> None:
    chosen = batches([ask() for _ in range(40)], 32, 50)
    assert set(chosen.values()) == {40}


def test_whoever_was_away_gets_no_more_than_its_share() -> None:
    shares, asks = Shares(), [ask(), ask()]
    batches(asks, 1, 1000, shares)
    chosen = batches([*asks, ask()], 1, 90, shares)
    assert chosen[2] == pytest.approx(30, abs=2)


def test_those_that_cannot_go_together_take_turns() -> None:
    chosen = batches([ask(key=key) for key in (0, 0, 1, 1)], 32, 20)
    assert set(chosen.values()) == {10}


def test_steps_of_many_tokens_pay_for_them() -> None:
    chosen = batches([ask(n) for n in (8, 4, 1)], 8, 60)
    assert chosen[0] * 8 == pytest.approx(chosen[1] * 4, abs=8)
    assert chosen[2] > chosen[1] > chosen[0]


def test_a_step_of_many_tokens_is_not_passed_over() -> None:
    """Small ones that would fit beside each other do not keep it waiting for good."""
    chosen = batches([ask(n) for n in (4, 1, 1, 1, 1, 1)], 4, 60)
    assert chosen[0] > 0


# ---------------------------------------------------------------------------------- prompts

HALF = MAX_PACKED // 2


@pytest.mark.parametrize(
    ("sizes", "passes"),
    [
        ([47, 47, 47, 47], ["abcd"]),
        ([HALF - 10] * 5, ["ab", "cd", "e"]),
        ([20, MAX_PACKED + 1, 20, 20], ["acd", "b"]),  # a long one goes alone, and is not left out
        ([MAX_PACKED - 20, MAX_PACKED - 20, 20, 20], ["ac", "bd"]),
        ([MAX_PACKED], ["a"]),
        ([4 * MAX_PACKED, 1], ["a", "b"]),
    ],
)
def test_prompts_that_are_one_pass(sizes: list[int], passes: list[str]) -> None:
    asks = [ask(n) for n in sizes]
    assert all_passes(asks) == passes


def test_prompts_of_another_kind_are_another_pass() -> None:
    asks = [ask(20, key=key) for key in (0, 1, 0, 1)] + [ask(20, alone=True)]
    assert all_passes(asks) == ["ac", "bd", "e"]


def test_a_prompt_that_goes_alone_takes_nobody_along() -> None:
    assert all_passes([ask(20, alone=True), ask(20), ask(20)]) == ["a", "bc"]


def test_each_alone_if_bits_would_change() -> None:
    assert all_passes([ask(20) for _ in range(3)], class_of=lambda _: None) == ["a", "b", "c"]


def test_whether_prompts_pack_is_asked_only_if_there_are_others() -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the probe takes long")

    for asks in ([ask(20)], [ask(20, alone=True), ask(20)]):
        assert plan.pack(asks, Shares(), key_of, class_of=refuse, most=refuse) == asks[:1]


def test_prompts_of_one_class_are_one_pass_within_it() -> None:
    """As on a card, where a pass of 9 to 128 tokens has bits of its own, and one of 5 to 8."""
    sizes = [40, 5, 60, 20, 3, 100, 29, 2]
    passes = ["acd", "b", "e", "f", "g", "h"]
    assert all_passes([ask(n) for n in sizes], class_of=class_on_a_card) == passes


def test_a_pass_has_only_as_many_prompts_as_there_can_be_outputs() -> None:
    asks = [ask(10) for _ in range(10)]
    assert all_passes(asks, class_of=class_on_a_card, most=4) == ["abcd", "efgh", "ij"]


def test_a_pass_has_only_so_many_prompts() -> None:
    asks = [ask(1) for _ in range(40)]
    assert [len(it) for it in all_passes(asks)] == [plan.MAX_STEP_TOKENS, 40 - plan.MAX_STEP_TOKENS]


def test_prompts_pay_by_weight() -> None:
    shares = Shares()
    heavy, light = ask(200, share=Share(4.0)), ask(200)
    order = []
    for _ in range(10):
        [taken] = plan.pack(
            [light, heavy],
            shares,
            key_of,
            class_of=lambda _: None,
            most=lambda: plan.MAX_STEP_TOKENS,
        )
        order.append(taken)
    assert order.count(heavy) == 8


def class_on_a_processor(it: Ask) -> Width | None:
    return Width(1, MAX_PACKED) if it.n_tokens < MAX_PACKED else None


def class_on_a_card(it: Ask) -> Width | None:
    return Widths((Width(1, 4), Width(5, 8), Width(9, 128))).of(it.n_tokens)


def all_passes(
    asks: Sequence[Ask],
    *,
    class_of: Callable[[Ask], Width | None] = class_on_a_processor,
    most: int = plan.MAX_STEP_TOKENS,
) -> list[str]:
    """The passes that compute all prompts, each as the letters of its own."""
    shares, waiting, passes = Shares(), list(asks), []
    while waiting:
        taken = plan.pack(waiting, shares, key_of, class_of=class_of, most=lambda: most)
        passes.append("".join(chr(ord("a") + asks.index(it)) for it in taken))
        waiting = [it for it in waiting if it not in taken]
    return passes


# ---------------------------------------------------------------------------------- bursts


@pytest.mark.parametrize(
    ("n_prompts", "n_decoding", "left_s", "seconds"),
    [
        (1, 1, None, JOB_S),
        (1, 64, None, JOB_S),  # never less than one job
        (3, 1, None, 3 * JOB_S),
        (3, 2, None, 1.5 * JOB_S),
        (3, 0, None, 3 * JOB_S),
        (1000, 1, None, 0.5),  # nobody waits for longer
        (2, 1, 0.3, 0.3),  # all of them, if that is not long
        (2, 8, 0.3, 0.3),
        (2, 8, 0.4, JOB_S),
        (4, 1, 0.01, 4 * JOB_S),  # what is left is a guess, and no reason for less
        (1, 1, 1.4 * JOB_S, 1.4 * JOB_S),  # no small rest of a single one
        (1, 1, 1.6 * JOB_S, JOB_S),
    ],
)
def test_how_long_prompts_come_before_a_step(
    n_prompts: int, n_decoding: int, left_s: float | None, seconds: float
) -> None:
    assert plan.burst_s(n_prompts, n_decoding, left_s) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("left_s", "job_s", "over"),
    [
        (-0.01, 0.1, True),
        (0.0, 0.0, True),
        (0.001, 0.1, True),  # a job took a little less than the burst
        (0.06, 0.1, False),
        (0.04, 0.03, False),  # short jobs fill a burst
        (0.001, 0.0, False),  # the burst is for all that is left
    ],
)
def test_a_job_that_hardly_fits_waits_for_the_step(
    left_s: float, job_s: float, *, over: bool
) -> None:
    assert plan.burst_is_over(left_s, job_s) is over

"""What one model's queue computes: which steps and prompts together, and what becomes of those that
fail or leave."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isthmus.actor import model_queue, plan
from isthmus.actor.ask import Answer, Decode, Prompt
from isthmus.actor.message import Message
from isthmus.actor.model_queue import ModelQueue
from isthmus.actor.shares import Share
from isthmus.errors import DeviceFailed, ModelUnsupported
from isthmus.metrics import Metrics
from isthmus.model.jobs import JOB_S
from isthmus.model.probes.pack_probe import MAX_PACKED
from isthmus.model.probes.widths import Width
from isthmus.model.step import Chunk, Step

Jobs = Generator[None, None, None]
JOB_S_AND_A_BIT = 1.001 * JOB_S
"""So that a burst of several jobs is not one longer by a rounding error."""


class Clock:
    """Time as the queue sees it: it goes on when something is computed."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Crowd:
    """Asks of a model that computes nothing, but notes in `computed` what it was to do together.

    A step takes 10 ms of its clock. A prompt takes `job_s` for each of its jobs, of which it has
    one for each 100 tokens. Prompts have capital letters in these tests, steps small ones.
    """

    def __init__(self, clock: Clock, *, batches: bool = True, packs: bool = True) -> None:
        self.computed: list[str] = []
        self.closed: list[str] = []
        """Passes that were given up."""
        self.shares: dict[str, Share] = {}
        self.job_s = JOB_S_AND_A_BIT
        self.during: Callable[[str], None] = lambda names: None
        """Called in each step and each job."""
        self.metrics = Metrics()
        self._clock = clock
        self.executor = SimpleNamespace(
            batch_key=lambda session: session.key,
            append=self._append,
            decode_batch=self._decode_batch,
            is_prefilling=False,
        )
        self.model: Any = SimpleNamespace(
            label="m",
            rows_at_once=plan.MAX_STEP_TOKENS if batches else 1,
            packing=lambda n_tokens: Width(2, MAX_PACKED) if packs else None,
            prompts_at_once=plan.MAX_STEP_TOKENS,
            executor=self.executor,
            is_embedding=False,
            is_projecting=False,
        )
        self.queue = ModelQueue(self.model, self.metrics)
        self._names: dict[Message, str] = {}

    def step(self, name: str, n_tokens: int = 1, *, key: int = 0) -> Decode:
        """Has one ask for a step."""
        ask = Decode(self._message(name), Step(self._session(name, key), [1] * n_tokens))
        self.queue.add(ask)
        return ask

    def branches(self, name: str, n: int) -> Decode:
        """Has one ask for a step of each of several sessions."""
        sessions = [self._session(f"{name}{i}", 0) for i in range(n)]
        ask = Decode(self._message(name), *(Step(it, [1]) for it in sessions))
        self.queue.add(ask)
        return ask

    def prompt(self, name: str, n_tokens: int, *, key: int = 0, packable: bool = True) -> Prompt:
        """Has one ask for a prompt."""
        chunk = Chunk(self._session(name, key), np.zeros(n_tokens, np.int32), last=True)
        ask = Prompt(
            self._message(name),
            self.model,
            n_tokens,
            lambda: self._append([chunk]),
            chunk if packable else None,
        )
        self.queue.add(ask)
        return ask

    def work(self) -> list[Answer]:
        return self.queue.work()

    def answered(self) -> str:
        """The names of those that the next piece of work answers."""
        return "".join(self.names(self.work()))

    def names(self, answers: Sequence[Answer]) -> list[str]:
        return [self._names[answer.message] for answer in answers]

    def errors(self) -> dict[str, type[BaseException]]:
        """Works until nothing is left; who had which error."""
        errors = {}
        for _ in range(1000):
            if not self.queue.has_work:
                return errors
            for answer in self.work():
                if answer.error is not None:
                    errors[self._names[answer.message]] = type(answer.error)
        raise AssertionError("it does not end")

    def used(self, name: str) -> float:
        return self.queue._prompt_shares.of(self.shares[name])

    def _message(self, name: str) -> Message:
        share = self.shares.setdefault(name, Share())
        message = Message(b"", name, share)
        self._names[message] = name
        return message

    def _session(self, name: str, key: int) -> Any:
        return SimpleNamespace(name=name, key=key, owner=self.model)

    def _decode_batch(self, steps: Sequence[Any]) -> None:
        names = "".join(step.session.name for step in steps)
        self._clock.now += 0.01
        self.during(names)
        self.computed.append(names)

    def _append(self, chunks: Sequence[Any]) -> Jobs:
        names = "".join(chunk.session.name for chunk in chunks)
        n_jobs = max(1, sum(len(chunk.tokens) for chunk in chunks) // 100)
        try:
            for job in range(n_jobs):
                if job:
                    yield
                self._clock.now += self.job_s
                self.during(names)
        except GeneratorExit:
            self.closed.append(names)
            raise
        self.computed.append(names)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(model_queue, "time", clock)
    return clock


# ---------------------------------------------------------------------------------- steps


def test_all_that_ask_are_one_step(clock: Clock) -> None:
    crowd = Crowd(clock)
    assert not crowd.queue.has_work
    for name in "abc":
        crowd.step(name)
    assert crowd.queue.has_work
    assert crowd.queue.decodes
    assert crowd.answered() == "abc"
    assert crowd.computed == ["abc"]
    assert not crowd.queue.has_work
    assert crowd.work() == []


def test_whoever_does_not_fit_is_in_the_next_step(clock: Clock) -> None:
    crowd = Crowd(clock)
    for i in range(plan.MAX_STEP_TOKENS + 3):
        crowd.step(chr(ord("a") + i))
    assert [len(crowd.work()), len(crowd.work())] == [plan.MAX_STEP_TOKENS, 3]


def test_steps_of_several_sessions_of_one_are_in_one_pass(clock: Clock) -> None:
    crowd = Crowd(clock)
    crowd.step("a")
    assert crowd.branches("b", 3).n_tokens == 3
    crowd.step("c")
    assert crowd.answered() == "abc"
    assert crowd.computed == ["ab0b1b2c"]


def test_whoever_steps_many_sessions_pays_for_each(clock: Clock) -> None:
    crowd = Crowd(clock)
    for _ in range(2):
        crowd.branches("b", plan.MAX_STEP_TOKENS)
        crowd.step("a")
        crowd.step("c")
        assert [sorted(crowd.answered()) for _ in range(2)] in (
            [["b"], ["a", "c"]],
            [["a", "c"], ["b"]],
        )
    assert crowd.queue._decode_shares.of(crowd.shares["b"]) == 2 * plan.MAX_STEP_TOKENS


def test_one_by_one_if_bits_would_change(clock: Clock) -> None:
    crowd = Crowd(clock, batches=False)
    for name in "abc":
        crowd.step(name)
    assert [crowd.answered() for _ in range(3)] == ["a", "b", "c"]


def test_nobody_asks_whether_one_can_go_with_itself(clock: Clock) -> None:
    crowd = Crowd(clock)
    del crowd.model.rows_at_once  # a probe that takes long
    crowd.step("a")
    assert crowd.answered() == "a"


def test_a_step_that_the_device_fails_is_tried_for_each(clock: Clock) -> None:
    def refuse(names: str) -> None:
        if "b" in names:
            raise DeviceFailed("poisoned")

    crowd = Crowd(clock)
    crowd.during = refuse
    for name in "abc":
        crowd.step(name)
    answers = crowd.work()
    assert crowd.names(answers) == ["a", "b", "c"]
    assert [type(answer.error) for answer in answers] == [type(None), DeviceFailed, type(None)]
    assert crowd.computed == ["a", "c"]
    assert "isthmus_batches_retried_total 1.0" in crowd.metrics.render()


def test_a_step_that_fails_for_another_reason_fails_for_all(clock: Clock) -> None:
    def refuse(names: str) -> None:
        raise MemoryError(names)

    crowd = Crowd(clock)
    crowd.during = refuse
    for name in "abc":
        crowd.step(name)
    assert crowd.errors() == dict.fromkeys("abc", MemoryError)


def test_whoever_left_is_in_no_step(clock: Clock) -> None:
    crowd = Crowd(clock)
    asks = [crowd.step(name) for name in "abc"]
    assert crowd.queue.remove(asks[1])
    assert not crowd.queue.remove(asks[1])
    assert crowd.answered() == "ac"
    assert not crowd.queue.remove(asks[0])  # it is answered already
    assert not crowd.queue.has_work


def test_a_closed_model_fails_for_whoever_asks(clock: Clock) -> None:
    crowd = Crowd(clock)

    def closed(_what: Any) -> None:
        raise DeviceFailed("the model is closed")

    for name in "ab":
        crowd.step(name)
    for name in "CD":
        crowd.prompt(name, 20)
    crowd.executor.batch_key = crowd.executor.decode_batch = closed
    assert crowd.errors() == dict.fromkeys("abCD", DeviceFailed)


# ---------------------------------------------------------------------------------- prompts


def test_prompts_that_wait_are_one_pass(clock: Clock) -> None:
    crowd = Crowd(clock)
    for name in "ABCD":
        crowd.prompt(name, 47)
    assert crowd.errors() == {}
    assert crowd.computed == ["ABCD"]
    assert {crowd.used(name) for name in "ABCD"} == {47.0}


def test_all_of_a_pass_are_answered_after_its_last_job(clock: Clock) -> None:
    crowd = Crowd(clock)
    crowd.prompt("A", 300)
    assert [crowd.answered() for _ in range(3)] == ["", "", "A"]
    assert not crowd.queue.has_work


@pytest.mark.parametrize("packs", [True, False])
def test_a_device_that_fails_is_asked_for_each_prompt(clock: Clock, *, packs: bool) -> None:
    def refuse(names: str) -> None:
        if "B" in names:
            raise DeviceFailed("poisoned")

    crowd = Crowd(clock, packs=packs)
    crowd.during = refuse
    for name in "ABC":
        crowd.prompt(name, 20)
    assert crowd.errors() == {"B": DeviceFailed}
    assert crowd.computed == ["A", "C"]
    assert [crowd.used(name) for name in "AC"] == [20.0, 20.0]


def test_a_pass_without_a_kernel_is_not_tried_again(clock: Clock) -> None:
    asked: list[str] = []

    def refuse(names: str) -> None:
        asked.append(names)
        if len(names) > 1:
            raise ModelUnsupported("no kernel")

    crowd = Crowd(clock)
    crowd.during = refuse
    for name in "ABCDEF":
        crowd.prompt(name, MAX_PACKED // 3)
    assert crowd.errors() == {}
    assert sorted(crowd.computed) == [*"ABCDEF"]
    assert len(asked) == 7  # ABC once, and each


def test_whoever_leaves_a_pass_ends_it_and_pays_for_it(clock: Clock) -> None:
    crowd = Crowd(clock)
    asks = [crowd.prompt(name, 80) for name in "ABC"]
    assert crowd.work() == []  # the first of its two jobs
    assert crowd.queue.remove(asks[1])
    assert crowd.closed == ["ABC"]
    assert crowd.errors() == {}
    assert crowd.computed == ["A", "C"]
    assert crowd.used("A") == crowd.used("C") == 80.0
    assert crowd.used("B") == 240.0


def test_others_prompts_are_computed_at_most_twice(clock: Clock) -> None:
    """Whoever was in a pass that was given up goes alone from then on, whoever else comes."""
    crowd = Crowd(clock)
    jobs: list[str] = []
    crowd.during = jobs.append
    asks = [crowd.prompt(name, 80) for name in "ABC"]
    crowd.work()
    crowd.queue.remove(asks[0])
    for name in "DEF":
        crowd.prompt(name, 80)
    crowd.errors()
    assert [names for names in jobs if "B" in names] == ["ABC", "B"]
    assert [names for names in jobs if "C" in names] == ["ABC", "C"]


def test_whoever_leaves_before_its_turn_is_not_computed(clock: Clock) -> None:
    crowd = Crowd(clock)
    asks = [crowd.prompt(name, 20) for name in "ABC"]
    assert crowd.queue.remove(asks[0])
    assert not crowd.queue.remove(asks[0])
    crowd.errors()
    assert crowd.computed == ["BC"]
    assert crowd.used("A") == 0.0


def test_one_that_leaves_alone_leaves_nothing(clock: Clock) -> None:
    crowd = Crowd(clock)
    ask = crowd.prompt("A", 500)
    crowd.work()
    assert crowd.queue.remove(ask)
    assert crowd.closed == ["A"]
    assert not crowd.queue.has_work
    assert crowd.used("A") == 500.0  # for what was computed in vain


def test_a_prompt_of_somebody_who_is_no_agent_is_waited_for(clock: Clock) -> None:
    crowd = Crowd(clock)
    crowd.prompt("A", 20)
    crowd.executor.is_prefilling = True
    assert crowd.work() == []
    assert crowd.computed == []
    crowd.executor.is_prefilling = False
    assert crowd.answered() == "A"


def test_one_prompt_does_not_keep_the_others_out(clock: Clock) -> None:
    """Whoever has had much waits for those that had little."""
    crowd = Crowd(clock, packs=False)
    for _ in range(3):
        crowd.prompt("A", 200)
        crowd.errors()
    crowd.prompt("A", 200)
    crowd.prompt("B", 200)
    crowd.prompt("B", 200)
    crowd.computed.clear()
    crowd.errors()
    assert crowd.computed[0] == "B"


# ---------------------------------------------------------------------------------- in turns


def alternation(crowd: Crowd, decoding: str, n: int) -> str:
    """What is computed while some always ask for steps: `s` for a step, `j` for a job."""
    done = []
    crowd.during = lambda names: done.append("s" if names.islower() else "j")
    for name in decoding:
        crowd.step(name)
    for _ in range(n):
        for answer in crowd.work():
            [name] = crowd.names([answer])
            if name.islower():
                crowd.step(name)
    return "".join(done)


def test_steps_and_jobs_alternate(clock: Clock) -> None:
    crowd = Crowd(clock)
    crowd.prompt("A", 1000)
    crowd.prompt("B", 1000, packable=False)
    assert alternation(crowd, "abcd", 12).endswith("sjsjsjsjs")


def test_a_burst_is_longer_where_many_prompts_wait_for_few(clock: Clock) -> None:
    crowd = Crowd(clock)
    for name in "ABC":
        crowd.prompt(name, 1000)
    assert "sjjjsjjjs" in alternation(crowd, "a", 12)


def test_short_jobs_fill_a_burst(clock: Clock) -> None:
    crowd = Crowd(clock)
    crowd.job_s = JOB_S_AND_A_BIT / 4
    crowd.prompt("A", 10_000)
    assert "sjjjjsjjjjs" in alternation(crowd, "abcd", 24)


def test_no_small_rest_of_a_prompt_is_left_for_another_burst(clock: Clock) -> None:
    crowd = Crowd(clock)
    crowd.job_s = JOB_S_AND_A_BIT / 10
    crowd.prompt("A", 1000)
    crowd.errors()  # it knows what a token takes from now on
    crowd.prompt("A", 2000)
    # ten jobs are a burst, of which the first prompt had one, and eleven are left after it
    assert alternation(crowd, "abcd", 26) == "j" * 9 + "s" + "j" * 11 + "s" * 5


def test_a_step_comes_after_at_most_half_a_second(clock: Clock) -> None:
    crowd = Crowd(clock)
    for i in range(40):
        crowd.prompt(chr(ord("A") + i % 26), 1000)
    assert "j" * 6 not in alternation(crowd, "a", 60)


def test_prompts_alone_and_steps_alone_need_no_turns(clock: Clock) -> None:
    crowd = Crowd(clock)
    assert alternation(crowd, "ab", 5) == "sssss"
    crowd = Crowd(clock)
    crowd.prompt("A", 1000)
    assert alternation(crowd, "", 10) == "j" * 10


# ---------------------------------------------------------------------------------- metrics


def test_the_metrics_hear_of_every_step(clock: Clock) -> None:
    crowd = Crowd(clock)
    for _ in range(100):
        crowd.step("a")
        crowd.step("b", 3)
        crowd.work()
    crowd.queue.tell()
    text = crowd.metrics.render()
    assert 'isthmus_batch_size_count{model="m"} 100.0' in text
    assert 'isthmus_batch_size_sum{model="m"} 400.0' in text
    assert 'isthmus_decode_seconds_sum{model="m"} 1.0' in text

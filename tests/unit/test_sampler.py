from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from isthmus.errors import SettingsError
from isthmus.model import SamplerSettings, sample

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], dtype=np.float32))


def draws(settings: SamplerSettings, n: int = 4000, recent: tuple[int, ...] = ()) -> np.ndarray:
    state, counts = 7, np.zeros(len(LOGITS))
    for _ in range(n):
        token, state = sample(LOGITS, settings, recent, state)
        counts[token] += 1
    return counts / n


def test_penalties_of_presence_and_frequency() -> None:
    logits = np.array([1.0, 3.0, 2.9, 2.0], np.float32)
    recent = [1, 1, 2]

    def best(**penalties: float) -> int:
        return sample(logits, SamplerSettings(**penalties), recent, 0)[0]  # type: ignore[arg-type]

    assert best() == 1
    assert best(presence_penalty=0.05) == 1
    assert best(frequency_penalty=0.2) == 2, "the first one was there twice"
    assert best(presence_penalty=1.5) == 3
    assert best(presence_penalty=-1.5, frequency_penalty=0.1) == 1
    assert best(presence_penalty=1.5, repeat_last_n=1) == 1
    assert logits[1] == 3.0
    for wrong in ({"presence_penalty": float("nan")}, {"frequency_penalty": float("inf")}):
        with pytest.raises(SettingsError):
            SamplerSettings(**wrong)


def test_temperature_zero_takes_the_most_probable_and_keeps_the_state() -> None:
    assert sample(LOGITS, SamplerSettings(), (), 3) == (0, 3)


def test_plain_sampling_follows_the_probabilities() -> None:
    assert np.abs(draws(SamplerSettings(temperature=1.0)) - np.exp(LOGITS)).max() < 0.03


def test_temperature_sharpens() -> None:
    expected = np.exp(LOGITS / 0.5) / np.exp(LOGITS / 0.5).sum()
    assert np.abs(draws(SamplerSettings(temperature=0.5)) - expected).max() < 0.03


def test_top_k_keeps_k() -> None:
    seen = draws(SamplerSettings(temperature=1.0, top_k=2))
    assert np.all(seen[2:] == 0)
    assert abs(seen[0] - 2 / 3) < 0.03


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    seen = draws(SamplerSettings(temperature=1.0, top_p=0.7))
    assert np.all(seen[:2] > 0)
    assert np.all(seen[2:] == 0)


def test_min_p_drops_what_is_improbable_beside_the_best() -> None:
    seen = draws(SamplerSettings(temperature=1.0, min_p=0.2))
    assert np.all(seen[:3] > 0)
    assert np.all(seen[3:] == 0)


def test_repeat_penalty_makes_recent_tokens_less_probable() -> None:
    plain = draws(SamplerSettings(temperature=1.0))
    penalised = draws(SamplerSettings(temperature=1.0, repeat_penalty=2.0), recent=(0, 0))
    assert penalised[0] < plain[0] - 0.1
    outside = draws(
        SamplerSettings(temperature=1.0, repeat_penalty=2.0, repeat_last_n=1), recent=(0, 1)
    )
    assert outside[0] > plain[0]


def test_equal_scores_are_ordered_by_token() -> None:
    flat = np.zeros(100, dtype=np.float32)
    seen = {sample(flat, SamplerSettings(temperature=1.0, top_k=3), (), s)[0] for s in range(64)}
    assert seen == {0, 1, 2}


def test_same_state_same_draw() -> None:
    wanted = SamplerSettings(temperature=0.8, top_k=4)
    assert sample(LOGITS, wanted, (1,), 99) == sample(LOGITS, wanted, (1,), 99)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repeat_penalty": 0.0},
        {"repeat_penalty": float("nan")},
    ],
)
def test_settings_out_of_range(fields: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        SamplerSettings(**fields)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=300)
@given(
    hnp.arrays(np.float32, 50, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from([0.0, 0.01, 1.0, 1e30]),
    st.integers(0, 60),
    st.integers(0, 2**64 - 1),
)
def test_whatever_the_logits_a_token_or_an_error(
    logits: np.ndarray, temperature: float, top_k: int, state: int
) -> None:
    wanted = SamplerSettings(temperature=temperature, top_k=top_k, top_p=0.9, min_p=0.01)
    with np.errstate(all="ignore"):
        try:
            token, next_state = sample(logits, wanted, (), state)
        except SettingsError:
            assert not np.isfinite(logits).all()
            return
    assert 0 <= token < 50
    assert 0 <= next_state < 2**64

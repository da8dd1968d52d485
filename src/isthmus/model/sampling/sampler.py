"""Drawing the next token from logits.

In this order: penalties, top-k, temperature, top-p, min-p, one draw. The random state is
SplitMix64, 64 bits that the caller keeps (for a guest: in its own memory), so the same logits,
settings and state always give the same token and the same next state.

SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.errors import SettingsError

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class SamplerSettings:
    """What `sample` does; the defaults take the most probable token."""

    temperature: float = 0.0
    """0 takes the most probable token; otherwise logits are divided by it."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach p."""
    min_p: float = 0.0
    """Drop tokens less probable than min_p times the most probable."""
    repeat_penalty: float = 1.0
    """Divides positive and multiplies negative logits of recent tokens."""
    repeat_last_n: int = 64
    """How many of the last tokens count as recent."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of recent tokens."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of recent tokens, as often as they are there."""

    def __post_init__(self) -> None:
        good = (
            math.isfinite(self.temperature)
            and self.temperature >= 0
            and self.top_k >= 0
            and 0 < self.top_p <= 1
            and 0 <= self.min_p <= 1
            and math.isfinite(self.repeat_penalty)
            and self.repeat_penalty > 0
            and self.repeat_last_n >= 0
            and math.isfinite(self.presence_penalty)
            and math.isfinite(self.frequency_penalty)
        )
        if not good:
            raise SettingsError(f"no such sampler settings: {self}")


@np.errstate(all="ignore")  # what overflows is found by its result, not by a warning
def sample(
    logits: npt.NDArray[np.float32],
    settings: SamplerSettings,
    recent: Sequence[int],
    rng_state: int,
) -> tuple[int, int]:
    """Draws a token: (token id, next random state).

    `logits` is f32 [n_vocab] and not changed; `recent` are the sequence's tokens, oldest first.
    Raises SettingsError where the logits hold no number to choose from.
    """
    scores = _penalised(logits, settings, recent)
    if settings.temperature == 0:
        best = int(np.argmax(scores))
        if not math.isfinite(scores[best]):
            raise SettingsError("the logits are not numbers")
        return best, rng_state
    tokens, scores = _most_probable(scores, settings.top_k)
    scaled = scores.astype(np.float64) / settings.temperature
    if not math.isfinite(scaled[0]):
        raise SettingsError("the logits are not numbers")
    probabilities = np.exp(scaled - scaled[0])
    keep = _kept(probabilities, settings)
    rng_state, draw = _next_uniform(rng_state)
    cumulative = np.cumsum(probabilities[:keep])
    chosen = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
    return int(tokens[min(chosen, keep - 1)]), rng_state


def _penalised(
    logits: npt.NDArray[np.float32], settings: SamplerSettings, recent: Sequence[int]
) -> npt.NDArray[np.float32]:
    subtracts = settings.presence_penalty or settings.frequency_penalty
    penalises = settings.repeat_penalty != 1.0 or subtracts
    if not (penalises and settings.repeat_last_n and len(recent)):
        return logits
    last = np.asarray(recent[-settings.repeat_last_n :], dtype=np.int64)
    ids, counts = np.unique(last[last >= 0], return_counts=True)  # a picture's rows are no tokens
    scores = logits.copy()
    penalty = np.float32(settings.repeat_penalty)
    chosen = scores[ids]
    scores[ids] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    if subtracts:
        off = settings.presence_penalty + settings.frequency_penalty * counts
        scores[ids] -= off.astype(np.float32)
    return scores


def _most_probable(
    scores: npt.NDArray[np.float32], top_k: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The k best token ids and scores, best first; equal scores by id, so the order is exact."""
    n_vocab = len(scores)
    if 0 < top_k < n_vocab:
        threshold = np.partition(scores, n_vocab - top_k)[n_vocab - top_k]
        ids = np.flatnonzero(scores >= threshold)
    else:
        top_k, ids = n_vocab, np.arange(n_vocab)
    order = np.argsort(-scores[ids], kind="stable")[:top_k]
    if not len(order):
        raise SettingsError("the logits are not numbers")
    return ids[order], scores[ids[order]]


def _kept(probabilities: npt.NDArray[np.float64], settings: SamplerSettings) -> int:
    """How many of the sorted tokens survive top-p and min-p; at least one."""
    keep = int(np.count_nonzero(probabilities))  # a grammar's mask makes zeros, at the end
    if settings.top_p < 1.0:
        cumulative = np.cumsum(probabilities)
        keep = int(np.searchsorted(cumulative, settings.top_p * cumulative[-1])) + 1
    if settings.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(probabilities >= settings.min_p)))
    return max(1, min(keep, len(probabilities)))


def _next_uniform(state: int) -> tuple[int, float]:
    """The next SplitMix64 state, and a draw from [0, 1) with 53 random bits."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return state, ((mixed ^ (mixed >> 31)) >> 11) / (1 << 53)

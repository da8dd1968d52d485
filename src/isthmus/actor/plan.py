"""Who is computed next: pure functions over what is asked, without lock, clock or device.

* A decode step is one pass over whoever asks for a token of the model at that moment, up to a
  number of tokens. All guests that can run have run before, so whoever is about to ask has asked.
* If more ask than fit, those go first who have used least for their weight (start-time fair
  queueing, Goyal et al. 1996): nobody starves, and twice the weight gets twice the tokens.
* The prompt whose turn it is takes short ones along that wait, as one pass.
* Prompts and steps alternate: prompts are computed for a burst of time, then everybody who decodes
  gets a step. The more prompts wait for each agent that decodes, the longer the burst.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter

from isthmus.actor.ask import Decode, Prompt
from isthmus.actor.shares import Shares
from isthmus.model.jobs import JOB_S
from isthmus.model.probes.widths import Width

_n_tokens = attrgetter("n_tokens")

MAX_STEP_TOKENS = 32
"""Tokens in one step of a session."""
_NEARLY = 0.9
"""The part of several batches' room that must be asked for so that all of them are equally large.
With less, full batches compute more tokens in each pass, which gains more."""
_LONGEST_BURST_S = 0.5
"""Seconds that those who decode wait while several prompts are computed."""
_SHORT_BURST_S = 0.35
"""Seconds that they wait if no prompt is left afterwards."""
_REST_BURST_S = 1.5 * JOB_S
"""The same for a single prompt: no small rest of it is left for another burst."""


def batch(
    asks: Sequence[Decode], shares: Shares, most: int, key_of: Callable[[Decode], Hashable]
) -> list[Decode]:
    """The asks that the next step computes; charges them.

    All asks, if they have at most `most` tokens and the same key. Otherwise the actor that has
    used least goes first, and others of its key follow in that order. The first ask that does not
    fit ends the batch: if smaller ones could pass it, it might never be computed.

    If each asks for one token and all fill some batches nearly, those are made equally large. So
    whoever asks again is in a batch with the same others, which is only moved on by a token.
    """
    if sum(map(_n_tokens, asks)) <= most and len(set(map(key_of, asks))) == 1:
        shares.serve(asks)
        return list(asks)
    by_use = sorted(asks, key=lambda ask: shares.of(ask.share))
    key = key_of(by_use[0])
    same = [ask for ask in by_use if key_of(ask) == key]
    n_tokens = sum(ask.n_tokens for ask in same)
    n_batches = -(-n_tokens // most)
    if n_tokens == len(same) and n_tokens >= _NEARLY * n_batches * most:
        most = -(-n_tokens // n_batches)
    room, taken = most - same[0].n_tokens, same[:1]
    for ask in same[1:]:
        room -= ask.n_tokens
        if room < 0:
            break
        taken.append(ask)
    shares.serve(taken)
    return taken


def pack(
    asks: Sequence[Prompt],
    shares: Shares,
    key_of: Callable[[Prompt], Hashable],
    *,
    class_of: Callable[[Prompt], Width | None],
    most: Callable[[], int],
) -> list[Prompt]:
    """The prompts that the next pass computes; charges them.

    The prompt of the actor that has used least, and as many others of its key and class as fit in
    the class, `most()` at most. The class of a prompt that is computed alone is None. Both are
    asked only if there are others.
    """
    by_use = sorted(asks, key=lambda ask: shares.of(ask.share))
    taken = by_use[:1]
    first = taken[0]
    width = class_of(first) if first.chunk is not None and by_use[1:] else None
    if width is not None:
        room, key, n_most = width.most - first.n_tokens, key_of(first), most()
        for ask in by_use[1:]:
            if len(taken) >= n_most:
                break
            if ask.chunk is None or ask.n_tokens > room or key_of(ask) != key:
                continue
            if class_of(ask) == width:
                taken.append(ask)
                room -= ask.n_tokens
    shares.serve(taken)
    return taken


def burst_s(n_prompts: int, n_decoding: int, left_s: float | None) -> float:
    """Seconds that prompts are computed before the next step.

    A step of a few costs nearly as much as one of many, so the burst grows with the number of
    prompts for each agent that decodes. `left_s` is how long all prompts take, about, if that is
    known: if it is not long, all are computed in one burst.
    """
    seconds = min(max(JOB_S, JOB_S * n_prompts / max(1, n_decoding)), _LONGEST_BURST_S)
    most = _SHORT_BURST_S if n_prompts > 1 else _REST_BURST_S
    return max(seconds, left_s) if left_s is not None and left_s <= most else seconds


def burst_is_over(left_s: float, job_s: float) -> bool:
    """Whether a step is next, with so many seconds of a burst left.

    The next job takes about `job_s`, 0 if it is a rest for which the burst was made long enough. It
    comes before the step if at least half of it fits: if a job took a little less than the burst, a
    whole further one would follow otherwise.
    """
    return left_s <= job_s / 2

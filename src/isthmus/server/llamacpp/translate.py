"""What requests of llama.cpp's API want of a model."""

from __future__ import annotations

import math
from typing import Any

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.server.generation.wanted import Sampling, Wanted, schema_grammar
from isthmus.server.http.errors import HttpError
from isthmus.server.llamacpp.prompts import Reader, require_token
from isthmus.server.llamacpp.requests import Sampled

DEFAULTS = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
"""What holds for a request that says nothing else, as in llama.cpp."""
_RANDOM_SEEDS = (-1, 2**32 - 1)
_MAX_BIAS = 100.0
_MAX_BIASED = 300
"""Tokens with a bias, those of texts among them: the guest reads all of them for each token."""
_MAX_LAST = 2**31 - 1


def wanted_of(asked: Sampled, reader: Reader) -> Wanted:
    """What an answer is wanted to be. SettingsError, HttpError 400 at what is wrong."""
    if asked.grammar and asked.json_schema is not None:
        raise SettingsError("give grammar or json_schema: not both")
    grammar = (GrammarKind.GBNF, asked.grammar) if asked.grammar else None
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Wanted(
        messages=(),
        grammar=grammar if asked.json_schema is None else schema_grammar(asked.json_schema),
        sampling=_sampling_of(asked, _biases(asked, reader)),
        max_tokens=n_predict(asked),
        stop=tuple(filter(None, stop)),
        logprobs=asked.n_probs or None,
    )


def n_predict(asked: Sampled) -> int | None:
    """Tokens of an answer; None for as many as fit."""
    most = asked.max_tokens if asked.n_predict is None else asked.n_predict
    return None if most is None or most < 0 else most


def settings_of(sampling: Sampling) -> dict[str, Any]:
    """A request's own settings, or the defaults, as clients are told them."""
    return {
        "seed": _RANDOM_SEEDS[1] if sampling.seed is None else sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": -1 if sampling.repeat_last_n == _MAX_LAST else sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": sampling.ignore_eos,
    }


def _sampling_of(asked: Sampled, biases: dict[str, float]) -> Sampling:
    """How tokens are chosen."""
    temperature = _given(asked.temperature, DEFAULTS.temperature)
    top_p = _given(asked.top_p, DEFAULTS.top_p)
    last = _given(asked.repeat_last_n, DEFAULTS.repeat_last_n)
    seed = None if asked.seed in _RANDOM_SEEDS else asked.seed
    sampling = {
        "temperature": max(temperature, 0.0) if top_p > 0 else 0.0,  # none but the most probable
        "top_k": max(int(_given(asked.top_k, DEFAULTS.top_k)), 0),
        "top_p": min(top_p, 1.0) if top_p > 0 else 1.0,
        "min_p": _given(asked.min_p, DEFAULTS.min_p),
        "repeat_penalty": _given(asked.repeat_penalty, DEFAULTS.repeat_penalty),
        "presence_penalty": _given(asked.presence_penalty, 0.0),
        "frequency_penalty": _given(asked.frequency_penalty, 0.0),
    }
    for name in _unnamed(asked.samplers):
        sampling[name] = getattr(_NONE, name)
    return Sampling(
        **sampling,  # type: ignore[arg-type]
        repeat_last_n=_MAX_LAST if last < 0 else int(last),
        seed=seed,
        bias=biases,
        ignore_eos=bool(asked.ignore_eos),
    )


_NONE = Sampling()
"""What changes nothing."""
_PENALTIES = ("repeat_penalty", "presence_penalty", "frequency_penalty")
_SAMPLERS = {
    "temperature": ("temperature", "t"),
    "top_k": ("top_k", "top-k", "k"),
    "top_p": ("top_p", "top-p", "nucleus", "p"),
    "min_p": ("min_p", "min-p", "m"),
    **dict.fromkeys(_PENALTIES, ("penalties", "e")),
}
"""Samplers, with what llama.cpp calls them; as a text, each is a letter."""


def _unnamed(given: list[str] | str | None) -> list[str]:
    """Samplers that are not to be applied."""
    if given is None:
        return []
    return [name for name, known in _SAMPLERS.items() if not set(known) & set(given)]


def _given(value: float | None, usual: float) -> float:
    return usual if value is None else value


def _biases(asked: Sampled, reader: Reader) -> dict[str, float]:
    """What is added to the logits of tokens, by ids as texts."""
    given = asked.logit_bias or []
    pairs = list(given.items()) if isinstance(given, dict) else given
    found: dict[str, float] = {}
    for number, pair in enumerate(pairs):
        where = f"logit_bias[{number}]"
        if len(pair) != 2:
            raise HttpError(400, "give an id, or a text, and a number", param=where)
        for token in _tokens_of(pair[0], reader, where):
            found[str(token)] = _bias_of(pair[1], where)
        if len(found) > _MAX_BIASED:
            said = f"the biases are for more than {_MAX_BIASED} tokens, those of texts among them"
            raise HttpError(400, said, param=where)
    return found


def _tokens_of(given: object, reader: Reader, where: str) -> list[int]:
    """The token of an id, or those of a text; a key of an object may be an id as text."""
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) <= 10:
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        require_token(reader.tokenizer, given, where)
        return [given]
    if isinstance(given, str):
        return reader.text(given)
    raise HttpError(400, "give the id of a token, or a text", param=where)


def _bias_of(given: object, where: str) -> float:
    if given is False:
        return -_MAX_BIAS
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise HttpError(400, "give a number, or false", param=where)
    if not -_MAX_BIAS <= given <= _MAX_BIAS:
        said = f"give a number from {-_MAX_BIAS:g} to {_MAX_BIAS:g}"
        raise HttpError(400, said, param=where)
    return float(given)

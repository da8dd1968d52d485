"""Constrained decoding: which tokens may come next, by llguidance.

A guest asks for the mask as a tool before each token, and applies it to the logits in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import llguidance

from isthmus.abi import TokenFlag
from isthmus.errors import SettingsError
from isthmus.model import Model

Mask = Callable[[bytes], bytes]


_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""A small model that may write spaces between any two words writes little else."""


class Grammars:
    """The grammars of one model's vocabulary. Made when one is first asked for."""

    def __init__(self, model: Model) -> None:
        self._mask_nbytes = -(-model.n_vocab // 8)  # theirs are longer
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(model)), n_vocab=model.n_vocab
        )

    def json_mask(self, schema: dict[str, Any]) -> Mask:
        """The tool `mask` for one answer that follows a JSON schema. SettingsError for none."""
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults=_COMPACT
            )
            problem = llguidance.LLMatcher.validate_grammar(grammar, self._tokenizer)
        except (ValueError, RuntimeError) as error:
            problem = str(error)
        if problem:
            raise SettingsError(f"the JSON schema cannot be followed: {problem.splitlines()[0]}")
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        nbytes = self._mask_nbytes

        def mask(last: bytes) -> bytes:
            if last:
                matcher.consume_token(int.from_bytes(last, "little"))
            if matcher.is_error():
                raise SettingsError(matcher.get_error())
            return b"" if matcher.is_stopped() else matcher.compute_bitmask()[:nbytes]

        return mask


class _Vocabulary:
    """A model's vocabulary as llguidance asks for it."""

    def __init__(self, model: Model) -> None:
        tokenizer = model.tokenizer
        self.eos_token_id = tokenizer.eos if tokenizer.eos >= 0 else tokenizer.eot
        self.bos_token_id = tokenizer.bos if tokenizer.bos >= 0 else None
        tokens = range(model.n_vocab)
        special = TokenFlag.CONTROL | TokenFlag.EOG
        self.special_token_ids = [it for it in tokens if tokenizer.flags(it) & special]
        self.tokens = [tokenizer.decode([it], render_special=True) for it in tokens]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode(errors="replace"))

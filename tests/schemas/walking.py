"""Texts at random that a schema's grammar lets through, and what an independent validator says.

A text is written byte by byte: each time one of the bytes that the mask allows, chosen by a seeded
generator. After `SHORT` bytes, what closes the text is preferred.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

import jsonschema
import llguidance
import numpy as np

from isthmus.errors import GrammarError
from isthmus.model.sampling.grammar_source import compile_source, parser_limits
from isthmus.model.schemas import Prepared, prepared
from isthmus.model.schemas.patterns import Bytes

SHORT = 120
LONGEST = 6000
END = 256
CLOSING = [END, *b'"}]']
_VOCABULARY = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=257)


def grammar_of(schema: Any) -> Prepared:
    return prepared(json.dumps(schema))


def matcher_of(lark: str) -> llguidance.LLMatcher:
    """GrammarError if llguidance refuses what was made."""
    grammar = compile_source("lark", lark)
    found = llguidance.LLMatcher(_VOCABULARY, grammar, log_level=0, limits=parser_limits())
    if found.is_error():
        raise GrammarError(found.get_error())
    return found


def allows(matcher: llguidance.LLMatcher, text: str) -> bool:
    going, data = matcher.deep_copy(), list(text.encode(errors="surrogatepass"))
    return bool(going.try_consume_tokens(data) == len(data) and going.is_accepting())


def walk(matcher: llguidance.LLMatcher, rng: np.random.Generator) -> str | None:
    """A whole text; None if it became too long."""
    going, text = matcher.deep_copy(), bytearray()
    while len(text) < LONGEST:
        bits = np.frombuffer(going.compute_bitmask(), np.uint8)
        assert not going.is_error(), going.get_error()
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: END + 1])
        assert len(allowed), bytes(text)
        closing = [it for it in CLOSING if it in allowed] if len(text) > SHORT else []
        byte = closing[0] if closing else int(rng.choice(allowed))
        if byte == END:
            return text.decode()
        assert going.try_consume_tokens([byte]) == 1
        text.append(byte)
    return None


def exact(text: str) -> Any:
    """JSON whose numbers are as they were written."""
    return json.loads(text, parse_float=_number)


def _number(text: str) -> Decimal | float:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of many digits
        return float(text)


def validator_of(schema: Any) -> Any:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return kind(exact(json.dumps(schema)), format_checker=kind.FORMAT_CHECKER)

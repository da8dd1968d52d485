"""From the source of a grammar to llguidance's own form, and whether that can be used safely.

llguidance bounds most of what a grammar can cost, and not all: a long chain of rules overflows its
stack, which ends the process, and some JSON schemas keep it busy for minutes. So a grammar that was
not seen before is tried in a process of its own (`try_out`, which `Trials` has run by
`isthmus.trial`), with little stack, memory and time. What survives there can be opened here.

JSON schemas are made into grammars by `isthmus.model.schemas`, in that process first.

This file is also what that process runs.
"""

from __future__ import annotations

import json
import re

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

from isthmus.errors import GrammarError
from isthmus.model.schemas import prepared
from isthmus.model.schemas.patterns import Bytes

_TRIAL_TEXTS = 4
_TRIAL_STEPS = 32
_MAX_GBNF_RULES = 1000
"""The converter looks at all rules again for each that turns out to be a terminal."""
_MAX_COMPLAINT = 500

_LARK_TOKEN = re.compile(r"<\[[0-9]+\]>")
_NO_TEXT = 0xFF
"""Stands for each token that a Lark grammar names by its id, where no vocabulary is known: a byte
that no text has."""

_GBNF_WORD = re.compile(
    r'"(?:\\.|[^"\\])*" | \[(?:\\.|[^\]\\])*\] | \#[^\r\n]* | ::= | \.', re.VERBOSE | re.DOTALL
)
_GBNF_CODE_POINT = re.compile(r"(\\\\)|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})", re.DOTALL)


def compile_source(kind: str, source: str) -> str:
    """What llguidance makes a matcher of. `kind` is gbnf, regex or lark.

    ValueError, with the parser's message, where it says at once that the source is none.
    """
    make = llguidance.LLMatcher
    if kind == "regex":
        return make.grammar_from_regex(source)
    return make.grammar_from_lark(_lark_of_gbnf(source) if kind == "gbnf" else source)


def parser_limits() -> llguidance.LLParserLimits:
    """What a matcher may use. Most masks take less than a millisecond; the worst that is known, of
    an expression whose cost no trial has met, takes a second and 400 MB, outside the interpreter's
    lock."""
    return llguidance.LLParserLimits(
        max_lexer_states=20_000, precompute_large_lexemes=False, verbose_errors=False
    )


def complaint(matcher: llguidance.LLMatcher) -> str:
    """Why a matcher cannot go on; empty where it can."""
    return shortened(matcher.get_error()) if matcher.is_error() else ""


def shortened(text: str) -> str:
    """A parser's message in a length that can be read."""
    text = text.replace("<non-verbose/>", "").strip()
    return text if len(text) <= _MAX_COMPLAINT else text[:_MAX_COMPLAINT] + " …"


def _lark_of_gbnf(source: str) -> str:
    if source.count("::=") > _MAX_GBNF_RULES:
        raise ValueError(f"it has more than {_MAX_GBNF_RULES} rules")
    try:
        return gbnf_to_lark(_GBNF_WORD.sub(_plainer, source))
    except RecursionError:
        raise ValueError("it is too deeply nested") from None
    except Exception as error:  # the converter raises nothing more special
        raise ValueError(str(error)) from None


def _plainer(word: re.Match[str]) -> str:
    """A word of GBNF as the converter takes it: it drops zeros of code points, and its dot is no
    newline, which llama.cpp's is."""
    text = word.group()
    if text == ".":
        return r"[^\x00]"
    return _GBNF_CODE_POINT.sub(_character, text) if text[0] in '"[' else text


def _character(code: re.Match[str]) -> str:
    if code.group(1):
        return code.group()
    number = int(code.group(2) or code.group(3), 16)
    if not 0 <= number < 0x110000 or 0xD800 <= number < 0xE000:
        raise ValueError(f"{code.group()} is no character")
    return f"\\x{number:02x}" if number < 0x80 else chr(number)


# ---------------------------------------------------------------------------------- the trial


def _try(kind: str, source: str) -> str:
    """What is wrong with a source; empty where nothing was found."""
    if kind == "lark":
        source = _LARK_TOKEN.sub(f"<[{_NO_TEXT}]>", source)
    try:
        grammar = compile_source(kind, source)
    except (ValueError, RuntimeError) as error:
        return shortened(str(error))
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=257)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    if problem := complaint(matcher):
        return problem
    matcher.compute_bitmask()
    problem = complaint(matcher)
    for text in range(0 if problem else _TRIAL_TEXTS):
        _write(matcher.deep_copy(), text)
    return problem


def _write(matcher: llguidance.LLMatcher, text: int) -> None:
    """Writes the beginning of a text that follows the grammar, each time another one.

    What costs too much there ends the process.
    """
    for step in range(_TRIAL_STEPS):
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [it for it in range(256) if bits >> it & 1]
        chosen = (text + 1) * (step + text) % max(1, len(allowed))
        if not allowed or matcher.try_consume_tokens([allowed[chosen]]) != 1:
            return


def try_out(job: bytes) -> bytes:
    """Tries a source, {"kind", "source"} as JSON; returns {"problem", "lark", "warnings"}: what is
    wrong with it, and a JSON schema as a grammar, with what that does not enforce.

    What costs too much ends the process.
    """
    found = json.loads(job)
    kind, source = found["kind"], found["source"]
    if kind != "json_schema":
        return json.dumps({"problem": _try(kind, source)}).encode()
    try:
        made = prepared(source)
    except GrammarError as error:
        return json.dumps({"problem": shortened(str(error))}).encode()
    told = {"problem": _try("lark", made.lark), "lark": made.lark, "warnings": made.warnings}
    return json.dumps(told).encode()

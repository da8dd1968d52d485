"""Grammars: what they let through, what is refused, and that a source alone can harm nobody."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isthmus.abi import GrammarKind
from isthmus.errors import Cancelled, GrammarError, LimitExceeded, ModelUnsupported
from isthmus.model import Grammar, Model
from isthmus.model.sampling import grammar as module
from isthmus.model.sampling.grammar import Vocabulary
from isthmus.runtime import Runtime
from tests.tiny_gguf import TinyLlama

JSON, GBNF, REGEX, LARK = GrammarKind
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[Model]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime.load_model(tiny)


def write(grammar: Grammar, rng: np.random.Generator, most: int = 400) -> tuple[str, bool]:
    """A text of tokens drawn from random logits, and whether the grammar says it is complete."""
    model, written = grammar.model, b""
    for _ in range(most):
        logits = rng.standard_normal(model.n_vocab).astype(np.float32)
        if grammar.mask(logits) == 0:
            return written.decode(), True
        token = int(np.argmax(logits))
        grammar.accept(token)
        if token in model.grammars.vocabulary.ends:
            return written.decode(), True
        written += model.tokenizer.decode([token])
    return written.decode(errors="replace"), False


TEXTS = [
    (JSON, json.dumps(PERSON), lambda text: json.loads(text)["age"] <= 150),
    (JSON, '{"enum": ["é", null, 7]}', lambda text: json.loads(text) in ("é", None, 7)),
    (GBNF, 'root ::= [a-c]{2,4} ("," [0-9])? # end', re.compile(r"[a-c]{2,4}(,[0-9])?").fullmatch),
    (GBNF, r'root ::= "\u00e9\x41" | "\U0001F600" | a-b' + "\na-b ::= [x\\]]",
     ("éA", "😀", "x", "]")),
    (GBNF, 'root ::= "." . "."', re.compile(r"\..\.", re.DOTALL).fullmatch),
    (REGEX, r"[0-9]{3}-[xy]+z", re.compile(r"[0-9]{3}-[xy]+z").fullmatch),
    (LARK, 'start: "a" b\nb: "b" | "c"', ("ab", "ac")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "source", "good"), TEXTS, ids=lambda it: str(it)[:24])
def test_every_text_follows_its_grammar(
    model: Model, kind: GrammarKind, source: str, good: object
) -> None:
    rng, n_complete = np.random.default_rng(7), 0
    for _ in range(20):
        text, complete = write(model.grammars.open(kind, source), rng)
        if complete:
            n_complete += 1
            assert text in good if isinstance(good, tuple) else good(text), text  # type: ignore[operator]
    assert n_complete >= 15


def test_a_lark_grammar_names_tokens_by_their_ids(model: Model) -> None:
    control, other = model.tokenizer.encode("<|im_start|>", parse_special=True)[0], 300
    (a,) = model.tokenizer.encode("a")
    grammar = model.grammars.open(LARK, f'start: <[{control}]> "a" <[{other}]>')
    for token in (control, a, other):
        logits = np.zeros(model.n_vocab, dtype=np.float32)
        grammar.mask(logits)
        assert np.flatnonzero(np.isfinite(logits)).tolist() == [token]
        grammar.accept(token)
    with pytest.raises(GrammarError):
        model.grammars.open(LARK, f"start: <[{model.n_vocab}]>")


def test_the_mask_forbids_in_place_and_changes_nothing_else(model: Model) -> None:
    grammar = model.grammars.open(REGEX, "[ab]c")
    logits = np.arange(model.n_vocab, dtype=np.float32)
    assert grammar.mask(logits) == 2
    left = np.flatnonzero(np.isfinite(logits))
    assert {model.tokenizer.decode([int(it)]) for it in left} == {b"a", b"b"}
    assert np.all(logits[left] == left)


def test_where_a_text_may_end_and_where_it_must(model: Model) -> None:
    grammar = model.grammars.open(REGEX, "ab?")
    a, b = model.tokenizer.encode("a") + model.tokenizer.encode("b")
    ends = set(model.grammars.vocabulary.ends)
    grammar.accept(a)
    logits = np.zeros(model.n_vocab, dtype=np.float32)
    assert grammar.mask(logits) == 1
    assert set(np.flatnonzero(np.isfinite(logits))) == {b, *ends}
    other = model.grammars.open(REGEX, "ab?", [a])
    for last in ends:
        model.grammars.open(REGEX, "ab?", [a]).accept(last)
    grammar.accept(b)
    assert grammar.mask(logits) == 0
    assert set(np.flatnonzero(np.isfinite(logits))) == ends
    other.accept(min(ends))
    with pytest.raises(GrammarError, match="does not allow"):
        other.accept(b)


def test_source_and_tokens_are_all_of_it(model: Model) -> None:
    source, rng = json.dumps(PERSON), np.random.default_rng(3)
    grammar = model.grammars.open(JSON, source)
    for _ in range(40):
        logits = rng.standard_normal(model.n_vocab).astype(np.float32)
        again = logits.copy()
        n = grammar.mask(logits)
        assert model.grammars.open(JSON, source, grammar.tokens).mask(again) == n
        assert again.tobytes() == logits.tobytes()
        if n == 0:
            break
        grammar.accept(int(np.argmax(logits)))
    with pytest.raises(GrammarError, match="do not follow"):
        model.grammars.open(JSON, source, [*grammar.tokens[::-1]])


def test_a_token_that_is_refused_changes_nothing(model: Model) -> None:
    grammar = model.grammars.open(REGEX, "abc")
    a, z = model.tokenizer.encode("a") + model.tokenizer.encode("z")
    with pytest.raises(GrammarError, match=f"does not allow the token {z}"):
        grammar.accept(z)
    grammar.accept(a)
    assert list(grammar.tokens) == [a]


def test_a_text_has_an_end(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRAMMAR_TOKENS", 3)
    grammar = model.grammars.open(REGEX, "a*")
    (a,) = model.tokenizer.encode("a")
    for _ in range(3):
        grammar.accept(a)
    with pytest.raises(LimitExceeded):
        grammar.accept(a)


def test_a_matcher_that_fails_is_made_anew(model: Model) -> None:
    grammar = model.grammars.open(REGEX, "a*b")
    (a,) = model.tokenizer.encode("a")
    grammar.accept(a)

    class Failed:
        def compute_bitmask(self) -> bytes:
            return bytes(40)

        def try_consume_tokens(self, _tokens: list[int]) -> int:
            return 0

        def is_error(self) -> bool:
            return True

        def get_error(self) -> str:
            return "lexer error: too many expressions\n<non-verbose/>"

    logits = np.zeros(model.n_vocab, dtype=np.float32)
    for call in (lambda: grammar.mask(logits), lambda: grammar.accept(a)):
        grammar._matcher = Failed()  # type: ignore[assignment]
        with pytest.raises(GrammarError, match="too complex here: lexer error: too many expr"):
            call()
        assert not np.any(logits)
    assert grammar.tokens.tolist() == [a]
    assert grammar.mask(logits) == 2


def chain(n: int) -> str:
    rules = "".join(f"r{i}: r{i + 1}\n" for i in range(n))
    return f'start: r0\n{rules}r{n}: "a"'


def references(n: int) -> str:
    found = {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(n)}
    return json.dumps({"$ref": "#/$defs/a0", "$defs": {**found, f"a{n}": {"type": "null"}}})


HOSTILE = {
    # The first two end the process where nobody looks first.
    "a chain of rules": (LARK, chain(15_000), "too large, or too deeply nested"),
    "a chain of terminals": (LARK, chain(9000).upper().replace("START", "start"), "too deeply"),
    "much work": (LARK, 'start: %json {"type": "integer", "multipleOf": 999983}', "2 s|too large"),
    "much memory": (REGEX, "(a{1000}){1000}", "too large|more than 2 s"),
    "nested brackets": (LARK, "start: " + "(" * 90_000 + '"a"' + ")" * 90_000, "nested"),
    "a nested expression": (REGEX, "(" * 30_000 + "a" + ")" * 30_000, "invalid regex"),
    "nested JSON": (JSON, '{"items":' * 5000 + "{}" + "}" * 5000, "."),
    "nested GBNF": (GBNF, "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "too deeply nested"),
    "many rules": (GBNF, 'root ::= "a"\n' + 'r ::= "b"\n' * 2000, "more than 1000 rules"),
    "too long": (REGEX, "a" * (1 << 18) + "b", "262144 are allowed"),
    "a schema of a MiB": (JSON, json.dumps({"enum": ["x" * (1 << 20)]}), "#: it has 10485"),
    "a file": (JSON, '{"$ref": "file:///etc/passwd"}', "#: .* none is fetched"),
    "an address": (JSON, '{"$ref": "http://127.0.0.1:1/x"}', "#: .* none is fetched"),
    "a zero byte": (REGEX, "a\0b", "zero byte"),
    "nothing": (GBNF, " \n", "empty"),
    "half a character": (REGEX, "\ud800", "."),
    "no character": (GBNF, r'root ::= "\ud800"', "is no character"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sources(model: Model, name: str) -> None:
    kind, source, match = HOSTILE[name]
    for _ in range(2):  # it is known the second time
        with pytest.raises(GrammarError, match=match):
            model.grammars.open(kind, source)


COSTLY = [
    (LARK, "start: A\nA: ~/(.*a.{200}){3}/ & /.{1000}/"),
    (LARK, "start: " + "|".join(f'"{i}x" e' for i in range(4000)) + "\ne:"),
    (LARK, 'start: e\ne: e e e e | "a" | e e e |'),
    (REGEX, "(a{1,300}b?){1,300}"),
    (REGEX, "(a?){300}a{300}"),
    (JSON, references(5000)),
    (JSON, '{"type": "array", "minItems": 1000000, "items": {"type": "integer"}}'),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "source"), COSTLY, ids=lambda it: str(it)[:24])
def test_costly_texts_go_on_or_say_why(model: Model, kind: GrammarKind, source: str) -> None:
    with contextlib.suppress(GrammarError):
        grammar = model.grammars.open(kind, source)
        text, complete = write(grammar, np.random.default_rng(1), most=60)
        assert complete or len(grammar.tokens) == 60, text


MALFORMED = [
    (JSON, "{", "JSON schema cannot be followed"),
    (JSON, "[1]", "JSON schema cannot be followed"),
    (JSON, '{"type": "nonsense"}', "nonsense"),
    (
        JSON,
        '{"type": "object", "properties": {"a": {"pattern": "a(?=b)"}}}',
        "#/properties/a: .*look",
    ),
    (GBNF, 'root ::= "a', "GBNF grammar cannot be followed: Unexpected end of input"),
    (GBNF, "root ::= other", "Rule 'other' not found"),
    (GBNF, 'rot ::= "a"', "No 'root' rule"),
    (REGEX, "(a", "regular expression cannot be followed"),
    (REGEX, "(?=a)b", "look-around"),
    (LARK, "start: x", "Lark grammar cannot be followed"),
]


@pytest.mark.parametrize(("kind", "source", "match"), MALFORMED)
def test_a_refusal_has_the_parsers_message(
    model: Model, kind: GrammarKind, source: str, match: str
) -> None:
    with pytest.raises(GrammarError, match=match) as caught:
        model.grammars.open(kind, source)
    assert len(str(caught.value)) < 700


def test_whoever_waits_may_stop(model: Model) -> None:
    def check() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        model.grammars.open(REGEX, "a{17}", check=check)
    model.grammars.open(REGEX, "a{17}")


def test_a_long_source_is_tried(model: Model) -> None:
    """It is longer than a pipe holds."""
    words = [f"{n:05}" for n in range(30_000)]
    with pytest.raises(GrammarError, match=r"regex|lexer|large|fuel"):
        model.grammars.open(REGEX, "(" + "|".join(words))


def test_a_machine_that_is_too_busy(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIAL", replace(module._TRIAL, wall_s=0.0))
    with pytest.raises(GrammarError, match="too busy"):
        model.grammars.open(REGEX, "a{19}")
    monkeypatch.undo()
    model.grammars.open(REGEX, "a{19}")


def test_what_was_tried_is_not_tried_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.grammars.open(REGEX, "a{18}")
    monkeypatch.setattr(module, "_try", lambda *_: pytest.fail("tried again"))
    model.grammars.open(REGEX, "a{18}")


def test_only_so_many_are_remembered(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_try", lambda *_: module.Tried(lark="x"))
    trials = module.Trials()
    for n in range(300):
        trials.outcome(REGEX, f"a{{{n}}}", lambda: None)
    assert len(trials._known) == trials._n_chars == 256
    trials.outcome(REGEX, "a", lambda: None)
    assert len(trials._known) == trials._n_chars == 256


def test_a_tokenizer_that_begins_with_a_space(model: Model) -> None:
    """Forced text is spelled by the vocabulary where the tokenizer spells something else."""
    vocabulary = Vocabulary(model)
    assert vocabulary(b"abc") == model.tokenizer.encode("abc")

    class Spacing:
        def encode(self, text: str) -> list[int]:
            return model.tokenizer.encode(" " + text)

    class Other:
        tokenizer = Spacing()

    vocabulary._model = Other()  # type: ignore[assignment]
    spelled = b"".join(vocabulary.tokens[it] for it in vocabulary(b"abc\xff"))
    assert spelled == b"abc\xff"


def test_models_without_text(tmp_path: Path) -> None:
    with Runtime(device="null", threads=1) as runtime:
        bare = runtime.load_model(TinyLlama().write(tmp_path / "bare.gguf"))
        with pytest.raises(ModelUnsupported, match="no tokenizer"):
            bare.grammars.open(REGEX, "a")

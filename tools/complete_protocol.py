"""What follows from abi/complete.toml, for both sides: the guest `complete` and the server."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

NOTICE = "Generated from abi/complete.toml by tools/generate_abi.py; do not edit."
LISTS = ("ids", "biases")
"""Types whose values the guest reads by itself."""
C_TYPES = {"int": "int64_t", "float": "double", "ids": "const char *", "biases": "const char *"}
PYTHON_TYPES = {"int": "int", "float": "float", "ids": "str", "biases": "str"}

Words = dict[str, dict[str, Any]]


def c_header(words: Words) -> str:
    """The struct that a message is read into, its defaults, and how each word is read."""
    lines = [f"/* {NOTICE} */", "#ifndef COMPLETE_WORDS_H", "#define COMPLETE_WORDS_H"]
    lines += ["", "#include <stddef.h>", "#include <stdint.h>", "", "typedef struct {"]
    for name, word in words.items():
        kind = C_TYPES[word["type"]]
        lines += [f"    /* {word['text']} */", f"    {kind}{'' if kind[-1] == '*' else ' '}{name};"]
    lines += [
        "} complete_words_t;",
        "",
        "typedef enum { WORD_INT, WORD_FLOAT, WORD_TEXT } word_kind_t;",
    ]
    lines += ["", "typedef struct {", "    const char *name;", "    word_kind_t kind;"]
    lines += ["    size_t offset;", "    int64_t low, high; /* of WORD_INT */"]
    lines += ["    double least, most; /* of WORD_FLOAT */", "} word_t;", ""]
    lines += ["static const complete_words_t COMPLETE_DEFAULTS = {"]
    lines += [
        f"    .{name} = {_c_number(word)}," for name, word in words.items() if "default" in word
    ]
    lines += ["};", "", "static const word_t COMPLETE_WORDS[] = {"]
    lines += [line for name, word in words.items() for line in _c_word(name, word)]
    return "\n".join([*lines, "};", "", "#endif", ""])


def _c_number(word: dict[str, Any]) -> str:
    return str(word["default"]) if word["type"] == "int" else str(float(word["default"]))


def _c_word(name: str, word: dict[str, Any]) -> Iterator[str]:
    kind = {"int": "WORD_INT", "float": "WORD_FLOAT"}.get(word["type"], "WORD_TEXT")
    bounds = ""
    if word["type"] == "int":
        bounds = f", .low = {_c_int(word['low'])}, .high = {_c_int(word['high'])}"
    elif word["type"] == "float":
        bounds = f", .least = {float(word['low'])}, .most = {float(word['high'])}"
    place = f".offset = offsetof(complete_words_t, {name})"
    yield f'    {{.name = "{name}", .kind = {kind}, {place}{bounds}}},'


def _c_int(number: int) -> str:
    return {-(2**63): "INT64_MIN", 2**63 - 1: "INT64_MAX"}.get(number, str(number))


def python(words: Words) -> str:
    """The dataclass that the server writes."""
    lines = [
        '"""Words of a message to the guest `complete`.',
        "",
        *textwrap.wrap(NOTICE, 100),
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from dataclasses import dataclass, fields",
        "",
        "",
        "@dataclass(frozen=True)",
        "class Words:",
        '    """What is said of one answer, each with its default."""',
        "",
    ]
    for name, word in words.items():
        kind = PYTHON_TYPES[word["type"]]
        default = '""' if word["type"] in LISTS else _py_number(word)
        lines += [f"    {name}: {kind} = {default}", f'    """{_sentence(word)}"""']
    lines += [
        "",
        "    def line(self) -> bytes:",
        '        """The words that differ from their defaults, as the message begins with them."""',
        "        said = []",
        "        for it in fields(self):",
        "            if (value := getattr(self, it.name)) != it.default:",
        '                said.append(f"{it.name}={_text(value)}")',
        '        line = " ".join(said).encode()',
        '        return line + b" " * (-(len(line) + 1) % 4) + b"\\n"',
        "",
        "",
        "def _text(value: int | float | str) -> str:",
        '    """A value as the guest reads it: 9 digits give each 32-bit float."""',
        '    return f"{value:.9g}" if isinstance(value, float) else str(value)',
    ]
    return "\n".join([*lines, ""])


def _py_number(word: dict[str, Any]) -> str:
    return str(word["default"] if word["type"] == "int" else float(word["default"]))


def _sentence(word: dict[str, Any]) -> str:
    text: str = word["text"]
    shape = {"ids": ": ids, separated by commas", "biases": ": ID:NUMBER, separated by commas"}
    return text[0].upper() + text[1:] + shape.get(word["type"], "") + "."


OUTPUTS = {
    "src/isthmus/guests/complete/words.h": c_header,
    "src/isthmus/server/generation/words.py": python,
}

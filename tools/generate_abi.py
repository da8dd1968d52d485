"""Generates everything that follows from abi/host.toml and abi/complete.toml.

=======================  =====================================================
src/isthmus/sdk/         what guests in each language include (`sdk_bindings.py`)
docs/abi.md              the reference, for people
src/isthmus/abi.py       the host's registration table
guests/complete/         words.h: what the guest `complete` reads
server/generation/       words.py: what the server writes to it
=======================  =====================================================

    python tools/generate_abi.py            writes them
    python tools/generate_abi.py --check    writes nothing; exits 1 and names those out of date
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import complete_protocol
import sdk_bindings
from abi_types import (
    FIELD_TYPES,
    UNSIGNED,
    WASM_TYPES,
    WIDE,
    Abi,
    Item,
    array,
    camel,
    flat_fields,
    functions_of,
    groups,
    has_two_layouts,
    placed_fields,
    pointee,
    prefix,
    result_text,
    struct_format,
    struct_nbytes,
    values,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "abi" / "host.toml"
PROTOCOL = ROOT / "abi" / "complete.toml"
NOTICE = "Generated from abi/host.toml by tools/generate_abi.py; do not edit."
WIDTH = 100

TYPE_DOCS = {
    "ptr": "offset in the guest's linear memory, in bytes",
    "nbytes": "a length in bytes",
    "count": "a number of elements",
    "handle": "something that an earlier call opened, 1 or greater",
    "token": "a token id of a model's vocabulary",
    "flags": "bits named under Constants",
    "status": "result: 0, or a negative errno",
    "size": "result: a length or count >= 0, or a negative errno",
    "size64": "the same where 31 bits are too few",
    "address": "result: an offset in linear memory >= 0, or a negative errno",
    "time": "result: nanoseconds >= 0",
}
GROUP_DOCS = {
    "model": "Models, their tokenizers, and sessions: sequences of tokens whose KV cache and"
    " logits lie in the guest's memory.",
    "grammar": "Constrained decoding: tokens that a grammar forbids are masked in the logits, in"
    " place.",
    "media": "Pictures and sounds: the guest decodes a file in its sandbox, the model's projector"
    " makes embeddings of it in the guest's memory, and a session takes those in place of tokens.",
    "tensor": "A small list of tensor operations over linear memory, run on the device in place.",
    "actor": "The message and its answer, time and chance.",
    "tool": "What the actor may use of the world, by names that it was given.",
    "answer": "Answers of models that call tools: the prompt, and the answer taken apart while it"
    " is sampled.",
}

C_OPENING = f"""\
/* {NOTICE} */
/*
 * The Isthmus guest ABI, version {{version}}. docs/abi.md is the reference.
 *
 * Every function returns a value >= 0, or the negative of an errno such as -ISTHMUS_EINVAL.
 * Where a call fills a buffer of `cap` elements it returns how many it needs; when that is more
 * than `cap`, nothing was written and the guest may call again with more room.
 *
 * The same source compiles for wasm32 and for wasm64, where pointers and lengths have 64 bits.
 */
#ifndef ISTHMUS_H
#define ISTHMUS_H

#include <stddef.h>
#include <stdint.h>

#define ISTHMUS_ABI_VERSION {{version}}

/* How a struct holds a pointer: as an offset in linear memory. */
#define ISTHMUS_PTR(pointer) ((uintptr_t)(pointer))

#ifdef __cplusplus
#define ISTHMUS_EXTERN extern "C"
#else
#define ISTHMUS_EXTERN extern
#endif
#define ISTHMUS_IMPORT(name) \\
    ISTHMUS_EXTERN __attribute__((import_module("{{module}}"), import_name(name)))
"""

MEMORY_PICTURE = """\
```
offset 0                                                           memory.size x 65,536
┌─────────┬──────┬─────────────────────────────────────────────────────────────────────┐
│  stack  │ data │ heap ── the guest's own allocator                                   │
│ (grows  │      │   ┌───────────┐   ┌──────────────────────────┐   ┌────────────────┐ │
│  down)  │      │   │ token ids │   │ session                  │   │ tensors        │ │
│         │      │   │ text      │   │ [ logits  |  KV cache ]  │   │ of compute     │ │
│         │      │   └───────────┘   └──────────────────────────┘   └────────────────┘ │
└─────────┴──────┴─────────────────────────────────────────────────────────────────────┘
                                      ^ session_open(ptr, nbytes), 4,096-byte aligned
```

The guest allocates everything, a session's bytes too: `session_nbytes` says how many they are,
`session_open` hands them over, `session_close` gives them back. While a session is open the guest
reads its logits in place (`logits` says where), and leaves the rest alone. The host and the device
read and write these same bytes; nothing is copied out of linear memory and back. A card that would
read them through a bus has the KV cache in memory of its own: its place is reserved then. The
weights are not there: they are the host's, shared by all guests.
"""

PYTHON_OPENING = f'''\
"""The guest ABI, as the host registers it: errno, constants, structs and host functions.

{NOTICE}
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple
'''

PYTHON_FUNCTIONS = '''

class Param(NamedTuple):
    """A parameter of a host function: its name, and its type as abi/host.toml calls it."""

    name: str
    type: str


_WASM_TYPES = {wasm_types}
_WIDE = {wide}
"""What has 64 bits where linear memory has."""


@dataclass(frozen=True)
class HostFunction:
    """A function that a guest imports."""

    group: str
    name: str
    params: tuple[Param, ...]
    result: str
    errors: tuple[Errno, ...]
    """Every errno that it may return."""

    @property
    def wasm_params(self) -> tuple[str, ...]:
        """The parameters' WebAssembly types, 'i32' or 'i64', where linear memory is 32-bit."""
        return tuple(_WASM_TYPES[param.type] for param in self.params)

    @property
    def wasm_params_64(self) -> tuple[str, ...]:
        """The same where linear memory is 64-bit."""
        return tuple(
            "i64" if param.type in _WIDE else _WASM_TYPES[param.type] for param in self.params
        )

    @property
    def wasm_result(self) -> str:
        """The result's WebAssembly type, 'i32' or 'i64'."""
        return _WASM_TYPES[self.result]


'''


# --------------------------------------------------------------------------- C


def c_wrap(text: str, first: str, rest: str) -> list[str]:
    """Lines of a comment: `first` before the first one, `rest` before the others."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest)


def c_enum(start: str, doc: str, items: Iterable[tuple[str, Item]]) -> Iterator[str]:
    yield from ("", f"/* {doc} */", "enum {")
    for name, item in items:
        yield from c_wrap(item["text"] + " */", "    /* ", "     * ")
        yield f"    ISTHMUS_{start}{name} = {item['value']},"
    yield "};"


def c_struct(name: str, struct: Item) -> Iterator[str]:
    yield from ("", *c_wrap(struct["doc"] + " */", "/* ", " * "), "typedef struct {")
    for field in struct["fields"]:
        yield from c_wrap(field["doc"] + " */", "    /* ", "     * ")
        yield f"    {FIELD_TYPES[field['type']][1]} {field['name']}{array(field)};"
    ctype = f"isthmus_{name}_t"
    yield f"}} {ctype};"
    nbytes = str(struct_nbytes(struct))
    if has_two_layouts(struct):
        nbytes = f"(sizeof(void *) == 8 ? {struct_nbytes(struct, wide=True)} : {nbytes})"
    yield f'_Static_assert(sizeof({ctype}) == {nbytes}, "{ctype}");'


def c_type(function: str, param: Item) -> str:
    """A parameter's C type, with the space that its name needs."""
    kind = param["type"]
    if kind == "nbytes":
        return "size_t "
    if kind != "ptr":
        return "uint32_t " if kind in UNSIGNED else "int32_t "
    return pointee(function, param)


def c_function(function: Item) -> Iterator[str]:
    name, result = function["name"], function["result"]
    yield from ("", "/*", *c_wrap(function["doc"], " * ", " * "))
    for param in function["params"]:
        yield from c_wrap(f"{param['name']}: {param['doc']}", " *   ", " *       ")
    yield from c_wrap(f"Returns {result_text(result)}.", " * ", " * ")
    for error, condition in function["errors"].items():
        yield from c_wrap(f"-ISTHMUS_{error}: {condition}", " *   ", " *       ")
    yield " */"
    yield f'ISTHMUS_IMPORT("{name}")'
    glued = [(c_type(name, p) + p["name"]).replace(" ", "\u00a0") for p in function["params"]]
    returned = "int64_t" if WASM_TYPES[result["type"]] == "i64" else "int32_t"
    head = f"{returned} isthmus_{name}("
    for line in c_wrap(f"{head}{', '.join(glued) or 'void'});", "", " " * len(head)):
        yield line.replace("\u00a0", " ")


def c_header(abi: Abi) -> str:
    opening = C_OPENING.format(version=abi["abi_version"], module=abi["module"])
    lines = opening.splitlines()
    lines += c_enum("", "Errno: a call that fails returns one, negated.", abi["errno"].items())
    for name, group in abi["constants"].items():
        lines += c_enum(prefix(name), group["doc"], values(group))
    for name, struct in abi["structs"].items():
        lines += c_struct(name, struct)
    for group in groups(abi):
        lines += ["", f"/* {'-' * 75} {group} */"]
        for function in functions_of(abi, group):
            lines += c_function(function)
    return "\n".join([*lines, "", "#endif", ""])


# --------------------------------------------------------------------------- Markdown


def md_table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def wide_type(name: str) -> str:
    """How WebAssembly passes a type where linear memory is 64-bit."""
    return "i64" if name in WIDE else WASM_TYPES[name]


def md_opening(abi: Abi) -> Iterator[str]:
    yield from ("# Guest ABI", "", f"<!-- {NOTICE} -->", "")
    yield (
        f"Version {abi['abi_version']}. A guest is a core WebAssembly module that imports these"
        f" functions from the module `{abi['module']}`,"
    )
    yield "and [WASI preview 1](https://github.com/WebAssembly/WASI/tree/wasi-0.1) where it likes."
    yield "Programs with `_start`, and guests that know wasi-nn instead, are told of in"
    yield "[commands.md](commands.md)."
    yield ""
    yield from ("## Linear memory", "", *MEMORY_PICTURE.splitlines(), "")
    yield from ("## Conventions", "")
    yield "* A result is a value >= 0, or a negative errno. Nothing that a guest passes can crash"
    yield "  the host: an argument that it does not take gives an errno."
    yield "* Where a call fills a buffer of `cap` elements it returns how many it needs; when that"
    yield "  is more than `cap`, nothing was written and the guest may call again with more room."
    yield "* Structs are little-endian, and their `reserved` fields must be 0."
    yield "* Linear memory is 32-bit or 64-bit (memory64): the type of the module's memory says"
    yield "  which. In a 64-bit one `ptr` and `nbytes` have 64 bits, as parameters (`i64`) and in"
    yield "  structs; nothing else differs. WASI's pointers, sizes and records widen in the same"
    yield "  way. A module whose imports do not fit its memory is refused."
    yield "* A module may have 128 MiB, 100,000 functions, 10,000 exports, 4,096 mutable globals;"
    yield "  `wasm/bounds.py` has all, and an error names the one that was met. What compiling"
    yield "  may take grows with the module: 20 s of a processor and 30 s for each MiB, 640 MiB of"
    yield "  memory and 256 MiB for each MiB."
    yield from ("", "## Types", "")
    rows = (
        (f"`{name}`", f"`{WASM_TYPES[name]}`", f"`{wide_type(name)}`", doc)
        for name, doc in TYPE_DOCS.items()
    )
    yield from md_table(("type", "Wasm", "with memory64", "meaning"), rows)
    yield from ("## Errno", "")
    errno = ((f"`{name}`", item["value"], item["text"]) for name, item in abi["errno"].items())
    yield from md_table(("name", "value", "meaning"), errno)


def md_constants(abi: Abi) -> Iterator[str]:
    yield from ("## Constants", "")
    for name, group in abi["constants"].items():
        yield from (f"### {name}", "", f"{group['doc']} In C: `ISTHMUS_{prefix(name)}…`.", "")
        rows = ((f"`{key}`", item["value"], item["text"]) for key, item in values(group))
        yield from md_table(("name", "value", "meaning"), rows)


def md_structs(abi: Abi) -> Iterator[str]:
    yield from ("## Structs", "")
    for name, struct in abi["structs"].items():
        two = has_two_layouts(struct)
        size = f"{struct_nbytes(struct)} bytes"
        size += f"; {struct_nbytes(struct, wide=True)} with memory64" if two else ""
        yield from (f"### {name}", "", f"{struct['doc']} {size}.", "")
        wide = [offset for _, offset in placed_fields(struct, wide=True)]
        rows = (
            (
                *((offset, wide[i]) if two else (offset,)),
                f"`{field['name']}`",
                f"`{field['type']}{array(field)}`",
                field["doc"],
            )
            for i, (field, offset) in enumerate(placed_fields(struct))
        )
        offsets = ("offset", "with memory64") if two else ("offset",)
        yield from md_table((*offsets, "field", "type", "meaning"), rows)


def md_function(function: Item) -> Iterator[str]:
    result = function["result"]
    names = ", ".join(param["name"] for param in function["params"])
    yield from (f"### {function['name']}", "", f"`{function['name']}({names})`", "")
    yield from (function["doc"], "")
    params = function["params"]
    rows = [(f"`{param['name']}`", f"`{param['type']}`", param["doc"]) for param in params]
    rows.append(("*result*", f"`{result['type']}`", result_text(result)))
    yield from md_table(("parameter", "type", "meaning"), rows)
    if function["errors"]:
        errors = ((f"`{name}`", text) for name, text in function["errors"].items())
        yield from md_table(("errno", "when"), errors)


def markdown(abi: Abi) -> str:
    lines = [*md_opening(abi), *md_constants(abi), *md_structs(abi)]
    for group in groups(abi):
        lines += [f"## Functions: {group}", "", GROUP_DOCS[group], ""]
        for function in functions_of(abi, group):
            lines += md_function(function)
    lines += ["## Exports", "", "What a guest exports.", ""]
    rows = (
        (
            f"`{export['name']}`",
            f"`{export['signature']}`" if "signature" in export else "memory",
            "yes" if export["required"] else "no",
            export["doc"],
        )
        for export in abi["exports"]
    )
    lines += md_table(("export", "type", "required", "meaning"), rows)
    return "\n".join(lines)


# --------------------------------------------------------------------------- Python


def py_tuple(items: list[str], indent: str) -> list[str]:
    """A tuple and the comma after it, laid out as `ruff format` does."""
    comma = "," if len(items) == 1 else ""
    line = f"{indent}({', '.join(items)}{comma}),"
    if len(line) <= WIDTH:
        return [line]
    return [f"{indent}(", *(f"{indent}    {item}," for item in items), f"{indent}),"]


def py_doc(text: str) -> list[str]:
    """A docstring one level deep: a sentence, and what follows it where one line is too short."""
    if len(text) + 10 <= WIDTH:
        return [f'    """{text}"""']
    first, rest = text.split(". ", 1)
    lines = textwrap.wrap(rest, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return [f'    """{first}.', "", *lines, '    """']


def py_enum(name: str, base: str, doc: str, items: Iterable[tuple[str, Item]]) -> Iterator[str]:
    yield from ("", "", f"class {name}({base}):", *py_doc(doc), "")
    for key, item in items:
        yield f"    {key} = {item['value']}"


def py_struct(name: str, struct: Item) -> Iterator[str]:
    yield from ("", "", f"class {camel(name)}(NamedTuple):")
    yield from py_doc(struct["doc"])
    yield ""
    for field, kind in flat_fields(struct):
        yield f"    {field}: {FIELD_TYPES[kind][3]}"
    yield from ("", "", f'{name.upper()} = Struct("<{struct_format(struct)}")')
    yield f'"""{struct_nbytes(struct)} bytes: the fields of {camel(name)}."""'
    if has_two_layouts(struct):
        yield f'{name.upper()}_64 = Struct("<{struct_format(struct, wide=True)}")'
        nbytes = struct_nbytes(struct, wide=True)
        yield f'"""{nbytes} bytes: the same where linear memory is 64-bit."""'


def py_function(function: Item) -> Iterator[str]:
    params = [f'Param("{param["name"]}", "{param["type"]}")' for param in function["params"]]
    yield "    HostFunction("
    yield f'        "{function["group"]}",'
    yield f'        "{function["name"]}",'
    yield from py_tuple(params, "        ")
    yield f'        "{function["result"]["type"]}",'
    yield from py_tuple([f"Errno.{name}" for name in function["errors"]], "        ")
    yield "    ),"


def python(abi: Abi) -> str:
    lines = PYTHON_OPENING.splitlines()
    lines += ["", f"ABI_VERSION = {abi['abi_version']}", f'MODULE = "{abi["module"]}"']
    lines += py_enum(
        "Errno", "IntEnum", "Why a call failed: it returns one, negated.", abi["errno"].items()
    )
    lines += ["", "", "ERRNO_TEXT = {"]
    lines += [f'    Errno.{name}: "{item["text"]}",' for name, item in abi["errno"].items()]
    lines += ["}"]
    for name, group in abi["constants"].items():
        base = "IntFlag" if name.endswith("_flag") else "IntEnum"
        lines += py_enum(camel(name), base, group["doc"], values(group))
    for name, struct in abi["structs"].items():
        lines += py_struct(name, struct)
    types = ["{", *(f'    "{name}": "{kind}",' for name, kind in WASM_TYPES.items()), "}"]
    opening = PYTHON_FUNCTIONS.replace("{wasm_types}", "\n".join(types))
    lines += opening.replace("{wide}", str(WIDE).replace("'", '"')).splitlines()
    lines += ["HOST_FUNCTIONS = ("]
    for function in abi["functions"]:
        lines += py_function(function)
    return "\n".join([*lines, ")", ""])


# --------------------------------------------------------------------------- command line

OUTPUTS = {
    "src/isthmus/sdk/c/isthmus.h": c_header,
    "docs/abi.md": markdown,
    "src/isthmus/abi.py": python,
    **sdk_bindings.OUTPUTS,
}


def generate() -> dict[Path, str]:
    """What each generated file should hold."""
    abi = tomllib.loads(SOURCE.read_text(encoding="utf-8"))
    words = tomllib.loads(PROTOCOL.read_text(encoding="utf-8"))
    return {
        **{ROOT / name: render(abi) for name, render in OUTPUTS.items()},
        **{ROOT / name: render(words) for name, render in complete_protocol.OUTPUTS.items()},
    }


def stale() -> list[Path]:
    """The generated files that are not what they should be."""
    return [
        path
        for path, text in generate().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Generates what follows from abi/host.toml.")
    parser.add_argument("--check", action="store_true", help="only name files out of date")
    if parser.parse_args().check:
        for path in (old := stale()):
            print(f"{path.relative_to(ROOT)} is out of date: run python tools/generate_abi.py")
        return 1 if old else 0
    for path, text in generate().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

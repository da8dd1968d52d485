"""What follows from abi/host.toml for guests in Rust, Zig, Go and AssemblyScript, and in WIT.

Each language has a Dialect: how it writes a type, a constant, a struct and an import. The thin
layers over these files are written by hand, beside them in src/isthmus/sdk.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from abi_types import (
    FIELD_TYPES,
    UNSIGNED,
    WASM_TYPES,
    Abi,
    Item,
    array,
    camel,
    flat_fields,
    functions_of,
    groups,
    pointee,
    prefix,
    result_text,
    values,
)

NOTICE = "Generated from abi/host.toml by tools/generate_abi.py; do not edit."
WIDTH = 100

C_NAMES = {
    "uint32_t": "u32",
    "int32_t": "i32",
    "float": "f32",
    "uint64_t": "u64",
    "uintptr_t": "usize",
    "size_t": "usize",
    "char": "u8",
    "void": "u8",
}
"""Types of C by the names that Rust, Zig and AssemblyScript have for them."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one language writes the ABI down. All names are those of abi/host.toml."""

    opening: str
    comment: str
    """What begins a line of documentation."""
    pointer: Callable[[str, bool], str]
    """(what it points to, whether the guest only reads it) -> a pointer's type."""
    constant: Callable[[str, int, str], str]
    """(name, value, group of constants) -> a line."""
    struct: Callable[[str, Item], Iterator[str]]
    function: Callable[[str, list[tuple[str, str]], str], Iterator[str]]
    """(name, parameters and their types, result's type) -> lines."""
    types: dict[str, str] = field(default_factory=dict)
    """Its names of types, where they are not those of C_NAMES."""
    imports: tuple[str, str] = ("", "")
    """Lines that begin and end all imports."""
    indent: str = ""
    """What each line of an import begins with."""


def named(dialect: Dialect, ctype: str) -> str:
    """A C type in a dialect."""
    if ctype.startswith("isthmus_"):
        return camel(ctype.removeprefix("isthmus_").removesuffix("_t"))
    name = C_NAMES[ctype]
    return dialect.types.get(name, name)


def param_type(dialect: Dialect, function: str, param: Item) -> str:
    """A parameter's type in a dialect."""
    kind = param["type"]
    if kind == "ptr":
        ctype = pointee(function, param)
        base = ctype.removeprefix("const ").removesuffix(" *")
        return dialect.pointer(named(dialect, base), ctype.startswith("const "))
    if kind == "nbytes":
        return named(dialect, "size_t")
    return named(dialect, "uint32_t" if kind in UNSIGNED else "int32_t")


def documented(dialect: Dialect, text: str, indent: str = "") -> Iterator[str]:
    """A text as lines of documentation."""
    start = indent + dialect.comment
    return iter(textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start))


def function_docs(dialect: Dialect, function: Item) -> Iterator[str]:
    """What a function does, takes, returns and fails with."""
    yield from documented(dialect, function["doc"])
    for param in function["params"]:
        yield from documented(dialect, f"* {param['name']}: {param['doc']}")
    yield from documented(dialect, f"Returns {result_text(function['result'])}.")
    for name, condition in function["errors"].items():
        yield from documented(dialect, f"* -{name}: {condition}")


def bindings(abi: Abi, dialect: Dialect) -> str:
    """A whole file."""
    lines = dialect.opening.format(version=abi["abi_version"]).splitlines()
    lines += ["", *documented(dialect, "Errno: a call that fails returns one, negated.")]
    for name, item in abi["errno"].items():
        lines += [*documented(dialect, item["text"]), dialect.constant(name, item["value"], "")]
    for group, items in abi["constants"].items():
        lines += [""]
        for name, item in values(items):
            lines += documented(dialect, item["text"])
            lines += [dialect.constant(prefix(group) + name, item["value"], group)]
    for name, struct in abi["structs"].items():
        lines += ["", *documented(dialect, struct["doc"]), *dialect.struct(camel(name), struct)]
    lines += ["", *dialect.imports[0].splitlines()]
    for function in abi["functions"]:
        params = [
            (it["name"], param_type(dialect, function["name"], it)) for it in function["params"]
        ]
        wide = WASM_TYPES[function["result"]["type"]] == "i64"
        result = dialect.types.get("i64", "i64") if wide else named(dialect, "int32_t")
        text = list(function_docs(dialect, function))
        text += dialect.function(function["name"], params, result)
        lines += ["", *(dialect.indent + line for line in text)]
    return "\n".join([*lines, *dialect.imports[1].splitlines(), ""])


def arguments(params: list[tuple[str, str]], between: str = ": ") -> str:
    """'name: type, name: type'."""
    return ", ".join(f"{name}{between}{kind}" for name, kind in params)


def rust_struct(name: str, struct: Item) -> Iterator[str]:
    yield "#[repr(C)]"
    yield "#[derive(Clone, Copy, Debug, Default, PartialEq)]"
    yield f"pub struct {name} {{"
    for it in struct["fields"]:
        kind = C_NAMES[FIELD_TYPES[it["type"]][1]]
        yield from documented(RUST, it["doc"], "    ")
        kind = f"[{kind}; {it['count']}]" if "count" in it else kind
        yield f"    pub {it['name']}: {kind},"
    yield "}"


def rust_function(name: str, params: list[tuple[str, str]], result: str) -> Iterator[str]:
    yield f"pub fn {name}({arguments(params)}) -> {result};"


RUST = Dialect(
    opening=f"//! {NOTICE}\n//!\n//! The Isthmus guest ABI, version {{version}}, as the host has"
    " it. docs/abi.md is the reference.\n\npub const ABI_VERSION: u32 = {version};",
    comment="/// ",
    pointer=lambda base, const: f"*{'const' if const else 'mut'} {base}",
    constant=lambda name, value, _: f"pub const {name}: i32 = {value};",
    struct=rust_struct,
    function=rust_function,
    imports=('#[link(wasm_import_module = "isthmus")]\nextern "C" {', "}"),
    indent="    ",
)


def zig_struct(name: str, struct: Item) -> Iterator[str]:
    yield f"pub const {name} = extern struct {{"
    for it in struct["fields"]:
        yield from documented(ZIG, it["doc"], "    ")
        yield f"    {it['name']}: {array(it)}{C_NAMES[FIELD_TYPES[it['type']][1]]},"
    yield "};"


def zig_function(name: str, params: list[tuple[str, str]], result: str) -> Iterator[str]:
    yield f'pub extern "isthmus" fn {name}({arguments(params)}) {result};'


ZIG = Dialect(
    opening=f"//! {NOTICE}\n//!\n//! The Isthmus guest ABI, version {{version}}, as the host has"
    " it. docs/abi.md is the reference.\n\npub const abi_version: u32 = {version};",
    comment="/// ",
    pointer=lambda base, const: f"?[*]{'const ' if const else ''}{base}",
    constant=lambda name, value, _: f"pub const {name}: i32 = {value};",
    struct=zig_struct,
    function=zig_function,
)

GO_TYPES = {
    "u32": "uint32",
    "i32": "int32",
    "f32": "float32",
    "u64": "uint64",
    "i64": "int64",
    "usize": "uint32",
}


def go_name(name: str) -> str:
    """'TOKENIZE_ADD_SPECIAL' and 'n_vocab' as Go writes them: TokenizeAddSpecial, NVocab."""
    return name if name.startswith("E") and "_" not in name else camel(name.lower())


def go_struct(name: str, struct: Item) -> Iterator[str]:
    yield f"type {name} struct {{"
    for it in struct["fields"]:
        kind = GO_TYPES[C_NAMES[FIELD_TYPES[it["type"]][1]]]
        yield from documented(GO, it["doc"], "\t")
        yield f"\t{go_name(it['name'])} {array(it)}{kind}"
    yield "}"


def go_function(name: str, params: list[tuple[str, str]], result: str) -> Iterator[str]:
    yield "//"
    yield f"//go:wasmimport isthmus {name}"
    yield f"func host{camel(name)}({arguments(params, ' ')}) {result}"


GO = Dialect(
    opening=f'// {NOTICE}\n\npackage isthmus\n\nimport "unsafe"\n\n// ABIVersion is that of'
    " docs/abi.md, which is the reference.\nconst ABIVersion = {version}",
    comment="// ",
    pointer=lambda _base, _const: "unsafe.Pointer",
    constant=lambda name, value, _: f"const {go_name(name)} = {value}",
    struct=go_struct,
    function=go_function,
    types=GO_TYPES,
)


def as_struct(name: str, struct: Item) -> Iterator[str]:
    yield "@unmanaged"
    yield f"export class {name} {{"
    for key, kind in flat_fields(struct):
        yield f"  {key}: {C_NAMES[FIELD_TYPES[kind][1]]} = 0;"
    yield "}"


def as_function(name: str, params: list[tuple[str, str]], result: str) -> Iterator[str]:
    yield f'@external("isthmus", "{name}")'
    yield f"export declare function {name}({arguments(params)}): {result};"


ASSEMBLYSCRIPT = Dialect(
    opening=f"// {NOTICE}\n//\n// The Isthmus guest ABI, version {{version}}, as the host has it."
    " docs/abi.md is the reference.\n\nexport const ABI_VERSION: u32 = {version};",
    comment="// ",
    pointer=lambda _base, _const: "usize",
    constant=lambda name, value, _: f"export const {name}: i32 = {value};",
    struct=as_struct,
    function=as_function,
)

WIT_OPENING = f"""\
// {NOTICE}
//
// The Isthmus guest ABI as WIT. It describes core modules: a pointer is an offset in the guest's
// memory, u32, and a result is a value of 0 or more or a negative errno, as docs/abi.md tells. A
// guest imports `model-open` of any interface here as `model_open` of the module `isthmus`.
package isthmus:agent@{{version}}.0.0;
"""
WIT_KEYWORDS = {"flags", "result", "list", "type", "func", "record", "resource", "use", "stream"}


def wit_name(name: str) -> str:
    """A name as WIT writes it: words and hyphens, `%` before what is a keyword."""
    kebab = name.lower().replace("_", "-")
    return f"%{kebab}" if kebab in WIT_KEYWORDS else kebab


def wit_function(function: Item) -> Iterator[str]:
    """A function of an interface, with its documentation."""
    params = [
        (wit_name(it["name"]), "s32" if it["type"] in ("handle", "token") else "u32")
        for it in function["params"]
    ]
    result = "s64" if WASM_TYPES[function["result"]["type"]] == "i64" else "s32"
    yield ""
    yield from (f"  {line}" for line in function_docs(RUST, function))
    yield f"  {wit_name(function['name'])}: func({arguments(params)}) -> {result};"


def wit_enum(name: str, doc: str, items: Iterator[tuple[str, Item]]) -> Iterator[str]:
    """Constants, which WIT has no word for: documentation of an alias."""
    yield from ("", f"  /// {doc}")
    for key, item in items:
        yield from documented(RUST, f"* {key} = {item['value']}: {item['text']}", "  ")
    yield f"  type {wit_name(name)} = u32;"


def wit_record(name: str, struct: Item) -> Iterator[str]:
    """A struct in linear memory."""
    yield from ("", *documented(RUST, struct["doc"], "  "), f"  record {wit_name(name)} {{")
    for key, kind in flat_fields(struct):
        yield f"    {wit_name(key)}: {WIT_TYPES[kind]},"
    yield "  }"


WIT_TYPES = {"u32": "u32", "i32": "s32", "f32": "f32", "u64": "u64", "ptr": "u32", "nbytes": "u32"}


def wit(abi: Abi) -> str:
    """The ABI as a WIT package: an interface for each group of functions, and a world."""
    lines = WIT_OPENING.format(version=abi["abi_version"]).splitlines()
    lines += ["", "/// Errno, constants and structs.", "interface types {"]
    lines += wit_enum(
        "errno", "A call that fails returns one, negated.", iter(abi["errno"].items())
    )
    for name, group in abi["constants"].items():
        lines += wit_enum(name, group["doc"], values(group))
    for name, struct in abi["structs"].items():
        lines += wit_record(name, struct)
    lines += ["}"]
    for group in groups(abi):
        lines += ["", f"interface {wit_name(group)} {{"]
        for function in functions_of(abi, group):
            lines += wit_function(function)
        lines += ["}"]
    lines += ["", "/// What a guest imports and exports.", "world agent {", "  import types;"]
    lines += [f"  import {wit_name(group)};" for group in groups(abi)]
    for export in abi["exports"]:
        if export["name"].startswith("on_"):
            params = "nbytes: s32" if export["name"] == "on_message" else ""
            lines += ["", *documented(RUST, export["doc"], "  ")]
            lines += [f"  export {wit_name(export['name'])}: func({params}) -> s32;"]
    return "\n".join([*lines, "}", ""])


OUTPUTS: dict[str, Callable[[Abi], str]] = {
    "src/isthmus/sdk/rust/src/abi.rs": lambda abi: bindings(abi, RUST),
    "src/isthmus/sdk/zig/abi.zig": lambda abi: bindings(abi, ZIG),
    "src/isthmus/sdk/go/abi.go": lambda abi: bindings(abi, GO),
    "src/isthmus/sdk/as/abi.ts": lambda abi: bindings(abi, ASSEMBLYSCRIPT),
    "src/isthmus/sdk/wit/isthmus.wit": wit,
}

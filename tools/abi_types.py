"""What abi/host.toml says, as all that is generated from it needs it: types, structs, groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Abi = dict[str, Any]
Item = dict[str, Any]

WASM_TYPES = {
    **dict.fromkeys(("ptr", "nbytes", "count", "handle", "token", "flags"), "i32"),
    **dict.fromkeys(("status", "size"), "i32"),
    **dict.fromkeys(("size64", "address", "time"), "i64"),
}
"""Each type of a parameter or result, and how WebAssembly passes it."""

WIDE = ("ptr", "nbytes")
"""Types of parameters and fields that are twice as wide where linear memory is 64-bit."""

UNSIGNED = {"ptr", "nbytes", "count", "flags"}

FIELD_TYPES = {
    # type: (nbytes, C, struct format, Python)
    "u32": (4, "uint32_t", "I", "int"),
    "i32": (4, "int32_t", "i", "int"),
    "f32": (4, "float", "f", "float"),
    "u64": (8, "uint64_t", "Q", "int"),
    "ptr": (4, "uintptr_t", "I", "int"),
    "nbytes": (4, "size_t", "I", "int"),
}

C_POINTERS = {
    # (function, parameter), or the parameter alone: what it points to, as C says it
    "name_ptr": "const char *",
    "args_ptr": "const void *",
    "candidates_ptr": "isthmus_candidate_t *",
    "info_ptr": "isthmus_model_info_t *",
    "logits_ptr": "float *",
    "messages_ptr": "const isthmus_chat_message_t *",
    "data_ptr": "const void *",
    "part_ptr": "isthmus_media_part_t *",
    "positions_ptr": "const int32_t *",
    ("media_embed", "positions_ptr"): "int32_t *",
    "rows_ptr": "const float *",
    "values_ptr": "void *",
    "operations_ptr": "const isthmus_operation_t *",
    "sampler_ptr": "isthmus_sampler_t *",
    "source_ptr": "const char *",
    "steps_ptr": "const isthmus_step_t *",
    "tensor_ptr": "isthmus_tensor_t *",
    "tokens_ptr": "const int32_t *",
    ("tokenize", "tokens_ptr"): "int32_t *",
    "embedding_ptr": "float *",
    "text_ptr": "char *",
    ("tokenize", "text_ptr"): "const char *",
    ("session_open", "ptr"): "void *",
    ("message_read", "ptr"): "void *",
    ("emit", "ptr"): "const void *",
    ("reply", "ptr"): "const void *",
    ("log", "ptr"): "const void *",
    ("random", "ptr"): "void *",
    ("tool_result", "ptr"): "void *",
    ("tool_list", "ptr"): "char *",
    ("chat_tokens", "messages_ptr"): "const char *",
    ("chat_tokens", "tokens_ptr"): "int32_t *",
    ("answer_grammar", "ptr"): "char *",
    ("answer_read", "ptr"): "char *",
}


def camel(name: str) -> str:
    """'model_info' as a Python class: 'ModelInfo'."""
    return "".join(word.capitalize() for word in name.split("_"))


def values(group: Item) -> Iterator[tuple[str, Item]]:
    """A constants group's names with their value and text."""
    return ((name, item) for name, item in group.items() if name != "doc")


def field_nbytes(field: Item, *, wide: bool) -> int:
    """Size of one element of a field, where linear memory is 64-bit or not."""
    return 8 if wide and field["type"] in WIDE else FIELD_TYPES[field["type"]][0]


def placed_fields(struct: Item, *, wide: bool = False) -> Iterator[tuple[Item, int]]:
    """A struct's fields with their offsets. A gap, which C would fill, is for `wide` ones only."""
    offset = 0
    for field in struct["fields"]:
        nbytes = field_nbytes(field, wide=wide)
        if offset % nbytes and not wide:
            raise SystemExit(f"abi/host.toml: field {field['name']} at {offset} is not aligned")
        offset += -offset % nbytes
        yield field, offset
        offset += nbytes * int(field.get("count", 1))


def struct_nbytes(struct: Item, *, wide: bool = False) -> int:
    """Size of a struct in bytes."""
    *_, (field, offset) = placed_fields(struct, wide=wide)
    end = offset + field_nbytes(field, wide=wide) * int(field.get("count", 1))
    widest = max(field_nbytes(it, wide=wide) for it in struct["fields"])
    return end + (-end % widest if wide else 0)


def has_two_layouts(struct: Item) -> bool:
    """Whether it holds a pointer or a length."""
    return any(field["type"] in WIDE for field in struct["fields"])


def struct_format(struct: Item, *, wide: bool = False) -> str:
    """The layout as Python's `struct` says it, with `x` where C leaves a gap."""
    layout, end = "", 0
    for field, offset in placed_fields(struct, wide=wide):
        nbytes, count = field_nbytes(field, wide=wide), int(field.get("count", 1))
        kind = "Q" if wide and field["type"] in WIDE else FIELD_TYPES[field["type"]][2]
        layout += "x" * (offset - end) + kind * count
        end = offset + nbytes * count
    return layout + "x" * (struct_nbytes(struct, wide=wide) - end)


def flat_fields(struct: Item) -> Iterator[tuple[str, str]]:
    """Names and types of a struct's elements: arrays become ne0, ne1, …"""
    for field in struct["fields"]:
        count = field.get("count")
        for name in (f"{field['name']}{i}" for i in range(count)) if count else [field["name"]]:
            yield name, field["type"]


def array(field: Item) -> str:
    """'[4]' for a field of four elements, nothing for one."""
    return f"[{field['count']}]" if "count" in field else ""


def groups(abi: Abi) -> list[str]:
    """The groups of functions, in file order."""
    return list(dict.fromkeys(function["group"] for function in abi["functions"]))


def functions_of(abi: Abi, group: str) -> list[Item]:
    return [function for function in abi["functions"] if function["group"] == group]


def pointee(function: str, param: Item) -> str:
    """What a parameter of the type ptr points to, as C says it: 'const char *'."""
    found = C_POINTERS.get((function, param["name"])) or C_POINTERS.get(param["name"])
    if found is None:
        raise SystemExit(f"say in C_POINTERS what {function}'s {param['name']} points to")
    return found


def prefix(group: str) -> str:
    """What names of constants begin with: TOKENIZE_ for 'tokenize_flag', OP_ for 'op'."""
    return group.removesuffix("_flag").removesuffix("_level").upper() + "_"


def result_text(result: Item) -> str:
    """What a function returns when it succeeds."""
    return str(result["doc"]) or "0"

"""Items of a request's input, checked and brought into the one shape in which items are told.

An `Item` here is a dict as the API tells it: a message has a list of parts, and all have an id.
What an item has that nobody here reads (`phase`, what a client notes for itself) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from isthmus.server.http.errors import HttpError
from isthmus.server.responses.fields import ITEMS
from isthmus.server.responses.media import media_part
from isthmus.server.responses.requests import converted

Item: TypeAlias = "dict[str, Any]"
MakeId: TypeAlias = "Callable[[str, int], str]"
"""From an item's type and number to its id."""
_Content: TypeAlias = "str | list[dict[str, Any]]"
_MEDIA = ("input_image", "input_audio", "input_file")
"""Types of parts that are files; messages of a user have them."""
_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


class _Message(Struct, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content


class _Call(Struct, kw_only=True):
    name: str
    call_id: str
    arguments: str
    namespace: str | None = None


class _CustomCall(Struct, kw_only=True):
    name: str
    call_id: str
    input: str
    namespace: str | None = None


class _Output(Struct, kw_only=True):
    call_id: str
    output: _Content


class _Reasoning(Struct, kw_only=True):
    summary: list[dict[str, Any]] = []
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None


class _Tools(Struct, kw_only=True):
    tools: list[dict[str, Any]]


_STRUCTS: Mapping[str, type[Struct]] = {
    "message": _Message,
    "function_call": _Call,
    "function_call_output": _Output,
    "custom_tool_call": _CustomCall,
    "custom_tool_call_output": _Output,
    "reasoning": _Reasoning,
    "additional_tools": _Tools,
}


def items_of(given: str | Sequence[Item], param: str = "input") -> list[Item]:
    """The items of an `input`; None is the id of one that has none.

    References are items too, which `Archive.resolved` replaces. HttpError 400, whose `param` names
    the item, if one is of another kind or not well-formed.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}] if given else []
    found = [_item(it, f"{param}[{n}]") for n, it in enumerate(given)]
    ids = [it["id"] for it in found if it["id"] is not None]
    if len(ids) != len(set(ids)):
        raise HttpError(400, f"{param}: two items have the same id", param=param)
    return found


def with_ids(items: Sequence[Item], make_id: MakeId, before: Sequence[Item] = ()) -> list[Item]:
    """The items, each with an id that no item `before` them has: pages go on after an id, and what
    is removed is named by it."""
    taken = {None, *(it["id"] for it in before)}
    return [
        {**it, "id": make_id(it["type"], n)} if it["id"] in taken else it
        for n, it in enumerate(items)
    ]


def kind_of(item: Mapping[str, Any]) -> str:
    """An item's type; where it is absent, what it has tells."""
    kind = item.get("type")
    if kind is None:
        return "message" if "role" in item else "item_reference"
    return kind if isinstance(kind, str) else ""


def text_of(content: _Content) -> str:
    """All text of a content."""
    return content if isinstance(content, str) else "".join(texts_of(content))


def is_media(part: Mapping[str, Any]) -> bool:
    """Whether a part is a file, and no text."""
    return part["type"] in _MEDIA


def texts_of(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of parts, refusals among them."""
    return [str(it["refusal"] if it["type"] == "refusal" else it["text"]) for it in parts]


def _item(given: Item, where: str) -> Item:
    kind = kind_of(given)
    if kind not in ITEMS:
        said = f"items of type {kind[:80]!r} are not supported; there are {', '.join(ITEMS)}"
        raise HttpError(400, said, code="unsupported_item", param=where)
    id_ = given.get("id")
    if id_ is not None and not (isinstance(id_, str) and 1 <= len(id_) <= 256):
        raise HttpError(400, "an id is a text of 1 to 256 characters", param=f"{where}.id")
    if kind == "item_reference":
        if id_ is None:
            raise HttpError(400, "a reference needs the id of an item", param=f"{where}.id")
        return {"type": kind, "id": id_}
    fields = _fields(given, kind, where)
    return {"id": id_, "type": kind, **fields}


def _fields(given: Item, kind: str, where: str) -> Item:
    fields: Item = msgspec.structs.asdict(converted(given, _STRUCTS[kind], where, "invalid_item"))
    if "content" in fields and kind == "message":
        fields["content"] = _parts(fields["content"], fields["role"], f"{where}.content")
    elif isinstance(fields.get("output"), list):
        fields["output"] = _parts(fields["output"], "user", f"{where}.output")
    elif kind == "reasoning":
        fields = _reasoning(fields, where)
    if fields.get("namespace", "") is None:
        del fields["namespace"]
    return fields if kind == "additional_tools" else {**fields, "status": "completed"}


def _reasoning(fields: Item, where: str) -> Item:
    fields["summary"] = _parts(fields["summary"], "summary", f"{where}.summary")
    if fields["content"] is None:
        del fields["content"]
    else:
        fields["content"] = _parts(fields["content"], "reasoning", f"{where}.content")
    return fields


_KINDS = {
    "assistant": "output_text",
    "summary": "summary_text",
    "reasoning": "reasoning_text",
}
"""The type of the parts of each kind of content; `input_text` for all others."""


def _parts(content: _Content, role: str, where: str) -> list[Item]:
    """The parts of a content, each of the type that its place demands."""
    kind = _KINDS.get(role, "input_text")
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    takes_media = role == "user" and where.endswith(".content")
    return [
        media_part(it, f"{where}[{n}]")
        if takes_media and it.get("type") in _MEDIA
        else _part(it, kind, f"{where}[{n}]")
        for n, it in enumerate(content)
    ]


def _texts_alone(given: object) -> str:
    if given in _MEDIA:
        return "messages of a user have them, and what tools give is text"
    return "models read text, and in messages of a user pictures and sounds"


def _part(part: Item, kind: str, where: str) -> Item:
    given = part.get("type")
    if given == "refusal" and kind == "output_text" and isinstance(part.get("refusal"), str):
        return {"type": "refusal", "refusal": part["refusal"]}
    if given not in _PARTS:
        said = f"parts of type {str(given)[:80]!r} are not supported: {_texts_alone(given)}"
        raise HttpError(400, said, code="unsupported_content", param=where)
    if not isinstance(part.get("text"), str):
        raise HttpError(400, "Expected a `text`", code="invalid_item", param=where)
    told = {"type": kind, "text": part["text"]}
    return {**told, "annotations": [], "logprobs": []} if kind == "output_text" else told

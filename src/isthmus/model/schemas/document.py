"""A JSON schema as a document: its parts, where each lies, and what `$ref` names.

A `Node` is one schema within the document, with its JSON pointer, which every complaint tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote, urldefrag, urljoin

from isthmus.errors import GrammarError
from isthmus.model.schemas.keywords import fault_of
from isthmus.model.schemas.rules import Rules
from isthmus.printable import printable

_MAX_DEPTH = 100
"""Schemas within schemas, by any keyword."""
_MAX_SHOWN = 200
_OLD_DRAFTS = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
_BESIDE_REF = ("$ref", "$defs", "definitions", "$schema")
_BASE = ""
"""The URI of a document that has no `$id`."""

LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
MAPS = (
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependencies",
)
SINGLE = (
    "items",
    "additionalItems",
    "additionalProperties",
    "propertyNames",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
)


@dataclass(frozen=True, eq=False)
class Node:
    """A schema within a document: an object or a boolean."""

    value: Any
    at: str
    """JSON pointer, after the name of the document if that has one."""
    base: str = _BASE
    """URI that references in it are relative to."""

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.value is other.value

    @property
    def fields(self) -> Mapping[Any, Any]:
        """Its keywords; none for a boolean."""
        return self.value if isinstance(self.value, Mapping) else {}

    def child(self, *keys: str | int) -> Node:
        """The schema under these keys, which must be there."""
        value, at = self.value, self.at
        for key in keys:
            value, at = value[key], f"{at}/{escaped(str(key))}"
        return Node(value, at, _base_of(value, self.base))

    def made(self, value: Any, keyword: str = "") -> Node:
        """A schema that stands for a part of this one."""
        return Node(value, f"{self.at}/{keyword}" if keyword else self.at, self.base)


def escaped(key: str) -> str:
    """A key as a part of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def refuse(node: Node, said: str) -> NoReturn:
    """GrammarError that names the place."""
    raise GrammarError(f"{printable(node.at[:_MAX_SHOWN])}: {said}")


class Document:
    """A whole schema. Counts what is done with it among the steps of the grammar's `rules`."""

    def __init__(self, root: Any, rules: Rules, name: str = "") -> None:
        """`name` comes before each pointer. GrammarError if it is no schema."""
        self.root = Node(_alone(root) if _is_old(root) else root, f"{name}#")
        self._rules = rules
        self._by_uri: dict[str, Node] = {}
        self._dynamic: dict[str, int] = {}
        self._index()

    def spend(self, node: Node, n: int = 1) -> None:
        """Counts steps. GrammarError if they are too many."""
        if not self._rules.can_spend(n):
            refuse(node, "the schema is too large or too intricate; make it simpler")

    def resolved(self, node: Node, keyword: str = "$ref") -> Node:
        """The schema that a node refers to. GrammarError if there is none here."""
        reference = node.fields[keyword]
        if not isinstance(reference, str):
            refuse(node, f"{keyword} is no text")
        if keyword == "$dynamicRef" and self._dynamic.get(reference.partition("#")[2], 0) > 1:
            refuse(node, "a $dynamicRef with several anchors of that name is not supported")
        uri, fragment = urldefrag(_joined(node.base, reference))
        shown = printable(reference[:_MAX_SHOWN])
        if not fragment.startswith("/") and f"{uri}#{fragment}" in self._by_uri:
            return self._by_uri[f"{uri}#{fragment}"]
        start = self._by_uri.get(f"{uri}#")
        if start is None:
            refuse(node, f"{keyword} {shown!r} is another document, and none is fetched")
        found = self._at(start, unquote(fragment)) if fragment.startswith("/") else None
        if found is None:
            refuse(node, f"{keyword} {shown!r} names nothing")
        return found

    def _at(self, start: Node, pointer: str) -> Node | None:
        value, at, base = start.value, start.at, start.base
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, Mapping) and key in value:
                value = value[key]
            else:
                return None
            at = f"{at}/{escaped(key)}"
            base = _base_of(value, base)
        node = Node(value, at, base)
        require_schema(node)
        return node

    def _index(self) -> None:
        """Finds what has an `$id` or an anchor, and refuses what is no schema."""
        waiting = [(Node(self.root.value, self.root.at), 0)]
        self._by_uri[f"{_BASE}#"] = self.root
        while waiting:
            node, depth = waiting.pop()
            self.spend(node)
            require_schema(node)
            if depth > _MAX_DEPTH:
                refuse(node, f"schemas are nested more than {_MAX_DEPTH} deep")
            base = _base_of(node.value, node.base)
            node = Node(node.value, node.at, base)
            if depth == 0:
                self.root = node
            self._name(node)
            waiting += [(it, depth + 1) for it in _children(node)]

    def _name(self, node: Node) -> None:
        own = node.fields.get("$id", node.fields.get("id"))
        if isinstance(own, str):
            self._by_uri.setdefault(_joined(node.base, own).rstrip("#") + "#", node)
            if own.startswith("#"):
                self._by_uri[f"{node.base}{own}"] = node
        if node.at == self.root.at:
            self._by_uri[f"{node.base}#"] = node
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = node.fields.get(keyword)
            if isinstance(anchor, str):
                self._by_uri[f"{node.base}#{anchor}"] = node
                if keyword == "$dynamicAnchor":
                    self._dynamic[anchor] = self._dynamic.get(anchor, 0) + 1


def require_schema(node: Node) -> None:
    """GrammarError unless it is an object or a boolean."""
    if not isinstance(node.value, (Mapping, bool)):
        refuse(node, "a schema is an object or a boolean")
    if fault := fault_of(node.fields):
        refuse(node, fault)


def _children(node: Node) -> Iterator[Node]:
    """The schemas right inside of one."""
    fields = node.fields
    for keyword in LISTS:
        if isinstance(fields.get(keyword), list):
            yield from (node.child(keyword, n) for n in range(len(fields[keyword])))
    for keyword in MAPS:
        if isinstance(fields.get(keyword), Mapping):
            for key, it in fields[keyword].items():
                if keyword != "dependencies" or not isinstance(it, list):
                    yield node.child(keyword, key)
    for keyword in SINGLE:
        if keyword in fields and not (keyword == "items" and isinstance(fields[keyword], list)):
            yield node.child(keyword)


def _base_of(value: Any, base: str) -> str:
    if not isinstance(value, Mapping) or ("$ref" in value and _is_old(value)):
        return base
    own = value.get("$id", value.get("id"))
    if not isinstance(own, str) or own.startswith("#"):
        return base
    return urldefrag(_joined(base, own))[0]


def _joined(base: str, reference: str) -> str:
    """A reference as a URI; a URN may be a base for fragments."""
    try:
        return base + reference if reference.startswith("#") else urljoin(base, reference)
    except ValueError:
        return reference


def _is_old(root: Any) -> bool:
    said = root.get("$schema") if isinstance(root, Mapping) else None
    return isinstance(said, str) and any(it in said for it in _OLD_DRAFTS)


def _alone(value: Any) -> Any:
    """A schema in which nothing but definitions is beside a `$ref`, as it was until draft 7."""
    if isinstance(value, list):
        return [_alone(it) for it in value]
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("$ref"), str):
        value = {key: it for key, it in value.items() if key in _BESIDE_REF}
    return {key: _alone(it) for key, it in value.items()}

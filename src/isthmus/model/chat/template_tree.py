"""Changes a template's syntax tree so that the template pays for what it does, and reads from it
which words the template has.

The filters that this puts in are `BoundedEnvironment`'s. Their names hold a space, so that no
template can say them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

_NAMED = (nodes.Name, nodes.NSRef)
LOOP, BODY, SEEN, MADE, CONCAT = " loop", " body", " seen", " made", " concat"


@dataclass(frozen=True)
class Vocabulary:
    """The words that a template has."""

    words: frozenset[str]
    """Its string constants, and the names of fields that it reads."""
    names: frozenset[str]
    """Variables that it reads or sets."""
    _compared: Mapping[str, frozenset[str]]
    _read_by: Mapping[str, frozenset[str]]
    """Variables that are set to what a variable says."""

    def compared_with(self, variable: str) -> frozenset[str]:
        """Constants with which the template compares a variable, or one that is set by it."""
        found: set[str] = set()
        seen, todo = {variable}, [variable]
        while todo:
            name = todo.pop()
            found |= self._compared.get(name, frozenset())
            more = self._read_by.get(name, frozenset()) - seen
            seen |= more
            todo += more
        return frozenset(found)


def paying(tree: nodes.Template, environment: jinja2.Environment) -> nodes.Template:
    """The template, which pays. TemplateSyntaxError for what cannot be bounded."""
    changed = cast("nodes.Template", _Paying().visit(tree))
    changed.set_environment(environment)
    return changed


def vocabulary_of(tree: nodes.Template) -> Vocabulary:
    """The words of a template's tree."""
    fields = (it.attr for it in tree.find_all(nodes.Getattr))
    compared: dict[str, set[str]] = {}
    read_by: dict[str, set[str]] = {}
    for it in tree.find_all(nodes.Compare):
        constants = _constants(it)
        for name in _names(it) if constants else ():
            compared.setdefault(name, set()).update(constants)
    for node in tree.find_all(nodes.Assign):
        for name in _names(node.node):
            read_by.setdefault(name, set()).update(_names(node.target))
    return Vocabulary(
        frozenset((*_constants(tree), *fields)),
        frozenset(_names(tree)),
        {name: frozenset(it) for name, it in compared.items()},
        {name: frozenset(it) for name, it in read_by.items()},
    )


def _constants(node: nodes.Node) -> set[str]:
    return {it.value for it in node.find_all(nodes.Const) if isinstance(it.value, str)}


def _names(node: nodes.Node) -> set[str]:
    """Names in a node, itself included."""
    return {it.name for it in (node, *node.find_all(_NAMED)) if isinstance(it, _NAMED)}


class _Paying(NodeTransformer):
    def __init__(self) -> None:
        self._visitors: dict[type[nodes.Node], Callable[..., nodes.Node]] = {
            nodes.For: self._loop,
            nodes.Macro: self._with_paid_body,
            nodes.CallBlock: self._with_paid_body,
            nodes.Block: self._with_paid_body,
            nodes.Template: self._with_paid_body,
            nodes.List: self._made,
            nodes.Dict: self._made,
            nodes.Tuple: self._tuple,
            nodes.Concat: self._concatenated,
            nodes.Getitem: self._item,
            nodes.Compare: self._compared,
        }

    def get_visitor(self, node: nodes.Node) -> Any:
        """What changes such a node; None leaves it as it is."""
        return self._visitors.get(type(node))

    def _loop(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise jinja2.TemplateSyntaxError("loops that call themselves are not run", node.lineno)
        weight = _weight(node)
        self.generic_visit(node)
        node.iter = _filter(node.iter, LOOP, nodes.Const(weight))
        return node

    def _with_paid_body(self, node: Any) -> nodes.Node:
        weight = _weight(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(weight), BODY)))
        return cast("nodes.Node", node)

    def _tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._made(node) if node.ctx == "load" else node

    def _made(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, MADE)

    def _concatenated(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), CONCAT)

    def _item(self, node: nodes.Getitem) -> nodes.Node:
        """A slice is a copy."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter(node.node, SEEN)
        return node

    def _compared(self, node: nodes.Compare) -> nodes.Node:
        """Comparing for equality with a constant costs no more than the constant is long."""
        self.generic_visit(node)
        sides = [node.expr, *(it.expr for it in node.ops)]
        equality = all(it.op in ("eq", "ne") for it in node.ops)
        if not (equality and any(isinstance(it, nodes.Const) for it in sides)):
            node.expr = _filter(node.expr, SEEN)
            for it in node.ops:
                it.expr = _filter(it.expr, SEEN)
        return node


def _filter(value: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None)


def _weight(node: nodes.Node) -> int:
    """Units for running through a part of a template once: its operations, and its own text."""
    parts = list(node.find_all(nodes.Node))
    return len(parts) + sum(len(it.data) for it in parts if isinstance(it, nodes.TemplateData))

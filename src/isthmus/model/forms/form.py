"""The form in which a model writes its answers, found by its chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.abi import GrammarKind
from isthmus.errors import GrammarError, SettingsError
from isthmus.model.forms.calls import Calls
from isthmus.model.forms.lark import Lark, SchemaCheck, WantedCalls, functions_of
from isthmus.model.forms.parser import FORCED, FORCED_LIST, UNKNOWN, Parser
from isthmus.model.forms.thought import Thought
from isthmus.model.forms.tools import Tools

_TOKENS = tuple(map(re.compile, (r"<[^<>\s]+>", r"\[[A-Z_/]+\]", r"｜[^｜<>\s]+｜")))
"""Control tokens that are only a part of a marker."""


@dataclass(frozen=True)
class Form:
    """How a model writes calls of tools and thoughts."""

    name: str
    calls: Calls | None = None
    """None if the template tells none: then a parser takes those of Hermes, and a grammar writes
    bare JSON."""
    thought: Thought | None = None
    """None for a model that does not think, or not between markers."""
    wraps: tuple[tuple[str, str], ...] = ()
    """Markers around an answer's text, which are no part of it."""

    @property
    def controls(self) -> frozenset[str]:
        """Texts that a parser must see where a vocabulary has them as control tokens. All other
        control tokens are rendered as nothing."""
        markers = [it for wrap in self.wraps for it in wrap]
        markers += (self.calls or UNKNOWN).markers
        if self.thought:
            markers += [self.thought.begins, self.thought.ends]
        markers = [it.strip() for it in markers]
        tokens = [it for text in markers for kind in _TOKENS for it in kind.findall(text)]
        return frozenset([*markers, *tokens])

    def parser(
        self,
        tools: Sequence[Mapping[str, Any]] | None,
        in_thought: bool = False,
        forced: bool = False,
    ) -> Parser:
        """A parser of one answer.

        `tools` as OpenAI writes them: calls of other functions are text. Without any, so are all
        calls; None means that nobody knows which there are. `in_thought`: the prompt has opened a
        thought. `forced`: the answer follows `grammar`.
        """
        calls, known = self.calls or UNKNOWN, Tools(tools)
        return Parser(calls, self.thought, self.wraps, known, in_thought=in_thought, forced=forced)

    def grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        name: str | None = None,
        several: bool = False,
        *,
        in_thought: bool = False,
        may_think: bool = False,
        ids: Mapping[str, int] | None = None,
        check: SchemaCheck | None = None,
    ) -> tuple[GrammarKind, str]:
        """The kind and source of a grammar whose texts are calls, in this form, of one of the tools
        or the one called `name`, with arguments by their schemas.

        `in_thought`: the thought that the prompt has opened is finished first. `may_think`: a
        thought may come first, if the prompt has opened none. `ids` has the token of each of
        `controls` that is a control token; other markers are spelled. If no grammar says the form,
        the texts are bare JSON objects, or a list of them. `check` gets to know what of the schemas
        is not enforced, and may end the work. SettingsError if there is no such tool;
        GrammarError if a schema cannot be followed.
        """
        check = check or SchemaCheck()
        functions = functions_of(tools, name, check.strict)
        if not functions:
            raise SettingsError(f"there is no tool called {name}" if name else "there is no tool")
        lark, wanted = Lark(ids, check.check), WantedCalls(functions, several)
        try:
            fits = self.calls is not None and (wanted.plain or self.calls.quotes_names)
            own = self.calls.grammar(lark, wanted) if self.calls and fits else None
            if own is None:
                lark = Lark(ids, check.check)
                own = (FORCED_LIST if several else FORCED).grammar(lark, wanted)
        except RecursionError:
            raise GrammarError("the schema of a tool is nested too deeply") from None
        check.warnings += lark.warnings()
        if self.thought and (in_thought or may_think):
            rest = f"{lark.free(self.thought.ends)} {lark.text(self.thought.between)}"
            whole = f"{lark.text(self.thought.open_text)} {rest}"
            own = f"{rest if in_thought else f'({whole})?'} {own}"
        return GrammarKind.LARK, lark.source(own)


def opens_thought(form: Form, prompt: str) -> bool:
    """Whether a rendered prompt ends in a thought that it has opened itself, as by `<think>`.

    The answer to such a prompt begins with the thought, and has its end but not its beginning.
    """
    return form.thought is not None and prompt.rstrip().endswith(form.thought.begins.rstrip())

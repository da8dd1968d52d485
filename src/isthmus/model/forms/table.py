"""The forms that are known, as data. The first row whose signs a template has is its form."""

from __future__ import annotations

from isthmus.model.forms.form import Form
from isthmus.model.forms.json_calls import JsonCalls
from isthmus.model.forms.recognition import CallForm, ThoughtForm, WrapForm, fitting, signs
from isthmus.model.forms.thought import Thought

CALLS: tuple[CallForm, ...] = (
    CallForm(
        "hermes",
        "Hermes, Qwen 2.5 and 3, SmolLM 3, Granite 4, EXAONE 4",
        JsonCalls(opens=("<tool_call>",), closes="</tool_call>", before="\n", after="\n"),
        signs("<tool_call>"),
    ),
)
THOUGHTS: tuple[ThoughtForm, ...] = (
    ThoughtForm("think", Thought("<think>", "</think>"), signs("<think>")),
)
WRAPS: tuple[WrapForm, ...] = ()

PLAIN = Form("plain")
"""Of a template without tools and thoughts: an answer is text."""


def recognised(template: str) -> Form:
    """The form that a chat template, by its source, is written for; PLAIN if none is known."""
    calls = next(iter(fitting(CALLS, template)), None)
    thought = next(iter(fitting(THOUGHTS, template)), None)
    wraps = tuple((it.begins, it.ends) for it in fitting(WRAPS, template))
    return Form(
        name="+".join(it.name for it in (calls, thought) if it) or PLAIN.name,
        calls=calls.calls if calls else None,
        thought=thought.thought if thought else None,
        wraps=wraps,
    )

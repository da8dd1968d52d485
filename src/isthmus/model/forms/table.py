"""Which form a chat template is written for, by the tables of calls and of thoughts."""

from __future__ import annotations

from isthmus.model.forms.call_forms import CALLS
from isthmus.model.forms.form import Form
from isthmus.model.forms.recognition import fitting
from isthmus.model.forms.thought_forms import THOUGHTS, WRAPS

PLAIN = Form("plain")
"""Form of a template without tools and thoughts."""


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

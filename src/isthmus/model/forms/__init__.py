"""How models write calls of tools and thoughts, and the parsers that take their answers apart.

Text alone: nothing here knows a tokenizer, a device or a server.

::

    form = recognised(template_source)
    parser = form.parser(tools, in_thought=opens_thought(form, prompt))
    for piece in pieces:                    # of any length, as they come
        for event in parser.feed(piece):    # Text, Reasoning, CallBegins, Arguments, CallEnds
            ...
    for event in parser.end():
        ...
"""

from isthmus.model.forms.events import (
    Arguments,
    CallBegins,
    CallEnds,
    Event,
    Reasoning,
    Text,
    joined,
)
from isthmus.model.forms.form import Form, opens_thought
from isthmus.model.forms.lark import SchemaCheck
from isthmus.model.forms.parser import Parser
from isthmus.model.forms.table import PLAIN, recognised
from isthmus.model.forms.thought import Thought

__all__ = [
    "PLAIN",
    "Arguments",
    "CallBegins",
    "CallEnds",
    "Event",
    "Form",
    "Parser",
    "Reasoning",
    "SchemaCheck",
    "Text",
    "Thought",
    "joined",
    "opens_thought",
    "recognised",
]

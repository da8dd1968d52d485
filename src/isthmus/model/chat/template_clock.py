"""The clock of chat templates: what `strftime_now` gives, in a form that has bounds.

A template has the caller's clock and never the machine's, so the same request gives the same text.
"""

from __future__ import annotations

import re
from datetime import datetime

from isthmus.errors import TemplateError

NO_CLOCK = datetime(2024, 7, 26)
"""The time of callers who give none: the date that Llama 3's templates have for such a case."""
_MAX_FORMAT = 256
"""Characters of a format."""
_DIRECTIVE = re.compile(r"%(?!-?[aAbBcdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZf%])")
"""A percent sign that begins no known directive. Widths are unknown: `%999999999d` fills memory;
so is `%s`, which would ask the machine for its time zone."""


def strftime(now: datetime, form: object) -> str:
    """The time as text, as C's strftime writes it.

    `now` is a wall clock's time: its time zone, if it has one, is not told, so `%z` and `%Z` are
    empty, as in Transformers. TemplateError for a format that is no text, has more than 256
    characters, or has a directive with a width or of an unknown name.
    """
    if not isinstance(form, str) or len(form) > _MAX_FORMAT:
        raise TemplateError(f"strftime_now takes a format of up to {_MAX_FORMAT} characters")
    unknown = _DIRECTIVE.search(form.replace("%%", "  "))
    if unknown:
        said = form.replace("%%", "  ")[unknown.start() : unknown.start() + 8]
        raise TemplateError(f"strftime_now knows no directive {said!r}")
    return now.replace(tzinfo=None).strftime(form)

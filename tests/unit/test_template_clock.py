"""`strftime_now`: the caller's time, in a form that has bounds."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from isthmus.errors import TemplateError
from isthmus.model.chat.template_clock import NO_CLOCK, strftime

NOW = datetime(2031, 5, 6, 17, 8, 9)


def test_directives_that_templates_use() -> None:
    assert strftime(NOW, "%d %b %Y, %B %A %H:%M:%S") == "06 May 2031, May Tuesday 17:08:09"
    assert strftime(NOW, "%-d/%-m/%y %j %I %p 100%% %%s") == "6/5/31 126 05 PM 100% %s"
    assert strftime(NO_CLOCK, "%d %b %Y") == "26 Jul 2024"
    assert strftime(NOW, "") == ""


def test_a_time_zone_is_not_told() -> None:
    """As in Transformers, whose clock has none."""
    zoned = NOW.replace(tzinfo=timezone(timedelta(hours=5)))
    assert strftime(zoned, "%H:%M %z|%Z|") == strftime(NOW, "%H:%M %z|%Z|") == "17:08 ||"


@pytest.mark.parametrize(
    "form",
    [
        "%999999999d",
        "%%%999999999d",
        "%_9d",
        "%+4Y",
        "%s",
        "%Ey",
        "%Q",
        "%",
        "100%",
        "%-",
        "x" * 257,
        None,
        7,
    ],
)
def test_formats_that_are_refused(form: object) -> None:
    with pytest.raises(TemplateError, match="strftime_now"):
        strftime(NOW, form)

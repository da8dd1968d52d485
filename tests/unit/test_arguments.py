"""Options for guests, by name and of any JSON type."""

from __future__ import annotations

import pytest

from isthmus.errors import SettingsError
from isthmus.runtime.arguments import options_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("two words", "two words"),
        (0.2, "0.2"),
        (40, "40"),
        (True, "1"),
        (False, "0"),
        ({"type": "string", "enum": ["ä"]}, '{"type": "string", "enum": ["ä"]}'),
        ([1, None, True], "[1, null, true]"),
    ],
)
def test_values_are_written_as_guests_read_them(value: object, text: str) -> None:
    assert options_of((), {"it": value}) == options_of({"it": value}) == (f"it={text}",)


def test_none_is_as_if_not_given() -> None:
    assert options_of(["a=1"], {"b": None}) == ("a=1",)


@pytest.mark.parametrize("value", [b"bytes", float("nan"), object(), {"a": {1, 2}}])
def test_what_is_no_json_is_refused_by_name(value: object) -> None:
    with pytest.raises(SettingsError, match="the option it is of the type"):
        options_of((), {"it": value})


def test_an_option_in_both_ways_is_refused() -> None:
    with pytest.raises(SettingsError, match="temperature is given twice"):
        options_of({"temperature": 0}, {"temperature": 1})

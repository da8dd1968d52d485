"""Metrics say what they are."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client.parser import text_string_to_metric_families

from isthmus import Runtime
from isthmus.counters import Counters
from isthmus.metrics import COUNTS


def test_every_count_says_what_it_counts() -> None:
    assert set(COUNTS) == {it.name for it in fields(Counters)}


def test_every_metric_has_a_text_that_is_more_than_its_name(null_runtime: Runtime) -> None:
    families = list(text_string_to_metric_families(null_runtime.metrics()))
    assert len(families) > 20
    for family in families:
        words = family.documentation.split()
        assert len(words) > 3, family.name
        assert words[0][0].isupper()
        assert family.documentation.lower() != family.name.replace("_", " ")

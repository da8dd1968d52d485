"""Durations, wherever a server takes them: on the command line, in its file, in requests."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from isthmus.cli.serve import add_arguments
from isthmus.errors import SettingsError
from isthmus.server.duration import FOREVER, seconds_of
from isthmus.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("30s", 30), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("2d", 172_800), ("300ms", 0.3),
        ("0", 0), ("10", 10), ("12.5", 12.5), (" 5m ", 300), ("-1", FOREVER), ("-5m", FOREVER),
        (0, 0), (-7, FOREVER), (12.5, 12.5), (1e300, 1e9), ("999999999999d", 1e9),
    ],
)  # fmt: skip
def test_durations(given: str | float, seconds: float) -> None:
    assert seconds_of(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "m", "5 m", "5x", "1.2.3s", "--1", "nan", "5" * 400])
def test_what_is_no_duration(given: str) -> None:
    with pytest.raises(SettingsError, match="is no duration: give one such as 30s, 5m"):
        seconds_of(given)


@pytest.mark.parametrize(("given", "seconds"), [("5m", 300), ("0", 0), ("-1", -1), ("1.5", 1.5)])
def test_on_the_command_line(given: str, seconds: float) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = vars(parser.parse_args(["--keep-alive", given]))
    settings = ServerSettings.make(None, {"keep_alive_s": options["keep_alive_s"]})
    assert settings.keep_alive_s == seconds


def test_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('keep_alive_s = "1h"\ndeadline_s = "2m"\nidle_s = 5\nguest_kept_s = "7d"\n')
    settings = ServerSettings.make(file, {})
    assert (settings.keep_alive_s, settings.deadline_s) == (3600, 120)
    assert (settings.idle_s, settings.guest_kept_s) == (5, 604_800)
    for text, said in (
        (
            'keep_alive_s = "soon"',
            "keep_alive_s is 'soon': give seconds, or a duration such as 30s",
        ),
        ('deadline_s = "0"', "deadline_s is 0.0: give seconds, or a duration such as 30s"),
        ('deadline_s = "-5m"', "more than 0"),
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=said):
            ServerSettings.make(file, {})

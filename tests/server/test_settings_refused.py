"""Settings that are wrong: each of a file, of a variable and of an option is told in one line."""

from __future__ import annotations

import argparse
import functools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from isthmus import cli
from isthmus.cli import serve
from isthmus.server.kinds import KINDS
from isthmus.server.settings import ServerSettings

TOO_LARGE = str(2**63)
LONG = "9" * 5000
"""A number that Python itself reads from no text."""
WHOLE = ("many", "1.5", "true", TOO_LARGE, LONG)
SECONDS = ("soon", "1x", "1 m")
SWITCH = ("perhaps", "2")
BELOW = {
    "-1": ("port", "threads", "waiting", "guests", "guests_nbytes", "checkpoints", "save_tokens"),
    "0": ("slots", "live", "n_ctx", "responses", "max_tokens", "concurrent", "connections"),
    "1023": ("body_nbytes", "json_nbytes", "bodies_nbytes", "upload_nbytes", "output_nbytes"),
    "1048575": ("models_nbytes", "memory_nbytes"),
}
"""Whole numbers that are just too small, and for which settings."""
ABOVE = {"port": "65536", "threads": "513", "checkpoints": "65", "slots": "4097", "live": "4097"}
DURATIONS = {
    **dict.fromkeys(("guest_kept_s", "responses_kept_s", "deadline_s"), ("0", "-1")),
    **dict.fromkeys(("head_s", "idle_s", "stalled_s", "silent_s"), ("0", "-1")),
    "lease_s": ("0", "2d"),
    "save_s": ("-1", "2d"),
    "drain_s": ("-1", "3601"),
    "keep_alive_s": (),
}
SWITCHES = (
    *("memory64", "share_beginnings", "share_agents"),
    *("deterministic", "inexact", "repack", "message_checkpoints"),
)
TEXTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("log_format", "log_level", "sharing", "caches"), ("none such",)),
    **dict.fromkeys(("kv_type", "graph", "width"), ("none such",)),
    **dict.fromkeys(("host", "data", "cache", "keys", "models_folder", "device", "ggml"), ()),
    **dict.fromkeys(("model", "lora", "mmproj"), ()),
    "origins": ("https://a.example/path", "a.example", "https://"),
    "hosts": ("a.example:80", "a b"),
    "proxies": ("10.0.0.0/33", "a.example"),
    "media_hosts": ("http://a.example", "a b"),
    "advertise": ("10.0.0.7:8080", "http://10.0.0.7:8080/path"),
    "traces": ("localhost:4318", "http://"),
    "aliases": ("gpt", "=llama", "gpt=", "gpt=a,gpt=b"),
    "models": ("gpt", "=llama", "gpt=", "gpt=a,gpt=b"),
    "tools": ("today", "=date", "today=", "a b=date"),
}
"""Texts that settings may not be, as a variable has them."""
TABLES = ("aliases", "models", "tools")


def wrong_texts() -> dict[str, tuple[str, ...]]:
    """What each setting may not be, as a variable or an option has it."""
    wrong = {
        name: (*WHOLE, less, *((ABOVE[name],) if name in ABOVE else ()))
        for less, names in BELOW.items()
        for name in names
    }
    wrong |= {name: (*SECONDS, *more) for name, more in DURATIONS.items()}
    return wrong | dict.fromkeys(SWITCHES, SWITCH) | TEXTS


WRONG = wrong_texts()
IN_FILES = {
    "wrong types": ("[[]]", "1979-05-27", "{ a = [1] }"),
    "whole": ("true", '"1"', "1.5", TOO_LARGE, LONG, "nan"),
    "seconds": ("true", "nan", "inf", "1e300", '"soon"'),
    "switch": ("0", '"true"'),
    "text": ("7", '""', r'"a\u0000b"', "true"),
    "list": ("7", '[""]', "[7]", r'["a\u0000b"]', '[["a"]]'),
    "table": ("7", '"a"', '["a"]', "{ a = 7 }", '{ "" = "a" }', r'{ a = "a\u0000b" }'),
}
"""What settings of a kind may not be, in TOML."""


def kind_of(name: str) -> str:
    if name in DURATIONS:
        return "seconds"
    if name in SWITCHES:
        return "switch"
    if name in TABLES:
        return "table"
    if name in ("model", "lora", "mmproj", "origins", "hosts", "proxies", "media_hosts"):
        return "list"
    return "text" if name in TEXTS else "whole"


@functools.cache
def parser() -> argparse.ArgumentParser:
    return cli.build_parser()


def options() -> dict[str, str]:
    """The option of each setting that has one."""
    (found,) = (it for it in parser()._actions if isinstance(it, argparse._SubParsersAction))
    actions = found.choices["serve"]._actions
    return {it.dest: it.option_strings[0] for it in reversed(actions) if it.dest in KINDS}


OPTIONS = options()


Serve = Callable[..., str]


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Serve]:
    """Runs `isthmus serve`, which must refuse its settings before it opens anything, in one line
    and with the status 2; gives the line."""

    def opened(*_: object) -> NoReturn:
        raise AssertionError("the settings were taken")

    monkeypatch.setattr(cli, "build_parser", parser)
    monkeypatch.setattr(serve, "open_runtime", opened)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        try:
            status = cli.main(["serve", *words])
        except SystemExit as end:  # the parser's own way
            status = int(str(end.code))
        said = capsys.readouterr().err
        assert status == 2, said
        assert said.count("\n") == 1, said
        assert len(said) < 6000 if LONG in said else len(said) < 600
        assert "Traceback" not in said
        return said

    level = logging.getLogger().level
    yield run
    logging.getLogger().setLevel(level)


def test_the_table_has_every_setting() -> None:
    assert {*WRONG} == {*KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_a_setting_of_the_file(name: str, refused: Serve, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    for value in (*IN_FILES["wrong types"], *IN_FILES[kind_of(name)]):
        if (name, value) in (("model", '"a"'), ("tools", '{ "" = "a" }')):
            continue
        file.write_text(f"{name} = {value}\n")
        said = refused("--config", str(file))
        assert str(file) in said
        assert name in said or value == LONG, said  # TOML's own reader says where that is
    file.write_text(f"{name} = 1\n{name} = 2\n")
    assert "is not TOML" in refused("--config", str(file))


@pytest.mark.parametrize("name", KINDS)
def test_a_variable(name: str, refused: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = {"cache": "ISTHMUS_DATA_CACHE"}.get(name, f"ISTHMUS_{name.upper()}")
    for text in WRONG[name]:
        monkeypatch.setenv(variable, text)
        assert variable in refused(), text


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option(name: str, refused: Serve) -> None:
    for text in (*WRONG[name], *(() if kind_of(name) != "text" else ("",))):
        said = refused(f"{OPTIONS[name]}={text}")
        assert name in said or OPTIONS[name] in said, said


@pytest.mark.parametrize("name", [it for it in OPTIONS if kind_of(it) in ("whole", "text")])
def test_of_an_option_that_is_given_twice_the_last_one_holds(name: str) -> None:
    first, last = {"whole": ("1", "2")}.get(kind_of(name), ("a", "b"))
    choices = {
        **dict.fromkeys(("log_format",), ("line", "json")),
        **dict.fromkeys(("log_level",), ("debug", "error")),
        **dict.fromkeys(("sharing",), ("same", "copied")),
        **dict.fromkeys(("caches",), ("guest", "own")),
        **dict.fromkeys(("kv_type",), ("f16", "f32")),
        **dict.fromkeys(("graph",), ("own", "adopted")),
    }
    first, last = choices.get(name, (first, last))
    found = parser().parse_args(["serve", OPTIONS[name], first, OPTIONS[name], last])
    assert str(getattr(found, name)) == last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--host 0.0.0.0", "can be reached from other machines: give --keys FILE"),
        ("--cache copy", "cache is for agents at a URL, and data is the folder isthmus-data"),
        ("--keys s3://bucket/keys", "only data may be a URL"),
        ("--slots 2000 --live 97", "slots is 2000 and live is 97, which may be 4097 messages"),
        ("--slots 1000 --live 49 --keys k", "which may be 4098 messages"),
        ("--limit rpm=1", "--limit is for a new key: give --new-key NAME too"),
        ("--new-key ada", "give --keys FILE"),
        ("--model scripted:a --alias gpt", "--alias gpt: give NAME=MODEL"),
        ("--model scripted:a --alias a=b --alias a=c", "--alias a=c: a is given twice"),
        ("--models none", "models_folder is none: there is no such folder"),
        ("--tool today", "--tool today: give NAME=COMMAND or NAME=MODULE:FUNCTION"),
        ("--config none.toml", "cannot read none.toml: No such file or directory"),
        ("--config .", "cannot read .: Is a directory"),
        ("--config ~nobody-here/s.toml", "cannot read ~nobody-here/s.toml: No such file"),
        ("--log-level loud", "invalid choice: 'loud'"),
        ("--memory64=yes", "ignored explicit argument 'yes'"),
    ],
)
def test_what_is_contradictory_or_is_not_there(words: str, said: str, refused: Serve) -> None:
    assert said in refused(*words.replace("scripted:a", "fake:hello").split())


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000, "\0", "port"])
def test_a_file_that_is_no_toml(text: str, refused: Serve, tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text(text)
    assert "server.toml is not TOML: " in refused("--config", "server.toml")


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("keep_alive", "keep_alive_s"),
        ("keep-alive", "keep_alive_s"),
        ("n-ctx", "n_ctx"),
        ("alias", "aliases"),
        ("tool", "tools"),
        ("fetch", "tools"),
        ("mcp", "tools"),
        ("tools_file", "tools"),
        ("idle", "idle_s"),
        ("memory_bytes", "memory_nbytes"),
    ],
)
def test_a_setting_of_another_name_is_told_by_its_own(
    name: str, now: str, refused: Serve, tmp_path: Path
) -> None:
    (tmp_path / "server.toml").write_text(f"{name} = 1\n")
    said = refused("--config", "server.toml")
    assert said == f"isthmus: server.toml: there is no setting {name}: did you mean {now}?\n"


RELEASED = [
    "host",
    "port",
    "data",
    "cache",
    "keys",
    "n_ctx",
    "model",
    "lora",
    "mmproj",
    "models",
    "models_folder",
    "aliases",
    "tools",
    "models_nbytes",
    "keep_alive_s",
    "slots",
    "memory64",
    "memory_nbytes",
    "waiting",
    "share_beginnings",
    "share_agents",
    "guests",
    "guests_nbytes",
    "guest_kept_s",
    "responses",
    "responses_kept_s",
    "live",
    "max_tokens",
    "deadline_s",
    "body_nbytes",
    "json_nbytes",
    "bodies_nbytes",
    "upload_nbytes",
    "concurrent",
    "output_nbytes",
    "connections",
    "head_s",
    "idle_s",
    "stalled_s",
    "silent_s",
    "drain_s",
    "origins",
    "hosts",
    "proxies",
    "media_hosts",
    "advertise",
    "lease_s",
    "traces",
    "log_format",
    "device",
    "threads",
    "sharing",
    "caches",
    "ggml",
    "kv_type",
    "deterministic",
    "inexact",
    "width",
    "repack",
    "checkpoints",
    "message_checkpoints",
    "graph",
]
"""Settings of version 0.2.0. None was ever renamed or dropped; one that is, is told by its new name
(`settings._OPTIONS`)."""


@pytest.mark.parametrize("name", RELEASED)
def test_a_setting_of_an_older_release_is_one_or_is_told(
    name: str, refused: Serve, tmp_path: Path
) -> None:
    (tmp_path / "server.toml").write_text(f"{name} = [[]]\n")
    said = refused("--config", "server.toml")
    assert re.match(rf"isthmus: server.toml: {name} is \[\[\]\]: give .", said) or (
        f"there is no setting {name}: did you mean " in said
    )


def test_a_file_of_an_older_release_is_taken(tmp_path: Path) -> None:
    """The first file that docs/server.md showed."""
    file = tmp_path / "server.toml"
    file.write_text(
        'port = 8080\ndata = "/var/lib/isthmus"\nkeys = "/etc/isthmus/keys"\n'
        "slots = 16\nlive = 64\n"
    )
    settings = ServerSettings.make(file, {})
    assert (settings.port, settings.slots, settings.live) == (8080, 16, 64)


@pytest.mark.parametrize(
    ("words", "level"),
    [("", logging.DEBUG), ("-v", logging.INFO), ("--log-level=error", logging.ERROR)],
)
def test_the_level_of_the_log_is_a_setting(
    words: str, level: int, refused: Serve, tmp_path: Path
) -> None:
    (tmp_path / "server.toml").write_text('log_level = "debug"\nmodels_folder = "none"\n')
    assert "models_folder" in refused("--config", "server.toml", *words.split())
    assert logging.getLogger().level == level

from __future__ import annotations

import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from isthmus.config import DeviceSettings, Environment, Limits, ModelSettings
from isthmus.errors import SettingsError


def test_environment_names_the_cache() -> None:
    assert Environment.read({"ISTHMUS_CACHE": "/a"}).cache == Path("/a")
    assert Environment.read({"XDG_CACHE_HOME": "/b"}).cache == Path("/b/isthmus")
    assert Environment.read({"HOME": "/c"}).cache in (
        Path("/c/.cache/isthmus"),
        Path("/c/Library/Caches/isthmus"),
    )
    assert Environment.read({"ISTHMUS_GGML": "/lib.so"}).ggml == "/lib.so"
    assert Environment.read({"ISTHMUS_GGML": ""}).ggml is None


def test_environment_names_the_hub_and_the_index() -> None:
    usual = Environment.read({"HF_ENDPOINT": "", "HF_TOKEN": ""})
    assert (usual.hub_url, usual.hub_token) == ("https://huggingface.co", None)
    assert usual.index_url == "https://pypi.org/simple"
    said = Environment.read({"HF_ENDPOINT": "http://hub", "HF_TOKEN": "s3cret"})
    assert (said.hub_url, said.hub_token) == ("http://hub", "s3cret")
    assert "s3cret" not in repr(said)
    names = {"PIP_INDEX_URL": "http://pip", "UV_INDEX_URL": "http://old"}
    assert Environment.read(names).index_url == "http://old"
    assert Environment.read({**names, "UV_DEFAULT_INDEX": "http://uv"}).index_url == "http://uv"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limits(memory_nbytes=1),
        lambda: Limits(memory_nbytes=(1 << 40) + 1),
        lambda: Limits(deadline_s=-1),
        lambda: Limits(tokens=-1),
        lambda: DeviceSettings(threads=-1),
        lambda: DeviceSettings(poll=101),
        lambda: ModelSettings(kv_type="f64"),
        lambda: ModelSettings(prefill_chunk=0),
    ],
)
def test_values_out_of_range(make: object) -> None:
    with pytest.raises(SettingsError, match="give"):
        make()  # type: ignore[operator]


def test_threads_default_to_the_processors() -> None:
    assert DeviceSettings().n_threads >= 1
    assert DeviceSettings(threads=3).n_threads == 3


def test_a_home_that_nobody_has_is_a_folder_that_is_not_there() -> None:
    variables = {"ISTHMUS_CACHE": "~nobody-here/models", "ISTHMUS_SNAPSHOT_KEY_FILE": "~no-one/key"}
    environment = Environment.read(variables)
    assert environment.cache == Path("~nobody-here/models")
    assert environment.snapshot_key_file == Path("~no-one/key")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run with a user's number of which the system knows nothing."""

    def unknown(_: int) -> NoReturn:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(SettingsError, match="this user has no home folder: set ISTHMUS_CACHE"):
        Environment.read({})
    assert Environment.read({"ISTHMUS_CACHE": "/data"}).cache == Path("/data")

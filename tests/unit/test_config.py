from __future__ import annotations

from pathlib import Path

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

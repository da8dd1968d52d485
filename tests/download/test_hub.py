"""Pulling from a hub: which file is chosen, whose it is, and what is refused."""

from __future__ import annotations

import os
import socket
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isthmus.config import Environment
from isthmus.download import KNOWN, HubModel, Progress, fetched, pull, shelf
from isthmus.download.hub import choose
from isthmus.download.names import HubName, is_name, parse
from isthmus.download.quants import PREFERRED, quant_of
from isthmus.errors import DownloadError
from tests.download.conftest import Pull, files
from tests.download.hub import COMMIT, FakeHub, Reply, served

DATA = b"GGUF and so on" * 10_000
REPO = "org/model-GGUF"
SHARDS = {f"Q4/big-Q8_0-0000{n}-of-00003.gguf": DATA + bytes([n]) for n in (1, 2, 3)}


@pytest.fixture
def repo(hub: FakeHub) -> dict[str, bytes]:
    """The files of a repository, which may be changed."""
    hub.repos[REPO] = {
        "README.md": b"hello",
        "model-Q4_K_M.gguf": DATA,
        "model-Q8_0.gguf": DATA * 2,
        "mmproj-model-Q4_K_M.gguf": b"another",
        "model.imatrix.gguf": b"data",
    }
    return hub.repos[REPO]


def test_fetches_what_is_preferred(
    hub: FakeHub,
    repo: dict[str, bytes],
    pulled: Pull,
    cache: Path,
    lines: list[str],
    seen: list[Progress],
) -> None:
    path = pulled(f"hf:{REPO}")
    assert path == cache / "models" / "model-Q4_K_M.gguf"
    assert path.read_bytes() == DATA
    assert files(cache) == ["models/model-Q4_K_M.gguf"]
    assert "model-Q4_K_M.gguf from org/model-GGUF on the hub, 136.7 KiB" in lines[0]
    assert seen[-1].done == seen[-1].nbytes == len(DATA)
    assert COMMIT in hub.files_asked()[0].path


def test_each_way_to_name_a_file(repo: dict[str, bytes], pulled: Pull, cache: Path) -> None:
    named = {
        f"hf:{REPO}:q8_0": "model-Q8_0.gguf",
        f"hf:{REPO}/model-Q8_0.gguf": "model-Q8_0.gguf",
        f"hf.co/{REPO}:Q4_K_M": "model-Q4_K_M.gguf",
        f"https://huggingface.co/{REPO}:latest": "model-Q4_K_M.gguf",
    }
    for name, file in named.items():
        assert fetched(name, cache) is None or "Q8_0" not in file or name.endswith("0.gguf")
        path = pulled(name)
        assert path.name == file
        assert fetched(name, cache) == path
    assert fetched(f"hf:{REPO}", cache) == cache / "models" / "model-Q4_K_M.gguf"
    assert fetched(f"hf:{REPO}:Q2_K", cache) is None
    assert fetched("hf:other/model", cache) is None
    assert fetched("model.gguf", cache) is None


def test_the_second_time_no_byte_is_fetched(
    hub: FakeHub, repo: dict[str, bytes], pulled: Pull, lines: list[str]
) -> None:
    path = pulled(f"hf:{REPO}")
    again = pulled(f"hf:{REPO}")
    assert path == again
    assert len(hub.files_asked()) == 1
    assert "already there" in lines[-1]


def test_a_newer_revision_takes_the_place_of_the_file(
    repo: dict[str, bytes], pulled: Pull, cache: Path
) -> None:
    path = pulled(f"hf:{REPO}")
    with path.open("rb") as mapped:
        repo["model-Q4_K_M.gguf"] = b"new"
        assert pulled(f"hf:{REPO}", revision="v1").read_bytes() == b"new"
        assert mapped.read() == DATA  # who has it open keeps it
    assert files(cache) == ["models/model-Q4_K_M.gguf"]


def test_a_file_of_somebody_else_stays(repo: dict[str, bytes], pulled: Pull, cache: Path) -> None:
    place = cache / "models" / "model-Q4_K_M.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="another file of that name"):
        pulled(f"hf:{REPO}")
    assert place.read_bytes() == b"mine"
    place.write_bytes(DATA)  # the same bytes are the same file
    assert pulled(f"hf:{REPO}") == place
    place.unlink()
    place.mkdir()
    with pytest.raises(DownloadError, match="exists and is no file"):
        pulled(f"hf:{REPO}")


def test_a_split_model_comes_whole(hub: FakeHub, pulled: Pull, cache: Path) -> None:
    hub.repos[REPO] = dict(SHARDS)
    path = pulled(f"hf:{REPO}")
    assert path == cache / "models" / "big-Q8_0-00001-of-00003.gguf"
    assert files(cache) == [f"models/big-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert fetched(f"hf:{REPO}:Q8_0", cache) == path
    (cache / "models" / "big-Q8_0-00002-of-00003.gguf").unlink()
    pulled(f"hf:{REPO}/Q4/big-Q8_0-00003-of-00003.gguf")
    assert len(files(cache)) == 3
    assert len(hub.files_asked()) == 4  # the others were not fetched again


def test_a_split_model_is_seen_once_it_is_whole(
    hub: FakeHub, pulled: Pull, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[REPO] = dict(SHARDS)
    replace, moved = os.replace, []

    def note(source: Any, target: Any) -> None:
        replace(source, target)
        moved.extend(Path(target).name[-19:-5] for _ in "1" if str(target).endswith(".gguf"))

    monkeypatch.setattr(shelf.os, "replace", note)
    pulled(f"hf:{REPO}")
    assert moved == ["00003-of-00003", "00002-of-00003", "00001-of-00003"]


def test_well_known_names(hub: FakeHub, pulled: Pull, cache: Path) -> None:
    known = KNOWN["llama3.2:1b"]
    assert isinstance(known, HubModel)
    hub.repos[known.repo] = {known.file: DATA}
    assert fetched(known.name, cache) is None
    path = pulled(known.name)
    assert path == fetched(known.name, cache) == cache / "models" / known.file_name
    assert fetched(f"hf:{known.repo}", cache) == path
    hub.repos[known.repo] = {"other-Q4_K_M.gguf": DATA}
    path.unlink()
    with pytest.raises(DownloadError, match=r"has no file Llama-3.2.*it has other-Q4_K_M\.gguf"):
        pulled(known.name)


def test_the_table_of_well_known_names() -> None:
    for name, it in KNOWN.items():
        assert name == it.name
        assert it.file_name.endswith(".gguf")
        assert is_name(name)
    assert len({it.file_name for it in KNOWN.values()}) == len(KNOWN)


# ---------------------------------------------------------------------------------- secrets


def test_private_repositories(hub: FakeHub, repo: dict[str, bytes], pulled: Pull) -> None:
    hub.token = "s3cret"
    with pytest.raises(DownloadError, match="set HF_TOKEN") as caught:
        pulled(f"hf:{REPO}", token="wr0ng")
    assert "wr0ng" not in str(caught.value)
    assert pulled(f"hf:{REPO}", token="s3cret").is_file()
    assert "s3cret" not in repr(Environment(hub_token="s3cret"))


def test_the_token_goes_to_the_hub_alone(
    hub: FakeHub, repo: dict[str, bytes], pulled: Pull, lines: list[str]
) -> None:
    hub.token = "s3cret"
    with served(FakeHub(repos=hub.repos)) as other:
        hub.to = other.url
        assert pulled(f"hf:{REPO}", token="s3cret").read_bytes() == DATA
        [asked] = other.files_asked()
        assert "authorization" not in asked.headers
        assert all("s3cret" not in it for it in lines)
        other.lie = lambda asked, reply: Reply(404)
        with pytest.raises(DownloadError) as caught:
            pulled(f"hf:{REPO}:Q8_0", token="s3cret")
        assert "signature" not in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_where_a_hub_may_lead(hub: FakeHub, repo: dict[str, bytes], pulled: Pull) -> None:
    for url in ("ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x"):
        hub.lie = lambda asked, reply, url=url: Reply(302, {"Location": url})
        with pytest.raises(DownloadError, match=r"not followed|answers 302"):
            pulled(f"hf:{REPO}")
    for url in ("http://a..b/x", f"http://{'a' * 64}.org/x", "http://[::1", "http://[]/"):
        hub.lie = lambda asked, reply, url=url: Reply(302, {"Location": url})
        with pytest.raises(DownloadError, match="leads to, what is no URL"):
            pulled(f"hf:{REPO}")
    hub.lie = lambda asked, reply: Reply(302, {"Location": f"{asked.path}x"})
    hub.repos[REPO] |= {f"model-Q4_K_M.gguf{'x' * n}": DATA for n in range(20)}
    with pytest.raises(DownloadError, match="redirect"):
        pulled(f"hf:{REPO}/model-Q4_K_M.gguf")
    assert len(hub.files_asked()) < 20


# ---------------------------------------------------------------------------------- refusals


def first(listing: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = listing["siblings"][1]
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: first(it).update(lfs=None), "gives no SHA-256"),
        (lambda it: first(it)["lfs"].update(sha256="../x"), "gives no SHA-256"),
        (lambda it: first(it)["lfs"].update(size=-5), "has -5 bytes"),
        (lambda it: first(it)["lfs"].update(size=1 << 60), "has 1152921504606846976 bytes"),
        (lambda it: first(it)["lfs"].update(size="many"), "is not understood"),
        (lambda it: it.update(sha="../../main"), "is at the commit"),
        (lambda it: it.pop("siblings"), "is not understood"),
        (lambda it: first(it).update(rfilename="../x.gguf"), r"named '\.\./x\.gguf': nothing"),
        (lambda it: first(it).update(rfilename="/etc/x.gguf"), "nothing of it is fetched"),
        (lambda it: first(it).update(rfilename="a/../../x.gguf"), "nothing of it is fetched"),
        (lambda it: first(it).update(rfilename=".hidden.gguf"), "nothing of it is fetched"),
        (lambda it: first(it).update(rfilename="a\\b.gguf"), "nothing of it is fetched"),
        (lambda it: first(it).update(rfilename="a\x1b[2J.gguf"), "nothing of it is fetched"),
        (lambda it: first(it).update(rfilename="\ud800.gguf"), "nothing of it|not understood"),
        (lambda it: first(it).update(rfilename="x" * 300 + ".gguf"), "nothing of it is fetched"),
    ],
)
def test_listings_that_are_not_believed(
    change: Callable[[dict[str, Any]], object],
    said: str,
    hub: FakeHub,
    repo: dict[str, bytes],
    pulled: Pull,
    tmp_path: Path,
    cache: Path,
) -> None:
    hub.listed = change
    with pytest.raises(DownloadError, match=said):
        pulled(f"hf:{REPO}")
    assert files(tmp_path) == []


def test_an_answer_that_is_too_long(
    hub: FakeHub, pulled: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.download.http._MAX_ANSWER_NBYTES", 100)
    hub.repos[REPO] = {"a.gguf": DATA}
    with pytest.raises(DownloadError, match="more than 100 bytes"):
        pulled(f"hf:{REPO}")


def test_no_room_on_the_disk(
    hub: FakeHub, repo: dict[str, bytes], pulled: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: usage(1, 1, 100_000))
    with pytest.raises(DownloadError, match=r"97\.7 KiB free, and 136\.7 KiB are to come"):
        pulled(f"hf:{REPO}")
    assert hub.files_asked() == []


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_nobody_there(repo: dict[str, bytes], pulled: Pull, cache: Path, nobody: str) -> None:
    said: list[str] = []
    path = pulled(f"hf:{REPO}:Q8_0")
    environment = Environment(cache=cache, hub_url=nobody)
    for name in (REPO, f"{REPO}:Q8_0", f"{REPO}/model-Q8_0.gguf"):
        assert pull(f"hf:{name}", environment, said.append) == path
    assert "Connection refused); model-Q8_0.gguf is there" in said[0]
    with pytest.raises(DownloadError, match="Check the network"):
        pull(f"hf:{REPO}:Q8_0", environment, print, revision="main")
    path.unlink()
    with pytest.raises(DownloadError, match="Check the network"):
        pull(f"hf:{REPO}", environment, print)
    for url in ("ftp://host/x", "nonsense", "http://[", "http://host:99999999"):
        with pytest.raises(DownloadError):
            pull(f"hf:{REPO}", Environment(cache=cache, hub_url=url), print)


def test_a_proxy_of_the_environment(
    hub: FakeHub, repo: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.delenv("no_proxy", raising=False)
    environment = Environment(cache=cache, hub_url="http://hub.invalid")
    assert pull(f"hf:{REPO}", environment, print).read_bytes() == DATA
    assert all(it.path.startswith("http://hub.invalid/") for it in hub.asked)
    n_asked = len(hub.asked)
    monkeypatch.setenv("http_proxy", "http://user:s3cret@127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"hub\.invalid through the proxy 127\.0\.0\.1:9: "):
        pull(f"hf:{REPO}", environment, print, revision="main")
    monkeypatch.setenv("no_proxy", "hub.invalid")
    with pytest.raises(DownloadError, match="Check the network"):
        pull(f"hf:{REPO}", environment, print, revision="main")
    assert len(hub.asked) == n_asked


# ---------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("stem", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "Q4_1"),
        ("qwen2.5-0.5b-instruct-q4_k_m", "Q4_K_M"),
        ("Qwen3-4B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-IQ2_XXS", "IQ2_XXS"),
        ("model.f16", "F16"),
        ("Qwen3-0.6B", ""),
        ("", ""),
    ],
)
def test_quantisations_by_name(stem: str, quant: str) -> None:
    assert quant_of(stem) == quant


def test_the_order_of_preference() -> None:
    names = [f"m-{it}.gguf" for it in PREFERRED]
    while names:
        assert choose(HubName("a/b"), names[::-1]) == [names[0]]
        names.pop(0)
    assert choose(HubName("a/b"), ["only.gguf"]) == ["only.gguf"]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (HubName("a/b"), ["x.bin"], r"a/b has no \.gguf files"),
        (HubName("a/b", quant="Q2_K"), ["m-Q4_0.gguf"], "none in Q2_K; it has Q4_0"),
        (HubName("a/b"), ["a.gguf", "b-ODD.gguf"], "2 models: give hf:a/b/FILE"),
        (HubName("a/b"), ["a-Q4_0.gguf", "b-Q4_0.gguf"], "2 models in Q4_0: .*a-Q4_0.gguf, b-Q"),
        (HubName("a/b", file="c.gguf"), ["d.gguf"], "has no file c.gguf; it has d.gguf"),
        (HubName("a/b"), ["m-00001-of-00002.gguf"], "lacks some of the 2 shards"),
        (HubName("a/b"), ["m-TQ1_0.gguf", "m-IQ1_S.gguf"], "it has .*IQ1_S"),
    ],
)
def test_what_cannot_be_chosen(name: HubName, given: list[str], said: str) -> None:
    with pytest.raises(DownloadError, match=said):
        choose(name, given)


@pytest.mark.parametrize(
    "name",
    [
        "gpt5",
        "hf:only",
        "hf:a/b/c",
        "hf:a/../b.gguf",
        "hf:../b",
        "hf:a/b..c",
        "hf:a/b:",
        "hf:a/b/../c.gguf",
        "hf:a/b//c.gguf",
        "hf:a/b?x=1",
        "hf:a /b",
        "hf:a/b:Q4/x",
        "hf:",
        "hf:a/b/\udcff.gguf",
        "http://x/y",
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(DownloadError, match="hf:ORG/REPO"):
        parse(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama3.2", ": did you mean llama3.2:1b or llama3.2:3b?"),
        ("llama3", ": did you mean llama3.2:1b, llama3.2:3b or llama3.1:8b?"),
        ("qwen3:9b", ": did you mean qwen3:8b? Any other model of the hub is hf:ORG/REPO[:QUANT]"),
        ("org/Tiny-GGUF:Q8_0", ": did you mean hf:org/Tiny-GGUF:Q8_0?"),
        ("HF:org/Tiny-GGUF", ": did you mean hf:org/Tiny-GGUF?"),
        ("models/tiny.gguf", "; give the path of a GGUF file, smollm2"),
        ("", "; give the path of a GGUF file, smollm2"),
    ],
)
def test_a_name_that_is_nearly_one(name: str, said: str) -> None:
    with pytest.raises(DownloadError) as caught:
        parse(name)
    assert f"cannot pull {name!r}{said}" in str(caught.value)

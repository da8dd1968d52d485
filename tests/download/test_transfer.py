"""Downloads that are cut off, go on, begin anew, or are thrown away."""

from __future__ import annotations

import fcntl
import hashlib
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest

from isthmus.download import Progress, transfer
from isthmus.errors import DownloadError
from tests.download.conftest import Pull, files
from tests.download.hub import Asked, FakeHub, Reply

DATA = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "hf:org/repo"


@pytest.fixture(autouse=True)
def repo(hub: FakeHub) -> None:
    hub.repos["org/repo"] = {"m-Q4_K_M.gguf": DATA}


def part(cache: Path, data: bytes, tag: str | None = None) -> None:
    """Leaves what an earlier run fetched."""
    folder = cache / "models" / ".pulls"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{SHA256}.part").write_bytes(data)
    if tag is not None:
        (folder / f"{SHA256}.etag").write_text(tag)


def ranges(hub: FakeHub) -> list[str | None]:
    return [it.headers.get("range") for it in hub.files_asked()]


def test_a_cut_download_goes_on(hub: FakeHub, pulled: Pull, seen: list[Progress]) -> None:
    hub.cuts = [300_000, 500_000]
    assert pulled(NAME).read_bytes() == DATA
    assert ranges(hub) == [None, "bytes=300000-", "bytes=800000-"]
    assert all(it.headers["if-range"] for it in hub.files_asked()[1:])
    assert [it.done for it in seen] == sorted(it.done for it in seen)


def test_a_download_that_is_given_up_goes_on_later(hub: FakeHub, pulled: Pull, cache: Path) -> None:
    hub.cuts = [500_000] + [0] * 4
    with pytest.raises(DownloadError, match="500000 of 1048576 bytes are here; check the network"):
        pulled(NAME)
    assert files(cache) == [f"models/.pulls/{SHA256}.etag", f"models/.pulls/{SHA256}.part"]
    hub.asked.clear()
    assert pulled(NAME).read_bytes() == DATA
    assert ranges(hub) == ["bytes=500000-"]
    assert files(cache) == ["models/m-Q4_K_M.gguf"]


def test_each_wait_is_longer_than_the_one_before(
    hub: FakeHub, pulled: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer, "_WAIT_S", 1.0)
    clock = SimpleNamespace(sleep=waits.append)  # not that of all threads
    monkeypatch.setattr(transfer, "time", clock)
    hub.lie = lambda asked, reply: Reply(503)
    with pytest.raises(DownloadError, match="answers 503"):
        pulled(NAME)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_server_without_ranges_begins_anew(hub: FakeHub, pulled: Pull) -> None:
    hub.ranges, hub.cuts = False, [300_000]
    assert pulled(NAME).read_bytes() == DATA


def test_another_entity_begins_anew(hub: FakeHub, pulled: Pull, cache: Path) -> None:
    part(cache, b"x" * 1000, '"other"')
    assert pulled(NAME).read_bytes() == DATA
    assert [it.headers.get("if-range") for it in hub.files_asked()] == ['"other"']


def test_parts_that_do_not_fit_are_fetched_once_more(
    hub: FakeHub, pulled: Pull, cache: Path
) -> None:
    part(cache, b"x" * 1000)
    assert pulled(NAME).read_bytes() == DATA
    assert ranges(hub) == ["bytes=1000-", None]


@pytest.mark.parametrize("nbytes", [len(DATA), len(DATA) + 1])
def test_what_has_come_and_is_another_file(
    nbytes: int, hub: FakeHub, pulled: Pull, cache: Path
) -> None:
    part(cache, b"x" * nbytes)
    assert pulled(NAME).read_bytes() == DATA
    assert ranges(hub) == [None]


def test_what_has_come_whole_is_not_fetched(hub: FakeHub, pulled: Pull, cache: Path) -> None:
    part(cache, DATA)
    assert pulled(NAME).read_bytes() == DATA
    assert ranges(hub) == []


def lies_about_the_range(_asked: Asked, reply: Reply) -> Reply:
    if reply.status == 206:
        reply.headers["Content-Range"] = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
    return reply


def lies_about_the_whole(_asked: Asked, reply: Reply) -> Reply:
    if reply.status == 206:
        reply.headers["Content-Range"] = reply.headers["Content-Range"].replace("/1", "/2")
    return reply


def has_no_rest(_asked: Asked, reply: Reply) -> Reply:
    return Reply(416) if reply.status == 206 else reply


@pytest.mark.parametrize("lie", [lies_about_the_range, lies_about_the_whole, has_no_rest])
def test_a_wrong_range_begins_anew(
    lie: transfer.Watch, hub: FakeHub, pulled: Pull, cache: Path
) -> None:
    part(cache, DATA[:1000])
    hub.lie = lie
    assert pulled(NAME).read_bytes() == DATA
    assert ranges(hub) == ["bytes=1000-", None]


def test_other_bytes_than_the_hub_says(hub: FakeHub, pulled: Pull, cache: Path) -> None:
    hub.lie = lambda asked, reply: Reply(200, body=b"x" * len(DATA))
    with pytest.raises(DownloadError, match=f"and not {SHA256}; thrown away"):
        pulled(NAME)
    assert files(cache) == []
    assert len(hub.files_asked()) == 1


@pytest.mark.parametrize("nbytes", [10, len(DATA) + 5])
def test_another_length_than_the_hub_says(
    nbytes: int, hub: FakeHub, pulled: Pull, cache: Path
) -> None:
    hub.lie = lambda asked, reply: Reply(200, body=b"x" * nbytes)
    with pytest.raises(DownloadError, match=f"should have 1048576 bytes, .* sends {nbytes}"):
        pulled(NAME)
    assert not any(it.endswith(".gguf") for it in files(cache))


def test_more_bytes_than_the_hub_says(hub: FakeHub, pulled: Pull, cache: Path) -> None:
    """In an answer that goes on, whose length is that of the rest."""
    part(cache, DATA[:1000])

    def lie(_asked: Asked, reply: Reply) -> Reply:
        reply.body += b"more"
        return reply

    hub.lie = lie
    with pytest.raises(DownloadError, match="sends more than the 1048576 bytes"):
        pulled(NAME)
    assert files(cache) == []


@pytest.mark.parametrize(("status", "said"), [(404, "answers 404"), (403, "set HF_TOKEN")])
def test_a_refusal_is_final(status: int, said: str, hub: FakeHub, pulled: Pull) -> None:
    hub.lie = lambda asked, reply: Reply(status)
    with pytest.raises(DownloadError, match=said):
        pulled(NAME)
    assert len(hub.files_asked()) == 1


def test_one_process_fetches_a_file_at_a_time(pulled: Pull, cache: Path) -> None:
    part(cache, b"")
    with (cache / "models" / ".pulls" / f"{SHA256}.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="is being fetched already"):
            pulled(NAME)
    assert pulled(NAME).read_bytes() == DATA


def test_a_server_that_begins_anew_each_second_time_is_given_up(hub: FakeHub, pulled: Pull) -> None:
    hub.cuts = [100_000] * 50
    hub.lie = lambda asked, reply: Reply(416) if "range" in asked.headers else reply
    with pytest.raises(DownloadError, match="check the network"):
        pulled(NAME)
    assert len(hub.files_asked()) == 5


def test_a_watch_hears_of_bytes_as_they_come(tmp_path: Path) -> None:
    """It ends a transfer of a server that sends a byte now and then."""

    class Dripping:
        status, headers = 200, Message()

        def read1(self, nbytes: int) -> bytes:
            return b"x"

        def __enter__(self) -> Dripping:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    class Client:
        def open(self, url: str, headers: object) -> Dripping:
            return Dripping()

    def stop(progress: Progress) -> None:
        raise DownloadError(f"ended after {progress.done}")

    remote = transfer.Remote("http://hub/x", "x.gguf", 1 << 30, SHA256)
    with pytest.raises(DownloadError, match="ended after 1"):
        transfer.Transfer(Client(), tmp_path, stop).fetch(remote)  # type: ignore[arg-type]

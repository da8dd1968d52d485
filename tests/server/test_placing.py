"""Which agent a request names, and who answers: its owner, or the server that it came to."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from isthmus.errors import SettingsError, StorageError
from isthmus.server.agents.owning import AnotherAgent, Owning
from isthmus.server.cluster import passing, placing
from isthmus.server.cluster.named import (
    agent_of_body,
    agent_of_path,
    is_told_by_body,
    names_position,
)
from isthmus.server.cluster.placing import Placing, address_of
from isthmus.server.http.entry import Entry, begin
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Threads
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.computes import Computes
from isthmus.server.storage.node import Peer

ID = "abcdefghij12"


@pytest.mark.parametrize(
    ("path", "agent"),
    [
        (f"/v1/agents/{ID}", ID),
        (f"/v1/agents/{ID}/messages", ID),
        (f"/v1/agents/{ID}/", ID),
        ("/v1/agents/restore", None),
        ("/v1/agents", None),
        (f"/v1/agents/{ID}x", None),
        (f"/v1/responses/resp_{ID}aaaaaaaa3/input_items", ID),
        ("/v1/responses/resp_x", None),
        (f"/v1/conversations/conv_{ID}/items", ID),
        (f"/v1/models/{ID}", None),
        (f"/v2/v1/agents/{ID}", None),
    ],
)
def test_the_agent_of_a_path(path: str, agent: str | None) -> None:
    assert agent_of_path(path) == agent


@pytest.mark.parametrize(
    ("body", "agent"),
    [
        (b'{"previous_response_id": "resp_abcdefghij12aaaaaaaa3"}', ID),
        (b'{"conversation": "conv_abcdefghij12"}', ID),
        (b'{"conversation": {"id": "conv_abcdefghij12"}, "input": []}', ID),
        (b'{"conversation": {"id": 3}}', None),
        (b'{"previous_response_id": null, "input": "x"}', None),
        (b'{"previous_response_id": "x"}', None),
        (b"[" * 100_000, None),
        (b"\xff{", None),
        (b"", None),
    ],
)
def test_the_agent_of_a_body(body: bytes, agent: str | None) -> None:
    assert agent_of_body(body) == agent


def test_which_bodies_name_one() -> None:
    assert is_told_by_body("POST", "/v1/responses")
    assert not is_told_by_body("GET", "/v1/responses")
    assert not is_told_by_body("POST", "/v1/chat/completions")


def test_where_a_server_is() -> None:
    assert address_of(ServerSettings(), "127.0.0.1", 8080) == "http://127.0.0.1:8080"
    assert address_of(ServerSettings(), "::1", 80) == "http://[::1]:80"
    assert address_of(ServerSettings(), "0.0.0.0", 80).endswith(":80")
    assert "0.0.0.0" not in address_of(ServerSettings(), "0.0.0.0", 80)
    given = ServerSettings(advertise="https://one.example.org")
    assert address_of(given, "127.0.0.1", 8080) == "https://one.example.org"
    for wrong in ("one.example.org", "http://x/path", "ftp://x", "http://a b", ""):
        with pytest.raises(SettingsError, match="a URL without a path"):
            ServerSettings(advertise=wrong)


# ---------------------------------------------------------------------- placing


class Shared:
    """What the store says of one agent: the owners that it has, one after another."""

    token = "t"
    computes = Computes()

    def __init__(self, *owners: Peer | None) -> None:
        self._owners = list(owners)
        self.n_looks = 0

    def owns(self, _id: str) -> bool:
        return False

    def has_ended(self, _number: int) -> bool:
        return False

    def peers(self) -> list[Peer]:
        return []

    def look(self, _id: str) -> tuple[None, Peer | None]:
        self.n_looks += 1
        return None, self._owners.pop(0) if len(self._owners) > 1 else self._owners[0]


def peer(port: int) -> Peer:
    return Peer(1, f"http://127.0.0.1:{port}", "token", "there")


async def local(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


async def keep(_id: str) -> bool:
    raise AssertionError("nobody asked for it")


async def asked(shared: Shared, method: str = "GET", **how: Any) -> tuple[int, bytes]:
    """The status and the body of a request about an agent."""
    sent = await all_sent(shared, method, **how)
    return sent[0]["status"], b"".join(it.get("body", b"") for it in sent)


async def all_sent(
    shared: Shared,
    method: str = "GET",
    *,
    body: bytes = b"{}",
    known: dict[str, Any] | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    app: Any = None,
    hand_over: Any = None,
) -> list[dict[str, Any]]:
    """What a request about an agent is answered with."""
    owning = Owning(cast("Any", shared), known or {}, Threads(1, "test"))
    settings = ServerSettings(lease_s=0.4)
    placed = Placing(app or local, owning, settings, hand_over or keep)
    sent: list[dict[str, Any]] = []
    came = [{"type": "http.request", "body": body if method == "POST" else b""}]

    async def receive() -> dict[str, Any]:
        if came:
            return came.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    path = f"/v1/agents/{ID}" + ("/messages" if method == "POST" else "")
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode()}
    more = {"headers": headers or [], "query_string": b"a=b"}
    await placed({**scope, **more}, receive, send)  # type: ignore[arg-type]
    return sent


HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Answering:
    """A server that answers greetings, says the same to everybody, and then hangs up. A `greeting`
    of another kind, or none, is what a proxy makes of a server that is dead."""

    def __init__(self, said: bytes, greeting: bytes | None = HELLO) -> None:
        self._said = said
        self._greeting = greeting
        self.came: list[bytes] = []

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return peer(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted = await reader.readuntil(b"\r\n\r\n")
        assert greeted.startswith(b"GET /healthz HTTP/1.1\r\n")
        assert b"x-isthmus-peer: token\r\n" in greeted.lower()
        if self._greeting is None:
            await reader.read()  # until who came has left
        else:
            writer.write(self._greeting)
        if self._greeting == HELLO:
            self.came.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self._said)
        await writer.drain()
        writer.close()


def test_what_nobody_owns_is_answered_here() -> None:
    assert asyncio.run(asked(Shared(None))) == (200, b"here")


def test_an_owner_answers_and_learns_who_passed_it_on() -> None:
    async def work() -> None:
        there = Answering(
            b"HTTP/1.1 201 Made\r\nX-RateLimit-Limit: 1\r\nContent-Length: 5\r\n\r\nthere"
        )
        async with there as owner:
            assert await asked(Shared(owner), "POST") == (201, b"there")
        (head,) = there.came
        assert head.startswith(f"POST /v1/agents/{ID}/messages?a=b HTTP/1.1\r\n".encode())
        assert b"x-isthmus-peer: token\r\n" in head.lower()
        assert b"x-isthmus-key" not in head.lower()

    asyncio.run(work())


def test_a_client_that_asks_for_it_is_told_where_the_owner_is() -> None:
    ask = [(b"x-isthmus-redirect", b"1")]
    shared = Shared(peer(9))
    (start, _) = asyncio.run(all_sent(shared, "POST", headers=ask))
    assert start["status"] == 307
    location = dict(start["headers"])[b"location"].decode()
    assert location == f"http://127.0.0.1:9/v1/agents/{ID}/messages?a=b"
    (start, _) = asyncio.run(all_sent(Shared(None), headers=ask))
    assert start["status"] == 200


def test_a_request_that_is_about_another_agent_goes_to_the_owner_of_that_one() -> None:
    other = "b" * 12

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if ID in scope["path"]:
            await receive()
            raise AnotherAgent(other, f"/v1/agents/{other}/fork", b"{}")
        assert scope["path"] == f"/v1/agents/{other}/fork"
        assert (await receive())["body"] == b"{}"
        await local(scope, receive, send)

    async def work() -> None:
        there = Answering(b"HTTP/1.1 201 Made\r\nContent-Length: 5\r\n\r\nthere")
        async with there as owner:
            sent = await all_sent(Shared(None, owner), "POST", app=app)
            assert sent[0]["status"] == 201
            assert there.came[0].startswith(f"POST /v1/agents/{other}/fork HTTP/1.1".encode())
        sent = await all_sent(Shared(None), "POST", app=app)
        assert sent[0]["status"] == 200

    asyncio.run(work())


def test_an_agent_goes_to_the_server_that_all_its_requests_come_to() -> None:
    home, handed = [(b"x-isthmus-home", b"1")], []

    async def hand_over(id_: str) -> bool:
        handed.append(id_)
        return is_idle

    async def work(passed_on: bool) -> int:
        entry = Entry("-", "POST", "-")
        entry.passed_on = passed_on
        begin(entry)
        sent = await all_sent(Shared(None), "POST", headers=home, hand_over=hand_over)
        return int(sent[0]["status"])

    is_idle = True
    assert asyncio.run(work(False)) == 200  # from a client, who gets an answer
    assert handed == []
    with pytest.raises(HttpError) as refused:
        asyncio.run(work(True))
    assert (refused.value.status, handed) == (421, [ID])
    is_idle = False
    assert asyncio.run(work(True)) == 200


def test_an_owner_that_is_out_of_reach_answers_alone_while_it_lives() -> None:
    shared = Shared(peer(9))
    with pytest.raises(HttpError) as found:
        asyncio.run(asked(shared))
    assert (found.value.status, found.value.code) == (503, "owner_unreachable")
    assert shared.n_looks > 1
    assert asyncio.run(asked(Shared(peer(9), peer(9), None), "POST")) == (200, b"here")


def test_a_server_that_is_not_the_owner_any_more_sends_one_to_the_record() -> None:
    async def work() -> None:
        async with Answering(b"HTTP/1.1 421 No\r\nContent-Length: 0\r\n\r\n") as former:
            assert await asked(Shared(former, None), "POST") == (200, b"here")

    asyncio.run(work())


GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\ndead"


@pytest.mark.parametrize("greeting", [b"", GATEWAY, b"\x00\x01nonsense\r\n\r\n", None])
def test_a_proxy_that_accepts_for_a_dead_owner_does_not_answer_for_it(
    greeting: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent that could have been done: the lease decides, and then who may answers."""
    monkeypatch.setattr(passing, "_CONNECT_S", 0.1)

    async def work() -> None:
        there = Answering(b"", greeting)
        async with there as owner:
            for method in ("POST", "GET"):
                assert await asked(Shared(owner, owner, None), method) == (200, b"here")
            with pytest.raises(HttpError) as found:
                await asked(Shared(owner), "POST")
            assert (found.value.status, found.value.code) == (503, "owner_unreachable")
        assert there.came == []

    asyncio.run(work())


def test_a_message_that_names_its_position_goes_to_the_next_owner() -> None:
    """It is done once, wherever it comes again: 409 tells if it was done before."""

    async def work() -> None:
        for said in (b"", GATEWAY):
            there = Answering(said)
            async with there as owner:
                after = Shared(owner, owner, None)
                assert await asked(after, "POST", body=b'{"previous": 3}') == (200, b"here")
                assert len(there.came) == 2
                with pytest.raises(HttpError) as found:  # and not for ever
                    await asked(Shared(owner), "POST", body=b'{"previous": 0, "input": "x"}')
                assert found.value.code == "owner_lost"
                assert len(there.came) == 2 + 1 + placing._REPEATS

    asyncio.run(work())


def test_what_names_a_position() -> None:
    assert names_position(b'{"previous": 0}')
    for body in (b"", b"{}", b'{"previous": null}', b'{"previous": "x"}', b"[" * 100_000, b"\xff"):
        assert not names_position(body)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 O", b"\x00\x01nonsense\r\n\r\n", GATEWAY])
def test_a_message_is_not_sent_twice_when_nobody_knows_what_became_of_it(said: bytes) -> None:
    async def work() -> None:
        there = Answering(said)
        async with there as owner:
            with pytest.raises(HttpError) as found:
                await asked(Shared(owner, None), "POST")
            assert (found.value.status, found.value.code) == (502, "owner_lost")
            assert len(there.came) == 1
            assert await asked(Shared(owner, None)) == (200, b"here")

    asyncio.run(work())


def test_what_is_known_can_be_read_while_the_store_is_out_of_reach() -> None:
    class Unreachable(Shared):
        def look(self, _id: str) -> tuple[None, Peer | None]:
            raise StorageError("the store is gone")

    async def work(known: dict[str, Any], method: str) -> tuple[int, bytes]:
        return await asked(Unreachable(None), method, known=known)

    assert asyncio.run(work({ID: None}, "GET")) == (200, b"here")
    for known, method in (({}, "GET"), ({ID: None}, "POST")):
        with pytest.raises(StorageError):
            asyncio.run(work(known, method))

"""`http_fetch`: which hosts may be asked, and what a page, a name or a redirect may do."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from isthmus.errors import Cancelled, SettingsError, ToolFailed
from isthmus.tools import FetchTool, ToolLimits, fetch_tool
from isthmus.tools.hosts import AllowedHosts
from tests.patience import eventually

PLENTY = ToolLimits(deadline_s=60)


PAGES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "/latin": (200, "año".encode("latin-1"), {"Content-Type": "text/plain; charset=iso-8859-1"}),
    "/odd": (200, b"abc", {"Content-Type": "text/plain; charset=no-such-one"}),
    "/packed": (200, b"abc", {"Content-Encoding": "gzip"}),
    "/long": (200, b"x" * 5000, {}),
    "/missing": (404, b"", {}),
}


class Pages(BaseHTTPRequestHandler):
    hosts: ClassVar[list[str]] = []
    free: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        Pages.hosts.append(self.headers["Host"])
        path, _, query = self.path.partition("?")
        if path == "/to":
            self.answer(302, b"", Location=query or "/to")
        elif path == "/endless":
            self.trickle()
        elif path == "/never":
            Pages.free.wait(60)
        elif path == "/wrong":
            self.wfile.write(b"nonsense\r\n\r\n")
        elif path in PAGES:
            status, body, headers = PAGES[path]
            self.answer(status, body, **headers)
        else:
            self.answer(200, f"words of the page {path}".encode())

    def trickle(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not Pages.free.wait(0.01):
                self.wfile.write(b"x")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    Pages.free.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    Pages.free.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the DNS says, answer after answer; the last one stays."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *args: Any, **more: Any) -> Any:
        if host in known:
            found = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
            return [it for address in found.split() for it in real(address, port, *args, **more)]
        if not host.replace(".", "").isdigit():
            raise socket.gaierror(-2, "Name or service not known")
        return real(host, port, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def fetch(url: str, *hosts: str, limits: ToolLimits = PLENTY) -> bytes:
    tool = fetch_tool(AllowedHosts(hosts), limits=limits)
    return tool.run(json.dumps({"url": url}).encode(), lambda: None)


def refused(url: str, *hosts: str, limits: ToolLimits = PLENTY) -> str:
    with pytest.raises(ToolFailed) as told:
        fetch(url, *hosts, limits=limits)
    return str(told.value)


# ---------------------------------------------------------------------------------- pages


def test_pages(port: int) -> None:
    here, host = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    assert fetch(f"{here}/a?b=c#d", host) == b"words of the page /a"
    assert fetch(here, host) == b"words of the page /"
    assert fetch(f"{here}/latin", host) == "año".encode()
    assert fetch(f"{here}/odd", host) == b"abc"
    assert refused(f"{here}/missing", host) == "127.0.0.1 answers 404 Not Found"
    assert "comes packed" in refused(f"{here}/packed", host)
    assert "127.0.0.1: " in refused(f"{here}/wrong", host)


def test_long_and_slow_pages(port: int) -> None:
    here, host = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    short = ToolLimits(deadline_s=60, output_nbytes=4999)
    assert "longer than" in refused(f"{here}/long", host, limits=short)
    quick = ToolLimits(deadline_s=0.3)
    for path in ("endless", "never"):
        assert "did not answer within 0.3 s" in refused(f"{here}/{path}", host, limits=quick)
    tool = fetch_tool(AllowedHosts([host]))

    def check() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        tool.run(json.dumps({"url": f"{here}/never"}).encode(), check)


PUNYCODE = b"abc-" + b"e9zab8d" * 40_000
"""As text it would take a minute, of which no deadline is told."""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc", "non-negative"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[::1/\r\n\r\n", "what is no URL"),
        (b"HTTP/1.1 302 Found\r\nLocation: /" + b"x" * 8000 + b"\r\n\r\n", "up to 8000"),
    ],
    ids=["chunk", "location", "long-location"],
)
def test_answers_that_are_none(answer: bytes, said: str) -> None:
    with answering(answer) as port:
        assert said in refused(f"http://127.0.0.1:{port}/", f"127.0.0.1:{port}")


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "unicode_escape", '"a\0"'])
def test_what_is_no_charset_is_not_decoded(charset: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset={charset}\r\n\r\n".encode()
    with answering(head + PUNYCODE) as port:
        assert fetch(f"http://127.0.0.1:{port}/", f"127.0.0.1:{port}") == PUNYCODE


def test_a_connection_that_comes_after_the_deadline_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could end it: an endless page would be read for ever."""
    deadline, made = threading.Event(), []
    real = socket.create_connection

    def late(*args: Any) -> socket.socket:
        deadline.wait(60)
        made.append(real(*args))
        return made[-1]

    monkeypatch.setattr(socket, "create_connection", late)
    quick = ToolLimits(deadline_s=0.1)
    host = f"127.0.0.1:{port}"
    assert "did not answer" in refused(f"http://{host}/endless", host, limits=quick)
    deadline.set()
    assert eventually(lambda: bool(made) and made[0].fileno() == -1)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of a server that says these bytes to whoever asks."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_redirects_are_checked_again(port: int, names: dict[str, list[str]]) -> None:
    here, host = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    assert fetch(f"{here}/to?/b", host) == b"words of the page /b"
    assert "localhost at port 1 may not" in refused(f"{here}/to?http://localhost:1/", host)
    assert "at port 80 may not be asked" in refused(f"{here}/to?http://127.0.0.1/", host)
    assert "no URL of http" in refused(f"{here}/to?file:///etc/passwd", host)
    assert "more than 5 times" in refused(f"{here}/to?/to", host)
    names["inside.org"] = ["10.0.0.1"]
    assert "leads to 10.0.0.1" in refused(f"{here}/to?http://inside.org/", host, "*")


# ---------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("url", "list_"),
    [
        ("http://example.com/", ["example.org"]),
        ("http://example.org.evil.com/", ["example.org"]),
        ("http://notexample.org/", ["example.org", "*.example.org"]),
        ("http://example.org/", ["*.example.org"]),
        ("http://example.org:8080/", ["example.org"]),
        ("http://example.org/", ["example.org:8080"]),
        ("http://127.0.0.1/", ["*"]),
        ("http://[::1]/", ["*"]),
        ("http://93.184.216.34/", ["*"]),
        ("http://10.0.0.8/", ["10.0.0.7"]),
    ],
)
def test_what_is_not_on_the_list(url: str, list_: list[str], names: dict[str, list[str]]) -> None:
    assert "may not be asked; what may be: " in refused(url, *list_)


PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1"),
    *("::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:1:1:1:1:80ff:fffe"),
    *("fec0::1", "64:ff9b:1::7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1", "168.63.129.16"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_names_that_lead_inside(address: str) -> None:
    with pytest.raises(ToolFailed, match="not of the public internet"):
        AllowedHosts(["*"]).require_address("evil.org", address)


def test_addresses_of_the_public_internet() -> None:
    for address in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"):
        AllowedHosts(["example.org"]).require_address("example.org", address)


def test_one_private_address_among_others_is_enough(names: dict[str, list[str]]) -> None:
    names["evil.org"] = ["93.184.216.34 127.0.0.1"]
    assert "leads to 127.0.0.1" in refused("http://evil.org/", "evil.org")


def test_a_private_address_may_be_listed(port: int, names: dict[str, list[str]]) -> None:
    names["inside.org"] = ["127.0.0.1"]
    url = f"http://inside.org:{port}/x"
    assert "leads to 127.0.0.1" in refused(url, f"inside.org:{port}")
    for listed in ("127.0.0.1", "127.0.0.0/8"):
        assert fetch(url, f"inside.org:{port}", listed) == b"words of the page /x"
    assert Pages.hosts[-1] == f"inside.org:{port}"


def test_only_the_answer_that_was_checked_counts(port: int, names: dict[str, list[str]]) -> None:
    """A name whose second answer is another: it is not asked a second time."""
    names["turns.org"] = ["127.0.0.1", "93.184.216.34"]
    url = f"http://turns.org:{port}/x"
    assert fetch(url, f"turns.org:{port}", "127.0.0.1") == b"words of the page /x"
    assert names["turns.org"] == ["93.184.216.34"]


def test_names_as_people_write_them(port: int, names: dict[str, list[str]]) -> None:
    names["example.org"] = names["xn--bcher-kva.example.org"] = ["127.0.0.1"]
    for url in (f"http://EXAMPLE.org.:{port}/", f"http://bücher.example.org:{port}/"):
        hosts = (f"example.org:{port}", f"*.Example.org:{port}", "127.0.0.1")
        assert fetch(url, *hosts) == b"words of the page /"


@pytest.mark.parametrize(
    "url",
    [
        *("", "nonsense", "ftp://example.org/", "file:///etc/passwd", "http://", "http://[::1"),
        *("http://a:b@example.org/", "http://example.org:99999/", "http://" + "a" * 400 + "/"),
        *("http://example.org/a b", "http://example.org/\r\nHost: evil.org", "gopher://x/"),
        *("http://\u2460\u2461\u2466.0.0.1/", "http://127\u30020.0.1/", "http://[::1%25lo]/"),
        *("http://127.0.0.1./", "http://x.org\\@127.0.0.1/", "http://x.org/" + "x" * 8000),
        *("http://é\ud800.org/", "http://2130706433/", "http://0x7f.1/", "http://.example.org/"),
    ],
)
def test_what_is_no_url(url: str, names: dict[str, list[str]]) -> None:
    names["example.org"] = ["127.0.0.1"]
    names["2130706433"] = names["0x7f.1"] = ["127.0.0.1"]
    assert refused(url, "example.org", "*")


@pytest.mark.parametrize(
    "entry", ["", "a b", "http://example.org", "*foo.org", "a.*", "[::1", "x:0", "x:70000", "[a.b]"]
)
def test_what_is_no_entry(entry: str) -> None:
    with pytest.raises(SettingsError, match="is no host: give"):
        AllowedHosts([entry])
    with pytest.raises(SettingsError, match="no host may be asked"):
        AllowedHosts([])


def test_wrong_arguments() -> None:
    tool = fetch_tool(AllowedHosts(["example.org"]))
    assert isinstance(tool, FetchTool)
    for data in (b"", b"{}", b'{"url": 3}', b'{"url": "", "method": "POST"}', b"\xff"):
        with pytest.raises(ToolFailed, match="its arguments are wrong"):
            tool.run(data, lambda: None)
    assert "example.org" in tool.described("http_fetch")["function"]["description"]

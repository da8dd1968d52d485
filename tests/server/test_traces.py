"""Spans of OpenTelemetry: what they say, that a collector gets them, and that nothing of it is
imported without one."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from isthmus.config import Environment
from isthmus.errors import SettingsError
from isthmus.server.http.entry import Entry
from isthmus.server.settings import ServerSettings
from isthmus.server.traces import TracedMeasures
from tests.server.conftest import Serving

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"


def scope(path: str = "/v1/agents/{id}/messages") -> dict[str, Any]:
    heads = [(b"traceparent", PARENT.encode())]
    return {"headers": heads, "route": Route(path, lambda _: None)}


def test_a_request_and_its_message() -> None:
    exporter = InMemorySpanExporter()
    measures = TracedMeasures(CollectorRegistry(), "cpu", SimpleSpanProcessor(exporter))
    entry = Entry("req_1", "POST", "/v1/agents/a/messages", agent="a", model="tiny", status=200)
    asked = time.monotonic() - 2
    entry.take_place(asked)
    entry.count_prompt([1, 2, 3])
    entry.count_tokens(5)
    measures.note(entry, scope())
    message, request = exporter.get_finished_spans()
    assert (request.name, message.name) == ("POST /v1/agents/{id}/messages", "message")
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == CALLER
    assert message.parent.span_id == request.context.span_id
    assert request.attributes["http.response.status_code"] == 200
    told = dict(message.attributes)
    assert told.pop("isthmus.queue_seconds") >= 2
    assert told == {
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "isthmus.cached_tokens": 0,
        "isthmus.agent": "a",
    }
    (first,) = message.events
    assert request.start_time <= message.start_time <= message.end_time <= request.end_time
    assert message.start_time <= first.timestamp <= message.end_time


def test_a_failure_and_a_probe() -> None:
    exporter = InMemorySpanExporter()
    measures = TracedMeasures(CollectorRegistry(), "cpu", SimpleSpanProcessor(exporter))
    measures.note(Entry("req_1", "GET", "/healthz", status=200), scope("/healthz"))
    measures.note(Entry("req_2", "GET", "/v1/models", status=500, error="oops"), {"headers": []})
    (failed,) = exporter.get_finished_spans()  # which waited for no place
    assert failed.name == "GET other"
    assert (failed.attributes["error.type"], failed.status.is_ok) == ("oops", False)


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans, and keeps them."""

    spans: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            raise AssertionError("spans are not compressed by default")
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for part in resource.scope_spans:
                self.spans.extend(part.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Its URL, and the spans that it has got."""
    handler = type("Mine", (Collector,), {"spans": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.spans
    server.shutdown()
    server.server_close()


def test_a_server_sends_them(
    tiny_q8: Path, tmp_path: Path, collector: tuple[str, list[Any]], monkeypatch: Any
) -> None:
    url, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    server = Serving(tmp_path / "data", "--model", f"tiny={tiny_q8}", "--n-ctx", "512")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    server.post("/v1/chat/completions", body)
    agent = server.post("/v1/agents", {"args": {"max_tokens": 4}})["id"]
    server.post(f"/v1/agents/{agent}/messages", {"input": "hi"})
    assert server.stop() == 0
    names = [it.name for it in spans]
    assert names.count("message") == 2
    assert {"POST /v1/chat/completions", "POST /v1/agents/{id}/messages"} <= set(names)
    told = [
        {it.key: it.value for it in span.attributes} for span in spans if span.name == "message"
    ]
    assert [it["gen_ai.usage.output_tokens"].int_value for it in told] == [4, 4]
    assert told[0]["gen_ai.request.model"].string_value == "tiny"
    assert told[1]["isthmus.agent"].string_value == agent


OFF = """
import sys
from isthmus import Runtime
from isthmus.server.app import create_app
from isthmus.server.settings import ServerSettings
from starlette.testclient import TestClient
from tests.server.test_openapi import no_models
from pathlib import Path

with Runtime(device="null", threads=1) as runtime:
    app = create_app(no_models(runtime), ServerSettings(data=Path(sys.argv[1])))
    with TestClient(app, "http://localhost") as client:
        assert client.get("/v1/models").status_code == 200
print(sorted(it for it in sys.modules if it.startswith("opentelemetry")))
"""


def test_nothing_is_imported_when_off(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFF, str(tmp_path / "data")],
        capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


def test_where_they_go() -> None:
    def traces(**variables: str) -> str | None:
        return ServerSettings.make(None, {}, Environment.read(variables).settings).traces

    assert traces() is None
    assert traces(OTEL_EXPORTER_OTLP_ENDPOINT="http://one:4318") == "http://one:4318"
    both = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://one:4318", "ISTHMUS_TRACES": "https://two"}
    assert traces(**both) == "https://two"
    with pytest.raises(SettingsError, match="the URL of a collector"):
        traces(ISTHMUS_TRACES="localhost:4317")

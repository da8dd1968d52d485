"""Spans of OpenTelemetry: one for each request, and within it one for its message to a model.

They are made of what `Entry` knows when the request has ended. Nothing of OpenTelemetry is imported
before a `TracedMeasures` is opened, so a server without traces does not pay for them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from isthmus.server.http.entry import PROBES, Entry
from isthmus.server.http.measures import Measures, route_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

_log = logging.getLogger("isthmus.server")
_NS = 1_000_000_000
_SERVER_ERRORS = 500


def measures_of(registry: CollectorRegistry, device: str, endpoint: str | None) -> Measures:
    """What notes requests: with spans that go to a collector of OTLP over HTTP, if there is one."""
    if endpoint is None:
        return Measures(registry, device)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        _log.warning("no traces are sent: pip install 'isthmus[otel]' (%s)", error)
        return Measures(registry, device)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    return TracedMeasures(registry, device, BatchSpanProcessor(exporter))


class TracedMeasures(Measures):
    """Measures, and spans beside them, which `processor` takes. Owns the provider of its spans."""

    def __init__(self, registry: CollectorRegistry, device: str, processor: SpanProcessor) -> None:
        super().__init__(registry, device)
        self._provider = _provider(processor)
        self._tracer = self._provider.get_tracer("isthmus")

    def note(self, entry: Entry, scope: MutableMapping[str, Any]) -> None:
        """Counts a request that has ended, and makes its spans; probes have none."""
        super().note(entry, scope)
        if entry.path in PROBES:
            return
        from opentelemetry import trace  # noqa: PLC0415 - an optional dependency
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        method, route = route_of(entry, scope)
        heads = {name.decode("latin-1"): it.decode("latin-1") for name, it in scope["headers"]}
        began, ended = _on_wall_clock(entry.began), time.time_ns()
        request = self._tracer.start_span(
            f"{method} {route}",
            TraceContextTextMapPropagator().extract(heads),
            trace.SpanKind.SERVER,
            _facts_of_request(entry, method, route),
            start_time=began,
        )
        if entry.placed is not None:
            within = trace.set_span_in_context(request)
            message = self._tracer.start_span(
                "message",
                within,
                attributes=_facts_of_message(entry),
                start_time=_on_wall_clock(entry.placed),
            )
            if entry.first_token is not None:
                message.add_event("first token", timestamp=_on_wall_clock(entry.first_token))
            message.end(ended)
        if entry.status >= _SERVER_ERRORS or not entry.status:
            request.set_status(trace.StatusCode.ERROR)
        request.end(ended)

    def close(self) -> None:
        """Sends what was not sent yet; waits for the collector."""
        self._provider.shutdown()


def _provider(processor: SpanProcessor) -> TracerProvider:
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource as SpanResource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

    named = SpanResource.create({SERVICE_NAME: "isthmus"})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(processor)
    return provider


def _on_wall_clock(monotonic: float) -> int:
    """Nanoseconds since 1970 of a moment on the clock of time.monotonic."""
    return time.time_ns() - int((time.monotonic() - monotonic) * _NS)


def _facts_of_request(entry: Entry, method: str, route: str) -> dict[str, str | int]:
    facts: dict[str, str | int | None] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": entry.status,
        "http.request.body.size": entry.nbytes_in,
        "http.response.body.size": entry.nbytes_out,
        "isthmus.request.id": entry.id,
        "isthmus.key": entry.owner,
        "error.type": entry.error,
    }
    return {name: it for name, it in facts.items() if it is not None}


def _facts_of_message(entry: Entry) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float | None] = {
        "gen_ai.request.model": entry.model,
        "gen_ai.usage.input_tokens": entry.tokens_in,
        "gen_ai.usage.output_tokens": entry.tokens_out,
        "isthmus.cached_tokens": entry.tokens_cached,
        "isthmus.agent": entry.agent,
        "isthmus.queue_seconds": entry.queued_s,
    }
    return {name: it for name, it in facts.items() if it is not None}

"""What a server counts and times of its requests, for Prometheus.

Models are labelled by the names that requests give, keys by their owners. Nothing that a stranger
sends becomes a label: paths are those of routes, and other methods are `other`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.metrics_core import InfoMetricFamily
from starlette.routing import Route

from isthmus.server.http.entry import Entry
from isthmus.version import VERSION

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_METHODS = ("GET", "POST", "DELETE", "PATCH", "PUT", "HEAD", "OPTIONS")
_NOBODY = "-"


class Measures:
    """See the module. Each request is noted once, when it has ended."""

    def __init__(self, registry: CollectorRegistry, device: str) -> None:
        """`device` computes; it is told with the versions."""
        ProcessCollector(registry=registry)
        registry.register(_Build(device))
        self._requests = Counter(
            "isthmus_http_requests",
            "Requests that have ended, by route and status; 0 if nothing was answered",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "isthmus_http_request_seconds",
            "From a request's head to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "isthmus_time_to_first_token_seconds",
            "From a request's head to the first token of its answer",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._between = Histogram(
            "isthmus_time_between_tokens_seconds",
            "Between two tokens of an answer: the mean of each request",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "isthmus_request_tokens",
            "Tokens of requests: prompt (cached ones among them), cached, answer",
            ("model", "key", "kind"),
            registry=registry,
        )

    def note(self, entry: Entry, scope: MutableMapping[str, Any]) -> None:
        """Counts a request that has ended; `scope` has the route that it was for, if any."""
        method, path = route_of(entry, scope)
        self._requests.labels(method, path, str(entry.status)).inc()
        self._seconds.labels(path).observe(time.monotonic() - entry.began)
        model, key = entry.model or _NOBODY, entry.owner or _NOBODY
        if entry.first_token is not None and entry.last_token is not None:
            self._first.labels(model).observe(entry.first_token - entry.began)
            if entry.tokens_out > 1:
                apart = (entry.last_token - entry.first_token) / (entry.tokens_out - 1)
                self._between.labels(model).observe(apart)
        kinds = {
            "prompt": entry.tokens_in,
            "cached": entry.tokens_cached,
            "answer": entry.tokens_out,
        }
        for kind, n in kinds.items():
            if n:
                self._tokens.labels(model, key, kind).inc(n)

    def close(self) -> None:
        """Ends what notes requests elsewhere too."""


def route_of(entry: Entry, scope: MutableMapping[str, Any]) -> tuple[str, str]:
    """The method and the route of a request; `other` for what the server does not know."""
    route = scope.get("route")
    path = route.path if isinstance(route, Route) else "other"
    return entry.method if entry.method in _METHODS else "other", path


class _Build:
    """Which versions run, as labels of a value that is always 1."""

    def __init__(self, device: str) -> None:
        self._labels = {
            "version": VERSION,
            "python": platform.python_version(),
            "device": device,
        }

    def collect(self) -> list[InfoMetricFamily]:
        said = "Versions of what runs"
        return [InfoMetricFamily("isthmus_build", said, value=self._labels)]

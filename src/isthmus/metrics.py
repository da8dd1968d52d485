"""What a runtime counts and times, for Prometheus.

`Runtime.metrics` renders it in the text format that Prometheus reads. Times are in seconds, sizes
in bytes, as its naming rules want.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)


COUNTS = {
    "bytes_copied": "Tensor bytes copied between guests' memory and memory of a device, either way",
    "bytes_restored": "Bytes of snapshots and forks that were copied because they were not mapped",
    "bytes_control": "Bytes of token ids, descriptors, names and text that guests gave the host",
    "host_calls": "Calls of guests into host functions",
    "host_ns": "Seconds inside host functions that drive a model, kernels included",
    "kernel_ns": "Seconds inside submissions to the device",
    "submissions": "Graphs that the device computed",
    "graphs_built": "Graphs that were built anew; all others that were computed were reused",
    "tokens_prefilled": "Tokens of prompts that were computed",
    "tokens_decoded": "Tokens of answers that were computed",
    "faults": "Calls of guests that were refused with an errno",
}
"""What each of `Counters` counts; nanoseconds are told as seconds."""


@dataclass(frozen=True)
class ModelMetrics:
    """The histograms of one model."""

    batch_size: Histogram
    decode: Histogram
    prefill: Histogram
    decode_wait: Histogram
    prefill_wait: Histogram


class Metrics:
    """One runtime's metrics; each attribute is one, safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"isthmus_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"isthmus_{name}", text, labels, registry=registry, buckets=buckets)

        self._batch = histogram(
            "batch_size", "Tokens that one decode step computed together", _BATCH, "model"
        )
        self._step = histogram(
            "decode_seconds", "Computing one decode step of all its sequences", _SECONDS, "model"
        )
        self._chunk = histogram(
            "prefill_seconds",
            "Computing one chunk of a prompt, or several prompts at once",
            _SECONDS,
            "model",
        )
        self._wait = histogram(
            "queue_seconds",
            "Waiting for the device: each prefill chunk, and whoever asks first for a decode step",
            _SECONDS,
            "model",
            "of",
        )
        self.message = histogram(
            "message_seconds",
            "Handling one message of an actor, without the wait for a place",
            _SECONDS,
        )
        self.message_wait = histogram(
            "message_queue_seconds",
            "Waiting for a place, from sending a message to its begin",
            _SECONDS,
        )
        self.messages = counter(
            "messages", "Messages that actors handled, by how they ended", "outcome"
        )
        self.tool_calls = counter(
            "tool_calls", "Tools that guests called, by how that ended", "outcome"
        )
        self.limits = counter(
            "limits_reached", "How often a limit of an actor stopped or refused something", "limit"
        )
        self.refused = counter(
            "refused", "What was refused because all actors together have enough, by why", "why"
        )
        self.batches_retried = counter(
            "batches_retried",
            "Steps and prompts of several that the device failed, computed one by one then",
        )
        self.model_loads = counter("model_loads", "Models that were opened with their weights")
        self.model_unloads = counter("model_unloads", "Models that were closed before the runtime")
        self.model_load = histogram(
            "model_load_seconds", "Opening one model with its weights", _SECONDS
        )
        self.evictions = counter(
            "evictions", "Idle actors whose memory was saved to a file and given back"
        )
        self.returns = counter("returns", "Evicted actors that came back into memory")
        self.rollbacks = counter(
            "rollbacks", "Messages that failed and whose changes to their actor were undone"
        )

    def refuse(self, why: str) -> None:
        """Counts something that was refused because all actors together have enough."""
        self.refused.labels(why).inc()

    def count(self, limits: Mapping[str, int], errors: Sequence[str]) -> None:
        """Counts limits that a message reached, by how often it did, and its calls of tools, by
        what each failed with: an empty text if it did not."""
        for limit, n in limits.items():
            self.limits.labels(limit).inc(n)
        for error in errors:
            self.tool_calls.labels("failed" if error else "answered").inc()

    def of_model(self, model: str) -> ModelMetrics:
        """Those that are kept for each model."""
        return ModelMetrics(
            self._batch.labels(model),
            self._step.labels(model),
            self._chunk.labels(model),
            self._wait.labels(model, "decode"),
            self._wait.labels(model, "prefill"),
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a value that is read when it is asked for."""
        Gauge(f"isthmus_{name}", text, registry=self.registry).set_function(read)

    def counts(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Adds counts that are kept elsewhere, by name."""
        self.registry.register(_Counts(read))

    def render(self) -> str:
        """Everything, in Prometheus's text format."""
        return generate_latest(self.registry).decode()


class _Counts:
    """Counters that are read when they are asked for."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, value in self._read().items():
            stem = name.removesuffix("_ns")
            if stem == name:
                yield CounterMetricFamily(f"isthmus_{name}", COUNTS[name], value=value)
            else:
                yield CounterMetricFamily(f"isthmus_{stem}_seconds", COUNTS[name], value / 1e9)

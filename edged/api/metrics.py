"""Prometheus metrics, in a registry of their own: of HTTP as it happens, of the daemon when asked."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edged.api.daemon_view import DaemonView, ResidencyStatistics
from edged.serving.generation import GenerateEvent

# Seconds. A small model on one machine to a large one streamed from disk.
TTFT_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
TPOT_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10)


class Metrics:
    """Counters of one HTTP server."""

    def __init__(self, daemon: DaemonView) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_DaemonCollector(daemon))
        self._requests = Counter(
            "edged_http_requests", "HTTP requests answered", ("route", "status"), registry=registry
        )
        self._prompt = Counter("edged_prompt_tokens", "Tokens read", registry=registry)
        self._cached = Counter(
            "edged_prompt_tokens_cached", "Tokens read from the KV cache instead", registry=registry
        )
        self._completion = Counter("edged_completion_tokens", "Tokens written", registry=registry)
        self._hangups = Counter(
            "edged_http_hangups", "Answers given up because the client went away", registry=registry
        )
        self._broken = Counter(
            "edged_http_broken_streams", "Streams that ended in an error", registry=registry
        )
        self._running = Gauge("edged_http_completions", "Completions under way over HTTP", registry=registry)
        self._ttft = Histogram(
            "edged_time_to_first_token_seconds",
            "From the arrival of a request to its first token",
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self._tpot = Histogram(
            "edged_time_per_output_token_seconds",
            "Mean time between the tokens of an answer",
            buckets=TPOT_BUCKETS,
            registry=registry,
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def answered(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def hung_up(self) -> None:
        self._hangups.inc()

    def broke_off(self) -> None:
        self._broken.inc()

    def running(self, completions: int) -> None:
        self._running.set(completions)

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def finished(self, event: GenerateEvent, decode_s: float) -> None:
        """decode_s: from the first token to the last."""
        if event.usage is None:
            return
        self._prompt.inc(event.usage.prompt_tokens)
        self._cached.inc(event.usage.cached_tokens)
        self._completion.inc(event.usage.completion_tokens)
        if event.usage.completion_tokens > 1:
            self._tpot.observe(decode_s / (event.usage.completion_tokens - 1))


class Stopwatch:
    """Runs from a request's arrival; one lap for each of its completions."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.started = time.monotonic()

    def lap(self) -> Lap:
        return Lap(self)


class Lap:
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._first: float | None = None

    def saw(self, event: GenerateEvent) -> None:
        now = time.monotonic()
        if self._first is None and (event.text or event.token_ids):
            self._first = now
            self._watch.metrics.first_token(now - self._watch.started)
        if event.finish_reason is not None:
            self._watch.metrics.finished(event, now - (self._first or now))


class _DaemonCollector(Collector):
    """Asks the daemon at the moment of the scrape."""

    def __init__(self, daemon: DaemonView) -> None:
        self._daemon = daemon

    def describe(self) -> list[Metric]:
        return []  # otherwise the registry would ask the daemon for its names now

    def collect(self) -> Iterator[Metric]:
        status = self._daemon.status()
        yield _gauge("edged_ready", "1 while a ring is ready", int(status.state == "ready"))
        yield _gauge("edged_requests_active", "Requests in the ring", status.active_requests)
        yield _gauge("edged_requests_waiting", "Requests that wait for a place", status.waiting_requests)
        yield _gauge("edged_epoch", "Epoch of the plan, or 0", status.plan.epoch if status.plan else 0)
        alive = sum(member.state == "alive" for member in status.members)
        yield _gauge("edged_members_alive", "Devices of the cluster that answer", alive)
        yield _gauge("edged_members", "Devices of the cluster", len(status.members))
        info = GaugeMetricFamily("edged_info", "This daemon", labels=("version", "device", "model"))
        info.add_metric((status.version, status.name, status.model), 1)
        yield info
        yield from self._ring()

    def _ring(self) -> Iterator[Metric]:
        statistics = self._daemon.statistics()
        labels = ("hop", "device")
        compute = CounterMetricFamily("edged_hop_compute_seconds", "Time inside a window", labels=labels)
        frames = CounterMetricFamily("edged_hop_frames", "Frames that a window ran", labels=labels)
        sent = CounterMetricFamily("edged_hop_bytes", "Bytes that a window sent on", labels=labels)
        for hop in statistics.hops:
            place = (str(hop.hop), hop.device)
            compute.add_metric(place, hop.compute_s)
            frames.add_metric(place, hop.frames)
            sent.add_metric(place, hop.bytes_sent)
        yield from (compute, frames, sent)
        yield CounterMetricFamily(
            "edged_frames_dropped", "Frames of an old epoch, or unreadable", statistics.frames_dropped
        )

        yield from _residency(statistics.residency)


def _residency(of: ResidencyStatistics) -> Iterator[Metric]:
    yield _gauge("edged_layers_resident_bytes", "Layers in memory", of.resident)
    yield _gauge("edged_layers_locked_bytes", "Of these, what cannot be swapped out", of.locked)
    yield _gauge("edged_layers_streamed_bytes", "Layers read from disk for every token", of.streamed)
    yield _gauge("edged_layers_given_up", "Layers streamed because memory is short", of.given_up)
    yield _gauge("edged_read_ahead_bytes", "Memory for layers on their way from disk", of.read_ahead)
    for name, text, value in (
        ("edged_layers_read_bytes", "Bytes of layers read from disk", of.read),
        ("edged_layers_wasted_bytes", "Of these, bytes dropped before they were used", of.wasted),
        ("edged_layers_waits", "Times that a window waited for its disk", of.waits),
        ("edged_layers_waited_seconds", "Time that windows waited for their disk", of.waited),
    ):
        yield CounterMetricFamily(name, text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)

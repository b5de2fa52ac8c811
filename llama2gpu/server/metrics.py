"""What a server tells Prometheus."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from llama2gpu.engine import Engine

_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters, gauges and histograms of one server, in a registry of their own."""

    def __init__(self, engine: "Engine") -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by path and status.", "path", "status")
        self.answers = self._counter("answers", "Sequences that ended, by reason.", "reason")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.tokens = self._counter("generated_tokens", "Tokens that were generated.")
        self._steps = self._counter("steps", "Steps of the engine.")
        self._preempted = self._counter("preemptions", "Sequences put off for want of pages.")
        self._engine, self._seen = engine, 0
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST
        )
        self.next_token = self._histogram(
            "time_per_token_seconds", "From one token of a sequence to its next.", _NEXT
        )
        self._gauge("sequences_running", "Sequences in the engine's batch.").set_function(
            lambda: len(engine.running)
        )
        self.waiting = self._gauge("sequences_waiting", "Sequences that wait for their turn.")
        self._gauge("pages", "Pages of the cache.").set_function(lambda: engine.cache.pages)
        self._gauge("pages_used", "Pages that sequences hold.").set_function(
            lambda: engine.cache.pages - engine.cache.free_pages
        )
        self._gauge("prompt_tokens_reused", "Those found in the cache.").set_function(
            lambda: engine.scheduler.reused
        )
        self.jobs = self._gauge("jobs_waiting", "Jobs that wait for their turn.")

    def count_step(self) -> None:
        """The engine has made a step."""
        self._steps.inc()
        seen, self._seen = self._seen, self._engine.scheduler.preempted
        self._preempted.inc(self._seen - seen)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"llama2gpu_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"llama2gpu_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"llama2gpu_{name}", text, buckets=buckets, registry=self.registry)

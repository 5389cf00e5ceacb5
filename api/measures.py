"""Figures of the API itself, counted while it runs, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# From an answer out of memory to a slow server that is being discovered.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0)


class Measures:
    """How many requests were answered, how, and how fast."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "rehost_http_requests",
            "Requests that were answered; status 499 where the client went away first.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "rehost_http_request_seconds",
            "Time from a request to the end of its answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def request(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """One request was answered. What callers make up (methods, paths) makes no series of its own."""
        kind = method if method in _METHODS else "other"
        self._requests.labels(kind, route or "none", str(status)).inc()
        self._seconds.labels(kind, route or "none").observe(seconds)

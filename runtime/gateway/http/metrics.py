"""Counts for Prometheus, read from the spool when they are asked for. Labels are states, codes and names of the configuration."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..delivery_queue import Deliveries
from ..health import ExportState
from ..spool import Spool

__all__ = ["Metrics"]

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """A registry of its own: what else the process measures stays out of it."""

    def __init__(self, spool: Spool) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_OfSpool(spool))
        self.requests = Counter("lcmem_gateway_http_requests", "HTTP requests.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "lcmem_gateway_http_request_seconds",
            "Time to answer HTTP requests.",
            ["route"],
            registry=self.registry,
            buckets=SECONDS,
        )


class _OfSpool(Collector):
    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def collect(self) -> Iterable[Metric]:
        spool = self._spool
        objects = GaugeMetricFamily("lcmem_gateway_objects", "Objects in the spool's database, by state.", labels=["state"])
        for state, count in spool.counts().items():
            objects.add_metric([state.value], count)
        yield objects
        events = CounterMetricFamily("lcmem_gateway_events", "What happened since the spool was made.", labels=["event"])
        for name, count in sorted(spool.counters().items()):
            events.add_metric([name], count)
        yield events
        pending = GaugeMetricFamily(
            "lcmem_gateway_deliveries_pending", "Objects that wait for a destination.", labels=["destination"]
        )
        waiting = Deliveries(spool).pending()
        for destination in spool.settings.destination:
            pending.add_metric([destination.name], waiting.get(destination.name, 0))
        yield pending
        oldest = spool.oldest_waiting()
        yield GaugeMetricFamily(
            "lcmem_gateway_oldest_waiting_seconds",
            "Age of the object that waits longest for its screening; 0 where none does.",
            value=max(0.0, time.time() - oldest) if oldest else 0.0,
        )
        yield from self._audit()
        yield GaugeMetricFamily("lcmem_gateway_spool_free_bytes", "Free bytes on the spool's disk.", value=spool.files.free_bytes())

    def _audit(self) -> Iterable[Metric]:
        """How far the audit trail is behind: in its file, and at the collector, if there is one."""
        with self._spool.database.snapshot() as connection:
            (head,) = connection.execute("SELECT seq FROM audit_head").fetchone()
            (pending,) = connection.execute("SELECT count(*) FROM audit_pending").fetchone()
            state = ExportState.read(connection)
        yield GaugeMetricFamily(
            "lcmem_gateway_audit_unwritten_lines", "Audit lines that are not in the trail's file yet.", value=pending
        )
        if self._spool.settings.audit.syslog:
            behind = max(0.0, time.time() - state.behind_since) if state.behind_since is not None else 0.0
            yield GaugeMetricFamily(
                "lcmem_gateway_audit_unsent_lines",
                "Audit lines that the exporter to the collector has not dealt with yet.",
                value=max(0, head - state.position.seq),
            )
            yield GaugeMetricFamily(
                "lcmem_gateway_audit_behind_seconds",
                "Age of the oldest audit line that waits for the collector; 0 where none waits for longer than a moment.",
                value=behind,
            )
            yield GaugeMetricFamily(
                "lcmem_gateway_audit_exporter_alive_seconds", "Time of the exporter's last sign of life.", value=state.alive
            )

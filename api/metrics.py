"""/metrics: figures for Prometheus. Those of the catalog are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from api.measures import Measures
from rehost.catalog.catalog import Catalog
from rehost.catalog.gauges import Gauges

MEDIA_TYPE = CONTENT_TYPE_LATEST


def exposition(catalog: Catalog, measures: Measures) -> bytes:
    """All figures in Prometheus' text format. Raises CatalogAway."""
    read = CollectorRegistry(auto_describe=True)
    read.register(_OfCatalog(catalog.gauges()))
    return generate_latest(read) + generate_latest(measures.registry)


class _OfCatalog(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        found = self._gauges
        jobs = GaugeMetricFamily("rehost_jobs", "Jobs by region and status.", labels=["region", "status"])
        for region, status, count in found.jobs:
            jobs.add_metric([region, status], count)
        yield jobs
        queued = GaugeMetricFamily("rehost_jobs_queued", "Jobs that wait for their turn.", labels=["region"])
        oldest = GaugeMetricFamily("rehost_oldest_queued_seconds", "How long the first waits.", labels=["region"])
        for region, count, seconds in found.queued:
            queued.add_metric([region], count)
            oldest.add_metric([region], seconds)
        yield queued
        yield oldest
        runs = GaugeMetricFamily("rehost_runs", "Runs of the jobs that there are.", labels=["kind", "status"])
        for kind, status, count in found.runs:
            runs.add_metric([kind, status], count)
        yield runs
        lasted = SummaryMetricFamily("rehost_run_seconds", "How long ended runs lasted.", labels=["kind", "status"])
        for kind, status, count, seconds in found.run_seconds:
            lasted.add_metric([kind, status], count_value=count, sum_value=seconds)
        yield lasted
        moved = GaugeMetricFamily("rehost_run_bytes", "Bytes of all runs together, by what was counted.", labels=["of"])
        for name, total in found.moved_bytes:
            moved.add_metric([name.removeprefix("bytes_")], total)
        yield moved
        sources = GaugeMetricFamily("rehost_sources", "Sources by state.", labels=["state"])
        for state, count in found.sources:
            sources.add_metric([state], count)
        yield sources
        images = GaugeMetricFamily("rehost_images", "Images.", labels=["region", "kind"])
        size = GaugeMetricFamily("rehost_image_bytes", "Bytes of the files of images.", labels=["region", "kind"])
        for region, kind, count, total in found.images:
            images.add_metric([region, kind], count)
            size.add_metric([region, kind], total)
        yield images
        yield size

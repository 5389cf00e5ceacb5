"""What a job that is over leaves outside the catalog, and how it goes: in the API at once, else in a flow.

Every step can be done again, so whoever is stopped in the middle is followed by housekeeping.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from rehost.catalog.catalog import Catalog
from rehost.settings import Settings


def out_of_prefect(
    catalog: Catalog, job_id: str, cancel: Callable[[str], object], unschedule: Callable[[str], object]
) -> None:
    """No schedule, no timed start, and of a job that is being deleted no test of its images is left in Prefect.

    `cancel` takes the id of a flow run, `unschedule` that of a job. Raises JobNotFound, and what these two raise; then
    the rest is left for the next time.
    """
    leftovers = catalog.leftovers(job_id)
    for flow_run_id in leftovers.flow_run_ids:
        cancel(flow_run_id)
    if leftovers.scheduled:
        unschedule(job_id)
    catalog.nothing_left_in_prefect(job_id)


def forget_job(catalog: Catalog, settings: Settings, job_id: str) -> None:
    """Remove the records of a job that is being deleted, and the evidence of its tests."""
    for id in catalog.finish_removal(job_id):
        shutil.rmtree(settings.evidence_path / id, ignore_errors=True)

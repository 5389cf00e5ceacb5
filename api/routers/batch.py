"""/v1/jobs/start and /v1/jobs/stop: several jobs in one request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from api import launch
from api.dependencies import TheCatalog, TheOrchestration
from api.problems import Problem, problem_of, responses
from rehost.catalog.names import check_no_nul
from rehost.catalog.records import Job
from rehost.errors import OrchestrationAway, RehostError
from rehost.ids import new_id

router = APIRouter(prefix="/jobs", tags=["jobs"])

MAX_BATCH = 50
_EXAMPLE = {"job_ids": ["j-0123456789abcdefghij", "j-abcdefghij0123456789"]}


class Batch(BaseModel):
    """Which jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_ids: Annotated[
        tuple[Annotated[str, Field(max_length=64), AfterValidator(check_no_nul)], ...],
        Field(max_length=MAX_BATCH, json_schema_extra={"minItems": 1, "uniqueItems": True}),
    ]

    @field_validator("job_ids")
    @classmethod
    def _each_once(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        if not ids:  # not by min_length: that counts what is left after each id was judged
            raise ValueError("names at least one job")
        if len(set(ids)) != len(ids):
            raise ValueError("names a job twice")
        return ids


class BatchItem(BaseModel):
    """What became of one of them: the job, or the problem that a request for it alone would have answered."""

    job_id: str
    ok: bool
    job: Job | None = None
    error: Problem | None = None


class BatchAnswer(BaseModel):
    """An answer per job, in the order of the request."""

    items: list[BatchItem]


@router.post("/start", responses=responses(OrchestrationAway))
def start_jobs(
    batch: Annotated[Batch, Body(examples=[_EXAMPLE])], catalog: TheCatalog, orchestration: TheOrchestration
) -> BatchAnswer:
    """Begin a run of each job. Those that find no free place are `queued`, and begin in their order.

    Of jobs that were started together 10 run at once, 100 of those with a vSwitch, and never more than the region's
    limit.
    """
    batch_id = new_id("b")
    return _each(batch, lambda id: launch.start_job(catalog, orchestration, id, batch_id=batch_id), "start")


@router.post("/stop", responses=responses(OrchestrationAway))
def stop_jobs(
    batch: Annotated[Batch, Body(examples=[_EXAMPLE])], catalog: TheCatalog, orchestration: TheOrchestration
) -> BatchAnswer:
    """Stop each job that is syncing, waiting or queued."""
    return _each(batch, lambda id: launch.stop_job(catalog, orchestration, id), "stop")


def _each(batch: Batch, act: Callable[[str], Job], verb: str) -> BatchAnswer:
    items = []
    for id in batch.job_ids:
        try:
            items.append(BatchItem(job_id=id, ok=True, job=act(id)))
        except RehostError as error:
            items.append(BatchItem(job_id=id, ok=False, error=problem_of(error, f"/v1/jobs/{id}/{verb}")))
    return BatchAnswer(items=items)

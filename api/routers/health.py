"""/healthz, /readyz and /metrics"""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from api.dependencies import TheCatalog, TheOrchestration, TheSettings, refuse_unknown_parameters
from api.measures import Measures
from api.metrics import MEDIA_TYPE, exposition
from api.models import Health
from api.readiness import Readiness, readiness
from api.security import authenticate

router = APIRouter(tags=["health"], dependencies=[Depends(refuse_unknown_parameters)])


@router.get("/healthz")
def healthz(catalog: TheCatalog, request: Request) -> Health:
    """The API runs and its catalog answers; needs no key."""
    catalog.ping()
    return Health(version=request.app.version)


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={
        503: {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Readiness"}}}},
    },
)
async def readyz(catalog: TheCatalog, orchestration: TheOrchestration, settings: TheSettings) -> Response:
    """Catalog, Prefect, a worker and the store are there, so that a job can run; 503 where one is not. Needs no key."""
    found = await readiness(catalog, orchestration, settings)
    return JSONResponse(found.model_dump(), 200 if found.status == "ok" else 503)


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(authenticate)],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(catalog: TheCatalog, request: Request) -> Response:
    """Figures for Prometheus: jobs, queue, runs, bytes, sources, images, and the requests of this process."""
    measures = cast(Measures, request.app.state.measures)
    return Response(exposition(catalog, measures), media_type=MEDIA_TYPE)

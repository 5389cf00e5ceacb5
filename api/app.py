"""The API as an application: `create_app(settings)`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import APIRouter, Depends, FastAPI

from api import document, problems
from api.console.router import install_console
from api.dependencies import refuse_unknown_parameters
from api.envelope import Envelope
from api.events import Hub
from api.limits import RequestLimits
from api.measures import Measures
from api.routers import batch, events, health, images, imports, jobs, logs, regions, sources, verifications
from api.security import Failures, authenticate
from api.strict_json import refuse_ambiguous_json
from rehost.catalog.catalog import Catalog
from rehost.settings import Settings

_CATALOG_PATIENCE_SECONDS = 5.0  # a client waits; then it is told to come again


def create_app(settings: Settings) -> FastAPI:
    """The application; the catalog is opened when it starts and closed when it stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Catalog.open(settings, patience=_CATALOG_PATIENCE_SECONDS) as catalog:
            app.state.catalog = catalog
            app.state.hub = Hub(catalog)
            try:
                yield
            finally:
                await app.state.hub.aclose()

    app = FastAPI(
        title="Rehost",
        description="Moves a running Linux server into a bootable disk image or a container image.",
        version=version("rehost"),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages load their scripts from another site; api.console.reference is ours
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call their functions
    )
    app.state.measures = Measures()
    app.state.settings = settings
    app.state.failures = Failures()
    problems.install(app)
    document.install(app)
    app.add_middleware(RequestLimits)
    app.add_middleware(Envelope, measures=app.state.measures)

    app.include_router(health.router)
    v1 = APIRouter(
        prefix="/v1",
        dependencies=[Depends(authenticate), Depends(refuse_unknown_parameters), Depends(refuse_ambiguous_json)],
    )
    routers = (imports, sources, batch, jobs, events, logs, images, verifications, regions)
    for router in (module.router for module in routers):
        v1.include_router(router)
    app.include_router(v1)
    install_console(app)
    return app

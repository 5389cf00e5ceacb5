"""The console's routes together, and what they need of the application."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.responses import Response

from api.console import entrance, image_pages, job_actions, job_creation, job_pages, pages, reference, source_pages
from api.console.pages import ConsoleRoute
from api.console.rendering import assets
from api.console.sessions import Sessions
from api.dependencies import refuse_nul
from rehost.errors import RouteNotFound

_A_YEAR = "public, max-age=31536000, immutable"


def install_console(app: FastAPI) -> None:
    """Put the console at `/`."""
    app.state.console_sessions = Sessions()
    router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)
    router.add_api_route("/static/{name}", static_file, methods=["GET"])
    app.include_router(router)
    for module in (entrance, job_creation, job_pages, job_actions, source_pages, image_pages, reference):
        app.include_router(module.router, dependencies=[Depends(refuse_nul)])
    pages.install(app)


def static_file(name: str, request: Request) -> Response:
    """The stylesheet or the script. Its address changes with its content, so that it is kept for ever."""
    asset = assets().get(name)
    if asset is None:
        raise RouteNotFound(method="GET", path=request.url.path)
    etag = f'"{asset.digest}"'
    headers = {"ETag": etag, "Cache-Control": _A_YEAR if request.query_params.get("v") == asset.digest else "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)

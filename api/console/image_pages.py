"""The pages of images, and of the verifications that proved them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from api.console import evidence, views
from api.console.access import TheVisitor
from api.console.job_pages import PAGE_ITEMS, Cursor
from api.console.pages import ConsoleRoute, page
from api.dependencies import TheCatalog, TheSettings
from rehost.errors import RouteNotFound

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)

_EVERY_VERIFICATION = 50


@router.get("/images")
def list_images(request: Request, visitor: TheVisitor, catalog: TheCatalog, cursor: Cursor = None) -> Response:
    """All images, newest first."""
    found = catalog.images(limit=PAGE_ITEMS, cursor=cursor)
    names = catalog.source_names({image.source_id for image in found.items})
    return page(
        request, visitor, "images.html", found=found, cursor=cursor, source_names=names, target_disks=views.target_disks
    )


@router.get("/images/{id}")
def show_image(id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """One image: its files or its layers, and how it proved itself."""
    image = catalog.image(id)
    # An image outlives its job; the job's verifications went with it.
    of_job = catalog.verifications(image.job_id, limit=_EVERY_VERIFICATION).items if image.job_id else ()
    return page(
        request,
        visitor,
        "image.html",
        image=image,
        disks=views.target_disks(image.facts),
        verifications=[one for one in of_job if one.image_id == id],
        tones=views.TONES,
    )


@router.get("/verifications/{id}")
def show_verification(
    id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog, settings: TheSettings
) -> Response:
    """What was checked, and what was seen."""
    found = catalog.verification(id)
    return page(
        request,
        visitor,
        "verification.html",
        job=catalog.job(found.job_id),
        found=found,
        screenshot=evidence.screenshot(found, settings) is not None,
        log=evidence.console_tail(found, settings),
        tones=views.TONES,
    )


@router.get("/verifications/{id}/screenshot")
def show_screenshot(
    id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog, settings: TheSettings
) -> Response:
    """The screen of the machine that was booted, as PNG."""
    path = evidence.screenshot(catalog.verification(id), settings)
    if path is None:
        raise RouteNotFound(method="GET", path=request.url.path)
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

"""The pages of images, and of the verifications that proved them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from api.console import views
from api.console.access import TheForm, TheVisitor, needs
from api.console.job_pages import PAGE_ITEMS, Cursor
from api.console.pages import ConsoleRoute, failed, gone_to, page
from api.console.sessions import Flash
from api.dependencies import TheCatalog, TheSettings
from api.downloads import download
from api.routers.verifications import show_evidence
from rehost.catalog.records import VerificationRecord
from rehost.errors import EvidenceNotFound, ImageInUse
from rehost.images.files import EvidenceKind, archive_file, disk_file, evidence
from rehost.images.removal import remove_deleted
from rehost.settings import Settings

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)

_EVERY_VERIFICATION = 50
_LOG_BYTES = 48 * 1024


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
    of_job: tuple[VerificationRecord, ...] = ()
    if image.job_id and catalog.job_names({image.job_id}):
        of_job = catalog.verifications(image.job_id, limit=_EVERY_VERIFICATION).items
    return page(
        request,
        visitor,
        "image.html",
        image=image,
        job_name=catalog.job_names({image.job_id}).get(image.job_id) if image.job_id else None,
        source_name=catalog.source_names({image.source_id}).get(image.source_id, image.source_id),
        disks=views.target_disks(image.facts),
        verifications=[one for one in of_job if one.image_id == id],
        tones=views.TONES,
    )


@router.get("/images/{id}/disks/{index}")
def download_disk(
    id: str,
    index: Annotated[int, Path(ge=0, le=16)],
    request: Request,
    visitor: TheVisitor,
    catalog: TheCatalog,
    format: Annotated[str | None, Query(max_length=16)] = None,
) -> Response:
    """A disk of the image as a file, as the API gives it to programs."""
    return download(id, disk_file(catalog.image(id), index, format), request)


@router.get("/images/{id}/archive")
def download_archive(id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """A container image as the archive that `docker load` takes."""
    return download(id, archive_file(catalog.image(id)), request)


@router.post("/images/{id}/use", dependencies=[needs("admin")])
def mark_image(id: str, visitor: TheVisitor, form: TheForm, catalog: TheCatalog) -> Response:
    """Mark the image as used, or no longer."""
    wanted = form.get("in_use") == "true"
    image = catalog.mark_image(id, in_use=wanted)
    if wanted:
        told = "is in use: no rule and no request deletes it."
    else:
        told = "is no longer marked; its run or a test still uses it." if image.in_use else "is no longer in use."
    return gone_to(f"/images/{id}", visitor, Flash("good", f"{image.name} {told}"))


@router.get("/images/{id}/delete", dependencies=[needs("admin")])
def confirm_delete(id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """Ask before an image goes."""
    image = catalog.image(id)
    return page(
        request,
        visitor,
        "confirm.html",
        subject=image.name,
        address=f"/images/{id}",
        action=views.Button(
            "delete",
            "Delete",
            "admin",
            danger=True,
            reason="while the image is in use" if image.in_use else None,
            consequence="Its files, its copy in the container engine and the evidence of its tests go. What was pushed "
            "to a registry stays there.",
        ),
    )


@router.post("/images/{id}/delete", dependencies=[needs("admin")])
def delete_image(id: str, visitor: TheVisitor, _form: TheForm, catalog: TheCatalog, settings: TheSettings) -> Response:
    """Delete the image with all that belongs to it."""
    image = catalog.image(id)
    try:
        catalog.delete_images([id])
    except ImageInUse as error:
        return gone_to(f"/images/{id}", visitor, failed(error))
    remove_deleted(catalog, settings)
    return gone_to("/images", visitor, Flash("good", f"{image.name} is deleted."))


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
        screenshot=_kept(found, "screenshot", settings) is not None,
        log=_tail(_kept(found, "console_log", settings)),
        tones=views.TONES,
    )


@router.get("/verifications/{id}/evidence/{kind}")
def show_evidence_of(
    id: str, kind: EvidenceKind, visitor: TheVisitor, catalog: TheCatalog, settings: TheSettings
) -> Response:
    """The screen of the machine that was booted, what it said, the report."""
    return show_evidence(id, kind, catalog, settings)


def _kept(found: VerificationRecord, kind: EvidenceKind, settings: Settings) -> bytes | None:
    try:
        return evidence(found, kind, settings)[0]
    except EvidenceNotFound:
        return None


def _tail(content: bytes | None) -> str | None:
    """The end of it, by whole lines."""
    if content is None:
        return None
    end = content[-_LOG_BYTES:].decode("utf-8", "replace")
    return end if len(content) <= _LOG_BYTES else end.partition("\n")[2]

"""/v1/images"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from api.dependencies import TheCatalog, ThePlace, TheSettings
from api.downloads import HEADERS, download
from api.models import ImageAnswer, ImageChange, image_answer
from api.problems import responses
from rehost.catalog.records import Page
from rehost.disk_formats import DiskFormat
from rehost.errors import ImageDiskNotFound, ImageFileNotFound, ImageInUse, ImageNotFound, RangeNotSatisfiable
from rehost.images.files import archive_file, disk_file
from rehost.images.removal import remove_deleted

router = APIRouter(prefix="/images", tags=["images"])

DiskIndex = Annotated[int, Path(ge=0, le=16, description="as `disks` has it; 0 is the system disk")]
WantedFormat = Annotated[DiskFormat | None, Query(description="default: the first that there is")]

_FILE = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "the whole file", "headers": HEADERS, **_FILE},
    206: {"description": "the range that was asked for", "headers": HEADERS, **_FILE},
    304: {"description": "`If-None-Match` names the file as it is"},
    **responses(ImageNotFound, ImageDiskNotFound, ImageFileNotFound, RangeNotSatisfiable),
}


@router.get("")
def list_images(catalog: TheCatalog, place: ThePlace) -> Page[ImageAnswer]:
    """All images, newest first."""
    page = catalog.images(limit=place.limit, cursor=place.cursor)
    items = tuple(image_answer(image) for image in page.items)
    return Page[ImageAnswer](items=items, next_cursor=page.next_cursor, total=page.total)


@router.get("/{id}", responses=responses(ImageNotFound))
def show_image(id: str, catalog: TheCatalog) -> ImageAnswer:
    """One image: what the catalog knows of it, and what its image.json says."""
    return image_answer(catalog.image(id))


@router.patch("/{id}", responses=responses(ImageNotFound))
def change_image(id: str, change: ImageChange, catalog: TheCatalog) -> ImageAnswer:
    """Mark the image as used, or no longer: what is in use is not deleted, by no rule and no request."""
    return image_answer(catalog.mark_image(id, in_use=change.in_use))


@router.delete("/{id}", status_code=204, responses=responses(ImageNotFound, ImageInUse))
def delete_image(id: str, catalog: TheCatalog, settings: TheSettings) -> Response:
    """Delete the image with its files, its copy in the container engine and the evidence of its tests.

    What cannot be removed at once (the engine is away, the folder is on another machine) is removed by housekeeping.
    """
    catalog.delete_images([id])
    remove_deleted(catalog, settings)
    return Response(status_code=204)


@router.get("/{id}/disks/{index}", response_class=Response, responses=_DOWNLOAD)
def download_disk(
    id: str, index: DiskIndex, catalog: TheCatalog, request: Request, format: WantedFormat = None
) -> Response:
    """A disk of the image as a file. Takes `Range` (one), `If-Range` and `If-None-Match`."""
    return download(id, disk_file(catalog.image(id), index, format), request)


@router.head("/{id}/disks/{index}", response_class=Response, responses=_DOWNLOAD)
def look_at_disk(
    id: str, index: DiskIndex, catalog: TheCatalog, request: Request, format: WantedFormat = None
) -> Response:
    """What a download would answer, without the file."""
    return download(id, disk_file(catalog.image(id), index, format), request)


@router.get("/{id}/archive", response_class=Response, responses=_DOWNLOAD)
def download_archive(id: str, catalog: TheCatalog, request: Request) -> Response:
    """A container image as the archive that `docker load` takes. Takes what the download of a disk takes."""
    return download(id, archive_file(catalog.image(id)), request)


@router.head("/{id}/archive", response_class=Response, responses=_DOWNLOAD)
def look_at_archive(id: str, catalog: TheCatalog, request: Request) -> Response:
    """What a download would answer, without the archive."""
    return download(id, archive_file(catalog.image(id)), request)

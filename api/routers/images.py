"""/v1/images"""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import TheCatalog, ThePlace
from api.models import ImageAnswer, image_answer
from api.problems import responses
from rehost.catalog.records import Page

router = APIRouter(prefix="/images", tags=["images"])


@router.get("", responses=responses(422))
def list_images(catalog: TheCatalog, place: ThePlace) -> Page[ImageAnswer]:
    """All images, newest first."""
    page = catalog.images(limit=place.limit, cursor=place.cursor)
    items = tuple(image_answer(image) for image in page.items)
    return Page[ImageAnswer](items=items, next_cursor=page.next_cursor, total=page.total)


@router.get("/{id}", responses=responses(404))
def show_image(id: str, catalog: TheCatalog) -> ImageAnswer:
    """One image: what the catalog knows of it, and what its image.json says."""
    return image_answer(catalog.image(id))

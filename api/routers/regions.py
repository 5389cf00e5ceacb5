"""/v1/regions"""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import ThePlace, TheSettings
from rehost.catalog.faults import Fault, raise_faults
from rehost.catalog.records import Page
from rehost.regions.regions import RegionRecord, regions

router = APIRouter(prefix="/regions", tags=["regions"])


@router.get("")
def list_regions(settings: TheSettings, place: ThePlace) -> Page[RegionRecord]:
    """The destinations that are configured; `local` is always there."""
    known = regions(settings)
    names = [region.id for region in known]
    if place.cursor is not None and place.cursor not in names:
        raise_faults([Fault("?cursor", "is not a cursor that a list gave")])
    first = names.index(place.cursor) + 1 if place.cursor is not None else 0
    items = known[first : first + place.limit]
    more = first + len(items) < len(known)
    return Page[RegionRecord](items=items, next_cursor=items[-1].id if more else None, total=len(known))

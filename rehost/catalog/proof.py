"""Whether the images that a job asks for are there, and have proved themselves."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from rehost.catalog.job import JobSpec
from rehost.catalog.states import VerificationStatus
from rehost.catalog.tables import ImageRow, VerificationRow


@dataclass(frozen=True)
class Missing:
    """What a run still owes its job, in words."""

    images: tuple[str, ...]  # "disk image"
    proofs: tuple[str, ...]  # "a passed verification of m-…"


def missing_of(session: Session, run_id: str | None, spec: JobSpec) -> Missing:
    """What was asked for and is not there, of the images of that run; with None all is missing."""
    images: list[str] = []
    proofs: list[str] = []
    for kind, target in (("disk", spec.targets.image), ("container", spec.targets.container_image)):
        if target is None:
            continue
        # The newest one: a stage that is tried again may have left an earlier one behind.
        newest = session.scalars(
            select(ImageRow)
            .where(ImageRow.run_id == run_id, ImageRow.kind == kind, ImageRow.deleted_at.is_(None))
            .order_by(ImageRow.created_at.desc())
            .limit(1)
        ).first()
        if newest is None:
            images.append(f"{kind} image")
        elif spec.verification.enabled and not _verified(session, newest.id):
            proofs.append(f"a passed verification of {newest.id}")
    return Missing(tuple(images), tuple(proofs))


def _verified(session: Session, image_id: str) -> bool:
    """Every subject of the image that was tested passed in its last test, and there was one."""
    last: dict[str, str] = {}
    for row in session.scalars(
        select(VerificationRow).where(VerificationRow.image_id == image_id).order_by(VerificationRow.created_at)
    ):
        last[row.subject] = row.status
    return bool(last) and all(status == VerificationStatus.SUCCEEDED for status in last.values())

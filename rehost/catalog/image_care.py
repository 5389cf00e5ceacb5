"""The end of images in the catalog: marked as used or not, deleted, forgotten.

An image is deleted in two steps, so that a crash between them leaves nothing behind and loses nothing: first its row
says so (`deleted_at`), and nobody is shown it any more; then its files go, which can be tried as often as needed; then
the row. Files are never removed while a row says that they are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, now
from rehost.catalog.image_uses import uses
from rehost.catalog.images import image_records, image_row
from rehost.catalog.records import Image
from rehost.catalog.tables import ImageRow, SourceRow, VerificationRow
from rehost.errors import ImageInUse, ImageNotFound


class ImageCare:
    """The part of the catalog that lets images go."""

    _database: Database

    def mark_image(self, id: str, *, in_use: bool) -> Image:
        """Whether the image is kept whatever the rules say. Raises ImageNotFound."""
        with self._database.write() as session:
            row = image_row(session, id)
            row.in_use = in_use
            session.flush()
            return image_records(session, [row])[0]

    def delete_images(self, ids: Sequence[str]) -> None:
        """The images are deleted, all or none; what is left of them is in `deleted_images`.

        Raises ImageNotFound, and ImageInUse with every one that is in use.
        """
        with self._database.write() as session:
            mark_deleted(session, ids)

    def deleted_images(self) -> list[Image]:
        """The images that were deleted and may have files left, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(
                select(ImageRow).where(ImageRow.deleted_at.is_not(None)).order_by(ImageRow.deleted_at, ImageRow.id)
            )
            return image_records(session, list(rows))

    def forget_image(self, id: str) -> None:
        """Nothing is left of a deleted image."""
        with self._database.write() as session:
            session.execute(delete(ImageRow).where(ImageRow.id == id, ImageRow.deleted_at.is_not(None)))

    def verification_ids(self, image_id: str) -> list[str]:
        """Every test of that image, ended or not."""
        with self._database.read() as session:
            return list(session.scalars(select(VerificationRow.id).where(VerificationRow.image_id == image_id)))

    def engine_references(self) -> dict[str, set[str]]:
        """What the container engine calls the images that are recorded and not deleted, with the names of each."""
        found: dict[str, set[str]] = {}
        with self._database.read() as session:
            rows = session.scalars(select(ImageRow).where(ImageRow.kind == "container", ImageRow.deleted_at.is_(None)))
            for row in rows:
                found.setdefault(str(row.facts.get("engine_id")), set()).add(row.name)
        return found

    def source_ids(self) -> set[str]:
        """Every source that is known, or that an image was made of."""
        with self._database.read() as session:
            return set(session.scalars(select(SourceRow.id))) | set(session.scalars(select(ImageRow.source_id)))


def mark_deleted(session: Session, ids: Sequence[str]) -> None:
    """The images are deleted, all or none. Raises ImageNotFound, and ImageInUse with every one that is in use."""
    # Locked first, then looked at: a test of one of them that begins at the same time is seen, or sees this.
    rows = session.scalars(select(ImageRow).where(ImageRow.id.in_(ids)).with_for_update()).all()
    there = {row.id for row in rows if row.deleted_at is None}
    for id in ids:
        if id not in there:
            raise ImageNotFound(id=id)
    if used := uses(session, ids):
        raise ImageInUse(id=", ".join(used), reason="; ".join(dict.fromkeys(used.values())))
    for row in rows:
        row.deleted_at = now()

"""What keeps an image from being deleted: a user's mark, a test of it, the run that makes it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from rehost.catalog.states import TESTED_NOW, UNDER_WAY
from rehost.catalog.tables import ImageRow, RunRow, VerificationRow

_TESTED = exists().where(VerificationRow.image_id == ImageRow.id, VerificationRow.status.in_(TESTED_NOW))
_BEING_MADE = exists().where(RunRow.id == ImageRow.run_id, RunRow.status.in_(UNDER_WAY))


def uses(session: Session, ids: Sequence[str]) -> dict[str, str]:
    """For each of these images that is in use, why, as the end of a sentence."""
    found = session.execute(
        select(ImageRow.id, ImageRow.in_use, _TESTED, _BEING_MADE).where(
            ImageRow.id.in_(ids), ImageRow.in_use | _TESTED | _BEING_MADE
        )
    )
    return {
        id: "it is marked as `in_use`"
        if marked
        else "a verification of it is under way"
        if tested
        else "the run that makes it is under way"
        for id, marked, tested, _ in found
    }

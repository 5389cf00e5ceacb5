"""The catalog as a whole: what the API, the flows and the tasks ask and tell."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from sqlalchemy import select

from rehost.catalog.database import Database
from rehost.catalog.endings import Endings
from rehost.catalog.idempotency import IdempotencyKeys
from rehost.catalog.image_care import ImageCare
from rehost.catalog.images import Images
from rehost.catalog.job_changes import JobChanges
from rehost.catalog.overview import Overview
from rehost.catalog.retention import Retention
from rehost.catalog.run_figures import RunFigures
from rehost.catalog.runs import Runs
from rehost.catalog.sources import Sources
from rehost.catalog.tables import SchemaRow
from rehost.catalog.verifications import Verifications
from rehost.settings import Settings


class Catalog(
    Overview,
    Sources,
    JobChanges,
    Runs,
    RunFigures,
    Endings,
    Retention,
    Images,
    ImageCare,
    Verifications,
    IdempotencyKeys,
):
    """Safe to use from several threads and processes at once. Every method is one transaction.

    Every method raises CatalogAway where the database does not answer.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the catalog of these settings; an empty database gets its tables.

        Raises CatalogAway, CatalogVersionMismatch.
        """
        return cls(Database(settings.catalog_url), settings)

    def ping(self) -> None:
        """Ask the database for something."""
        with self._database.read() as session:
            session.scalar(select(SchemaRow.version))

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

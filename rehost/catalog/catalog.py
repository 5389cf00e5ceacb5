"""The catalog as a whole: what the API, the flows and the tasks ask and tell."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import select

from rehost.catalog.admission import Admission
from rehost.catalog.api_keys import ApiKeys
from rehost.catalog.database import Database
from rehost.catalog.endings import Endings
from rehost.catalog.gauges import WithGauges
from rehost.catalog.idempotency import IdempotencyKeys
from rehost.catalog.image_care import ImageCare
from rehost.catalog.images import Images
from rehost.catalog.job_changes import JobChanges
from rehost.catalog.overview import Overview
from rehost.catalog.retention import Retention
from rehost.catalog.run_figures import RunFigures
from rehost.catalog.runs import Runs
from rehost.catalog.schedules import Schedules
from rehost.catalog.sources import Sources
from rehost.catalog.tables import SchemaRow
from rehost.catalog.verifications import Verifications
from rehost.settings import Settings

Result = TypeVar("Result")


def _patient(method: Callable[..., Result]) -> Callable[..., Result]:
    @functools.wraps(method)
    def patient(self: Catalog, *arguments: Any, **named: Any) -> Result:
        return self._database.patiently(lambda: method(self, *arguments, **named))

    return patient


def _each_is_one_transaction(whole: type[Catalog]) -> type[Catalog]:
    """Every method of the parts is tried again, as a whole, while the database does not answer."""
    parts = whole.__mro__[1:-1]
    for name in {name for part in parts for name, found in vars(part).items() if inspect.isfunction(found)}:
        if not name.startswith("_"):
            setattr(whole, name, _patient(getattr(whole, name)))
    return whole


@_each_is_one_transaction
class Catalog(
    Overview,
    Sources,
    JobChanges,
    Runs,
    RunFigures,
    Admission,
    Schedules,
    Endings,
    Retention,
    Images,
    ImageCare,
    Verifications,
    IdempotencyKeys,
    ApiKeys,
    WithGauges,
):
    """Safe to use from several threads and processes at once. Every method is one transaction.

    Every method raises CatalogAway where the database does not answer for longer than the catalog's patience.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    @classmethod
    def open(cls, settings: Settings, *, patience: float = 0.0) -> Self:
        """Open the catalog of these settings; an empty database gets its tables.

        `patience`: how many seconds a database that does not answer is waited for, now and in every method.
        Raises CatalogAway, CatalogVersionMismatch, CatalogUrlInvalid.
        """
        return cls(Database(settings.catalog_url, patience=patience), settings)

    def ping(self) -> None:
        """Ask the database for something, once. Raises CatalogAway."""
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

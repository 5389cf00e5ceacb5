"""The catalog's tests once more, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest

from tests.support.postgres import PostgreSQL
from tests.unit import (
    test_catalog_at_once,
    test_catalog_endings,
    test_catalog_migrations,
    test_catalog_runs,
    test_image_care,
    test_queue,
    test_run_figures,
)

_MODULES = (
    test_catalog_runs,
    test_catalog_migrations,
    test_catalog_at_once,
    test_catalog_endings,
    test_run_figures,
    test_queue,
    test_image_care,
)
_FIXTURE = type(test_catalog_runs.source)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, postgresql_server: PostgreSQL) -> Iterator[str]:
    """What the tests' own fixture gives on SQLite; the tables are there, but for the tests of how they come about."""
    tables = request.function.__module__ != test_catalog_migrations.__name__
    with postgresql_server.database(tables=tables) as name:
        yield postgresql_server.url(name)


def _cases(*modules: ModuleType) -> dict[str, Any]:
    """The tests of these modules and their fixtures, by name; each name once."""
    found: dict[str, Any] = {}
    for module in modules:
        for name, value in vars(module).items():
            own = isinstance(value, FunctionType) and value.__module__ == module.__name__ and name.startswith("test_")
            if own or isinstance(value, _FIXTURE):
                assert found.setdefault(name, value) is value, f"two modules have {name}"
    return found


globals().update(_cases(*_MODULES))

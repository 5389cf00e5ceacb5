"""The catalog that tests are given: on SQLite, unless a module says otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehost.catalog.catalog import Catalog
from rehost.settings import Settings


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Where this test's own catalog is, as an SQLAlchemy URL.

    A test that takes its catalog from here (or from `catalog` below) belongs to tests/unit and runs on SQLite;
    tests/integration/test_catalog_postgresql.py runs the same test on PostgreSQL once its module is in the list there.
    """
    return f"sqlite:///{tmp_path / 'catalog.db'}"


@pytest.fixture
def catalog(tmp_path: Path, database_url: str) -> Iterator[Catalog]:
    """An empty catalog in `database_url`."""
    with Catalog.open(Settings(home=tmp_path, database_url=database_url)) as catalog:
        yield catalog


@pytest.fixture(autouse=True)
def _where_the_tests_began() -> Iterator[None]:
    """An agent that is served within the test's own process leaves it at `/`: the next test begins where all did."""
    began = Path.cwd()
    yield
    os.chdir(began)

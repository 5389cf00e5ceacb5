"""The catalog's tables from version to version: nothing is lost, nothing is done twice, nothing is done by half."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, select, text, update

from rehost.catalog import migrations, upgrade as upgrading
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import changing_tables, made_tables
from rehost.catalog.states import JobStatus
from rehost.catalog.tables import SCHEMA_VERSION, Base, SchemaRow
from rehost.catalog.upgrade import Upgraded, migrate, upgrade
from rehost.errors import CatalogVersionMismatch
from rehost.settings import Settings

_MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
_INVENTORY = '{"hostname": "web1", "os_id": "debian", "architecture": "x86_64"}'
_SPEC = '{"source_id": "s-1", "region_id": "local", "name": "web", "valid_until": "2026-02-02T00:00:00Z"}'
_ROWS = (
    """INSERT INTO sources (id, name, connection, inventory, tags, state, created_at, discovered_at)
       VALUES ('s-1', 'web1', '{"kind": "path", "root": "/srv"}', :inventory, '{}', 'available', :at, :at)""",
    """INSERT INTO jobs (id, source_id, region_id, name, image_name, spec, status, progress, stopping, created_at,
         valid_until)
       VALUES ('j-1', 's-1', 'local', 'web', 'web', :spec, 'Finished', 100, false, :at, :at)""",
    "INSERT INTO job_tags (job_id, key, value) VALUES ('j-1', 'team', 'shop')",
    """INSERT INTO runs (id, job_id, source_id, kind, status, previous_status, snapshot_id, created_at)
       VALUES ('r-1', 'j-1', 's-1', 'manual', 'succeeded', 'Ready', 'n-1', :at)""",
    "INSERT INTO snapshots (id, source_id, run_id, figures, created_at) VALUES ('n-1', 's-1', 'r-1', '{}', :at)",
    """INSERT INTO images (id, kind, name, region_id, source_id, job_id, run_id, snapshot_id, in_use, facts, created_at)
       VALUES ('m-1', 'disk', 'web', 'local', 's-1', 'j-1', 'r-1', 'n-1', false, '{"size": 1}', :at)""",
    """INSERT INTO verifications (id, job_id, run_id, image_id, subject, status, report, created_at)
       VALUES ('v-1', 'j-1', 'r-1', 'm-1', 'bios', 'succeeded', :report, :at)""",
)


def make_first_version(url: str) -> None:
    """The tables of version 1, as the program that knew no Alembic left them, with a row in each."""
    values = {
        "at": _MOMENT.replace(tzinfo=None),
        "inventory": _INVENTORY,
        "spec": _SPEC,
        "report": '{"subject": "bios", "status": "succeeded"}',
    }
    with changing_tables(url) as connection:
        migrate(connection, None, 1)
        connection.execute(text("DROP TABLE alembic_version"))
        for row in _ROWS:
            named = re.findall(r"(?<=[ (]):(\w+)", row)
            connection.execute(text(row), {name: values[name] for name in named})


def settings_of(tmp_path: Path, url: str) -> Settings:
    return Settings(home=tmp_path, database_url=url)


def tables(connection: Connection) -> dict[str, Any]:
    """Columns, keys and indexes of every table, as the database tells them."""
    told = inspect(connection)
    return {
        name: (
            {(c["name"], str(c["type"]), c["nullable"], str(c["default"])) for c in told.get_columns(name)},
            sorted((k["constrained_columns"], k["referred_table"]) for k in told.get_foreign_keys(name)),
            sorted(
                (str(i["name"]), i["column_names"], bool(i["unique"]), _condition(i.get("dialect_options", {})))
                for i in told.get_indexes(name)
            ),
            sorted(c["column_names"] for c in told.get_unique_constraints(name)),
        )
        for name in told.get_table_names()
        if name != "alembic_version"
    }


def _condition(options: dict[str, Any]) -> str:
    found = "".join(str(value) for key, value in options.items() if key.endswith("_where"))
    return found.replace("(", "").replace(")", "")


def test_the_migrations_make_the_tables_that_the_program_declares(database_url: str) -> None:
    with changing_tables(database_url) as connection:
        migrate(connection, None, SCHEMA_VERSION)
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        migrated = tables(connection)
        Base.metadata.drop_all(connection)
        made_tables(connection)
        declared = tables(connection)
    assert migrated == declared, "conditions of indexes and foreign keys too"
    assert any("pending" in condition for *_, condition in declared["runs"][2])


def test_every_migration_has_the_number_of_its_file() -> None:
    folder = Path(migrations.__file__).parent / "versions"
    numbers = sorted(int(path.name[1:5]) for path in folder.glob("r*.py"))
    assert numbers == list(range(1, SCHEMA_VERSION + 1))


def test_an_older_catalog_is_refused_until_it_is_upgraded_and_keeps_its_rows(tmp_path: Path, database_url: str) -> None:
    make_first_version(database_url)
    with pytest.raises(CatalogVersionMismatch, match="version 1") as refused:
        Catalog.open(settings_of(tmp_path, database_url))
    assert "rehost db upgrade" in refused.value.remedy
    assert upgrade(database_url) == Upgraded(1, SCHEMA_VERSION)
    assert upgrade(database_url) == Upgraded(SCHEMA_VERSION, SCHEMA_VERSION)
    with changing_tables(database_url) as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with Catalog.open(settings_of(tmp_path, database_url)) as catalog:
        job = catalog.job("j-1")
        assert (job.status, job.created_at, job.image_ids) == (JobStatus.FINISHED, _MOMENT, ("m-1",))
        assert job.latest_verification is not None and job.latest_verification.id == "v-1"
        assert catalog.jobs(tags={"team": "shop"}).total == 1
        assert catalog.source("s-1").inventory.hostname == "web1"
        assert catalog.runs("j-1").items[0].image_ids == ("m-1",)
        assert (catalog.image("m-1").facts, catalog.latest_snapshot("s-1")) == ({"size": 1}, "n-1")
        assert catalog.verifications("j-1").items[0].subject == "bios"


def test_a_newer_catalog_is_left_alone(tmp_path: Path, database_url: str) -> None:
    upgrade(database_url)
    with changing_tables(database_url) as connection:
        connection.execute(update(SchemaRow).values(version=SCHEMA_VERSION + 1))
    for refused in (lambda: upgrade(database_url), lambda: Catalog.open(settings_of(tmp_path, database_url))):
        with pytest.raises(CatalogVersionMismatch, match=f"version {SCHEMA_VERSION + 1}"):
            refused()


def test_a_migration_that_breaks_leaves_the_catalog_as_it_was(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_first_version(database_url)
    with changing_tables(database_url) as connection:
        before = tables(connection)

    def broken(*arguments: Any) -> None:
        migrate(*arguments)
        raise ZeroDivisionError

    monkeypatch.setattr(upgrading, "migrate", broken)
    with pytest.raises(ZeroDivisionError):
        upgrade(database_url)
    monkeypatch.undo()
    with changing_tables(database_url) as connection:
        assert tables(connection) == before
        assert connection.scalar(select(SchemaRow.version)) == 1
    assert upgrade(database_url).found == 1


def test_of_many_that_upgrade_at_once_one_does_it(database_url: str) -> None:
    make_first_version(database_url)
    barrier = threading.Barrier(4)
    found: list[int] = []

    def start() -> None:
        barrier.wait(10)
        found.append(upgrade(database_url).found)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [1, *[SCHEMA_VERSION] * 3]


def test_an_empty_database_is_made_once_by_whoever_opens_it(tmp_path: Path, database_url: str) -> None:
    barrier = threading.Barrier(4)
    opened: list[bool] = []

    def start() -> None:
        barrier.wait(10)
        with Catalog.open(settings_of(tmp_path, database_url)) as catalog:
            catalog.ping()
            opened.append(True)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert opened == [True] * 4

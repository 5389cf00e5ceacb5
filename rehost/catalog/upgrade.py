"""The catalog's tables brought to this program's version: once, whoever asks at the same time, wholly or not at all.

The database's version is the one row of `schema_version`. Alembic keeps a note of its own (`alembic_version`), which
is written from that row before the migrations run, so that the two cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, insert, update

from rehost.catalog.database import changing_tables, made_tables
from rehost.catalog.tables import SCHEMA_VERSION, SchemaRow
from rehost.errors import CatalogVersionMismatch


@dataclass(frozen=True)
class Upgraded:
    """The version of the tables before and now."""

    found: int
    version: int


def upgrade(url: str) -> Upgraded:
    """Bring the database to this program's version; an empty one gets its tables.

    Raises CatalogAway, and CatalogVersionMismatch where the database is newer than the program.
    """
    with changing_tables(url) as connection:
        found = made_tables(connection)
        if found > SCHEMA_VERSION:
            raise CatalogVersionMismatch(found=found, wanted=SCHEMA_VERSION)
        if found < SCHEMA_VERSION:
            migrate(connection, found, SCHEMA_VERSION)
        return Upgraded(found, SCHEMA_VERSION)


def migrate(connection: Connection, found: int | None, version: int) -> None:
    """Bring the tables from one version to another in the connection's transaction; None: there are none yet."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "rehost.catalog:migrations")
    if found is not None:
        command.stamp(config, revision(found), purge=True)
    command.upgrade(config, revision(version))
    if found is None:
        connection.execute(insert(SchemaRow).values(version=version))
    else:
        connection.execute(update(SchemaRow).values(version=version))


def revision(version: int) -> str:
    """What Alembic calls that version."""
    return f"{version:04d}"

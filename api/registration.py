"""Sources registered, discovered again and removed, for the API and the console alike."""

from __future__ import annotations

from api import actions
from api.dependencies import Orchestration
from api.models import SourceSpec
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Source
from rehost.errors import JobNotFound, SourceError
from rehost.settings import Settings
from rehost.source.connect import DiskConnection, PathConnection, SshConnection, open_session
from rehost.source.inventory import Inventory


def register(spec: SourceSpec, catalog: Catalog) -> Source:
    """Connect to a server, discover what it is, remember it. Raises every SourceError; then nothing is stored."""
    inventory = discover(spec.connection)
    return catalog.add_source(spec.connection, inventory, name=spec.name, description=spec.description, tags=spec.tags)


def discover_again(id: str, catalog: Catalog) -> Source:
    """Take the inventory once more. A source that does not answer becomes `unavailable` and keeps what was known.

    Raises SourceNotFound and every SourceError.
    """
    source = catalog.source(id)
    try:
        inventory = discover(source.connection)
    except SourceError as error:
        catalog.source_unavailable(id, error)
        raise
    return catalog.source_discovered(id, inventory)


def remove(id: str, catalog: Catalog, orchestration: Orchestration, settings: Settings, *, force: bool) -> None:
    """Forget the source and its jobs; its images stay. Where a job needs longer to go, the source is `deleting`.

    Raises SourceNotFound, JobInvalidStatus where a job runs, SourceNeedsForce.
    """
    for job_id in catalog.begin_deleting_source(id, force=force):
        try:
            actions.delete_job(catalog, orchestration, settings, job_id)
        except JobNotFound:
            continue
        except BaseException:
            catalog.keep_source(id)
            raise
    catalog.forget_deleted_sources()


def discover(connection: SshConnection | PathConnection | DiskConnection) -> Inventory:
    """What that server is. Raises every SourceError."""
    with open_session(connection) as session:
        return session.inventory()

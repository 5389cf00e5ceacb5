"""Before anything is copied: this machine has what the job needs, and the source answers as what it was."""

from __future__ import annotations

from prefect import task
from prefect.logging import get_run_logger

from rehost.errors import NeedsUnmet, SourceError
from rehost.needs import Purpose, unmet
from rehost.replication.open_store import open_store
from rehost.settings import settings
from rehost.verification.trial import reap_containers
from tasks.retries import STAGE
from tasks.run_pass import Pass, catalog, reap_workspaces, source_session


@task(name="preflight", **STAGE)
def preflight(this: Pass) -> None:
    """Check the machine, the store and the source; renew the source's inventory.

    Raises NeedsUnmet, StoreUnreadable and every SourceError.
    """
    log = get_run_logger()
    log.info("%s", beginning(this))
    progress = this.progress("preflight")
    reap_workspaces()
    wanted: set[Purpose] = {"service"}
    wanted |= {"source"} if this.source.connection.kind == "ssh" else set()
    wanted |= {"image"} if this.job.targets.image else set()
    wanted |= {"container"} if this.job.targets.container_image else set()
    wanted |= {"verification"} if this.job.targets.image and this.job.verification.enabled else set()
    lacking = unmet(wanted, settings())
    if lacking:
        raise NeedsUnmet(lacking="; ".join(f"{need.name} ({answer.found}): {need.remedy}" for need, answer in lacking))
    if this.job.targets.container_image:
        reap_containers()
    with open_store(settings()):
        pass  # it recovers what a dead process left half written
    try:
        with source_session(this) as session:
            inventory = session.inventory()
    except SourceError as error:
        with catalog() as opened:
            opened.source_unavailable(this.source.id, error)
        raise
    with catalog() as opened:
        opened.source_discovered(this.source.id, inventory)
    log.info(
        "%s answers: %s, kernel %s, %s, %d disks, %d volumes with %.1f GB used",
        inventory.hostname,
        inventory.os_name or inventory.os_id,
        inventory.kernel or "unknown",
        inventory.architecture,
        len(inventory.disks),
        len(inventory.volumes),
        sum(volume.used_bytes for volume in inventory.volumes) / 1e9,
    )
    progress.finish()


def beginning(this: Pass) -> str:
    """What the run is about to do, in a sentence."""
    image, container = this.job.targets.image, this.job.targets.container_image
    wanted = []
    if image is not None:
        wanted.append(f"a disk image ({', '.join(image.formats)})")
    if container is not None:
        wanted.append(f"a container image ({container.namespace}/{container.repository}:{container.tag})")
    proven = ", each of which must prove itself" if this.job.verification.enabled else ""
    return f"Run {this.run.id} of the job {this.job.name}: {this.source.name} becomes {' and '.join(wanted)}{proven}."

"""The verification stages: each image is started, and shows whether it is the server that it was made from."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from prefect import task
from prefect.logging import get_run_logger

from image_builders.container.record import ContainerImage
from image_builders.disk.record import DiskImage
from rehost.errors import RehostError, VerificationCrashed, VerificationNotFound, error_of
from rehost.replication.open_store import open_store
from rehost.settings import settings
from rehost.verification.accelerator import kernel_of
from rehost.verification.boot import verify_disk
from rehost.verification.container import verify_container as try_container
from rehost.verification.report import VerificationReport, markdown
from rehost.verification.subjects import disk_subject
from tasks.reporting import StageProgress, show_picture, show_report
from tasks.retries import TRIAL
from tasks.run_pass import Pass, catalog, snapshot_tree

_CONTAINER_SECONDS = 300.0  # until its services are up, where the job says nothing

Firmware = Literal["bios", "uefi"]


@task(name="verify-disk", task_run_name="verify-{firmware}", **TRIAL)
def verify_boot(
    this: Pass, image: DiskImage, snapshot_id: str, firmware: Firmware, asked: str | None = None
) -> VerificationReport:
    """Boot the disk image by that firmware on a throw-away copy and look at what came up.

    `asked` is the verification that a user asked for; without one the test is a stage of the run. Raises the
    VerificationError that tells why it did not prove itself; the report is kept in either case.
    """
    stage = f"verify-{firmware}"
    progress = this.progress(stage)
    wanted = this.job.verification
    disk = image.disks[0]
    with _recorded(image.id, disk_subject(Path(disk.location), firmware), asked) as verification_id:
        with open_store(settings()) as store:
            inventory = store.snapshot(snapshot_id).inventory
        scratch = this.workspace / "boot"
        scratch.mkdir(exist_ok=True)
        with snapshot_tree(snapshot_id) as tree:
            kernel = kernel_of(tree)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            kernel_file = Path(folder) / "vmlinuz"
            if kernel is not None:
                kernel_file.write_bytes(kernel)
            report = verify_disk(
                Path(disk.location),
                disk.format,
                firmware,
                inventory,
                evidence=_evidence(verification_id),
                scratch=scratch,
                cache=settings().home / "accelerator.json",
                kernel=kernel_file if kernel is not None else None,
                data_disks=_data_disks(image),
                timeout_seconds=wanted.boot_timeout_seconds,
                script=wanted.script,
                script_timeout_seconds=wanted.script_timeout_seconds,
                progress=progress,
            )
        return _judge(this, verification_id, stage, report, progress)


@task(name="verify-container", **TRIAL)
def verify_container(
    this: Pass, image: ContainerImage, snapshot_id: str, asked: str | None = None
) -> VerificationReport:
    """Run the container image without a way out and see whether its services answer.

    `asked` as for `verify_boot`. Raises the VerificationError that tells why it did not prove itself; the report is
    kept in either case.
    """
    progress = this.progress("verify-container")
    wanted = this.job.verification
    with _recorded(image.id, image.reference, asked) as verification_id:
        with open_store(settings()) as store:
            inventory = store.snapshot(snapshot_id).inventory
        report = try_container(
            image,
            inventory,
            evidence=_evidence(verification_id),
            timeout_seconds=wanted.boot_timeout_seconds or _CONTAINER_SECONDS,
            script=wanted.script,
            script_timeout_seconds=wanted.script_timeout_seconds,
        )
        return _judge(this, verification_id, "verify-container", report, progress)


@contextlib.contextmanager
def _recorded(image_id: str, subject: str, asked: str | None) -> Iterator[str]:
    """A test that the catalog shows as running for the length of the block: its id. What ends the block ends it."""
    with catalog() as opened:
        if asked is None:
            id = opened.begin_stage_verification(image_id, subject).id
        else:
            opened.start_verification(id := asked)
    try:
        yield id
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else "it was stopped"
        told = error if isinstance(error, RehostError) else VerificationCrashed(reason=reason)
        # Where its job was deleted meanwhile, nobody is left to be told.
        with catalog() as opened, contextlib.suppress(VerificationNotFound):
            opened.fail_verification(id, told)
        raise


def _data_disks(image: DiskImage) -> tuple[tuple[Path, str], ...]:
    """Each further disk once, in the first of its formats."""
    found: dict[int, tuple[Path, str]] = {}
    for disk in image.disks:
        if disk.role == "data":
            found.setdefault(disk.index, (Path(disk.location), disk.format))
    return tuple(found.values())


def _evidence(verification_id: str) -> Path:
    folder = settings().evidence_path / verification_id
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    return folder


def _judge(
    this: Pass, verification_id: str, stage: str, report: VerificationReport, progress: StageProgress
) -> VerificationReport:
    log = get_run_logger()
    with catalog() as opened:
        opened.end_verification(verification_id, report)
    show_report(this.job.id, f"{stage}-report", markdown(report))
    if report.evidence.screenshot:
        show_picture(this.job.id, f"{stage}-screen", Path(report.evidence.screenshot))
    for check in report.checks:
        log.info("%s: %s %s", check.name, check.status, check.detail)
    if report.error is not None:
        raise error_of(report.error.code, report.error.message)
    progress.finish()
    return report

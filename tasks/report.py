"""The report of a run: what was moved, what was made, and how it proved itself, as one page in Prefect."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from prefect import task

from image_builders.container.record import ContainerImage
from image_builders.disk.record import DiskImage
from rehost.replication.snapshots import VolumeConsistency
from rehost.replication.transfer import TransferReport
from rehost.verification.report import VerificationReport, escaped
from tasks.reporting import show_report
from tasks.retries import STAGE
from tasks.run_pass import Pass, notes


@task(name="report", **STAGE)
def report_run(
    this: Pass,
    moved: TransferReport,
    consistency: Sequence[VolumeConsistency],
    disk: DiskImage | None,
    container: ContainerImage | None,
    reports: Sequence[VerificationReport],
) -> None:
    """Write the run's report as a Prefect artifact of the job."""
    show_report(this.job.id, "report", markdown(this, moved, consistency, disk, container, reports))


def markdown(
    this: Pass,
    moved: TransferReport,
    consistency: Sequence[VolumeConsistency],
    disk: DiskImage | None,
    container: ContainerImage | None,
    reports: Sequence[VerificationReport],
) -> str:
    """The report as Markdown. Nothing in it is copied from the source but counted figures and cleaned names."""
    lines = [
        f"# {escaped(this.source.name)}: run {this.run.id}",
        "",
        "| Moved | |",
        "|---|---:|",
        f"| files | {moved.files_total:,} |",
        f"| files read | {moved.files_changed:,} |",
        f"| bytes read on the source | {moved.bytes_scanned:,} |",
        f"| bytes new to the store | {moved.bytes_new:,} |",
        f"| bytes over the wire | {moved.bytes_on_wire:,} |",
        f"| files that kept changing | {len(moved.unstable):,} |",
        "",
        "| Volume | Copied by | |",
        "|---|---|---|",
        *(f"| {escaped(v.mount_point)} | {v.method} | {escaped(v.detail)} |" for v in consistency),
        "",
    ]
    if noted := notes(this):
        lines += [*(f"- {escaped(note)}" for note in noted), ""]
    if disk is not None:
        lines += [f"## Disk image {disk.id}", "", "| Format | Size | SHA-256 | File |", "|---|---:|---|---|"]
        lines += [f"| {d.format} | {d.file_size:,} | `{d.sha256}` | `{d.location}` |" for d in disk.disks]
        lines += ["", *(f"- {escaped(warning)}" for warning in disk.warnings), ""]
    if container is not None:
        lines += [
            f"## Container image {container.id}",
            "",
            f"`{container.reference}` is `{container.digest}`, {container.size:,} bytes. To run it:",
            "",
            "    " + shlex.join(container.run_arguments),
            "",
        ]
    for report in reports:
        failed = [check.name for check in report.checks if check.status == "failed"]
        told = f"failed in {', '.join(failed)}" if failed else f"{len(report.checks)} checks"
        lines += [f"- {escaped(report.subject)}: **{report.status}**, {told}"]
    return "\n".join(lines) + "\n"

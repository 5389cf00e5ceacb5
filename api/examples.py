"""An example of each answer for the OpenAPI document: records such as the API gives, so that none can go stale."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from api.models import ImageAnswer
from rehost.catalog.job import ExecuteNow, ImageTarget, Incremental, Targets
from rehost.catalog.records import Job, Page, Run, Source, VerificationRecord, VerificationSummary
from rehost.catalog.states import JobStatus, RunKind, RunStatus, SourceState
from rehost.source.connect import SshConnection
from rehost.source.inventory import Disk, Interface, Inventory, Listener, Partition, Volume
from rehost.verification.report import Check, Evidence

_GIB = 1 << 30
_BEGAN = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
_ENDED = _BEGAN + timedelta(minutes=21)
_SOURCE, _JOB, _RUN, _IMAGE, _VERIFICATION, _SNAPSHOT = (
    f"{kind}-0123456789abcdefghij" for kind in ("s", "j", "r", "m", "v", "n")
)
_FLOW_RUN = "01939b4e-52f0-7c1a-9d64-6f6a3b1f2c55"

_ROOT = Partition(
    path="/dev/vda1",
    device="0_1",
    start=1 << 20,
    size_bytes=40 * _GIB - (2 << 20),
    type="0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    filesystem="ext4",
    uuid="6f1d7c1e-2a4b-4a1b-9a53-0d8f3f0f1c11",
    mount_point="/",
    used_bytes=6 * _GIB,
    can_block=True,
)
_INVENTORY = Inventory(
    hostname="web1",
    os_id="debian",
    os_version="12",
    os_name="Debian GNU/Linux 12 (bookworm)",
    kernel="6.1.0-27-amd64",
    architecture="x86_64",
    boot_mode="bios",
    cores=2,
    memory_bytes=4 * _GIB,
    init="systemd",
    interfaces=(Interface(name="eth0", addresses=("192.0.2.7/24",), gateway="192.0.2.1", method="static"),),
    disks=(Disk(index=0, path="/dev/vda", size_bytes=40 * _GIB, table="gpt", partitions=(_ROOT,)),),
    volumes=(
        Volume(
            mount_point="/", filesystem="ext4", size_bytes=_ROOT.size_bytes, used_bytes=6 * _GIB, device="/dev/vda1"
        ),
    ),
    listeners=(Listener(protocol="tcp", address="0.0.0.0", port=443, process="nginx", unit="nginx.service"),),
    active_services=("nginx.service", "ssh.service"),
)

_RECORDS: tuple[BaseModel, ...] = (
    Source(
        id=_SOURCE,
        name="web1",
        description=None,
        connection=SshConnection(kind="ssh", host="web1.example.org"),
        tags={"wave": "1"},
        state=SourceState.IN_USE,
        status_info=None,
        inventory=_INVENTORY,
        created_at=_BEGAN - timedelta(hours=1),
        discovered_at=_BEGAN - timedelta(hours=1),
    ),
    Job(
        id=_JOB,
        source_id=_SOURCE,
        region_id="local",
        name="web1-move",
        description=None,
        targets=Targets(image=ImageTarget()),
        execution=ExecuteNow(),
        incremental=Incremental(interval_hours=24),
        valid_until=_BEGAN + timedelta(days=30),
        status=JobStatus.WAITING,
        business_status=None,
        version=4,
        queued=False,
        progress=100,
        eta_seconds=None,
        bytes_done=None,
        bytes_total=None,
        bytes_per_second=None,
        status_info="The last run succeeded; the next one is due at 2026-11-22 22:21:00 UTC.",
        error=None,
        next_run_at=_ENDED + timedelta(days=1),
        image_ids=(_IMAGE,),
        latest_verification=VerificationSummary(
            id=_VERIFICATION, image_id=_IMAGE, subject="web1-move.qcow2, bios", status="succeeded", created_at=_ENDED
        ),
        created_at=_BEGAN - timedelta(minutes=1),
        started_at=_BEGAN,
        ended_at=_ENDED,
        prefect_url=f"http://127.0.0.1:4200/runs/flow-run/{_FLOW_RUN}",
        next_step="Wait for the schedule, or start the job for one more sync. Cut over when the server moves.",
    ),
    Run(
        id=_RUN,
        job_id=_JOB,
        source_id=_SOURCE,
        kind=RunKind.MANUAL,
        status=RunStatus.SUCCEEDED,
        created_at=_BEGAN,
        started_at=_BEGAN + timedelta(seconds=6),
        ended_at=_ENDED,
        snapshot_id=_SNAPSHOT,
        image_ids=(_IMAGE,),
        files_total=48_211,
        files_changed=48_211,
        bytes_scanned=6_120_448_000,
        bytes_new=5_870_112_000,
        bytes_on_wire=2_240_901_120,
        stage_seconds={"preflight": 3.1, "snapshot": 8.4, "transfer": 912.6, "build-disk": 84.0, "verify-bios": 71.9},
        flow_run_id=_FLOW_RUN,
        error=None,
    ),
    ImageAnswer.model_validate(
        {
            "id": _IMAGE,
            "kind": "disk",
            "name": "web1-move",
            "region_id": "local",
            "source_id": _SOURCE,
            "job_id": _JOB,
            "run_id": _RUN,
            "snapshot_id": _SNAPSHOT,
            "in_use": False,
            "created_at": _ENDED,
            "boot_modes": ["bios", "uefi"],
            "architecture": "x86_64",
            "disks": [
                {
                    "index": 0,
                    "role": "system",
                    "format": "qcow2",
                    "virtual_size": 40 * _GIB,
                    "file_size": 2_411_724_800,
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "location": f"/var/lib/rehost/images/local/{_IMAGE}/web1-move.qcow2",
                }
            ],
        }
    ),
    VerificationRecord(
        id=_VERIFICATION,
        job_id=_JOB,
        run_id=_RUN,
        image_id=_IMAGE,
        flow_run_id=None,
        subject="web1-move.qcow2, bios",
        status="succeeded",
        checks=(
            Check(name="kernel", status="passed", detail="6.1.0-27-amd64", seconds=9.8),
            Check(name="port tcp/443", status="passed", detail="nginx listens", seconds=41.2),
        ),
        accelerator="kvm",
        boot_seconds=38.5,
        evidence=Evidence(screenshot=f"/var/lib/rehost/evidence/{_VERIFICATION}/screen.png"),
        created_at=_BEGAN,
        started_at=_BEGAN,
        ended_at=_ENDED,
    ),
)


def examples() -> dict[str, Any]:
    """An answer by the name of its schema: each record, and a list that holds it."""
    found: dict[str, Any] = {}
    for record in _RECORDS:
        name = type(record).__name__
        found[name] = record.model_dump(mode="json")
        found[f"Page_{name}_"] = Page[Any](items=(record,), total=1).model_dump(mode="json")
    return found

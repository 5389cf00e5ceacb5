"""One pass from a source into a store, in a process of its own: what it took, and how much memory.

`python -m benchmarks.one_pass '{"mode": "files", …}'` prints one line of JSON. The clock runs from before the
connection to the published snapshot, in a process that has its modules loaded, as a worker has.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from rehost.errors import RehostError
from rehost.ids import new_id
from rehost.progress import silent
from rehost.replication.block_transfer import EVERYTHING, parent_index, transfer_blocks
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.transfer import scan, transfer
from rehost.source.agent_session import AgentSession, open_program
from rehost.source.block_open import open_blocks
from rehost.source.block_session import Area
from rehost.source.connect import SshConnection
from rehost.source.inventory import Disk, Inventory, Volume
from rehost.source.ssh import ssh_argv, ssh_error
from rehost.source.tracked_pass import TrackedPass

_VOLUME = Volume(mount_point="/", filesystem="ext4", size_bytes=1 << 40, used_bytes=1 << 30)
_INVENTORY = Inventory(hostname="benchmark", os_id="debian", architecture="x86_64", volumes=(_VOLUME,))


class Work(BaseModel):
    """What is to be done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["files", "blocks"]
    connection: SshConnection
    root: str  # the tree; or the device, or image of one, which holds ext4
    store: str
    parent: str | None = None
    level: int = 3
    wheels: str | None = None  # folder of what is handed over to the source's Python
    tracker: str | None = None  # blocks: the job whose tracker follows the device


class Taken(BaseModel):
    """What was seen of one pass. Sizes in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    snapshot: str
    wire: int
    new: int
    scanned: int
    resident: int  # the most that this process held


def open_session(work: Work) -> AbstractContextManager[AgentSession]:
    """A session over ssh; with files its source is a tree on the other side instead of all of it."""
    connection = work.connection
    return open_program(
        lambda length: ssh_argv(connection, length),
        host=connection.host,
        root=work.root.encode() if work.mode == "files" else b"/",
        explain=lambda status, stderr, greeted: ssh_error(connection, status, stderr, greeted),
        compress_level=work.level,
        bandwidth_limit_kbps=0,
        wheels=Path(work.wheels) if work.wheels else None,
    )


def _snapshot() -> Snapshot:
    return Snapshot(
        id=new_id("n"),
        source_id="s-benchmark",
        created_at=datetime.now(UTC),
        inventory=_INVENTORY,
        volumes=_INVENTORY.volumes,
    )


def pass_of_files(work: Work) -> Taken:
    """Every file below the root."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=Path(work.store).parent) as folder,
        Store.open(Path(work.store), compress_level=work.level) as store,
        open_session(work) as session,
    ):
        table = scan(session, _INVENTORY, (), Path(folder), silent)
        taken, report = transfer(
            session, store, table, snapshot=_snapshot(), parent_id=work.parent, checksum=False, progress=silent
        )
    return Taken(
        seconds=time.monotonic() - began,
        snapshot=taken.id,
        wire=report.bytes_on_wire,
        new=report.bytes_new,
        scanned=report.bytes_scanned,
        resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def pass_of_blocks(work: Work) -> Taken:
    """Every block in use of the device."""
    device = Path(work.root)
    with device.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
    area = Area(0, 0, size, "partition", work.root, 0, device="0_1", filesystem="ext4", file=device.is_file())
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=Path(work.store).parent) as folder,
        Store.open(Path(work.store), compress_level=work.level) as store,
        open_session(work) as session,
    ):
        tracked = None
        if work.tracker is not None:
            disk = Disk(index=0, path=work.root, size_bytes=size)
            tracked = TrackedPass(session, work.tracker, [disk], work.parent)
        copy = transfer_blocks(
            open_blocks(session),
            store,
            [area],
            Path(folder) / "blocks.parquet",
            parent=parent_index(store, work.parent),
            state=lambda area: "off",
            only=tracked.since_parent([area]) if tracked else EVERYTHING,
            progress=silent,
        )
        snapshot = _snapshot().model_copy(update={"regions": copy.regions})
        if tracked:
            tracked.prepare(snapshot.id)
        store.save_snapshot(snapshot, None, copy.path)
        if tracked:
            tracked.commit(snapshot.id)
            if tracked.reasons:
                print(*tracked.reasons, file=sys.stderr)
    return Taken(
        seconds=time.monotonic() - began,
        snapshot=snapshot.id,
        wire=copy.report.bytes_on_wire,
        new=copy.report.bytes_new,
        scanned=copy.report.bytes_read,
        resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def main() -> int:
    """Do it, and tell."""
    work = Work.model_validate(json.loads(sys.argv[1]))
    try:
        print((pass_of_files if work.mode == "files" else pass_of_blocks)(work).model_dump_json())
    except RehostError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One pass from a source into a store, in a process of its own: what it took, and how much memory.

`python -m benchmarks.one_pass '{"mode": "files", …}'` prints one line of JSON. The clock runs from before the
connection to the published snapshot, in a process that has its modules loaded, as a worker has.
"""

from __future__ import annotations

import json
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
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.transfer import scan, transfer
from rehost.source.agent_session import AgentSession, open_program
from rehost.source.connect import SshConnection
from rehost.source.inventory import Inventory, Volume
from rehost.source.ssh import ssh_argv, ssh_error


class Work(BaseModel):
    """What is to be done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["files", "blocks"]
    connection: SshConnection
    root: str  # the tree, or the device
    store: str
    parent: str | None = None
    level: int = 3
    written: tuple[tuple[int, int], ...] | None = None  # blocks: what was written since the parent; None: not known


class Taken(BaseModel):
    """What was seen of one pass. Sizes in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    snapshot: str
    wire: int
    new: int
    scanned: int
    resident: int  # the most that this process held


def open_tree(connection: SshConnection, root: str, level: int) -> AbstractContextManager[AgentSession]:
    """A session over ssh whose source is a tree on the other side instead of all of it."""
    return open_program(
        lambda length: ssh_argv(connection, length),
        host=connection.host,
        root=root.encode(),
        explain=lambda status, stderr, greeted: ssh_error(connection, status, stderr, greeted),
        compress_level=level,
        bandwidth_limit_kbps=0,
    )


def pass_of_files(work: Work) -> Taken:
    """Every file below the root."""
    volume = Volume(mount_point="/", filesystem="ext4", size_bytes=1 << 40, used_bytes=1 << 30)
    inventory = Inventory(hostname="benchmark", os_id="debian", architecture="x86_64", volumes=(volume,))
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=Path(work.store).parent) as folder,
        Store.open(Path(work.store), compress_level=work.level) as store,
        open_tree(work.connection, work.root, work.level) as session,
    ):
        snapshot = Snapshot(
            id=new_id("n"),
            source_id="s-benchmark",
            created_at=datetime.now(UTC),
            inventory=inventory,
            volumes=(volume,),
        )
        table = scan(session, inventory, (), Path(folder), silent)
        taken, report = transfer(
            session, store, table, snapshot=snapshot, parent_id=work.parent, checksum=False, progress=silent
        )
    return Taken(
        seconds=time.monotonic() - began,
        snapshot=taken.id,
        wire=report.bytes_on_wire,
        new=report.bytes_new,
        scanned=report.bytes_scanned,
        resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def main() -> int:
    """Do it, and tell."""
    work = Work.model_validate(json.loads(sys.argv[1]))
    try:
        print(pass_of_files(work).model_dump_json())
    except RehostError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

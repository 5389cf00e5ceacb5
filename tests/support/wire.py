"""What tests of the wire share: a transfer of a tree on this machine, and an agent whose every word is made up."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rehost.errors import SourceUnreachable
from rehost.ids import new_id
from rehost.progress import silent
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.transfer import TransferReport, scan, transfer
from rehost.source.agent_session import AgentSession, open_program
from rehost.source.inventory import Inventory, Volume
from rehost.source.session import Session


def volume(mount_point: str = "/") -> Volume:
    """A volume of which only the mount point matters."""
    return Volume(mount_point=mount_point, filesystem="ext4", size_bytes=0, used_bytes=0)


def inventory(*mount_points: str) -> Inventory:
    """An inventory of which only the volumes matter."""
    volumes = tuple(volume(point) for point in (mount_points or ("/",)))
    return Inventory(hostname="server", os_id="debian", architecture="x86_64", volumes=volumes)


def take(
    session: Session,
    store: Store,
    directory: Path,
    *,
    parent: Snapshot | None = None,
    exclude: Sequence[str] = (),
    checksum: bool = False,
    facts: Inventory | None = None,
) -> tuple[Snapshot, TransferReport]:
    """Scan and transfer into a snapshot."""
    facts = facts or inventory()
    snapshot = Snapshot(
        id=new_id("n"),
        source_id="s-" + "0" * 20,
        created_at=datetime.now(UTC),
        inventory=facts,
        volumes=facts.volumes,
    )
    path = scan(session, facts, exclude, directory, silent)
    parent_id = parent.id if parent else None
    return transfer(session, store, path, snapshot=snapshot, parent_id=parent_id, checksum=checksum, progress=silent)


_LIAR = """
import sys, json, struct, hashlib, zlib
source, sink = sys.stdin.buffer, sys.stdout.buffer
program = zlib.decompress(source.read({length})).decode()
token = next(line for line in program.splitlines() if line.startswith("TOKEN = "))[9:41]
HELLO, RESULT, FAILED, ROWS, SCANNED, ASK, DATA, DONE = 1, 2, 3, 4, 5, 6, 7, 8
def frame(kind, body=b"", length=None):
    sink.write(struct.pack(">BI", kind, len(body) if length is None else length) + body)
    sink.flush()
def hear():
    kind, length = struct.unpack(">BI", source.read(5))
    return kind, source.read(length)
def hear_until(kind):
    while True:
        got, body = hear()
        if got == kind:
            return body
def pack(raw, codec=0, length=None):
    return struct.pack(">BI", codec, len(raw) if length is None else length) + raw
def row(index, attempt, offset, length, sha256):
    return struct.pack(">QBQI32s", index, attempt, offset, length, sha256)
def head(number):
    return struct.pack(">Q", number)
def data(codec, count, length, payload):
    return struct.pack(">BII", codec, count, length) + payload
def bundle(chunks):
    return data(0, len(chunks), sum(map(len, chunks)), b"".join(chunks))
def done(number, files, errors=(), count=None):
    rows = b"".join(struct.pack(">QQqqBBI", *file) for file in files)
    head = struct.pack(">QI", number, len(files) if count is None else count)
    return head + rows + json.dumps(errors).encode()
HELLO_BODY = dict(protocol=2, python="3.11", machine="x86_64", hostname="liar", uid=0)
HELLO_BODY.update(hashes=["sha256"], codecs=["zlib"])
sink.write(b"\\0rehost-agent\\0" + token.encode())
RAW = b"x" * 1000
NAME = hashlib.sha256(RAW).digest()
SHORT_NAME = hashlib.sha256(b"abc").digest()
{lie}
sink.flush()
source.read()
"""


@contextlib.contextmanager
def lying_agent(lie: str, *, compress_level: int = 0, wheels: Path | None = None) -> Iterator[AgentSession]:
    """A session with a program that runs these lines of Python in the agent's place."""
    with open_program(
        lambda length: [sys.executable, "-c", _LIAR.replace("{length}", str(length)).replace("{lie}", lie)],
        host="liar",
        root=b"/",
        explain=lambda status, stderr, greeted: SourceUnreachable(host="liar", reason=stderr[-500:]),
        compress_level=compress_level,
        bandwidth_limit_kbps=0,
        wheels=wheels,
    ) as session:
        yield session

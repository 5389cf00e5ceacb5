"""Connections cut and processes killed at random moments, during first and incremental copies.

However often it was disturbed, a copy ends equal to the source, and what was in the store is not sent again.
`REHOST_TEST_CUTS` and `REHOST_TEST_KILLS` say how many faults (200 and 50 make the full campaign), `REHOST_TEST_SEED`
which ones.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.one_pass import Taken, Work
from demo.sshd import Sshd
from rehost.replication.block_transfer import parent_index
from rehost.replication.export import export_tree
from rehost.replication.manifest import CHUNK_BYTES
from rehost.replication.store import Store
from rehost.replication.tree import Tree
from rehost.run import Process, spawn
from rehost.source.block_session import BLOCK_BYTES
from tests.support.block_images import assemble
from tests.support.faulty_link import FaultyLink
from tests.support.trees import assert_same_tree

ROOT = Path(__file__).parents[2]
_CUTS = int(os.environ.get("REHOST_TEST_CUTS", "8"))
_KILLS = int(os.environ.get("REHOST_TEST_KILLS", "4"))
_SEED = int(os.environ.get("REHOST_TEST_SEED", "1"))
_DISK_BLOCKS = 320
_PASS_SECONDS = 120.0
_WORDS = 400_000  # bytes of a pass beside content: keys, greeting, rows, questions
_IN_FLIGHT = 24 << 20  # what may have been said and not be in the store when a process is killed


@pytest.fixture
def link(sshd: Sshd) -> Iterator[FaultyLink]:
    made = FaultyLink(sshd.port)
    try:
        yield made
    finally:
        made.close()


class FileSource:
    """A tree of large and small files that do not compress."""

    mode: Literal["files", "blocks"] = "files"

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.root = folder / "tree"
        self._draw = draw
        (self.root / "many").mkdir(parents=True)

    def change(self) -> None:
        """Write some files anew, take some away."""
        draw = self._draw
        for number in range(24):
            if draw.random() < 0.5:
                (self.root / f"large-{number}").write_bytes(draw.randbytes(draw.randrange(1, 2_500_000)))
        for number in range(300):
            if draw.random() < 0.5:
                (self.root / "many" / f"{number}").write_bytes(draw.randbytes(draw.randrange(1, 20_000)))
        for name in draw.sample(sorted(self.root.glob("many/*")), 10):
            name.unlink()

    def chunks(self) -> dict[bytes, int]:
        """What the store must have: names and lengths."""
        return {
            hashlib.sha256(piece).digest(): len(piece)
            for path in self.root.rglob("*")
            if path.is_file()
            for piece in _pieces(path, CHUNK_BYTES)
        }

    def compare(self, store: Store, snapshot: str, back: Path) -> None:
        """The snapshot is the tree as it is now."""
        export_tree(Tree(store.files(snapshot), store), back)
        assert_same_tree(self.root, back)


class BlockSource:
    """A disk of which some blocks are zeros and the others do not compress."""

    mode: Literal["files", "blocks"] = "blocks"

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.root = folder / "disk.raw"
        self._draw = draw
        with self.root.open("wb") as file:
            file.truncate(_DISK_BLOCKS * BLOCK_BYTES + 512)

    def change(self) -> None:
        """Write some blocks anew, zero some."""
        draw = self._draw
        with self.root.open("r+b") as file:
            for number in range(_DISK_BLOCKS):
                if draw.random() < 0.5:
                    file.seek(number * BLOCK_BYTES)
                    file.write(draw.randbytes(BLOCK_BYTES) if draw.random() < 0.8 else bytes(BLOCK_BYTES))

    def chunks(self) -> dict[bytes, int]:
        """What the store must have: names and lengths."""
        return {
            hashlib.sha256(piece).digest(): len(piece)
            for piece in _pieces(self.root, BLOCK_BYTES)
            if piece.strip(b"\0")
        }

    def compare(self, store: Store, snapshot: str, back: Path) -> None:
        """The snapshot is the disk as it is now."""
        index = parent_index(store, snapshot)
        assert index is not None
        assert filecmp.cmp(self.root, assemble(index, 0, store, back), shallow=False)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece


class Campaign:
    """A source, a store, and passes between them that are disturbed."""

    def __init__(self, kind: type[FileSource | BlockSource], sshd: Sshd, link: FaultyLink, folder: Path) -> None:
        self._sshd, self._link, self._folder = sshd, link, folder
        self._random = random.Random(f"{_SEED} {kind.mode}")
        self._source, self._store = kind(folder, self._random), folder / "store"
        self._parent: str | None = None
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(sshd.known_host("host_key").replace(str(sshd.port), str(link.port)))
        self._connection = sshd.connection(port=link.port, known_hosts=str(known_hosts))
        self.faults = ["cut"] * (_CUTS // 2) + ["worker"] * -(-_KILLS // 4) + ["agent"] * (_KILLS // 4)
        self._random.shuffle(self.faults)

    def copy(self) -> None:
        """Change the source, then pass after pass, most of them disturbed, until one ends well; then compare."""
        self._source.change()
        while True:
            before = self._lacking()
            fault = self.faults[-1] if self.faults and self._random.random() < 0.9 else None
            taken = self._pass(fault, self._random.randrange(1, before + _WORDS))
            assert self._link.said <= before * 1.02 + _WORDS, "what the store had was sent again"
            if taken is not None:
                break
            arrived = before - self._lacking()
            assert self._link.said - arrived <= _IN_FLIGHT
        self._parent = taken.snapshot
        with Store.open(self._store) as store:
            self._source.compare(store, taken.snapshot, self._folder / f"back-{taken.snapshot}")

    def _lacking(self) -> int:
        """Bytes of the source's content that are not in the store."""
        chunks = self._source.chunks()
        with Store.open(self._store) as store:
            there = store.has(list(chunks))
        return sum(size for size, here in zip(chunks.values(), there, strict=True) if not here)

    def _pass(self, fault: str | None, after: int) -> Taken | None:
        """One pass in a process of its own; None where it was broken, which then was our doing."""
        work = Work(
            mode=self._source.mode,
            connection=self._connection,
            root=str(self._source.root),
            store=str(self._store),
            parent=self._parent,
            level=0,
        )
        with spawn([sys.executable, "-m", "benchmarks.one_pass", work.model_dump_json()], cwd=ROOT) as process:
            self._link.arm(after if fault else None, lambda: self._disturb(fault, process))
            out, _ = process.popen.communicate(timeout=_PASS_SECONDS)
            self._wait_for_the_agent()
            if fault and self._link.happened:
                self.faults.pop()
            if process.popen.returncode == 0:
                return Taken.model_validate_json(out)
            assert fault and self._link.happened, process.stderr()
            assert fault == "worker" or "Source.Unreachable" in process.stderr(), process.stderr()
            return None

    def _disturb(self, fault: str | None, process: Process) -> None:
        if fault == "cut":
            self._link.cut()
        elif fault == "worker":
            process.popen.kill()
        else:
            for agent in self._agents():
                os.kill(agent, signal.SIGKILL)

    def _agents(self) -> list[int]:
        return [pid for pid in self._sshd.descendants() if b"sys.stdin.buffer" in _command(pid)]

    def _wait_for_the_agent(self) -> None:
        """The next pass's agent must not be taken for this one's."""
        deadline = time.monotonic() + 20
        while self._agents():
            assert time.monotonic() < deadline, "the agent outlived its connection"
            time.sleep(0.01)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.timeout(60 * (_CUTS + _KILLS))
@pytest.mark.parametrize("kind", [FileSource, BlockSource])
def test_a_copy_that_is_disturbed_again_and_again_ends_equal_to_its_source(
    kind: type[FileSource | BlockSource], sshd: Sshd, link: FaultyLink, tmp_path: Path
) -> None:
    campaign = Campaign(kind, sshd, link, tmp_path)
    while campaign.faults:
        campaign.copy()

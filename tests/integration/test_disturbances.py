"""Connections cut and processes killed at random moments, during first and incremental copies.

However often it was disturbed, a copy ends equal to the source, and what was in the store is not sent again.
`REHOST_TEST_CUTS` and `REHOST_TEST_KILLS` say how many faults (200 and 50 make the full campaign), `REHOST_TEST_SEED`
which ones.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.one_pass import Taken, Work
from demo.sshd import Sshd
from rehost.replication.export import export_tree
from rehost.replication.manifest import CHUNK_BYTES
from rehost.replication.store import Store
from rehost.replication.tree import Tree
from rehost.run import Process, spawn
from tests.support.faulty_link import FaultyLink
from tests.support.trees import assert_same_tree

_CUTS = int(os.environ.get("REHOST_TEST_CUTS", "8"))
_KILLS = int(os.environ.get("REHOST_TEST_KILLS", "4"))
_SEED = int(os.environ.get("REHOST_TEST_SEED", "1"))
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


class Campaign:
    """A tree, a store, and passes between them that are disturbed."""

    def __init__(self, sshd: Sshd, link: FaultyLink, folder: Path) -> None:
        self._sshd, self._link, self._folder = sshd, link, folder
        self._random = random.Random(_SEED)
        self._tree, self._store = folder / "tree", folder / "store"
        self._parent: str | None = None
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(sshd.known_host("host_key").replace(str(sshd.port), str(link.port)))
        self._connection = sshd.connection(port=link.port, known_hosts=str(known_hosts))
        self.faults = ["cut"] * _CUTS + ["worker", "agent"] * (_KILLS // 2) + ["worker"] * (_KILLS % 2)
        self._random.shuffle(self.faults)
        (self._tree / "many").mkdir(parents=True)

    def change(self) -> None:
        """Write some files anew, grow some, take some away."""
        draw = self._random
        for number in range(24):
            if draw.random() < 0.5:
                (self._tree / f"large-{number}").write_bytes(draw.randbytes(draw.randrange(1, 2_500_000)))
        for number in range(300):
            if draw.random() < 0.5:
                (self._tree / "many" / f"{number}").write_bytes(draw.randbytes(draw.randrange(1, 20_000)))
        for name in draw.sample(sorted(self._tree.glob("many/*")), 10):
            name.unlink()

    def copy(self) -> None:
        """Pass after pass, most of them disturbed, until one ends well; then compare."""
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
            export_tree(Tree(store.files(taken.snapshot), store), self._folder / f"back-{taken.snapshot}")
        assert_same_tree(self._tree, self._folder / f"back-{taken.snapshot}")

    def _lacking(self) -> int:
        """Bytes of the tree's content that are not in the store."""
        chunks = {}
        for path in self._tree.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for at in range(0, len(content), CHUNK_BYTES):
                    piece = content[at : at + CHUNK_BYTES]
                    chunks[hashlib.sha256(piece).digest()] = len(piece)
        with Store.open(self._store) as store:
            there = store.has(list(chunks))
        return sum(size for size, here in zip(chunks.values(), there, strict=True) if not here)

    def _pass(self, fault: str | None, after: int) -> Taken | None:
        """One pass in a process of its own; None where it was broken, which then was our doing."""
        work = Work(
            mode="files",
            connection=self._connection,
            root=str(self._tree),
            store=str(self._store),
            parent=self._parent,
            level=0,
        )
        with spawn([sys.executable, "-m", "benchmarks.one_pass", work.model_dump_json()], cwd=Path.cwd()) as process:
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
def test_a_copy_that_is_disturbed_again_and_again_ends_equal_to_its_source(
    sshd: Sshd, link: FaultyLink, tmp_path: Path
) -> None:
    campaign = Campaign(sshd, link, tmp_path)
    while campaign.faults:
        campaign.change()
        campaign.copy()

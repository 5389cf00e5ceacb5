"""Changed-block tracking against this machine's kernel: loop devices, real filesystems, before and after compared."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rehost.agent import tracking as agent_tracking
from rehost.agent.tracing import BLOCK_BYTES, BlockTracer, TracingUnavailable, disk_of
from rehost.ids import new_id
from rehost.source.agent_session import AgentSession, open_agent
from rehost.source.connect import PathConnection
from rehost.source.tracking import Full, Tracking, Written, program

DISK = 192 << 20
WORKLOADS = int(os.environ.get("REHOST_TRACKING_WORKLOADS", "6"))


def why_not() -> str:
    """Why nothing can be tracked here, or nothing."""
    if os.geteuid() != 0:
        return "tracing is for root"
    if shutil.which("losetup") is None or not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    try:
        BlockTracer(["loop0"]).close()
    except TracingUnavailable as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)


class Disk:
    """A loop device over a sparse file."""

    def __init__(self, path: Path, size: int = DISK) -> None:
        self.image = path
        with path.open("wb") as file:
            file.truncate(size)
        self.path = run("losetup", "-f", "--show", str(path)).strip()
        self.name = os.path.basename(self.path)

    def blocks(self) -> np.ndarray:
        """What is on the disk, one row a block."""
        subprocess.run(["sync", "-f", str(self.image)], check=True)
        return np.fromfile(self.image, np.uint8).reshape(-1, BLOCK_BYTES).copy()

    def write(self, block: int, content: bytes = b"") -> None:
        """Write four KiB at the start of a block, past the page cache."""
        with contextlib.closing(mmap.mmap(-1, 4096)) as page:
            page.write(content or os.urandom(4096))
            fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
            try:
                os.pwrite(fd, page, block * BLOCK_BYTES)
            finally:
                os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A blank disk."""
    made = Disk(tmp_path / "disk.img")
    yield made
    run("losetup", "-d", made.path)


@pytest.fixture
def session() -> Iterator[AgentSession]:
    """A session with an agent on this machine."""
    with open_agent(PathConnection(root="/")) as opened:
        yield opened


@pytest.fixture
def job() -> Iterator[str]:
    """A job whose tracker is gone afterwards."""
    name = new_id("j")
    yield name
    agent_tracking.stop_resident(name)


def run(*argv: str) -> str:
    """The output of a program that succeeds."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def named(bits: bytes) -> set[int]:
    """The blocks whose bits are set."""
    return set(np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist())


def written(told: Written | Full, disk: Disk) -> set[int]:
    """The blocks of a disk that a take names."""
    assert isinstance(told, Written), told
    return set(told.blocks(disk.name, 0, DISK).tolist())


def instances() -> set[str]:
    """The trace instances of trackers."""
    from rehost.agent import tracing

    root = tracing._tracefs()
    try:
        return {name for name in os.listdir(f"/proc/self/fd/{root}/instances") if name.startswith("rehost-")}
    finally:
        os.close(root)


def eventually(done: Callable[[], object]) -> bool:
    """Whether something comes true within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.02)
    return False


MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
SIZES = {"ext4": DISK, "xfs": 320 << 20, "btrfs": 256 << 20}


def work(mount: Path, chance: random.Random) -> None:
    """Some random things that a server does to its files."""
    for _ in range(chance.randrange(20, 120)):
        name = mount / f"f{chance.randrange(60)}"
        match chance.randrange(7):
            case 0:
                name.unlink(missing_ok=True)
            case 1 if name.exists():
                os.truncate(name, chance.randrange(1 << 20))
            case 2 if name.exists():
                os.setxattr(name, "user.x", os.urandom(chance.randrange(1, 900)))
            case 3 if name.exists():
                name.rename(mount / f"f{chance.randrange(60)}")
            case 4:
                with name.open("ab") as file:
                    file.write(chance.randbytes(chance.randrange(1 << 19)))
                    os.fsync(file.fileno())
            case 5:
                subprocess.run(["fallocate", "-z", "-o", "4096", "-l", "100000", str(name)], stderr=subprocess.DEVNULL)
            case _:
                with name.open("r+b" if name.exists() else "wb") as file:
                    file.seek(chance.randrange(1 << 20))
                    file.write(chance.randbytes(chance.randrange(1, 200_000)))


@pytest.mark.parametrize("number", range(WORKLOADS))
def test_no_changed_block_is_missed(
    number: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """What a filesystem does to its disk, with discards and without, over several takes."""
    kind = ("ext4", "xfs", "btrfs")[number % 3]
    if shutil.which(MAKERS[kind][0]) is None:
        pytest.skip(f"{MAKERS[kind][0]} is not here")
    chance = random.Random(number)
    disk = Disk(tmp_path / "disk.img", SIZES[kind])
    mount = tmp_path / "mount"
    mount.mkdir()
    try:
        run(*MAKERS[kind], disk.path)
        options = "discard" if chance.random() < 0.5 else "relatime"
        run("mount", "-o", options, disk.path, str(mount))
        try:
            work(mount, chance)
            run("sync", "-f", str(mount))
            before = disk.blocks()
            tracer = BlockTracer([disk.name])
            names: set[int] = set()
            # The writes between `before` and the tracer's start are none: all was synchronised, nothing runs.
            for _ in range(3):
                work(mount, chance)
                if chance.random() < 0.3:
                    subprocess.run(["fstrim", str(mount)], check=False, capture_output=True)
                bitmaps, lost = tracer.take()
                assert lost is None
                names |= named(bitmaps[0])
        finally:
            run("umount", str(mount))
        bitmaps, lost = tracer.take()
        tracer.close()
        assert lost is None
        names |= named(bitmaps[0])
        changed = set(np.flatnonzero((before != disk.blocks()).any(axis=1)).tolist())
        assert changed and changed <= names, sorted(changed - names)
        record_property("changed", len(changed))
        record_property("excess", len(names - changed))
    finally:
        run("losetup", "-d", disk.path)


def test_a_write_that_lands_after_its_block_was_read_is_named_again(tmp_path: Path) -> None:
    """A write that is on its way while its block is taken and read: the take after it has landed names the block.

    The disk lies on a filesystem that is frozen, so the write is stuck as long as the test wants. Marking writes where
    they are queued, or sent to the disk, fails here.
    """
    below = Disk(tmp_path / "below.img", 64 << 20)
    mount = tmp_path / "mount"
    mount.mkdir()
    try:
        run("mkfs.ext4", "-q", "-F", below.path)
        run("mount", below.path, str(mount))
        try:
            disk = Disk(mount / "disk.img", 16 << 20)
            try:
                tracer = BlockTracer([disk.name])
                run("fsfreeze", "-f", str(mount))
                writer = threading.Thread(target=disk.write, args=(5, b"late" * 1024))
                try:
                    writer.start()
                    sent = Path(f"/sys/block/{disk.name}/inflight")
                    assert eventually(lambda: sent.read_text().split() == ["0", "1"])
                    first, _ = tracer.take()
                    read = disk.image.read_bytes()[5 * BLOCK_BYTES :][:4]
                finally:
                    run("fsfreeze", "-u", str(mount))
                    writer.join()
                second, _ = tracer.take()
                tracer.close()
            finally:
                run("losetup", "-d", disk.path)
            assert read == b"\0\0\0\0"
            assert named(second[0]) == {5}, named(first[0])
        finally:
            run("umount", str(mount))
    finally:
        run("losetup", "-d", below.path)


def test_what_was_discarded_and_zeroed_is_named(disk: Disk) -> None:
    """Content goes also without a write."""
    run("dd", "if=/dev/urandom", f"of={disk.path}", "bs=1M", "count=8", "oflag=direct")
    tracer = BlockTracer([disk.name])
    try:
        run("blkdiscard", "-o", str(1 << 20), "-l", str(1 << 20), disk.path)
        assert named(tracer.take()[0][0]) == set(range(16, 32))
        run("blkdiscard", "-z", "-o", str(3 << 20), "-l", str(1 << 20), disk.path)
        assert named(tracer.take()[0][0]) >= set(range(48, 64))
        assert named(tracer.take()[0][0]) == set()
        fd = os.open(disk.path, os.O_RDONLY | os.O_DIRECT)
        os.preadv(fd, [mmap.mmap(-1, 1 << 20)], 0)
        os.close(fd)
        assert tracer.take() == ([bytes(DISK // BLOCK_BYTES // 8)], None)
    finally:
        tracer.close()


def test_a_lost_event_is_known(disk: Disk) -> None:
    """Ring buffers that overflow, tracing that is switched off, and another disk in the place of the one."""
    tracer = BlockTracer([disk.name], buffer_kib=8)
    try:
        for block in range(3000):
            disk.write(block % 100)
        assert tracer.take()[1] == "more was written than could be noted"
        assert tracer.take()[1] is None
        tracer._write("tracing_on", "0")
        assert tracer.take()[1] == "the tracing was switched off"
        disk.write(7)
        assert named(tracer.take()[0][0]) == {7}
        tracer._write("events/enable", "0")
        assert tracer.take()[1] == "the tracing was switched off"
        run("losetup", "-d", disk.path)
        other = disk.image.with_name("other.img")
        with other.open("wb") as file:
            file.truncate(DISK)
        run("losetup", disk.path, str(other))
        lost = tracer.take()[1]
        assert lost == f"{disk.name} is another disk now"
    finally:
        tracer.close()
    assert not any(name.startswith(f"rehost-{os.getpid()}-") for name in instances())


def test_a_tracker_of_one_session(disk: Disk, session: AgentSession) -> None:
    """It is the agent's child, and nothing of it stays."""
    tracking = Tracking(session, None)
    tracked = tracking.start([disk.name])
    assert not isinstance(tracked, Full)
    assert tracked.disks == ((disk.name, DISK),) and tracked.block_bytes == BLOCK_BYTES
    assert len(instances()) == 1
    assert tracking.begin(None) == Full("the tracker has just been started")
    disk.write(3)
    disk.write(1000)
    assert written(tracking.take(), disk) == {3, 1000}
    assert written(tracking.take(), disk) == set()
    session.channel.close()
    assert eventually(lambda: not instances())


def test_a_tracker_that_stays(disk: Disk, job: str) -> None:
    """Passes in several sessions: published, failed, published without a word, and one with a stranger as parent."""

    @contextlib.contextmanager
    def meeting() -> Iterator[Tracking]:
        with open_agent(PathConnection(root="/")) as session:
            tracking = Tracking(session, job)
            assert not isinstance(tracking.start([disk.name]), Full)
            yield tracking

    with meeting() as tracking:
        assert tracking.begin("n-0") == Full("the tracker has just been started")
        disk.write(1)
        assert written(tracking.take(), disk) == {1}
        assert tracking.prepare("n-1") and tracking.commit("n-1")
    disk.write(2)
    with meeting() as tracking:  # fails before its snapshot is published
        assert tracking.begin("n-1") is None
        assert written(tracking.take(), disk) == {2}
        disk.write(3)
        assert written(tracking.take(), disk) == {3}
    disk.write(4)
    with meeting() as tracking:  # publishes, and dies before it can say so
        assert tracking.begin("n-1") is None
        assert written(tracking.take(), disk) == {2, 3, 4}
        assert tracking.prepare("n-2")
    disk.write(5)
    with meeting() as tracking:  # prepares and does not publish
        assert tracking.begin("n-2") is None
        assert written(tracking.take(), disk) == {5}
        assert tracking.prepare("n-3")
    with meeting() as tracking:
        assert tracking.begin("n-2") is None
        assert written(tracking.take(), disk) == {5}
        assert not tracking.commit("n-3")
        assert tracking.prepare("n-4")
        assert written(tracking.take(), disk) == set()
        assert not tracking.commit("n-4")  # what was taken after it was prepared is not in it
    with meeting() as tracking:
        assert tracking.begin("n-1") == Full("the tracker knows what changed since another snapshot")
        assert tracking.remove() is None
    assert not instances() and not Path(f"/run/rehost-track-{job}").exists()


def test_a_killed_tracker_is_a_full_pass(disk: Disk, job: str) -> None:
    """The next session starts another one, which says that it knows nothing; no instance is left behind."""
    first = agent_tracking.start_resident(job, [disk.name], program())
    first.ask(ask="prepare", snapshot="n-1")
    assert first.ask(ask="commit", snapshot="n-1")[0]["done"]
    generation = first.ask(ask="state")[0]["generation"]
    resident = int(
        next(
            line
            for line in Path(f"/proc/{first.process()}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        ).split()[1]
    )
    assert resident < 20_000
    os.kill(first.process(), signal.SIGKILL)
    assert eventually(lambda: not instances())
    first.close()
    second = agent_tracking.start_resident(job, [disk.name], program())
    assert second.ask(ask="state")[0]["generation"] != generation
    assert second.ask(ask="begin", parent="n-1")[0]["full"] == "the tracker has just been started"
    os.kill(second.process(), signal.SIGTERM)
    assert eventually(lambda: not Path(f"/run/rehost-track-{job}").exists() and not instances())
    second.close()


def test_disks_that_cannot_be_followed(session: AgentSession) -> None:
    """Each is refused with its reason, which reaches the control side."""
    for name in ("nothing", "../block", "loop0/queue"):
        with pytest.raises(TracingUnavailable):
            disk_of(name)
    assert Tracking(session, None).start(["nothing"]) == Full("nothing is not a disk of this machine")
    assert not instances()

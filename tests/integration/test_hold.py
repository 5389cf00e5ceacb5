"""A source that is held still: real filesystems on loop devices of this machine, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.sshd import Sshd, children
from rehost.errors import SourceError, SourceUnreachable
from rehost.source.agent_program import PYTHON_OPTIONS, bootstrap
from rehost.source.agent_session import AgentSession, open_agent, open_program
from rehost.source.connect import PathConnection
from rehost.source.hold import Hooks, freeze, hold
from rehost.source.hold_errors import HookFailed, SnapshotFreezeFailed, SnapshotFreezeLost
from rehost.source.inventory import Volume

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems")]

_WAIT_SECONDS = 30.0


def _run(*argv: object) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True).stdout


def _until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not fact():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextlib.contextmanager
def mounted(folder: Path, filesystem: str) -> Iterator[Path]:
    """A new filesystem on a loop device."""
    program = f"mkfs.{filesystem}"
    if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip(f"{program} is not installed")
    image, point = folder / f"{filesystem}.img", folder / filesystem
    with image.open("wb") as stream:
        stream.truncate(320 << 20)
    _run(program, "-q", image)
    point.mkdir()
    _run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        # A process that thawed it holds it for as long as it takes to end.
        _until(lambda: subprocess.run(["umount", str(point)], capture_output=True).returncode == 0, "it stays busy")


@contextlib.contextmanager
def this_machine() -> Iterator[AgentSession]:
    """A session whose server is this machine."""
    with open_agent(PathConnection(root="/")) as session:
        yield session


def _volume(point: Path) -> Volume:
    return Volume(mount_point=str(point), filesystem="", size_bytes=0, used_bytes=0)


def _scanned(session: AgentSession, *volumes: Volume) -> dict[str, tuple[int, int]]:
    """Size and device of what a scan sees, by path."""
    found = {}
    for batch in session.scan(volumes, ()):
        for path, size, device in zip(*(batch[name].to_pylist() for name in ("path", "size", "dev")), strict=True):
            found["/" + os.fsdecode(path)] = (size, device)
    return found


def _agent_of(session: AgentSession) -> int:
    return session._channel._process.popen.pid


# --- btrfs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, "btrfs") as point:
        yield point


def _left(point: Path) -> list[str]:
    return _run("btrfs", "subvolume", "list", point).splitlines()


def test_a_btrfs_snapshot_is_read_and_removed(btrfs: Path) -> None:
    (btrfs / "file").write_bytes(b"before")
    _run("btrfs", "subvolume", "create", btrfs / "nested")
    with this_machine() as session:
        live = _scanned(session, _volume(btrfs))
        mounts = Path("/proc/self/mountinfo").read_text()
        with hold(session, [_volume(btrfs)]) as held:
            (btrfs / "file").write_bytes(b"and after")
            (btrfs / "new").touch()
            found = _scanned(session, _volume(btrfs))
            assert Path("/proc/self/mountinfo").read_text() == mounts
            assert len(_left(btrfs)) == 2
        assert [(c.method, c.detail) for c in held.consistency] == [
            ("btrfs", "nested subvolumes are not in it: nested")
        ]
        assert len(_left(btrfs)) == 1
        assert found[f"{btrfs}/file"] == (len(b"before"), live[f"{btrfs}/file"][1])
        assert set(found) == set(live)
        assert _scanned(session, _volume(btrfs))[f"{btrfs}/file"][0] == len(b"and after")


def test_a_live_volume_below_one_that_is_held_is_read_in_its_own_place(btrfs: Path) -> None:
    inner = btrfs / "above" / "inner"
    inner.mkdir(parents=True)
    (btrfs / "file").write_bytes(b"before")
    _run("mount", "-t", "tmpfs", "none", inner)
    try:
        with this_machine() as session, hold(session, [_volume(btrfs), _volume(inner)]) as held:
            assert [volume.method for volume in held.consistency] == ["btrfs", "live"]
            (btrfs / "file").write_bytes(b"and after")
            (inner / "file").write_bytes(b"seen")
            found = _scanned(session, _volume(btrfs), _volume(inner))
        assert (found[f"{btrfs}/file"][0], found[f"{inner}/file"][0]) == (6, 4)
    finally:
        _run("umount", inner)


def test_the_guardian_holds_nothing_of_the_agent_s(btrfs: Path) -> None:
    with this_machine() as session, hold(session, [_volume(btrfs)]):
        (guardian,) = children(_agent_of(session))
        (room,) = children(guardian)
        for process in (guardian, room):
            opened = {os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()}
            assert all(target == "/dev/null" or target.startswith("socket:") for target in opened), opened
            assert os.getsid(process) == process
        agents = {os.readlink(path) for path in Path(f"/proc/{_agent_of(session)}/fd").iterdir()}
        assert agents & {os.readlink(path) for path in Path(f"/proc/{room}/fd").iterdir()} == {"/dev/null"}


_OLD = sorted(Path.home().glob(".pyenv/versions/3.6.*/bin/python3.6"))


@pytest.mark.skipif(not _OLD, reason="no Python 3.6 is here")
def test_an_old_python_holds_and_freezes(btrfs: Path) -> None:
    with open_program(
        lambda length: [str(_OLD[0]), *PYTHON_OPTIONS, bootstrap(length)],
        host="old",
        root=b"/",
        explain=lambda status, stderr, greeted: SourceUnreachable(host="old", reason=stderr[-500:]),
        compress_level=0,
        bandwidth_limit_kbps=0,
    ) as session:
        with hold(session, [_volume(btrfs)], hooks=Hooks("true", "true")) as held:
            assert held.consistency[0].method == "btrfs"
            assert len(_left(btrfs)) == 1
        assert not _left(btrfs)
        with freeze(session, [str(btrfs)]) as frozen:
            pass
        assert frozen.seconds > 0


def test_a_btrfs_snapshot_goes_with_a_killed_agent(btrfs: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError), this_machine() as session, hold(session, [_volume(btrfs)]):
        assert len(_left(btrfs)) == 1
        os.kill(_agent_of(session), signal.SIGKILL)
        _until(lambda: not _left(btrfs), "the snapshot outlived the agent")


def test_a_btrfs_snapshot_goes_with_the_connection(sshd: Sshd, btrfs: Path, tmp_path: Path) -> None:
    hooks = Hooks(post_snapshot=f"touch {tmp_path}/post")
    with (
        pytest.raises(SourceError),
        open_agent(sshd.connection()) as session,
        # The second volume stays live, so that the hook is due at the end.
        hold(session, [_volume(btrfs), _volume(Path("/"))], hooks=hooks) as held,
    ):
        assert [volume.method for volume in held.consistency] == ["btrfs", "live"]
        assert len(_left(btrfs)) == 1
        assert not (tmp_path / "post").exists()
        sshd.kill_sessions()
        _until(lambda: not _left(btrfs), "the snapshot outlived the connection")
        _until((tmp_path / "post").exists, "the hook did not run")
        session.ask(91, {}, 31)


def test_what_a_killed_guardian_left_is_removed_by_the_next_hold(btrfs: Path) -> None:
    with this_machine() as session, pytest.raises(SourceError), hold(session, [_volume(btrfs)]):
        (guardian,) = children(_agent_of(session))
        os.kill(guardian, signal.SIGKILL)
        os.kill(_agent_of(session), signal.SIGKILL)
        session.ask(91, {}, 31)
    assert len(_left(btrfs)) == 1
    with this_machine() as session, hold(session, [_volume(btrfs)]) as held:
        assert len(held.told) == 1 and "was removed" in held.told[0]
        assert len(_left(btrfs)) == 1
    assert not _left(btrfs)


# --- hooks --------------------------------------------------------------------------------------------------------


def test_hooks_run_around_a_snapshot(btrfs: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hooks = Hooks(f"echo pre >>{log}; echo said", f"btrfs subvolume list {btrfs} | wc -l >>{log}")
    with this_machine() as session, hold(session, [_volume(btrfs)], hooks=hooks) as held:
        assert log.read_text() == "pre\n1\n"  # the second when the snapshot was there, and before the copy
        assert [(hook.name, hook.status) for hook in held.hooks] == [("pre_snapshot", 0), ("post_snapshot", 0)]
        assert held.hooks[0].output.startswith("said")
    assert log.read_text() == "pre\n1\n"


def test_hooks_run_around_a_live_copy(tmp_path: Path) -> None:
    log = tmp_path / "log"
    hooks = Hooks(f"echo pre >>{log}", f"echo post >>{log}")
    with this_machine() as session, hold(session, [_volume(Path("/"))], method="live", hooks=hooks):
        assert log.read_text() == "pre\n"
    assert log.read_text() == "pre\npost\n"


@pytest.mark.parametrize(("command", "seconds"), [("echo no >&2; exit 3", 60), ("sleep 600", 1)])
def test_a_failing_hook_ends_the_pass_before_a_snapshot(
    btrfs: Path, tmp_path: Path, command: str, seconds: int
) -> None:
    hooks = Hooks(command, f"touch {tmp_path}/post", seconds)
    with this_machine() as session, pytest.raises(HookFailed):
        with hold(session, [_volume(btrfs)], hooks=hooks):
            raise AssertionError("it is not held")
    assert (tmp_path / "post").exists()
    assert not _left(btrfs)


def test_a_tree_is_copied_live_and_its_hooks_do_not_run(tmp_path: Path) -> None:
    hooks = Hooks(f"touch {tmp_path}/pre", f"touch {tmp_path}/post")
    with (
        open_agent(PathConnection(root=str(tmp_path))) as session,
        hold(session, [_volume(Path("/"))], hooks=hooks) as h,
    ):
        assert [volume.method for volume in h.consistency] == ["live"]
        assert len(h.told) == 1 and h.hooks == []
    assert list(tmp_path.iterdir()) == []


# --- freeze -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writer(point: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that writes one file to the filesystem and ends."""
    with subprocess.Popen(["/bin/sh", "-c", f"echo x > {point}/written; echo done"], stdout=subprocess.PIPE) as writer:
        try:
            yield writer
        finally:
            writer.wait(_WAIT_SECONDS)


def _waits(writer: subprocess.Popen[bytes]) -> bool:
    """Whether it is stuck in the kernel, as a writer to a frozen filesystem is."""
    return Path(f"/proc/{writer.pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_writers_wait_while_it_is_frozen(tmp_path: Path, filesystem: str) -> None:
    with mounted(tmp_path, filesystem) as point, this_machine() as session:
        with contextlib.ExitStack() as running:
            with freeze(session, [str(point)]) as frozen:
                writer = running.enter_context(_writer(point))
                _until(lambda: _waits(writer), "the writer does not wait")
                assert not (point / "written").exists()
            assert writer.wait(_WAIT_SECONDS) == 0
            assert 0 < frozen.seconds < 10


def test_a_freeze_is_lost_when_its_time_is_over(tmp_path: Path) -> None:
    hooks = Hooks(f"touch {tmp_path}/pre", f"touch {tmp_path}/post")
    with mounted(tmp_path, "ext4") as point, this_machine() as session, pytest.raises(SnapshotFreezeLost):
        with freeze(session, [str(point)], seconds=1, hooks=hooks), _writer(point) as writer:
            assert (tmp_path / "pre").exists() and not (tmp_path / "post").exists()
            assert writer.wait(_WAIT_SECONDS) == 0  # it is thawed though nobody asked for it
    assert (tmp_path / "post").exists()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_it_is_thawed_whatever_becomes_of_the_agent(tmp_path: Path, filesystem: str, number: int) -> None:
    with mounted(tmp_path, filesystem) as point, contextlib.ExitStack() as running:
        session = running.enter_context(this_machine())
        with pytest.raises(SourceError if number == signal.SIGKILL else SnapshotFreezeLost):
            with freeze(session, [str(point)], seconds=2):
                os.kill(_agent_of(session), number)
                with _writer(point) as writer:
                    assert writer.wait(_WAIT_SECONDS) == 0
                if number == signal.SIGSTOP:
                    os.kill(_agent_of(session), signal.SIGCONT)


@pytest.mark.parametrize(("name", "kept"), [("z", True), ("a", False)])
def test_a_filesystem_in_a_file_of_another_is_thawed_with_it(tmp_path: Path, name: str, kept: bool) -> None:
    with mounted(tmp_path, "ext4") as outer, contextlib.ExitStack() as stack:
        (outer / name).mkdir()
        image, inner = outer / "image", tmp_path / name
        with image.open("wb") as stream:
            stream.truncate(64 << 20)
        _run("mkfs.ext4", "-q", image)
        inner.mkdir()
        _run("mount", "-o", "loop", image, inner)
        stack.callback(_until, lambda: subprocess.run(["umount", inner]).returncode == 0, "it stays busy")
        expected = contextlib.nullcontext() if kept else pytest.raises(SnapshotFreezeLost)
        with this_machine() as session, expected:
            # The other way round the inner one cannot be frozen once the outer one is: that ends by the time limit.
            with freeze(session, [str(outer), str(inner)], seconds=10 if kept else 2):
                pass
        for point in (outer, inner):
            with _writer(point) as writer:
                assert writer.wait(_WAIT_SECONDS) == 0


def test_what_cannot_be_frozen_leaves_nothing_frozen(tmp_path: Path) -> None:
    with mounted(tmp_path, "ext4") as point, this_machine() as session:
        with pytest.raises(SnapshotFreezeFailed):
            with freeze(session, [str(point), "/proc"]):
                raise AssertionError("it is not frozen")
        with _writer(point) as writer:
            assert writer.wait(_WAIT_SECONDS) == 0

"""The wire over a real sshd on loopback: what is refused, what survives, what is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.registry import free_port
from rehost.errors import (
    SourceAuthenticationFailed,
    SourceError,
    SourceHostKeyChanged,
    SourceHostKeyUnknown,
    SourceLacksPython,
    SourceNotEnoughPrivileges,
    SourceProtocol,
    SourceUnreachable,
)
from rehost.replication.bundles import Bundle
from rehost.replication.export import export_tree
from rehost.replication.store import Store
from rehost.replication.tree import Tree
from rehost.source.agent_session import AgentSession, open_program
from rehost.source.connect import PathConnection, SshConnection, open_session
from rehost.source.session import FileContent, FileRequest, Session
from rehost.source.ssh import ssh_argv, ssh_error
from tests.integration.conftest import Sshd
from tests.support.trees import assert_same_tree, make_nasty_tree
from tests.support.wire import take, volume

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="logs in as root on this machine")]

_WAIT_SECONDS = 20.0


def _all(names: list[bytes]) -> list[bool]:
    return [True] * len(names)


def _read(
    session: Session,
    path: Path,
    wanted: Callable[..., list[bool]] = _all,
    deliver: Callable[[Bundle], None] = lambda bundle: None,
) -> FileContent:
    request = FileRequest(0, os.fsencode(path).lstrip(b"/"), path.stat().st_size)
    (content,) = session.read([request], wanted, deliver)
    return content


def _until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not fact():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _agents(sshd: Sshd) -> set[int]:
    """The processes that sessions of this sshd brought about: shells, and the agent."""
    return {pid for pid in sshd.descendants() if b"sys.stdin.buffer.read(" in _command_line(pid)}


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _gone(agents: set[int]) -> bool:
    return not any(b"sys.stdin.buffer.read(" in _command_line(pid) for pid in agents)


def _on_tree(
    connection: SshConnection, tree: Path, compress_level: int = 0
) -> contextlib.AbstractContextManager[AgentSession]:
    """A session over ssh whose root is one folder of the server."""
    return open_program(
        lambda length: ssh_argv(connection, length),
        host=connection.host,
        root=os.fsencode(tree),
        explain=lambda status, stderr, greeted: ssh_error(connection, status, stderr, greeted),
        compress_level=compress_level,
        bandwidth_limit_kbps=0,
    )


def _refusal(connection: SshConnection) -> SourceError:
    with pytest.raises(SourceError) as caught:
        with open_session(connection):
            pass
    return caught.value


def test_a_file_arrives_whole_over_ssh(sshd: Sshd, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    arrived: list[bytes] = []
    with open_session(sshd.connection(), compress_level=3) as session:
        file = _read(session, tmp_path / "file", deliver=lambda bundle: arrived.append(bundle.raw()))
        assert session.bytes_on_wire() > len(content)
    assert b"".join(arrived) == content
    assert [chunk.offset for chunk in file.chunks] == [0, 1 << 20, 2 << 20]
    assert not file.unstable


def test_a_changed_host_key_has_its_own_code(sshd: Sshd, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known hosts %h"
    known_hosts.write_text(sshd.known_host("other_key"))
    assert isinstance(_refusal(sshd.connection(known_hosts=str(known_hosts))), SourceHostKeyChanged)


def test_an_unknown_host_key_is_refused_and_not_learned(sshd: Sshd, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("")
    assert isinstance(_refusal(sshd.connection(known_hosts=str(known_hosts))), SourceHostKeyUnknown)
    assert known_hosts.read_text() == ""


def test_a_wrong_identity_is_an_authentication_failure(sshd: Sshd) -> None:
    connection = sshd.connection(identity_file=str(sshd.directory / "other_key"))
    assert isinstance(_refusal(connection), SourceAuthenticationFailed)


def test_nobody_on_the_port_is_unreachable(sshd: Sshd) -> None:
    assert isinstance(_refusal(sshd.connection(port=free_port())), SourceUnreachable)


def test_a_killed_session_is_unreachable_and_leaves_nothing(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(30_000_000))
    delivered = 0

    def deliver(bundle: Bundle) -> None:
        nonlocal delivered
        delivered += 1
        if delivered == 3:
            sshd.kill_sessions()

    with pytest.raises(SourceUnreachable), open_session(sshd.connection()) as session:
        agents = _agents(sshd)
        assert agents
        _read(session, tmp_path / "file", deliver=deliver)
    assert 3 <= delivered < 29
    _until(lambda: _gone(agents), "the agent outlived its connection")
    with open_session(sshd.connection()) as session:
        assert len(_read(session, tmp_path / "file").chunks) == 29


def test_a_transfer_goes_on_where_the_connection_broke(sshd: Sshd, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(80):
        (tree / f"{number:02}").write_bytes(os.urandom(500_000))
    wire = []
    with Store.open(tmp_path / "store") as store:
        with pytest.raises(SourceUnreachable), _on_tree(sshd.connection(), tree) as session:
            put = store.put_bundle
            stored: list[bytes] = []

            def breaking(bundle: Bundle) -> int:
                stored.extend(bundle.names)
                if len(stored) >= 25:
                    sshd.kill_sessions()
                return put(bundle)

            store.put_bundle = breaking  # type: ignore[method-assign]
            try:
                take(session, store, tmp_path)
            finally:
                del store.put_bundle
                wire.append(session.bytes_on_wire())
        assert all(store.has(stored))
    with Store.open(tmp_path / "store") as store:
        with _on_tree(sshd.connection(), tree) as session:
            snapshot, report = take(session, store, tmp_path)
            wire.append(session.bytes_on_wire())
        assert snapshot.bytes_total == 40_000_000
        assert report.bytes_new <= 40_000_000 - 500_000 * len(stored)
    assert 12_500_000 <= wire[0] < 39_000_000
    # What was on its way when it broke comes twice, no more.
    assert sum(wire) < 40_000_000 + 3 * (1 << 20)


def test_the_agent_has_no_file_open_for_writing(sshd: Sshd) -> None:
    with open_session(sshd.connection()):
        for agent in _agents(sshd):
            for descriptor in Path(f"/proc/{agent}/fd").iterdir():
                target = os.readlink(descriptor)
                assert target == "/dev/null" or not target.startswith("/") or descriptor.is_dir(), target
        commands = [_command_line(agent).split(b"\0") for agent in _agents(sshd)]
        pythons = [command for command in commands if b"python" in command[0]]
        assert pythons
        assert all(b"-B" in command for command in pythons)


def test_a_closed_session_leaves_no_process(sshd: Sshd) -> None:
    with open_session(sshd.connection()):
        agents = _agents(sshd)
        assert agents
    _until(lambda: _gone(agents), "the agent outlived its session")


def test_a_killed_control_side_leaves_no_process(sshd: Sshd) -> None:
    script = (
        "import sys,time\n"
        "from rehost.source.connect import SshConnection, open_session\n"
        "with open_session(SshConnection.model_validate_json(sys.argv[1])):\n"
        "    print('open', flush=True); time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", script, sshd.connection().model_dump_json()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        agents = _agents(sshd)
        assert agents
        process.kill()
    _until(lambda: _gone(agents), "the agent outlived the program that started it")


# --- a fake ssh, first on PATH, runs the remote command as sshd would, in other circumstances -----------------


Fake = Callable[..., SshConnection]


# The Pythons of the system are not found where they are.
_ONLY_OF_PATH = 'command=$(printf "%s" "$command" | sed "s,/usr/,/none/,g")'


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A connection whose ssh is a script: `before` runs first, then the remote command, by `runner`."""

    def make(
        before: str = "", runner: str = "sh -c", sudo: bool = False, programs: dict[str, str] | None = None
    ) -> SshConnection:
        folder = tmp_path / "bin"
        folder.mkdir()
        script = f'#!/bin/sh\nfor command; do :; done\n{before}\nexec {runner} "$command"\n'
        for name, text in {"ssh": script, **(programs or {})}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return SshConnection(host="server.example", sudo=sudo)

    return make


def test_a_login_that_prints_is_survived(fake_ssh: Fake) -> None:
    with open_session(fake_ssh(before="printf 'Welcome!\\n\\000 to all\\n'; echo noise >&2")) as session:
        assert session.bytes_on_wire() > 0


def test_a_login_that_prints_without_end_is_told_of(fake_ssh: Fake) -> None:
    error = _refusal(fake_ssh(before="exec yes"))
    assert isinstance(error, SourceProtocol)
    assert "prints" in error.message


def test_an_ordinary_user_has_not_enough_privileges(fake_ssh: Fake) -> None:
    # By the whole path: PATH itself leads through folders that only root may enter.
    setpriv = "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c"
    assert isinstance(_refusal(fake_ssh(runner=setpriv)), SourceNotEnoughPrivileges)


def test_sudo_that_wants_a_password_is_not_enough(fake_ssh: Fake) -> None:
    sudo = "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n"
    assert isinstance(_refusal(fake_ssh(sudo=True, programs={"sudo": sudo})), SourceNotEnoughPrivileges)


def test_sudo_is_used_where_it_is_asked_for(fake_ssh: Fake, tmp_path: Path) -> None:
    sudo = f'#!/bin/sh\necho "first: $1" > {tmp_path}/seen\nshift\nexec "$@"\n'
    with open_session(fake_ssh(sudo=True, programs={"sudo": sudo})):
        pass
    assert (tmp_path / "seen").read_text() == "first: -n\n"


def test_a_server_without_python_is_told_of(fake_ssh: Fake) -> None:
    old = "#!/bin/sh\nexit 95\n"  # as one that is too old answers
    programs = dict.fromkeys(["python3", *(f"python3.{minor}" for minor in range(6, 15))], old)
    assert isinstance(_refusal(fake_ssh(before=_ONLY_OF_PATH, programs=programs)), SourceLacksPython)


def test_the_python_of_the_system_comes_before_that_of_the_path(fake_ssh: Fake) -> None:
    if not Path("/usr/bin/python3").exists():
        pytest.skip("the system has no Python of its own")
    with open_session(fake_ssh(programs={"python3": "#!/bin/sh\nexit 3\n"})) as session:
        assert session.bytes_on_wire() > 0


def _pythons() -> list[str]:
    """Other Pythons of this machine, the oldest that the agent promises to run on first."""
    found = []
    for minor in (6, 7, 9, 13):
        there = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3.{minor}"))
        program = str(there[-1]) if there else shutil.which(f"python3.{minor}")
        found += [program] if program else []
    return found


@pytest.mark.parametrize("python", _pythons() or [pytest.param("", marks=pytest.mark.skip("no other Python is here"))])
def test_the_agent_runs_on_other_pythons(fake_ssh: Fake, tmp_path: Path, python: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_nasty_tree(tree)
    fake_ssh(before=_ONLY_OF_PATH, programs={"python3": f'#!/bin/sh\nexec {python} "$@"\n'})
    with Store.open(tmp_path / "store") as store:
        with _on_tree(SshConnection(host="server.example"), tree, compress_level=6) as session:
            assert session.hello.python in python
            snapshot, report = take(session, store, tmp_path, exclude=["/[!a-z]**never"])
            assert session.inventory().architecture
        export_tree(Tree(store.files(snapshot.id), store), tmp_path / "back")
    assert report.unreadable == report.vanished == report.unstable == ()
    assert_same_tree(tree, tmp_path / "back")


def test_what_is_mounted_below_is_left_out_or_comes_as_a_volume(sshd: Sshd, tmp_path: Path) -> None:
    """A scan of this machine's root: pseudo filesystems are empty directories, whatever is in them."""
    with open_session(sshd.connection()) as session:
        everything = ["/[!dpst]*/*", "/tmp/*", "/s[!y]*/*"]
        rows = [row for batch in session.scan([volume()], everything) for row in batch.to_pylist()]
    paths = {row["path"] for row in rows}
    assert {b"", b"proc", b"sys", b"dev", b"tmp"} <= paths
    assert not any(path.startswith((b"proc/", b"sys/", b"dev/")) for path in paths)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Path]:
    """A tree with a tmpfs in it, a bind mount of a part of itself, one onto itself, and another tmpfs."""
    tree = tmp_path / "tree"
    for name in ("etc", "data", "twin", "run", "self"):
        (tree / name).mkdir(parents=True)
    (tree / "etc" / "file").write_text("file")
    (tree / "self" / "file").write_text("file")
    made = []
    try:
        for source, target, options in (
            ("tmpfs", tree / "data", ["-t", "tmpfs"]),
            (str(tree / "etc"), tree / "twin", ["--bind"]),
            ("tmpfs", tree / "run", ["-t", "tmpfs"]),
            (str(tree / "self"), tree / "self", ["--bind"]),
        ):
            if subprocess.run(["mount", *options, source, str(target)]).returncode:
                pytest.skip("this machine does not let us mount")
            made.append(target)
        (tree / "data" / "row").write_text("row")
        (tree / "run" / "user" / "0").mkdir(parents=True)
        (tree / "run" / "pid").write_text("1")
        yield tree
    finally:
        for target in reversed(made):
            subprocess.run(["umount", str(target)], check=True)


def test_mounts_are_left_out_or_taken_as_volumes(mounts: Path) -> None:
    def scanned(*points: str) -> dict[bytes, int]:
        with open_session(PathConnection(root=str(mounts))) as session:
            volumes = [volume(point) for point in points]
            rows = [row for batch in session.scan(volumes, []) for row in batch.to_pylist()]
        assert [row["path"] for row in rows] == sorted({row["path"] for row in rows})
        return {row["path"]: row["volume"] for row in rows}

    bare = {b"": 0, b"etc": 0, b"etc/file": 0, b"data": 0, b"twin": 0, b"run": 0, b"self": 0, b"self/file": 0}
    assert scanned("/") == bare
    assert scanned("/", "/data") == bare | {b"data": 1, b"data/row": 1}
    # A volume below a mount that is left out brings the directories on its way.
    assert scanned("/", "/run/user/0") == bare | {b"run/user": 0, b"run/user/0": 1}

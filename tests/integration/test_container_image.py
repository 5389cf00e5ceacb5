"""Container images against a real engine and a real registry: built, loaded, run, published, verified."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from docker.client import DockerClient
from docker.errors import DockerException

from demo.registry import registry
from image_builders.container.build import build_container
from image_builders.container.left_out import carried_xattr
from image_builders.container.publish import publish_container
from image_builders.container.record import ContainerImage, read_record
from image_builders.container.request import Credentials
from rehost import run as programs
from rehost.errors import BuildUnsupported, ContainerEngineAway, RegistryDenied, RegistryUnreachable
from rehost.progress import silent
from rehost.replication.manifest import Entry, entry_of, table_of
from rehost.replication.tree import Put, Tree
from rehost.source.inventory import Inventory
from rehost.verification import trial
from rehost.verification.container import verify_container
from rehost.verification.trial import LABEL, reap_containers
from tests.support.containers import (
    NAMESPACE,
    Chunks,
    inventory,
    listener,
    make_server,
    request,
    table_from,
)
from tests.support.trees import ACCESS_ACL, CAPABILITY, make_nasty_tree

PORT = 8080
LISTENING = inventory(listener(PORT))
# "me:secret", by bcrypt, the one way that the registry knows.
HTPASSWD = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"

try:
    with contextlib.closing(docker.from_env()) as _client:
        _client.ping()
    _NO_ENGINE = ""
except DockerException as error:
    _NO_ENGINE = str(error)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(_NO_ENGINE), reason=f"no Docker engine answers: {_NO_ENGINE}"),
]
needs_registry = pytest.mark.skipif(programs.find("docker-registry") is None, reason="docker-registry is not installed")


@pytest.fixture(scope="module")
def client() -> Iterator[DockerClient]:
    """The engine; whatever images these tests made are gone at the end."""
    client = docker.from_env()
    yield client
    for image in client.images.list():
        if any(f"{NAMESPACE}/" in tag for tag in image.tags) or NAMESPACE in str(image.attrs.get("RepoDigests")):
            with contextlib.suppress(DockerException):
                client.images.remove(str(image.id), force=True)
    client.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    directory = tmp_path_factory.mktemp("server")
    make_server(directory, PORT)
    chunks = Chunks()
    return Tree(table_from(directory, chunks), chunks)


@pytest.fixture(scope="module")
def image(server: Tree, client: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> ContainerImage:
    return build_container(server, LISTENING, request("tiny"), tmp_path_factory.mktemp("image"), silent)


def built(tree: Tree, directory: Path, name: str, *command: str, known: Inventory = LISTENING) -> ContainerImage:
    return build_container(tree, known, request(name, command=command), directory, silent)


def leftovers(client: DockerClient) -> list[str]:
    containers = client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
    return [str(c.name) for c in containers] + [str(n.name) for n in client.networks.list(filters={"label": LABEL})]


# --- building


def test_the_image_is_in_the_engine_as_its_record_says(image: ContainerImage, client: DockerClient) -> None:
    held = client.images.get(image.reference)
    assert held.id == image.engine_id == image.digest
    assert held.attrs["RootFS"]["Layers"] == [layer.digest for layer in image.layers]
    assert held.attrs["Config"]["Cmd"] == ["/usr/sbin/answerer"]
    assert set(held.attrs["Config"]["ExposedPorts"]) == {f"{PORT}/tcp"}
    assert (
        held.labels == image.labels and held.labels["org.opencontainers.image.created"] == "2026-03-01T12:00:00.250000Z"
    )
    directory = Path(image.location).parent
    assert read_record(directory) == image
    assert sorted(p.name for p in directory.iterdir()) == ["changes.diff", "image.json", "image.tar"]
    assert [group.group for group in image.left_out] == ["kernel"]


def test_one_snapshot_gives_one_digest(
    server: Tree, image: ContainerImage, tmp_path: Path, client: DockerClient
) -> None:
    again = built(server, tmp_path, "tiny")
    assert (again.engine_id, again.layers) == (image.engine_id, image.layers)
    other = built(server.apply([Put(b"etc/motd", b"changed\n")]), tmp_path, "changed")
    assert other.engine_id != image.engine_id


def test_progress_never_goes_back_and_ends_whole(server: Tree, tmp_path: Path, client: DockerClient) -> None:
    seen: list[tuple[int, int]] = []
    build_container(
        server, LISTENING, request("tiny"), tmp_path, lambda done, total, note="": seen.append((done, total))
    )
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0


def test_a_nasty_tree_is_in_the_container_as_it_was(server: Tree, tmp_path: Path, client: DockerClient) -> None:
    """The judge is `find` and getxattr inside: the kernel's own word on what the engine unpacked."""
    make_nasty_tree(tmp_path, huge=False)
    chunks = Chunks()
    nasty = [entry_of(row) for row in table_from(tmp_path, chunks).to_pylist()]
    moved = [replace(e, path=b"srv/" + e.path if e.path else b"srv") for e in nasty]
    extra = Entry(
        b"srv/set-id",
        stat.S_IFREG | 0o6755,
        uid=1234,
        gid=4321,
        link_group=9_000_001,
        xattrs=((b"security.capability", CAPABILITY), (b"user.x", b"\0y")),
    )
    moved += [extra, replace(extra, path=b"srv/set-id, too")]
    own = [entry_of(row) for row in server.table().to_pylist()]
    chunks.update({c.sha256: server.read_chunk(c.sha256) for e in own for c in e.chunks})
    tree = Tree(table_of(own + moved), chunks)
    made = built(tree, tmp_path / "image", "nasty")
    expected = [e for e in moved if stat.S_IFMT(e.mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)]

    listing = "%P\\0%m\\0%U\\0%G\\0%T@\\0%i\\0%s\\0%l\\0"
    # Names and values by themselves on standard input: hex path, hex name -> hex value.
    number = {"x86_64": 192, "aarch64": 9}.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of lgetxattr on this machine is not known to this test")
    asker = (
        "while (my $line = shift @ARGV) { my ($p, $n) = map { pack 'H*', $_ } split /:/, $line;"
        f' my $b = "\\0" x 70000; my $r = syscall({number}, $p, $n, $b, 70000);'
        " print $line, ':', ($r < 0 ? 'none' : unpack('H*', substr($b, 0, $r))), \"\\n\"; }"
    )
    wanted = {
        f"{(b'/' + e.path).hex()}:{key.hex()}": value.hex()
        for e in expected
        for key, value in e.xattrs
        if carried_xattr(key) and not e.is_symlink and value
    }
    dropped = b"/srv/with attributes".hex() + ":" + b"trusted.kept".hex()
    container = client.containers.create(
        made.engine_id, ["/usr/bin/sleep", "600"], labels={LABEL: "0"}, network_disabled=True
    )
    try:
        container.start()
        output = bytes(container.exec_run(["find", "/srv", "-printf", listing]).output)  # type: ignore[arg-type]
        values = bytes(container.exec_run(["perl", "-e", asker, *wanted, dropped]).output)  # type: ignore[arg-type]
    finally:
        container.remove(force=True, v=True)

    fields = output.split(b"\0")[:-1]
    found = {fields[i]: fields[i + 1 : i + 8] for i in range(0, len(fields), 8)}
    assert sorted(found) == sorted(e.path[4:] for e in expected)
    inodes: dict[int, set[bytes]] = {}
    for e in expected:
        mode, uid, gid, mtime, inode, size, target = found[e.path[4:]]
        if not e.is_symlink:
            assert int(mode, 8) == stat.S_IMODE(e.mode), e.path
        assert (int(uid), int(gid)) == (e.uid, e.gid), e.path
        whole, _, fraction = mtime.partition(b".")
        seconds, ns = divmod(e.mtime_ns, 1_000_000_000)
        if seconds >= 0:  # find prints times before 1970 in a way of its own
            assert (int(whole), int(fraction[:9])) == (seconds, ns), e.path
        assert target == (e.target or b""), e.path
        if e.is_file:
            assert int(size) == e.size, e.path
        if e.link_group is not None:
            inodes.setdefault(e.link_group, set()).add(inode)
    assert all(len(numbers) == 1 for numbers in inodes.values())
    assert {ACCESS_ACL.hex(), CAPABILITY.hex()} <= set(wanted.values())
    assert any("user.empty" in warning for warning in made.warnings)  # what an engine loses is told
    told = dict(line.rsplit(":", 1) for line in values.decode().splitlines())
    assert told.pop(dropped) == "none"
    assert told == wanted


def test_services_without_systemd_start_and_stop_with_the_container(
    server: Tree, tmp_path: Path, client: DockerClient
) -> None:
    script = b"#!/bin/sh\n# starts /usr/sbin/other\ncase $1 in start) echo up;; stop) echo was stopped;; esac\n"
    tree = server.apply([Put(b"etc/init.d/other", script, mode=0o755)])
    known = inventory(listener(PORT), listener(9, process="other"))
    made = built(tree, tmp_path, "several", known=known)
    assert made.command == ("/usr/local/sbin/rehost-services",)
    container = client.containers.create(made.engine_id, labels={LABEL: "0"}, network_disabled=True)
    try:
        container.start()
        deadline = time.monotonic() + 30
        while b"listening on" not in container.logs() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert b"up" in container.logs()
        container.stop(timeout=20)
        assert container.wait()["StatusCode"] == 0
        assert b"was stopped" in container.logs()
    finally:
        container.remove(force=True, v=True)


def test_a_file_that_is_all_hole_is_named_when_it_does_not_fit(server: Tree, tmp_path: Path) -> None:
    rows = [entry_of(row) for row in server.table().to_pylist()]
    hollow = Entry(b"root/hollow", stat.S_IFREG | 0o644, size=1 << 50)
    chunks = Chunks({c.sha256: server.read_chunk(c.sha256) for e in rows for c in e.chunks})
    with pytest.raises(BuildUnsupported, match="/root/hollow"):
        built(Tree(table_of([*rows, hollow]), chunks), tmp_path, "hollow")


def test_a_dead_engine_is_told_before_any_work(
    server: Tree, image: ContainerImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(ContainerEngineAway):
        built(server, tmp_path / "image", "tiny")
    assert not (tmp_path / "image").exists()
    with pytest.raises(ContainerEngineAway):
        verify_container(image, LISTENING, evidence=tmp_path / "evidence", timeout_seconds=5)
    with pytest.raises(ContainerEngineAway):
        reap_containers()


# --- verification


def test_a_container_that_answers_is_verified(image: ContainerImage, client: DockerClient, tmp_path: Path) -> None:
    script = '#!/usr/bin/perl\nprint "I am $ENV{container} as $>\\n"; exit 0'
    report = verify_container(image, LISTENING, evidence=tmp_path, timeout_seconds=60, script=script)
    assert report.status == "succeeded" and report.error is None, report
    assert {(c.name, c.status) for c in report.checks} == {
        (f"port {PORT}/tcp listens", "passed"),
        (f"port {PORT}/tcp answers", "passed"),
        ("stays up", "passed"),
        ("script", "passed"),
    }
    assert [c.detail for c in report.checks if c.name.endswith("answers")] == [f"port {PORT}"]
    assert report.script_output == "I am docker as 0"
    assert f"listening on {PORT}" in (tmp_path / "console.log").read_text()
    assert (tmp_path / "report.json").exists()
    assert leftovers(client) == []


def test_the_container_on_trial_reaches_nobody(image: ContainerImage, client: DockerClient) -> None:
    with trial.on_trial(client, image, "tiny", 60) as running:
        running.start()
        (name,) = [str(c.name) for c in client.containers.list(filters={"label": LABEL})]
        facts = client.containers.get(name).attrs
        assert client.networks.get(name).attrs["Internal"] is True
        assert list(facts["NetworkSettings"]["Networks"]) == [name] and not facts["HostConfig"]["PortBindings"]
        assert not facts["HostConfig"]["Privileged"] and facts["HostConfig"]["Memory"] > 0
        assert facts["HostConfig"]["PidsLimit"] == 4096
        assert running.run(["cat", "/proc/self/status"], 10).status == 0
    assert leftovers(client) == []


def test_a_port_that_does_not_answer_is_named(image: ContainerImage, client: DockerClient, tmp_path: Path) -> None:
    more = image.model_copy(update={"exposed_ports": ("4711/tcp", f"{PORT}/tcp"), "local_ports": ("4712/tcp",)})
    report = verify_container(more, LISTENING, evidence=tmp_path, timeout_seconds=3)
    assert report.error is not None and report.error.code == "Container.CheckFailed"
    assert "4711" in report.error.message and "4712" in report.error.message and str(PORT) not in report.error.message
    status = {c.name: c.status for c in report.checks}
    assert status["port 4711/tcp listens"] == "failed" and status[f"port {PORT}/tcp answers"] == "passed"
    assert leftovers(client) == []


def test_a_port_on_the_loopback_interface_alone_is_not_taken_for_an_open_one(
    server: Tree, client: DockerClient, tmp_path: Path
) -> None:
    made = built(server, tmp_path, "inward", "/usr/sbin/answerer", str(PORT), "127.0.0.1")
    report = verify_container(made, LISTENING, evidence=tmp_path / "evidence", timeout_seconds=3)
    assert {c.name for c in report.checks if c.status == "failed"} >= {f"port {PORT}/tcp listens"}
    inward = made.model_copy(update={"exposed_ports": (), "local_ports": (f"{PORT}/tcp",)})
    assert verify_container(inward, LISTENING, evidence=tmp_path / "again", timeout_seconds=30).status == "succeeded"


def test_a_container_that_ends_by_itself_is_told_with_its_last_words(
    server: Tree, client: DockerClient, tmp_path: Path
) -> None:
    made = built(server, tmp_path, "ends", "/bin/sh", "-c", "echo '\033[31mno database\033[0m'; sleep 0.2; exit 7")
    report = verify_container(made, LISTENING, evidence=tmp_path / "evidence", timeout_seconds=30)
    assert report.error is not None and report.error.code == "Container.ExitedEarly"
    assert "status 7: no database" in report.error.message
    assert leftovers(client) == []


def test_a_command_that_is_not_there_is_told(server: Tree, client: DockerClient, tmp_path: Path) -> None:
    made = built(server, tmp_path, "absent", "/usr/sbin/absent")
    report = verify_container(made, LISTENING, evidence=tmp_path / "evidence", timeout_seconds=30)
    assert report.error is not None and report.error.code == "Container.ExitedEarly"
    assert "absent" in report.error.message
    assert leftovers(client) == []


@pytest.mark.parametrize(
    ("script", "seconds", "detail"),
    [("echo no; exit 3", 60.0, "status 3"), ("echo slow; sleep 600", 1.0, "did not end within 1 seconds")],
)
def test_a_script_that_does_not_pass_fails_the_verification(
    image: ContainerImage, client: DockerClient, tmp_path: Path, script: str, seconds: float, detail: str
) -> None:
    report = verify_container(
        image, LISTENING, evidence=tmp_path, timeout_seconds=60, script=script, script_timeout_seconds=seconds
    )
    assert report.error is not None and report.error.code == "Container.CheckFailed"
    assert detail in report.checks[-1].detail and report.script_output in ("no", "slow")
    assert leftovers(client) == []


def test_an_interrupted_verification_leaves_nothing(image: ContainerImage, client: DockerClient) -> None:
    with pytest.raises(KeyboardInterrupt):
        with trial.on_trial(client, image, "tiny", 60):
            assert len(leftovers(client)) == 2
            raise KeyboardInterrupt
    assert leftovers(client) == []


def test_forgotten_containers_are_reaped_and_others_are_left_alone(image: ContainerImage, client: DockerClient) -> None:
    name = f"rehost-verification-test-{os.getpid()}"
    client.networks.create(name, internal=True, labels={LABEL: "1"})
    container = client.containers.create(image.engine_id, name=name, network=name, labels={LABEL: "1"})
    container.start()
    with trial.on_trial(client, image, "tiny", 600):
        assert reap_containers() == 1
        assert len(leftovers(client)) == 2 and name not in leftovers(client)
    assert reap_containers() == 0


# --- publishing


@needs_registry
def test_a_published_image_is_the_one_that_others_pull(
    image: ContainerImage, client: DockerClient, tmp_path: Path
) -> None:
    with registry(tmp_path) as address:
        published = publish_container(image, request("tiny", registry=address), None, silent)
        assert published.published and published.reference == f"{address}/{NAMESPACE}/tiny:latest"
        assert published.digest != image.engine_id and read_record(Path(image.location).parent) == published
        client.images.remove(published.reference, force=True)
        pulled = client.images.pull(f"{address}/{NAMESPACE}/tiny@{published.digest}")
        assert pulled.id == image.engine_id


@needs_registry
def test_a_registry_that_wants_a_login_is_given_one_or_refuses(
    image: ContainerImage, client: DockerClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    users = tmp_path / "htpasswd"
    users.write_text(HTPASSWD)
    with registry(tmp_path, users) as address:
        wanted = request("tiny", registry=address)
        for credentials in (None, Credentials("me", "hunter2-wrong")):
            with pytest.raises(RegistryDenied):
                publish_container(image, wanted, credentials, silent)
        assert publish_container(image, wanted, Credentials("me", "secret"), silent).published
    assert "hunter2" not in caplog.text


def test_a_registry_that_is_away_is_told(image: ContainerImage, client: DockerClient) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable):
            publish_container(image, request("tiny", registry=address), None, silent)

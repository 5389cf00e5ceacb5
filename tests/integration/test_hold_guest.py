"""LVM snapshots on a real server that is written to: what is read is of one moment, and nothing stays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.server import Server
from rehost.errors import SourceError
from rehost.replication.store import Store
from rehost.replication.tree import Tree
from rehost.run import find
from rehost.source.agent_session import AgentSession, open_agent
from rehost.source.hold import Hooks, freeze, hold
from rehost.source.hold_errors import SnapshotOverflow
from rehost.source.inventory import Volume
from rehost.verification.qemu import PROGRAM
from tests.support.lvm_server import connection, lvm_server
from tests.support.wire import inventory, take

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.root,  # its tree is unpacked with its owners
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacks a tree with its owners"),
    pytest.mark.skipif(find(PROGRAM) is None or find("mmdebstrap") is None, reason="needs QEMU and mmdebstrap"),
]

_GONE_SECONDS = 60.0

# A group of 4 GiB with ext4 on a classic volume, XFS on another, ext4 on a thin one; /classic is written to for ever,
# one byte to `first` and then one to `second`, so at no moment is their difference another than 0 or 1.
_SETUP = r"""
set -e
modprobe -a loop dm-snapshot dm-thin-pool ext4 xfs
truncate -s 4G /srv/pv
losetup /dev/loop0 /srv/pv
vgcreate -q data /dev/loop0
lvcreate -q -y -L 600M -n classic data
lvcreate -q -y -L 320M -n other data
lvcreate -q -y --type thin-pool -L 200M -n pool data
lvcreate -q -y -V 300M --thinpool pool -n thin data
mkfs.ext4 -q /dev/data/classic
mkfs.xfs -q /dev/data/other
mkfs.ext4 -q /dev/data/thin
for name in classic other thin; do mkdir /$name; mount /dev/data/$name /$name; done
touch /classic/first /classic/second
systemd-run -q --unit writer sh -c 'while :; do printf x >> /classic/first; printf x >> /classic/second; done'
echo other > /other/file
echo thin > /thin/file
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with lvm_server(tmp_path_factory.mktemp("guest")) as running:
        running.ssh(_SETUP)
        yield running


def _volume(mount_point: str) -> Volume:
    return Volume(mount_point=mount_point, filesystem="", size_bytes=0, used_bytes=0)


def _sizes(session: AgentSession, *mount_points: str) -> dict[str, tuple[int, int]]:
    """Size and device of what a scan sees."""
    found = {}
    for batch in session.scan([_volume(point) for point in mount_points], ()):
        for path, size, device in zip(*(batch[name].to_pylist() for name in ("path", "size", "dev")), strict=True):
            found["/" + os.fsdecode(path)] = (size, device)
    return found


def _snapshots(server: Server) -> list[str]:
    return server.ssh("lvs --noheadings -o lv_name @rehost").split()


def test_volumes_are_read_as_they_were_at_one_moment(server: Server, tmp_path: Path) -> None:
    points = ("/classic", "/other", "/thin")
    hooks = Hooks("date > /run/pre", "lvs --noheadings -o lv_name @rehost | wc -l > /run/post")
    with open_agent(connection(server)) as session:
        with hold(session, [_volume(point) for point in points], hooks=hooks) as held:
            assert [volume.method for volume in held.consistency] == ["lvm"] * 3, held.consistency
            found = _sizes(session, *points)
            assert _sizes(session, *points) == found
            assert len(_snapshots(server)) == 3
            mounts = server.ssh("cat /proc/1/mountinfo /proc/self/mountinfo")
            assert "rehost" not in mounts
            server.ssh("echo after >> /other/file; echo after >> /thin/file")
        assert found["/classic/first"][0] - found["/classic/second"][0] in (0, 1)
        assert (found["/other/file"][0], found["/thin/file"][0]) == (6, 5)
        live = _sizes(session, *points)
        assert live["/classic/first"][0] > found["/classic/first"][0] > 0
        # For what is compared with the last copy it is the same device and the same file.
        assert {path: device for path, (_, device) in live.items()} == {p: d for p, (_, d) in found.items()}
    assert _snapshots(server) == []
    assert server.ssh("cat /run/post; ls /run/pre").split() == ["3", "/run/pre"]


def test_a_copy_of_a_server_that_is_written_to_is_of_one_moment(server: Server, tmp_path: Path) -> None:
    facts = inventory("/", "/classic", "/other", "/thin")
    else_where = ["/[!cot]*", "/opt", "/tmp"]
    with Store.open(tmp_path / "store") as store, open_agent(connection(server), compress_level=3) as session:
        with hold(session, facts.volumes) as held:
            assert [volume.method for volume in held.consistency] == ["live", "lvm", "lvm", "lvm"]
            first, report = take(session, store, tmp_path, facts=facts, exclude=else_where)
        assert report.unstable == report.vanished == ()
        tree = Tree(store.files(first.id), store)
        one, two = tree.read(b"classic/first") or b"", tree.read(b"classic/second") or b""
        assert len(one) - len(two) in (0, 1) and set(one) == set(two) == set(b"x")
        assert (tree.read(b"other/file") or b"").startswith(b"other\n")
        with hold(session, facts.volumes):
            _, report = take(session, store, tmp_path, facts=facts, exclude=else_where, parent=first)
        assert report.files_changed == 2  # the two that are written to, though all are read from other snapshots


def test_the_root_filesystem_is_frozen_and_the_agent_goes_on(server: Server) -> None:
    with open_agent(connection(server)) as session:
        with freeze(session, ["/", "/classic"]) as frozen:
            one = _sizes(session, "/classic")
            assert _sizes(session, "/classic") == one
        assert 0 < frozen.seconds < 10
        assert _sizes(session, "/classic") != one


def test_snapshots_go_with_the_connection(server: Server) -> None:
    with pytest.raises(SourceError), open_agent(connection(server)) as session:
        with hold(session, [_volume("/classic"), _volume("/thin")]):
            assert len(_snapshots(server)) == 2
            session._channel._process.popen.kill()
            deadline = time.monotonic() + _GONE_SECONDS
            while _snapshots(server):
                assert time.monotonic() < deadline, "the snapshots outlived the connection"
            session.inventory()


def test_a_snapshot_that_overflows_ends_the_pass(server: Server) -> None:
    # Leave 40 MiB, which is more than 5 % of the volume and less than what is written.
    free = "vgs --noheadings --units m --nosuffix -o vg_free data | cut -d. -f1"
    server.ssh(f"lvcreate -q -y -L $(( $({free}) - 40 ))M -n filler data")
    with open_agent(connection(server)) as session, pytest.raises(SnapshotOverflow):
        with hold(session, [_volume("/other")]) as held:
            assert held.consistency[0].method == "lvm", held.consistency
            server.ssh("dd if=/dev/urandom of=/other/big bs=1M count=100 conv=fsync status=none")
    assert _snapshots(server) == []
    server.ssh("lvremove -q -y data/filler")

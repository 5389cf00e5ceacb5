"""What goes into a container image, what is edited in it, and how it is started."""

from __future__ import annotations

import stat
import subprocess
from dataclasses import replace
from datetime import datetime

import pytest

from image_builders.container.build import run_arguments
from image_builders.container.command import SUPERVISOR, not_started, ports_of, start_of
from image_builders.container.fixups import fix_ups, fstab, machine_id, mtab, resolv_conf
from image_builders.container.left_out import leave_out, rules
from image_builders.container.request import Credentials
from rehost.errors import BuildUnsupported, InvalidParameter
from rehost.replication.manifest import Chunk, Entry, table_of
from rehost.replication.tree import Put, Symlink, Tree
from rehost.source.inventory import Listener
from rehost.verification.trial import parse_listening
from tests.support.containers import Chunks, inventory, listener, request

FILE, PROGRAM, FOLDER, LINK = (
    stat.S_IFREG | 0o644,
    stat.S_IFREG | 0o755,
    stat.S_IFDIR | 0o755,
    stat.S_IFLNK | 0o777,
)


def tree_of(*paths: str, **contents: bytes | str) -> Tree:
    """A tree: names that end in / are folders; `etc__fstab=b"…"` is a file, a str the target of a link."""
    chunks, entries = Chunks(), {b"": Entry(b"", FOLDER)}
    for text in paths:
        mode = FOLDER if text.endswith("/") else PROGRAM if text.endswith("*") else FILE
        path = text.rstrip("/*").encode()
        entries[path] = Entry(path, mode)
    for key, value in contents.items():
        path = key.replace("__", "/").replace("_DOT_", ".").replace("_DASH_", "-").encode()
        if isinstance(value, str):
            entries[path] = Entry(path, LINK, target=value.encode())
        else:
            pieces = (Chunk(0, len(value), chunks.add(value)),) if value else ()
            entries[path] = Entry(path, PROGRAM, size=len(value), chunks=pieces)
    for path in list(entries):
        while path := path.rpartition(b"/")[0]:
            entries.setdefault(path, Entry(path, FOLDER))
    return Tree(table_of(list(entries.values())), chunks)


def names(tree: Tree) -> set[str]:
    return {path.decode() for path in tree.below(b"")}


# --- what stays behind


def test_each_rule_has_a_reason_and_a_name_of_its_own() -> None:
    groups, masks = rules().groups, rules().masks
    assert all(len(reason) > 20 for reason in [x.reason for x in groups] + [x.reason for x in masks])
    assert len({x.name for x in groups}) == len(groups) and len({x.name for x in masks}) == len(masks)
    units = [unit for mask in masks for unit in mask.units]
    assert len(units) == len(set(units)), [u for u in units if units.count(u) > 1]


@pytest.mark.parametrize(
    "path",
    [
        "boot/vmlinuz-6.1",
        "boot/grub/grub.cfg",
        "boot/efi/EFI/BOOT/BOOTX64.EFI",
        "lib/modules/6.1/kernel/a.ko",
        "usr/lib/modules/6.1/modules.dep",
        "usr/lib/firmware/a/b.bin",
        "vmlinuz",
        "initrd.img.old",
        "dev/null",
        "dev/shm/x",
        "proc/1",
        "sys/kernel",
        "run/nginx.pid",
        "tmp/.X11-unix/x",
        "var/run/x",
        "var/lib/postgresql/15/main/postmaster.pid",
        "var/cache/apt/archives/a_1_amd64.deb",
        "var/lib/apt/lists/partial/x",
        "swapfile",
        "swap/swapfile",
        "etc/.wh.passwd",
        ".wh..wh..opq",
        "a/.wh.d/below",
        "var/log/lastlog",
    ],
)
def test_what_no_container_needs_stays_behind(path: str) -> None:
    kept, left_out = leave_out(tree_of(path, "etc/keep"))
    assert path not in names(kept) and "etc/keep" in names(kept)
    assert sum(group.entries for group in left_out) >= 1


@pytest.mark.parametrize(
    "path",
    [
        "boot/",
        "lib/modules/",
        "dev/",
        "proc/",
        "sys/",
        "run/",
        "tmp/",
        "var/cache/apt/archives/",
        "var/lib/apt/lists/partial/",
        "home/user/boot/vmlinuz",
        "home/boot",
        "srv/lib/modules/x",
        "etc/vmlinuz",
        "usr/share/a.pid",
        "var/tmp/kept",
        "var/log/syslog",
        "etc/ssh/ssh_host_ed25519_key",
        "etc/.whatever",
        "swapfile.txt",
        "bootstrap",
        "devices/x",
        "var/lib/docs.pid/x",
    ],
)
def test_what_only_looks_alike_is_kept(path: str) -> None:
    kept, _ = leave_out(tree_of(path))
    assert path.rstrip("/") in names(kept)


@pytest.mark.parametrize("kind", [stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK])
def test_device_nodes_and_sockets_stay_behind_wherever_they_are(kind: int) -> None:
    table = table_of([Entry(b"", FOLDER), Entry(b"srv", FOLDER), Entry(b"srv/x", kind | 0o600), Entry(b"srv/y", FILE)])
    kept, _ = leave_out(Tree(table, Chunks()))
    assert names(kept) == {"srv", "srv/y"}


def test_swap_files_are_found_in_fstab() -> None:
    lines = b"/srv/my\\x20swap none swap\n/srv/sw(ap).bin none swap sw 0 0\n/dev/sda2 none swap sw 0 0\n"
    lines += b"/srv/data /mnt ext4\n"
    tree = tree_of("srv/data", "dev/sda2", etc__fstab=lines).apply([Put(b"srv/sw(ap).bin", b"swap")])
    kept, left_out = leave_out(tree)
    assert "srv/sw(ap).bin" not in names(kept) and "srv/data" in names(kept)
    assert [(g.group, g.entries, g.bytes) for g in left_out if g.group == "swap"] == [("swap", 1, 4)]


def test_the_report_counts_each_entry_once() -> None:
    kept, left_out = leave_out(tree_of("boot/a", "boot/b", boot__c=b"12345", etc__x=b"1"))
    assert [(g.group, g.entries, g.bytes) for g in left_out] == [("kernel", 3, 5)]
    assert names(kept) == {"boot", "etc", "etc/x"}


# --- edits


def test_mounts_of_fstab_become_comments() -> None:
    tree = tree_of(etc__fstab=b"# a comment\nUUID=1 / ext4 defaults 0 1\n\n/dev/vdb /srv xfs nofail 0 2")
    edited = tree.apply(fstab(tree))
    lines = (edited.read(b"etc/fstab") or b"").splitlines()
    assert lines[0] == b"# a comment" and all(line.startswith(b"#") or not line for line in lines)
    assert any(b"UUID=1 / ext4" in line for line in lines)
    assert "+# not mounted in a container: UUID=1 / ext4" in edited.diff()
    assert fstab(edited) == []  # doing it again changes nothing


def test_mtab_shows_the_mounts_of_the_container() -> None:
    assert mtab(tree_of(etc__mtab=b"/dev/sda1 / ext4")) == [Symlink(b"etc/mtab", b"../proc/self/mounts")]
    assert mtab(tree_of(etc__mtab="../proc/self/mounts")) == []
    assert mtab(tree_of("etc/")) == []


def test_the_machine_id_is_empty_but_there() -> None:
    tree = tree_of(
        etc__machine_DASH_id=b"0123456789abcdef0123456789abcdef\n", var__lib__dbus__machine_DASH_id=b"0123\n"
    )
    edited = tree.apply(machine_id(tree))
    assert edited.read(b"etc/machine-id") == b"" and edited.read(b"var/lib/dbus/machine-id") == b""
    linked = tree_of(etc__machine_DASH_id="/run/id")
    entry = linked.apply(machine_id(linked)).get(b"etc/machine-id")
    assert entry is not None and entry.is_file and entry.size == 0
    assert machine_id(tree_of("etc/machine-id")) == []


def test_a_resolv_conf_that_leads_into_run_becomes_a_file() -> None:
    tree = tree_of(etc__resolv_DOT_conf="../run/systemd/resolve/stub-resolv.conf")
    entry = tree.apply(resolv_conf(tree)).get(b"etc/resolv.conf")
    assert entry is not None and entry.is_file
    assert resolv_conf(tree_of(etc__resolv_DOT_conf=b"nameserver 192.0.2.1\n")) == []


def test_units_are_masked_where_they_are_there_and_only_with_systemd() -> None:
    tree = tree_of(
        "usr/lib/systemd/system/nginx.service", "usr/lib/systemd/system/getty@.service", "etc/init.d/networking"
    )
    changes = fix_ups(tree, systemd=True)
    assert {c.path for c in changes if isinstance(c, Symlink)} == {
        b"etc/systemd/system/getty@.service",
        b"etc/systemd/system/networking.service",
    }
    assert all(c.target == b"/dev/null" for c in changes if isinstance(c, Symlink))
    assert fix_ups(tree, systemd=False) == []


def test_no_service_of_systemd_asks_for_a_user_namespace() -> None:
    dropped_in = fix_ups(tree_of("usr/lib/systemd/system/redis-server.service"), systemd=True)
    assert [c.content for c in dropped_in if isinstance(c, Put) and b"service.d/" in c.path] == [
        b"# In a container without privileges no user namespace can be made.\n[Service]\nPrivateUsers=no\n"
    ]


# --- the command


@pytest.mark.parametrize(
    ("tree", "command"),
    [
        (
            tree_of("usr/lib/systemd/systemd*", lib="usr/lib", sbin="usr/sbin", usr__sbin__init="/lib/systemd/systemd"),
            "/sbin/init",
        ),
        (tree_of("lib/systemd/systemd*", sbin__init="../lib/systemd/systemd"), "/sbin/init"),
        (tree_of("lib/systemd/systemd*", "sbin/init*"), "/lib/systemd/systemd"),
        (tree_of("usr/lib/systemd/systemd*"), "/usr/lib/systemd/systemd"),
    ],
)
def test_systemd_is_the_command_where_the_server_has_it(tree: Tree, command: str) -> None:
    start = start_of(tree, inventory())
    assert (start.command, start.systemd, start.stop_signal) == ((command,), True, "SIGRTMIN+3")


def test_a_single_service_is_the_command_itself() -> None:
    start = start_of(tree_of("usr/sbin/answerer*"), inventory(listener(80), listener(81)))
    assert (start.command, start.systemd, start.changes) == (("/usr/sbin/answerer",), False, ())


def test_several_services_get_a_supervisor_that_a_shell_accepts() -> None:
    script = b"#!/bin/sh\nDAEMON=/usr/sbin/sshd\n"
    tree = tree_of("usr/sbin/answerer*", "etc/init.d/nginx*", "etc/init.d/notsshd", etc__init_DOT_d__ssh=script)
    listeners = [listener(80, process=name) for name in ("nginx", "sshd", "answerer", "gone", "bad;name", "../x")]
    start = start_of(tree, inventory(*listeners))
    assert start.command == (f"/{SUPERVISOR.decode()}",)
    text = (tree.apply(start.changes).read(SUPERVISOR) or b"").decode()
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert "/etc/init.d/nginx start" in text and "/etc/init.d/ssh start" in text and "/usr/sbin/answerer &" in text
    assert "bad" not in text and "gone" not in text
    assert any("gone" in warning for warning in start.warnings)


def test_a_server_without_any_service_is_refused() -> None:
    with pytest.raises(BuildUnsupported):
        start_of(tree_of("etc/"), inventory())
    with pytest.raises(BuildUnsupported):
        start_of(tree_of("usr/sbin/answerer"), inventory(listener(80)))  # not executable


def test_a_given_command_is_taken_as_it_is() -> None:
    start = start_of(tree_of("usr/lib/systemd/systemd*"), inventory(), ("/bin/true", "x"))
    assert (start.command, start.systemd) == (("/bin/true", "x"), False)


def test_ports_are_those_of_services_that_start_in_the_container() -> None:
    services = inventory(
        listener(80, unit="nginx.service"),
        listener(80, "::", unit="nginx.service"),
        listener(5432, "127.0.0.1", "postgres", "postgresql.service"),
        listener(5432, "::1", "postgres", "postgresql.service"),
        listener(6010, "127.0.0.1", "sshd", "session-1.scope"),
        listener(9000, "0.0.0.0", "python3", "session-1.scope"),
        listener(40_000, "127.0.0.1", "postgres", "postgresql.service"),
        listener(68, process="dhclient"),
        listener(70_000),
        Listener(protocol="udp", address="192.0.2.1", port=514, process="rsyslogd", unit="rsyslog.service"),
        Listener(protocol="udp", address="0.0.0.0", port=123, process="x", unit="chrony.service"),
        active_services=("nginx.service", "postgresql.service"),
    )
    ports = ports_of(services)
    assert (ports.exposed, ports.local) == (("80/tcp", "514/udp"), ("5432/tcp",))
    assert [w.partition(" ")[0] for w in not_started(services)] == ["6010/tcp", "9000/tcp"]


def test_the_run_line_publishes_on_the_loopback_interface_alone() -> None:
    argv = run_arguments("a/b:c", True, ("80/tcp",), "1")
    assert argv[:3] == ("docker", "run", "-d") and argv[-1] == "a/b:c"
    assert "127.0.0.1::80/tcp" in argv and "/sys/fs/cgroup:/sys/fs/cgroup:ro" in argv and "--privileged" not in argv
    assert "/sys/fs/cgroup:/sys/fs/cgroup:ro" not in run_arguments("a/b:c", True, (), "2")
    assert run_arguments("a/b:c", False, (), "1") == ("docker", "run", "-d", "a/b:c")


# --- the request


def test_a_sound_request_is_taken() -> None:
    assert replace(request("nginx"), namespace="a/b-c", registry="registry.example:5000").reference == (
        "registry.example:5000/a/b-c/nginx:latest"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("namespace", "Upper"),
        ("namespace", ""),
        ("namespace", "a//b"),
        ("namespace", "../a"),
        ("repository", "a b"),
        ("repository", "-a"),
        ("repository", "a" * 300),
        ("repository", "a:b"),
        ("tag", ""),
        ("tag", ".a"),
        ("tag", "a" * 129),
        ("tag", "a/b"),
        ("tag", "a\n"),
        ("registry", "http://x"),
        ("registry", "a/b"),
        ("registry", "user@host"),
        ("registry", "x:y"),
    ],
)
def test_names_that_no_registry_takes_are_refused_before_any_work(field: str, value: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        replace(request("nginx"), **{field: value})  # type: ignore[arg-type]
    assert refused.value.pointers[0][0] == f"/targets/container_image/{field}"


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        replace(request("nginx"), snapshot_at=datetime(2026, 1, 1))


def test_a_password_is_in_no_representation() -> None:
    assert "hunter2" not in repr(Credentials("me", "hunter2"))


# --- what listens in a container


def test_listening_ports_are_read_from_proc() -> None:
    heading = "  sl  local_address rem_address   st tx_queue\n"
    seen = parse_listening(
        heading
        + "   0: 00000000:0050 00000000:0000 0A 0\n   1: 0100007F:1538 00000000:0000 0A 0\n"
        + "   2: 020012AC:0050 010012AC:C350 01 0\n   3: 3500007F:0035 00000000:0000 0A 0\n"
        + heading
        + "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0\n"
        + "   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0\n"
        + heading
        + "   0: 00000000:0202 00000000:0000 07 0\n"
        + heading
    )
    assert seen.tcp == {80, 22} and seen.udp == {514}
    assert seen.local_tcp == {80, 22, 5432, 53, 8080}

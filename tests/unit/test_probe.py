"""The probe's files and its report, which a hostile guest may write as it likes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from rehost.verification.probe import Mount, Port, ProbeReport, files, parse

REPORT = rb"""probe 1
kernel 6.1.0-18-amd64
boot-id 3f0e9a0e-0f2e-4a53-9d6b-6d9ed1a3c5b7
state degraded
uptime 33.21 50.02
failed nginx.service loaded failed failed A high performance web server
failed * old.service loaded failed failed drawn by an old systemctl

job 14 slow.service start running
mount /dev/vda3 / ext4 rw,relatime 0 0
mount /dev/vda4 /srv/my\040data ext4 rw 0 0
fstab # a comment
fstab UUID=1111 / ext4 defaults 0 1
fstab UUID=2222 /srv/my\040data/ ext4 defaults,nofail 0 2
fstab short
fstab LABEL=swap none swap sw

tcp    0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000
tcp    1: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000
tcp    0: 00000000000000000000000001000000:0019 00000000000000000000000000000000:0000 0A 00000000:00000000
tcp    0: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000
udp  10: 0F02000A:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000
fib4         |-- 10.0.2.0
fib4            /24 link UNICAST
fib4         |-- 10.0.2.15
fib4            /32 host LOCAL
fib4         |-- 127.0.0.1
fib4            /32 host LOCAL
inet6 00000000000000000000000000000001 01 80 10 80       lo
inet6 fec0000000000000505400fffe123456 02 40 00 00     eth0
inet6 fe80000000000000505400fffe123456 02 40 20 80     eth0
route Iface Destination Gateway
route eth0 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0
facts
script hello
script   two

script-status 3
end
"""


def test_a_report_is_read_into_facts() -> None:
    report = parse(REPORT)
    assert (report.started, report.facts, report.complete) == (True, True, True)
    assert (report.state, report.kernel, report.uptime_seconds) == ("degraded", "6.1.0-18-amd64", 33.21)
    assert report.failed_units == ("nginx.service", "old.service")
    assert report.jobs == ("slow.service",)
    assert report.mounts[1] == Mount("/dev/vda4", "/srv/my data", "ext4", ("rw",))
    assert [mount.point for mount in report.fstab] == ["/", "/srv/my data", "none"]
    assert report.fstab[1].options == ("defaults", "nofail")
    assert report.ports == {
        Port("tcp", 22, False),
        Port("tcp", 5432, True),
        Port("tcp", 25, True),
        Port("tcp", 8080, True),
        Port("udp", 68, False),
    }
    assert report.addresses == ("10.0.2.15", "fec0::5054:ff:fe12:3456")
    assert not report.default_route
    assert (report.script_status, report.script_output) == (3, "hello\n  two")


@pytest.mark.parametrize(
    ("cut", "state", "facts", "complete"),
    [
        (b"state degraded\n", None, False, False),
        (b"facts\n", "degraded", False, False),
        (b"end\n", "degraded", True, False),
    ],
)
def test_a_report_that_is_not_all_there_says_so(cut: bytes, state: str | None, facts: bool, complete: bool) -> None:
    report = parse(REPORT[: REPORT.index(b"\n" + cut) + len(cut)])  # cut within the line, before its end
    assert (report.state, report.facts, report.complete) == (state, facts, complete)


_tags = st.sampled_from(
    b"probe kernel state uptime failed job mount fstab tcp udp fib4 inet6 route facts script script-status end".split()
)
_words = st.binary(max_size=40) | st.sampled_from(
    [b"00000000:0016", b"|-- 999.1.1.1", b"/32 host LOCAL", rb"/\377\000 x", b"9" * 40, b"1e999", "²".encode(), b"nan"]
)


@given(st.lists(st.tuples(_tags, st.lists(_words, max_size=6))))
def test_nothing_that_a_guest_reports_breaks_the_reader_or_gets_through_to_a_terminal(
    lines: list[tuple[bytes, list[bytes]]],
) -> None:
    report = parse(b"".join(tag + b" " + b" ".join(words) + b"\n" for tag, words in lines))
    texts = [
        *report.failed_units,
        *report.jobs,
        *(report.script_output or "").split("\n"),
        *(text for mount in (*report.mounts, *report.fstab) for text in (mount.device, mount.point)),
        report.state or "",
    ]
    assert all(c == "\t" or c.isprintable() for text in texts for c in text)
    assert all(0 <= port.number <= 65535 for port in report.ports)


@given(st.binary(max_size=2000))
def test_noise_is_no_report(noise: bytes) -> None:
    assert isinstance(parse(noise), ProbeReport)


def test_a_report_without_end_is_kept_within_bounds() -> None:
    report = parse(b"failed x.service\n" * 100_000 + b"state " + b"y" * 1_000_000 + b"\n")
    assert len(report.failed_units) == 4096
    assert report.state is not None and len(report.state) <= 1024


def test_the_limits_file_holds_numbers_and_ports_alone() -> None:
    ports = [Port("tcp", 22, False), Port("tcp", 22, True), Port("udp", 53, True), Port("x'; reboot #", 1, False)]
    made = files(state_seconds=700, script_seconds=60, expected=ports, script="echo '; $(reboot)'")
    limits = made["rehost-probe/limits"][0].decode()
    assert "EXPECTED='tcp:0016 udp:0035'\n" in limits
    assert all(re.fullmatch(r"[A-Z_]+=([0-9]+|'[a-z0-9A-F: ]*')", line) for line in limits.splitlines())
    assert made["rehost-probe/script"] == (b"echo '; $(reboot)'", 0o700)
    assert "rehost-probe/script" not in files(state_seconds=1, script_seconds=1, expected=(), script=None)

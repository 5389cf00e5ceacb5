"""From what was seen of a guest to checks, error and report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rehost.errors import BootTimeout
from rehost.source.inventory import Interface, Inventory, Listener
from rehost.verification.checks import Observation, error_of, expected_ports, judge
from rehost.verification.console import Reading, Stage, read
from rehost.verification.probe import Mount, Port, ProbeReport
from rehost.verification.report import Check, Evidence, Failure, VerificationReport, write_report

INVENTORY = Inventory(
    hostname="web",
    os_id="debian",
    architecture="x86_64",
    interfaces=(Interface(name="eth0", addresses=("192.0.2.7/24",)),),
    listeners=(
        Listener(protocol="tcp", address="0.0.0.0", port=80, unit="nginx.service"),
        Listener(protocol="tcp", address="::", port=80, unit="nginx.service"),
        Listener(protocol="tcp", address="127.0.0.1", port=5432, unit="postgresql.service"),
        Listener(protocol="tcp", address="127.0.0.1", port=6010, unit="session-3.scope"),
        Listener(protocol="udp", address="0.0.0.0", port=68, unit="networking.service"),
        Listener(protocol="udp", address="0.0.0.0", port=51234, unit="chatty.service"),
        Listener(protocol="udp", address="127.0.0.53%lo", port=53, unit="systemd-resolved.service"),
    ),
    failed_units=("old.service",),
)
ROOT = Mount("/dev/vda3", "/", "ext4", ("rw",))
UP = ProbeReport(
    started=True,
    state="running",
    facts=True,
    complete=True,
    kernel="6.1.0",
    mounts=(ROOT, Mount("/dev/vda4", "/srv", "ext4", ("rw",))),
    fstab=(
        Mount("UUID=1", "/", "ext4", ("defaults",)),
        Mount("UUID=2", "/srv", "ext4", ("defaults",)),
        Mount("UUID=3", "none", "swap", ("sw",)),
        Mount("UUID=4", "/media/cdrom", "iso9660", ("user", "noauto")),
    ),
    ports=frozenset([Port("tcp", 80, False), Port("tcp", 5432, True), Port("udp", 53, False)]),
    addresses=("10.0.2.15",),
    script_status=0,
    script_output="hello",
)
STAGES = {Stage.FIRMWARE: 1.0, Stage.LOADER: 2.0, Stage.KERNEL: 3.0, Stage.SYSTEM: 10.0, Stage.MULTI_USER: 30.0}
SEEN = Observation(Reading(), UP, 40.0, STAGES, started_seconds=12.0, state_seconds=33.0)


def checks(seen: Observation, script: bool = False) -> dict[str, Check]:
    return {check.name: check for check in judge(seen, INVENTORY, script=script)}


def error(seen: Observation, script: bool = False) -> tuple[str, str] | None:
    found = error_of(seen, judge(seen, INVENTORY, script=script), 300.0)
    return (found.code, found.message) if found else None


def with_probe(**facts: object) -> Observation:
    return replace(SEEN, probe=replace(UP, **facts))  # type: ignore[arg-type]


def test_a_guest_that_proves_all_passes_all() -> None:
    made = checks(SEEN, script=True)
    assert list(made) == [
        "boot loader",
        "kernel",
        "root mounted",
        "system up",
        "no failed units",
        "fstab mounts",
        "network",
        "ports",
        "script",
    ]
    assert {check.status for check in made.values()} == {"passed"}
    assert (made["boot loader"].seconds, made["kernel"].seconds, made["root mounted"].seconds) == (2.0, 3.0, 10.0)
    assert error(SEEN, script=True) is None
    assert SEEN.boot_seconds == 33.0


def test_the_ports_of_sessions_of_leases_and_of_chance_are_not_expected() -> None:
    assert expected_ports(INVENTORY) == (Port("tcp", 80, False), Port("tcp", 5432, True), Port("udp", 53, True))


def test_units_that_fail_on_the_source_too_are_told_apart() -> None:
    seen = with_probe(state="degraded", failed_units=("old.service",))
    assert checks(seen)["no failed units"].status == "passed"
    assert "old.service" in checks(seen)["no failed units"].detail
    assert error(seen) is None


def test_a_unit_that_fails_in_the_copy_alone_is_units_failed() -> None:
    seen = with_probe(state="degraded", failed_units=("nginx.service", "old.service"))
    told = error(seen)
    assert told is not None and told[0] == "Boot.UnitsFailed" and "nginx.service" in told[1]


@pytest.mark.parametrize(
    ("facts", "name", "words"),
    [
        ({"mounts": (ROOT,)}, "fstab mounts", "/srv"),
        ({"addresses": ()}, "network", "no address"),
        ({"ports": UP.ports - {Port("tcp", 80, False)}}, "ports", "nothing listens on tcp/80"),
        (
            {"ports": (UP.ports - {Port("tcp", 80, False)}) | {Port("tcp", 80, True)}},
            "ports",
            "on loopback alone: tcp/80",
        ),
        ({"script_status": 3}, "script", "exit status 3"),
        ({"script_status": 124}, "script", "its time was over"),
        ({"state": "starting", "jobs": ("slow.service",)}, "system up", "still under way: slow.service"),
    ],
)
def test_what_is_missing_fails_its_check_and_no_other(facts: dict[str, object], name: str, words: str) -> None:
    seen = with_probe(**facts)
    made = checks(seen, script=True)
    assert [check.name for check in made.values() if check.status == "failed"] == [name]
    assert words in made[name].detail
    told = error(seen, script=True)
    assert told is not None and told[0] == "Boot.CheckFailed" and words in told[1]


def test_a_mount_that_may_fail_is_told_and_does_not_fail() -> None:
    seen = with_probe(fstab=(*UP.fstab, Mount("UUID=5", "/backup", "ext4", ("nofail",))))
    assert checks(seen)["fstab mounts"].status == "passed"
    assert "/backup" in checks(seen)["fstab mounts"].detail


def test_maintenance_is_emergency_mode() -> None:
    told = error(with_probe(state="maintenance", mounts=(ROOT,)))
    assert told is not None and told[0] == "Boot.EmergencyMode" and "/srv" in told[1]


@pytest.mark.parametrize(
    ("text", "stages", "code", "failed"),
    [
        (b"No bootable device.\n", {Stage.FIRMWARE: 1.0}, "Boot.NoBootLoader", "boot loader"),
        (b"grub rescue> ", {Stage.FIRMWARE: 1.0, Stage.LOADER: 2.0}, "Boot.NoBootLoader", "boot loader"),
        (
            b"Kernel panic - not syncing: x\n",
            {Stage.LOADER: 2.0, Stage.KERNEL: 3.0},
            "Boot.KernelPanic",
            "kernel",
        ),
        (b"(initramfs) ", {Stage.LOADER: 2.0, Stage.KERNEL: 3.0}, "Boot.NoRoot", "root mounted"),
        (
            b"You are in emergency mode.\n",
            {Stage.LOADER: 2.0, Stage.KERNEL: 3.0, Stage.SYSTEM: 9.0},
            "Boot.EmergencyMode",
            "system up",
        ),
    ],
)
def test_a_boot_that_stops_fails_the_check_where_it_stopped(
    text: bytes, stages: dict[Stage, float], code: str, failed: str
) -> None:
    seen = Observation(read(text), ProbeReport(), 50.0, stages)
    made = list(checks(seen, script=True).values())
    at = [check.name for check in made].index(failed)
    assert {check.status for check in made[:at]} <= {"passed"}
    assert made[at].status == "failed"
    assert {check.status for check in made[at + 1 :]} == {"skipped"}
    told = error(seen, script=True)
    assert told is not None and told[0] == code


def test_a_guest_that_never_reports_is_a_time_out_with_its_last_line() -> None:
    seen = Observation(
        read(b"Linux version 6\nhanging here\n"), ProbeReport(), 300.0, {Stage.KERNEL: 3.0}, timed_out=True
    )
    told = error(seen)
    assert told is not None and told[0] == "Boot.Timeout" and "300 seconds" in told[1] and "hanging here" in told[1]


def test_a_guest_that_ends_by_itself_says_so() -> None:
    seen = Observation(read(b"Linux version 6\nreboot: Restarting system\n"), ProbeReport(), 30.0, {}, ended=True)
    told = error(seen)
    assert told is not None and told[0] == "Boot.EndedEarly" and "Restarting system" in told[1]


def test_a_guest_that_cannot_be_probed_passes_by_its_login_prompt_and_the_rest_is_skipped() -> None:
    seen = Observation(read(b"web login: "), ProbeReport(), 31.0, STAGES, no_probe="no ext4")
    made = checks(seen)
    assert [check.status for check in made.values()] == ["passed"] * 4 + ["skipped"] * 4
    assert made["ports"].detail == "no ext4"
    assert error(seen) is None
    assert seen.boot_seconds == 30.0
    # A script that was asked for and did not run is no success.
    told = error(seen, script=True)
    assert told is not None and told[0] == "Boot.CheckFailed" and "no ext4" in told[1]


def test_a_report_is_kept_as_json_and_as_markdown_without_markup_of_the_guest(tmp_path: Path) -> None:
    failure = Failure.of(BootTimeout(seconds=5, evidence="<script>x</script>"))
    report = VerificationReport(
        subject="web.qcow2 (bios)",
        status="failed",
        checks=(Check(name="ports", status="failed", detail="a | b\n# c [x](y)", seconds=1.5),),
        accelerator="tcg",
        evidence=Evidence(console_log="/e/console.log"),
        error=failure,
        script_output="one\n# two",
    )
    written = write_report(report, tmp_path)
    assert written.evidence.report == str(tmp_path / "report.json")
    assert VerificationReport.model_validate(json.loads((tmp_path / "report.json").read_text())) == written
    text = (tmp_path / "report.md").read_text()
    assert r"a \| b \# c \[x\](y)" in text
    assert "<script>" not in text.replace(r"\<script\>", "")
    assert "\n    # two\n" in text

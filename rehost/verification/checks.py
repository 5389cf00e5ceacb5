"""What a test boot proves: from what was seen of the guest, and what is known of its source, to a list of checks.

Pure functions. A check that could not be looked at is skipped, with the reason, and never passed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rehost.errors import (
    BootCheckFailed,
    BootEmergencyMode,
    BootEndedEarly,
    BootTimeout,
    BootUnitsFailed,
    VerificationError,
)
from rehost.source.inventory import Inventory
from rehost.verification.console import Reading, Stage
from rehost.verification.probe import Mount, Port, ProbeReport, is_loopback
from rehost.verification.report import Check, Status

_TEST_NETWORK = ipaddress.ip_network("10.0.2.0/24")  # of QEMU's user-mode network
_EPHEMERAL = 32768  # UDP ports from here on are drawn at random by those who use them
_LEASE_PORTS = (68, 546)  # of DHCP clients: they follow the network they are in
_LISTED = 20  # names in one sentence

_LOADER, _KERNEL, _ROOT, _SYSTEM, _UNITS = "boot loader", "kernel", "root mounted", "system up", "no failed units"
_FSTAB, _NETWORK, _PORTS, _SCRIPT = "fstab mounts", "network", "ports", "script"


@dataclass(frozen=True)
class Observation:
    """What was seen of one guest, up to its end. Times are seconds since power on."""

    reading: Reading
    probe: ProbeReport
    seconds: float  # all in all
    stages: Mapping[Stage, float] = field(default_factory=dict)  # when the console showed them first
    started_seconds: float | None = None  # when the probe began to speak
    state_seconds: float | None = None  # when it told the system's state
    no_probe: str | None = None  # why there is no report, where none was to be had
    timed_out: bool = False
    ended: bool = False  # the guest ended by itself

    @property
    def boot_seconds(self) -> float | None:
        """Until the guest was up: by its own report, or by its login prompt where it cannot report."""
        if self.probe.state in ("running", "degraded"):
            return self.state_seconds
        return self.stages.get(Stage.MULTI_USER) if self.no_probe else None


def judge(seen: Observation, inventory: Inventory, *, script: bool) -> tuple[Check, ...]:
    """The checks, in the order of a boot. `script` tells whether the user gave one."""
    return (
        *_boot_checks(seen),
        *(_silent_checks(seen, script) if not seen.probe.facts else _probe_checks(seen, inventory, script)),
    )


def error_of(seen: Observation, checks: Iterable[Check], timeout_seconds: float) -> VerificationError | None:
    """The error that the failed checks amount to; the first cause wins."""
    failed = [check for check in checks if check.status == "failed"]
    if not failed:
        return None
    if seen.reading.error is not None and not seen.probe.facts:
        return seen.reading.error
    if seen.probe.state == "maintenance":
        return BootEmergencyMode(evidence=_told(failed))
    last = seen.reading.last_line or "nothing was printed"
    if not seen.probe.complete and seen.ended:
        return BootEndedEarly(evidence=last)
    if not seen.probe.facts and seen.timed_out:
        return BootTimeout(seconds=f"{timeout_seconds:g}", evidence=last)
    names = {check.name for check in failed}
    kind = BootUnitsFailed if names == {_UNITS} else BootCheckFailed
    return kind(evidence=_told(failed))


def _told(checks: Iterable[Check]) -> str:
    return "; ".join(f"{check.name}: {check.detail}" for check in checks)


def expected_ports(inventory: Inventory) -> tuple[Port, ...]:
    """The ports that a copy of this server must listen on.

    Not those of user sessions (forwarded by sshd, say), of DHCP clients, nor UDP ports drawn at random.
    """
    ports = set()
    for listener in inventory.listeners:
        drawn = listener.protocol == "udp" and (listener.port >= _EPHEMERAL or listener.port in _LEASE_PORTS)
        if drawn or (listener.unit or "").endswith(".scope"):
            continue
        try:
            loopback = is_loopback(ipaddress.ip_address(listener.address.partition("%")[0].strip("[]")))
        except ValueError:  # `*` and the like: every address
            loopback = False
        ports.add(Port(listener.protocol, listener.port, loopback))
    return tuple(sorted(ports, key=lambda port: (port.protocol, port.number, port.loopback)))


def _boot_checks(seen: Observation) -> list[Check]:
    """Boot loader, kernel, root: each is proven by itself or by whatever comes after it."""
    up = seen.started_seconds
    system = _earliest([up, *(at for stage, at in seen.stages.items() if stage >= Stage.SYSTEM)])
    kernel = _earliest([system, *(at for stage, at in seen.stages.items() if stage >= Stage.KERNEL)])
    loader = _earliest([kernel, *(at for stage, at in seen.stages.items() if stage >= Stage.LOADER)])
    rows = [
        (_LOADER, loader, "it started", "nothing started from the disk"),
        (_KERNEL, kernel, seen.probe.kernel or "it started", "no kernel was seen to start"),
        (_ROOT, system, "the system on it runs", "no system was seen to start from it"),
    ]
    checks: list[Check] = []
    for position, (name, at, good, bad) in enumerate(rows):
        following = rows[position + 1][1] if position + 1 < len(rows) else None
        if at is not None and not (seen.reading.cause and following is None and _stopped_at(seen, name)):
            checks.append(Check(name=name, status="passed", detail=good, seconds=_round(at)))
        elif any(check.status != "passed" for check in checks):
            checks.append(_skipped(name, "the boot did not get that far", seen))
        else:
            detail = seen.reading.evidence if seen.reading.cause else bad
            checks.append(Check(name=name, status="failed", detail=detail, seconds=_round(seen.seconds)))
    return checks


def _stopped_at(seen: Observation, name: str) -> bool:
    """Whether the cause that the console shows belongs to that check although the step had begun."""
    code = seen.reading.cause.code if seen.reading.cause else ""
    return {"Boot.NoBootLoader": _LOADER, "Boot.KernelPanic": _KERNEL, "Boot.NoRoot": _ROOT}.get(code) == name


def _silent_checks(seen: Observation, script: bool) -> list[Check]:
    """Where the guest did not report: the console alone says whether the system is up."""
    multi_user = seen.stages.get(Stage.MULTI_USER)
    if seen.reading.cause is not None or multi_user is None or seen.no_probe is None:
        reached = seen.stages.get(Stage.SYSTEM) or seen.started_seconds
        if reached is None and multi_user is None:
            up = _skipped(_SYSTEM, "the boot did not get that far", seen)
        else:
            state = f"system state {seen.probe.state}; " if seen.probe.state else ""
            detail = seen.reading.evidence or f"{state}it did not report. Last line: {seen.reading.last_line}"
            up = Check(name=_SYSTEM, status="failed", detail=detail, seconds=_round(seen.seconds))
        reason = "the guest did not report"
    else:
        up = Check(name=_SYSTEM, status="passed", detail=seen.reading.last_line, seconds=_round(multi_user))
        reason = seen.no_probe
    checks = [up, *(_skipped(name, reason, seen) for name in (_UNITS, _FSTAB, _NETWORK, _PORTS))]
    if script:
        # It was asked for and is not proven: that must not pass as a success.
        failed = Check(name=_SCRIPT, status="failed", detail=f"it was not run: {reason}", seconds=_round(seen.seconds))
        checks.append(failed if up.status == "passed" else _skipped(_SCRIPT, reason, seen))
    return checks


def _probe_checks(seen: Observation, inventory: Inventory, script: bool) -> list[Check]:
    probe, at = seen.probe, _round(seen.state_seconds or seen.seconds)

    def check(name: str, result: tuple[Status, str], seconds: float = at) -> Check:
        return Check(name=name, status=result[0], detail=result[1], seconds=seconds)

    checks = [
        check(_SYSTEM, _system(probe)),
        check(_UNITS, _units(probe, inventory)),
        check(_FSTAB, _fstab(probe)),
        check(_NETWORK, _network(probe, inventory)),
        check(_PORTS, _ports(probe, inventory)),
    ]
    if script:
        checks.append(check(_SCRIPT, _script(seen), _round(seen.seconds)))
    return checks


def _system(probe: ProbeReport) -> tuple[Status, str]:
    if probe.state in ("running", "degraded"):
        return "passed", f"system state {probe.state}"
    waiting = f"; still under way: {_list(probe.jobs)}" if probe.jobs else ""
    return "failed", f"system state {probe.state or 'unknown'}{waiting}"


def _units(probe: ProbeReport, inventory: Inventory) -> tuple[Status, str]:
    before = set(inventory.failed_units)
    new = [unit for unit in probe.failed_units if unit not in before]
    old = [unit for unit in probe.failed_units if unit in before]
    told = f"fail on the source too: {_list(old)}" if old else ""
    if new:
        return "failed", "; ".join(filter(None, [_list(new), told]))
    return "passed", told or "no unit has failed"


def _fstab(probe: ProbeReport) -> tuple[Status, str]:
    mounted = {mount.point for mount in probe.mounts}
    wanted = [row for row in probe.fstab if _is_wanted(row)]
    missing = [row.point for row in wanted if row.point not in mounted]
    needed = [row.point for row in wanted if row.point in missing and "nofail" not in row.options]
    optional = [point for point in missing if point not in needed]
    told = f"not mounted, and allowed to fail: {_list(optional)}" if optional else ""
    if needed:
        return "failed", "; ".join(filter(None, [f"not mounted: {_list(needed)}", told]))
    there = [row.point for row in wanted if row.point in mounted]
    return "passed", "; ".join(filter(None, [_list(there) or "fstab names no mount", told]))


def _is_wanted(row: Mount) -> bool:
    return row.point.startswith("/") and row.filesystem != "swap" and "noauto" not in row.options


def _network(probe: ProbeReport, inventory: Inventory) -> tuple[Status, str]:
    if probe.addresses:
        leased = [a for a in probe.addresses if ipaddress.ip_address(a) in _TEST_NETWORK]
        told = f"; by DHCP of the test network: {_list(leased)}" if leased else ""
        return "passed", _list(probe.addresses) + told
    if not any(interface.addresses for interface in inventory.interfaces if interface.name != "lo"):
        return "skipped", "no address of the source is known, and the copy has none"
    return "failed", "the copy has no address"


def _ports(probe: ProbeReport, inventory: Inventory) -> tuple[Status, str]:
    expected = expected_ports(inventory)
    if not expected:
        return "skipped", "no port is known on which the source listened"
    open_ports = probe.ports
    # What listens on every address answers on loopback too.
    missing = [port for port in expected if not ({port, Port(port.protocol, port.number, False)} & open_ports)]
    if not missing:
        return "passed", _list(_name(port) for port in expected)
    alone = [port for port in missing if Port(port.protocol, port.number, True) in open_ports]
    closed = [port for port in missing if port not in alone]
    told = [f"nothing listens on {_list(_name(port) for port in closed)}"] if closed else []
    told += [f"on loopback alone: {_list(_name(port) for port in alone)}"] if alone else []
    return "failed", "; ".join(told)


def _script(seen: Observation) -> tuple[Status, str]:
    status = seen.probe.script_status
    if status is None:
        return "failed", "it did not end within its time" if seen.timed_out else "its end was not reported"
    if status in (124, 137):
        return "failed", f"exit status {status}: it was ended when its time was over"
    return ("passed" if status == 0 else "failed"), f"exit status {status}"


def _name(port: Port) -> str:
    return f"{port.protocol}/{port.number}" + (" (loopback)" if port.loopback else "")


def _list(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _skipped(name: str, reason: str, seen: Observation) -> Check:
    return Check(name=name, status="skipped", detail=reason, seconds=_round(seen.seconds))


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((at for at in times if at is not None), default=None)


def _round(seconds: float) -> float:
    return round(seconds, 2)

"""Proves that a container image works: runs it, waits until its services are up, and looks whether they answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from docker.client import DockerClient

from rehost.engine import engine
from rehost.errors import ContainerCheckFailed, ContainerEngineFailed, ContainerExitedEarly, VerificationError
from rehost.source.inventory import Inventory
from rehost.verification.console import cleaned
from rehost.verification.report import Check, Evidence, Failure, Status, VerificationReport, write_report
from rehost.verification.trial import ContainerFacts, Listening, Trial, on_trial

T = TypeVar("T")

CONSOLE_NAME = "console.log"
_LOOK_SECONDS = 0.5  # between two looks at what is not there yet
_EXEC_SECONDS = 30.0
_JOURNAL_SECONDS = 5.0  # little, for a cancelled verification waits for it too
_CONNECT_SECONDS = 3.0
_GREETING_SECONDS = 1.0  # a service that speaks first does so within this
_SETTLE_SECONDS = 1.0  # a container that ends by itself at once does so within this
_SPARE_SECONDS = 300.0  # between the end of a verification and the time when its container counts as forgotten
_FIRST_EPHEMERAL_PORT = 32_768
_UNITS_SHOWN = 10
_LOCAL_ENGINE = "http+docker://localhost"  # how the SDK calls a Unix socket


class _Checks:
    """The checks so far; each knows when it was known."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.all: list[Check] = []
        self.faults: list[str] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def add(self, name: str, status: Status, detail: str = "") -> None:
        self.all.append(Check(name=name, status=status, detail=detail, seconds=round(self.seconds, 2)))
        if status == "failed":
            self.faults.append(f"{name}: {detail}" if detail else name)


def verify_container(
    image: ContainerFacts,
    inventory: Inventory,
    *,
    evidence: Path,
    timeout_seconds: float,
    script: str | None = None,
    script_timeout_seconds: float = 600,
) -> VerificationReport:
    """Run the image and report whether it is the server that `inventory` describes.

    Within `timeout_seconds` systemd (where it is the command) is up with no unit failed but those that fail on the
    source too, and every TCP port of the source's services listens and answers. Then `script` runs inside; it passes
    with status 0. What the container printed and the report are kept in `evidence`. The container is gone afterwards.

    A failed verification is a report with status "failed", whose error is one of ContainerExitedEarly and
    ContainerCheckFailed. Raises ContainerEngineAway and ContainerEngineFailed, which say nothing about the image.
    """
    evidence.mkdir(parents=True, exist_ok=True)
    console = evidence / CONSOLE_NAME
    checks = _Checks()
    error: VerificationError | None = None
    boot_seconds: float | None = None
    script_output: str | None = None
    lifetime = timeout_seconds + (script_timeout_seconds if script else 0) + _SPARE_SECONDS
    with engine("run the container") as client:
        with on_trial(client, image, inventory.hostname, lifetime) as trial:
            try:
                checks.begun = time.monotonic()
                trial.start()
                _wait_until_up(client, trial, image, inventory, checks, timeout_seconds)
                if not checks.faults:
                    boot_seconds = checks.seconds
                    if script is not None:
                        script_output = _run_script(trial, checks, script, script_timeout_seconds)
                trial.check_alive()
                if checks.faults:
                    error = ContainerCheckFailed(evidence="; ".join(checks.faults))
            except ContainerExitedEarly as ended:
                checks.add("stays up", "failed", f"it ended with status {ended.facts.get('status')}")
                error = ended
            finally:
                _keep_console(trial, image, console)
    report = VerificationReport(
        subject=image.reference,
        status="failed" if error else "succeeded",
        checks=tuple(checks.all),
        boot_seconds=round(boot_seconds, 2) if boot_seconds is not None else None,
        evidence=Evidence(console_log=str(console.absolute())),
        error=Failure.of(error) if error else None,
        script_output=script_output,
    )
    return write_report(report, evidence.absolute())


def _wait_until_up(
    client: DockerClient,
    trial: Trial,
    image: ContainerFacts,
    inventory: Inventory,
    checks: _Checks,
    timeout_seconds: float,
) -> None:
    deadline = checks.begun + timeout_seconds
    trial.check_alive()
    if image.systemd:
        _systemd(trial, inventory, checks, deadline)
    elif not image.exposed_ports and not image.local_ports:
        time.sleep(_SETTLE_SECONDS)  # no event tells that it is up: all there is to see is that it stays
    _ports(client, trial, image, checks, deadline)
    trial.check_alive()
    checks.add("stays up", "passed")


def _systemd(trial: Trial, inventory: Inventory, checks: _Checks, deadline: float) -> None:
    """Wait until systemd has started all that it was to start (systemctl(1), is-system-running)."""

    def look() -> str | None:
        trial.check_alive()
        ran = trial.run(["systemctl", "is-system-running"], min(_EXEC_SECONDS, deadline - time.monotonic()))
        words = ran.output.split()
        return words[0] if words and words[0] in ("running", "degraded", "maintenance", "stopping") else None

    state = _until(look, deadline)
    if state is None:
        jobs = trial.run(["systemctl", "list-jobs", "--no-legend", "--no-pager", "--plain"], _EXEC_SECONDS)
        waiting = ", ".join(line.split()[1] for line in jobs.output.splitlines() if len(line.split()) > 1)
        checks.add("systemd is up", "failed", f"it was still starting when the time was over: {waiting[:500]}")
        return
    checks.add("systemd is up", "passed" if state in ("running", "degraded") else "failed", state)
    listed = trial.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"], _EXEC_SECONDS)
    failed = [line.split()[0].lstrip("●*") for line in listed.output.splitlines() if line.split()]
    new = [unit for unit in failed if unit not in inventory.failed_units]
    known = [unit for unit in failed if unit in inventory.failed_units]
    if new:
        checks.add("no failed units", "failed", ", ".join(new[:_UNITS_SHOWN]))
    else:
        checks.add("no failed units", "passed", f"as on the source: {', '.join(known[:_UNITS_SHOWN])}" if known else "")


def _ports(client: DockerClient, trial: Trial, image: ContainerFacts, checks: _Checks, deadline: float) -> None:
    """Wait until what listened on the source listens here, then knock at each port from outside."""
    exposed = _numbers(image.exposed_ports, "tcp")
    local = _numbers(image.local_ports, "tcp")
    # A UDP port above this is one that the kernel drew for whoever asked, and another one at each start.
    datagram = [port for port in _numbers(image.exposed_ports, "udp") if port < _FIRST_EPHEMERAL_PORT]

    seen: Listening | None = None
    can_look = True

    def look() -> bool | None:
        nonlocal seen, can_look
        trial.check_alive()
        seen = trial.listening()
        if seen is None:
            can_look = False
            return True
        return (set(exposed) <= seen.tcp and set(local) <= seen.local_tcp and set(datagram) <= seen.udp) or None

    if exposed or local or datagram:
        _until(look, deadline)
    for ports, protocol, where in ((exposed, "tcp", ""), (local, "tcp", " inside"), (datagram, "udp", "")):
        for port in ports:
            name = f"port {port}/{protocol} listens{where}"
            if not can_look:
                checks.add(name, "skipped", "the image has no `cat` to look with")
                continue
            there: frozenset[int] = frozenset()
            if seen is not None:
                there = seen.udp if protocol == "udp" else seen.local_tcp if where else seen.tcp
            told = "" if port in there else "nothing listens there, as something did on the source"
            checks.add(name, "failed" if told else "passed", told)
    if exposed:
        _answers(client, trial, exposed, checks, deadline)


def _answers(client: DockerClient, trial: Trial, ports: list[int], checks: _Checks, deadline: float) -> None:
    obstacle = _no_way_in(client)
    address = None if obstacle else trial.address()
    for port in ports:
        name = f"port {port}/tcp answers"
        if obstacle or address is None:
            checks.add(name, "skipped", obstacle or "the engine gave the container no address")
            continue
        knock = _Knock(address, port)
        if _until(knock, min(deadline, time.monotonic() + _CONNECT_SECONDS)) is None:
            checks.add(name, "failed", knock.reason)
        else:
            checks.add(name, "passed", knock.greeting)


class _Knock:
    """Connects to a port; true once it was accepted. No proxy is in between: only a listening service accepts."""

    def __init__(self, address: str, port: int) -> None:
        self._target = (address, port)
        self.reason = "no answer"
        self.greeting = ""

    def __call__(self) -> bool | None:
        try:
            with socket.create_connection(self._target, timeout=_CONNECT_SECONDS) as connection:
                self.greeting = _greeting(connection)
                return True
        except OSError as error:
            self.reason = str(error)
            return None


def _greeting(connection: socket.socket) -> str:
    """The first line that the service says, by itself or to an HTTP request; nothing is fine, too."""
    connection.settimeout(_GREETING_SECONDS)
    for question in (b"", b"HEAD / HTTP/1.0\r\n\r\n"):
        try:
            if question:
                connection.sendall(question)
            answer = connection.recv(512)
        except OSError:
            continue
        lines = answer.splitlines()
        return cleaned(lines[0])[:120] if lines else ""
    return ""


def _no_way_in(client: DockerClient) -> str | None:
    """Why the worker cannot reach a container's address, or None where it can."""
    if client.api.base_url != _LOCAL_ENGINE:
        return "the engine is on another machine"
    info = client.info()
    if any("rootless" in option for option in info.get("SecurityOptions") or ()):
        return "a rootless engine keeps its networks to itself"
    if "Desktop" in str(info.get("OperatingSystem", "")):
        return "this engine runs in a virtual machine"
    return None


def _run_script(trial: Trial, checks: _Checks, script: str, seconds: float) -> str:
    ran = trial.run_script(script, seconds)
    if ran.status is None:
        checks.add("script", "failed", f"it did not end within {seconds:g} seconds")
    else:
        checks.add("script", "passed" if ran.status == 0 else "failed", f"status {ran.status}")
    return ran.output


def _keep_console(trial: Trial, image: ContainerFacts, path: Path) -> None:
    """What the container printed, and the journal where there is one: a unit's own words are there alone."""
    content = trial.log()
    if image.systemd:
        try:
            journal = trial.run(["journalctl", "--no-pager", "--boot", "--lines=2000"], _JOURNAL_SECONDS)
            content += b"\n--- journal ---\n" + journal.output.encode() + b"\n"
        except (ContainerExitedEarly, ContainerEngineFailed):
            content += b"\n--- no journal: the container had ended ---\n"
    path.write_bytes(content)


def _numbers(ports: tuple[str, ...], protocol: str) -> list[int]:
    return [int(number) for number, _, kind in (port.partition("/") for port in ports) if kind == protocol]


def _until(look: Callable[[], T | None], deadline: float) -> T | None:
    """What `look` gives as soon as it gives something; None when the time is over. It looks at least once."""
    while True:
        found = look()
        if found is not None or time.monotonic() >= deadline:
            return found
        time.sleep(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))

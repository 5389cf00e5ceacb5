"""The test boot of a disk image: it starts in QEMU, where it can harm nobody, and must prove itself.

The image itself is only read. Where its root filesystem can take the probe, a throw-away copy with the probe in it is
booted, and the guest says what it has become; else the console alone is the witness. The guest reaches no network but
a closed one of QEMU's own, has a time limit, and ends when the answer is there.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from rehost.errors import BootKernelPanic, ProgramFailed
from rehost.progress import Progress, silent
from rehost.source.inventory import Inventory
from rehost.verification import probe
from rehost.verification.accelerator import Accelerator, accelerator, remember
from rehost.verification.checks import Observation, error_of, expected_ports, judge
from rehost.verification.console import Reading, Stage, read
from rehost.verification.injection import inject, raw_copy
from rehost.verification.probe import ProbeReport, parse
from rehost.verification.qemu import Machine, MachineSpec
from rehost.verification.report import Evidence, Failure, VerificationReport, write_report
from rehost.verification.subjects import disk_subject

log = logging.getLogger(__name__)

CONSOLE_LOG = "console.log"
SCREENSHOT = "screenshot.png"

_TIMEOUTS: dict[Accelerator, float] = {"kvm": 300.0, "tcg": 900.0}
_MEMORY_MIB = 1024
_PROCESSORS = 2
_PROBE_SHARE = 0.8  # of the time limit, after which the probe reports in whatever state the system is
_REPORT_SECONDS = probe.SETTLE_SECONDS + 60.0  # from the system's state to the end of the facts
_SCRIPT_GRACE_SECONDS = 30.0  # beyond the script's own limit, which is kept in the guest
_MUTE_SECONDS = 120.0  # from the login prompt until a probe that has not spoken is given up
_KVM_KERNEL_SECONDS = 60.0  # a kernel that has not shown itself by then, with KVM, never will
_EXPLAIN_SECONDS = 1.5  # for the lines that follow the one that told the cause


def default_timeout(with_accelerator: Accelerator) -> float:
    """The time limit of a boot, in seconds. Emulated boots vary fourfold from host to host."""
    return _TIMEOUTS[with_accelerator]


def verify_disk(
    image: Path,
    format: str,
    firmware: str,
    inventory: Inventory,
    *,
    evidence: Path,
    scratch: Path,
    cache: Path,
    kernel: Path | None = None,
    data_disks: tuple[tuple[Path, str], ...] = (),
    timeout_seconds: float | None = None,
    script: str | None = None,
    script_timeout_seconds: float = 600.0,
    progress: Progress = silent,
) -> VerificationReport:
    """Boot the disk image `image` and report what it proved; a guest that fails gives a report, not an exception.

    `format` is raw, qcow2 or vhd, `firmware` bios or uefi, `inventory` the source's; `data_disks` are the image's
    further disks with their formats. Into `evidence` go console.log, screenshot.png, report.json and report.md; in
    `scratch` is made what is removed at the end. `cache` remembers the accelerator, `kernel` is a Linux kernel to find
    it with. `timeout_seconds` is for the boot alone, without the
    user's `script`, which runs as root in the guest; none: `default_timeout`. Raises ProgramNotFound, ProgramFailed
    and ProgramTimeout where this machine cannot do its part.
    """
    evidence.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    chosen = accelerator(cache, kernel)
    work = Path(tempfile.mkdtemp(prefix="verify-", dir=scratch))
    try:
        boot = _Boot(
            image, format, data_disks, firmware, inventory, evidence, work, script, script_timeout_seconds, progress
        )
        limit = timeout_seconds or default_timeout(chosen)
        seen = boot.observe(chosen, limit)
        if seen is None:
            log.warning("this guest does not start with KVM: emulating it")
            chosen = "tcg"
            remember(cache, chosen)
            limit = timeout_seconds or default_timeout(chosen)
            seen = boot.observe(chosen, limit)
            assert seen is not None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    checks = judge(seen, inventory, script=script is not None)
    error = error_of(seen, checks, limit)
    screenshot = evidence / SCREENSHOT
    report = VerificationReport(
        subject=disk_subject(image, firmware),
        status="succeeded" if error is None else "failed",
        checks=checks,
        accelerator=chosen,
        boot_seconds=round(seen.boot_seconds, 2) if seen.boot_seconds is not None else None,
        evidence=Evidence(
            console_log=str(evidence / CONSOLE_LOG), screenshot=str(screenshot) if screenshot.is_file() else None
        ),
        error=Failure.of(error) if error else None,
        script_output=seen.probe.script_output,
    )
    return write_report(report, evidence)


class _Boot:
    """The boots of one image: the copy with the probe is made anew for each."""

    def __init__(
        self,
        image: Path,
        image_format: str,
        data_disks: tuple[tuple[Path, str], ...],
        firmware: str,
        inventory: Inventory,
        evidence: Path,
        work: Path,
        script: str | None,
        script_seconds: float,
        progress: Progress,
    ) -> None:
        self._image = image
        self._format = image_format
        self._data_disks = data_disks
        self._firmware = cast(Literal["bios", "uefi"], firmware)
        self._inventory = inventory
        self._evidence = evidence
        self._work = work
        self._script = script
        self._script_seconds = script_seconds
        self._progress = progress

    def observe(self, with_accelerator: Accelerator, limit: float) -> Observation | None:
        """One boot, watched to its end; None where KVM, and not the guest, is to blame."""
        spec, no_probe = self._prepare(with_accelerator, limit)
        self._progress(0, 0, f"booting with {self._firmware} firmware and {with_accelerator}")
        try:
            with Machine(spec, scratch=self._work, console_log=self._evidence / CONSOLE_LOG) as machine:
                script_limit = self._script_seconds + _SCRIPT_GRACE_SECONDS if self._script is not None else 0.0
                seen = _Watch(machine, no_probe, limit, script_limit, self._progress).until_answered()
                if machine.running:
                    self._take_screenshot(machine)
        except ProgramFailed:
            if with_accelerator == "kvm":
                return None
            raise
        return seen

    def _prepare(self, with_accelerator: Accelerator, limit: float) -> tuple[MachineSpec, str | None]:
        """The machine to boot, and why there is no probe in it, if there is none."""
        self._progress(0, 0, "making a throw-away copy")
        copy, files = self._work / "copy.raw", self._work / "probe"
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        raw_copy(self._image, self._format, copy)
        no_probe = inject(
            copy,
            probe.files(
                state_seconds=int(limit * _PROBE_SHARE),
                script_seconds=max(1, int(self._script_seconds)),
                expected=expected_ports(self._inventory),
                script=self._script,
            ),
            files,
        )
        spec = MachineSpec(
            disk=copy,
            disk_format="raw",
            data_disks=self._data_disks,
            writable=True,
            durable=False,
            firmware=self._firmware,
            memory_mib=_MEMORY_MIB,
            cpus=_PROCESSORS,
            accelerator=with_accelerator,
        )
        return spec, no_probe

    def _take_screenshot(self, machine: Machine) -> None:
        try:
            machine.screenshot(self._evidence / SCREENSHOT)
        except ProgramFailed as error:
            log.warning("no screenshot: %s", error)


class _Watch:
    """Looks at a guest until the console or the probe has the answer."""

    def __init__(
        self, machine: Machine, no_probe: str | None, limit: float, script_limit: float, progress: Progress
    ) -> None:
        self._machine = machine
        self._no_probe = no_probe
        self._limit = limit  # seconds until the system's state is known
        self._report_limit = _REPORT_SECONDS + script_limit  # seconds from there to the end of the report
        self._progress = progress
        self._reading = Reading()
        self._console_at = 0
        self._report_at = 0
        self._probe = ProbeReport()
        self._stages: dict[Stage, float] = {}
        self._started: float | None = None
        self._state: float | None = None

    def until_answered(self) -> Observation | None:
        """What was seen; None where the guest stands still as guests do with a KVM that does not work."""
        verdict = None
        while verdict is None:
            verdict = self._machine.wait_for(self._verdict, self._next_limit() - self._machine.seconds)
            verdict = verdict or self._verdict()
        if verdict == "still":
            return None
        seconds = self._machine.seconds
        if self._reading.cause is not None:
            self._machine.wait_for(lambda: None, _EXPLAIN_SECONDS)
        elif self._probe.complete:
            self._progress(0, 0, "the guest has reported")
        return Observation(
            reading=self._reading,
            probe=self._probe,
            seconds=seconds,
            stages=self._stages,
            started_seconds=self._started,
            state_seconds=self._state,
            no_probe=self._no_probe,
            timed_out=verdict == "timed out",
            ended=verdict == "ended",
        )

    def _verdict(self) -> Literal["answered", "ended", "still", "timed out"] | None:
        self._take()
        if self._probe.complete or self._reading.cause is not None:
            return "answered"
        multi_user = self._stages.get(Stage.MULTI_USER)
        if multi_user is not None and self._no_probe is not None:
            return "answered"
        if self._machine.console.ended:
            self._machine.report.join()
            self._take()
            return "answered" if self._probe.complete else "ended"
        if self._machine.seconds < self._next_limit():
            return None
        if self._awaits_kernel():
            return "still"
        if multi_user is not None and self._started is None:
            self._no_probe = f"the probe did not report within {_MUTE_SECONDS:g} seconds of the login prompt"
            return "answered"
        return "timed out"

    def _next_limit(self) -> float:
        """When patience ends, in seconds since power on, as things stand."""
        if self._state is not None:
            return self._state + self._report_limit
        if self._awaits_kernel():
            return min(self._limit, _KVM_KERNEL_SECONDS)
        if self._started is None and Stage.MULTI_USER in self._stages:
            return min(self._limit, self._stages[Stage.MULTI_USER] + _MUTE_SECONDS)
        return self._limit

    def _awaits_kernel(self) -> bool:
        with_kvm = self._machine.spec.accelerator == "kvm"
        return with_kvm and self._started is None and self._reading.stage < Stage.KERNEL

    def _take(self) -> None:
        """Take in what is new on the console and the report port."""
        now = self._machine.seconds
        text = self._machine.console.since(self._console_at)
        self._console_at += len(text)
        reading = read(text, self._reading)
        if reading.cause not in (None, BootKernelPanic) and self._state is not None:
            # A system that is up and says so is not undone by a line of old.
            reading = replace(reading, cause=None, evidence="")
        for stage in Stage:
            if Stage.NOTHING < stage <= reading.stage and stage not in self._stages:
                self._stages[stage] = now
                if stage == reading.stage:
                    self._progress(0, 0, f"the guest has reached: {stage.name.lower().replace('_', ' ')}")
        self._reading = reading
        if len(self._machine.report) == self._report_at:
            return
        report = self._machine.report.since(0)
        self._report_at = len(report)
        self._probe = parse(report)
        if self._probe.started and self._started is None:
            self._started = now
        if self._probe.state is not None and self._state is None:
            self._state = now
            self._progress(0, 0, f"the guest says: {self._probe.state}")

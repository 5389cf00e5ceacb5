"""Reads a guest's serial console: how far the boot got, and what stopped it, with the line that proves it.

`read` is a pure function over the text so far. It is given each new piece together with its reading of what came
before, so that a console of any length is read once. A boot that has failed need not wait for its time limit: these
lines are an answer as soon as they are there.

The tell-tales are those of SeaBIOS, OVMF, GRUB 2, the Linux kernel, Debian's initramfs-tools, dracut, mkinitcpio and
systemd, as these programs print them. What the guest prints is hostile, but it can harm nobody here: a guest can only
talk itself into a failure.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace

from rehost.errors import (
    BootEmergencyMode,
    BootKernelPanic,
    BootNoBootLoader,
    BootNoRoot,
    VerificationError,
)

_LINE_BYTES = 4096  # of one line that are looked at
_SHOWN_CHARACTERS = 300  # of one line in evidence
_HINTS_KEPT = 3

_ESCAPES = re.compile(
    r"\x1b\[[0-9;:<=>?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC with their text
    r"|\x1b[ -/]*[0-~]?"  # all others
)


def cleaned(line: bytes) -> str:
    """One line as text that is safe to show: no escape sequences, no control characters but tabs."""
    text = line.decode("utf-8", "replace").rstrip("\r")
    if text.isprintable():
        return text
    text = _ESCAPES.sub("", text)
    return "".join(c for c in text if c == "\t" or c.isprintable())


class Stage(enum.IntEnum):
    """How far the console shows that the boot got. A guest with a quiet console may be further."""

    NOTHING = 0
    FIRMWARE = 1
    LOADER = 2
    KERNEL = 3
    SYSTEM = 4  # the init of the root filesystem runs
    MULTI_USER = 5  # multi-user target or login prompt: what an administrator calls up


Cause = type[VerificationError]


@dataclass(frozen=True)
class Reading:
    """What the console says."""

    stage: Stage = Stage.NOTHING
    cause: Cause | None = None  # what stopped the boot
    evidence: str = ""  # the lines that prove it, safe to show
    last_line: str = ""  # the last line with text on it, safe to show
    hints: tuple[tuple[Cause, str], ...] = ()  # lines that will explain a cause, should one follow
    partial: bytes = b""  # the line that has no end yet

    @property
    def error(self) -> VerificationError | None:
        """The error of that cause."""
        return self.cause(evidence=self.evidence) if self.cause else None


_STAGES = tuple(
    (stage, re.compile(pattern))
    for stage, pattern in (
        (Stage.FIRMWARE, r"^SeaBIOS |^BdsDxe: "),
        (Stage.LOADER, r"^GRUB loading|Welcome to GRUB!|^Loading Linux |^BdsDxe: starting Boot"),
        (Stage.KERNEL, r"Linux version \d"),
        (Stage.SYSTEM, r"^Welcome to (?!.*(?:GRUB|initramfs|dracut|emergency))|INIT: version \d|OpenRC \d"),
        (Stage.MULTI_USER, r"Reached target .*(?:[Mm]ulti-[Uu]ser|[Gg]raphical)"),
    )
)

# What must have been there for a cause, though a quiet console did not show it.
_IMPLIED = {BootKernelPanic: Stage.KERNEL, BootNoRoot: Stage.KERNEL, BootEmergencyMode: Stage.SYSTEM}

# Complete lines that end the boot.
_CAUSES: tuple[tuple[Cause, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern))
    for cause, pattern in (
        (BootNoBootLoader, r"^No bootable device"),
        (BootNoBootLoader, r"^BdsDxe: No bootable option"),
        (BootNoBootLoader, r'^BdsDxe: starting Boot\w+ "(?:EFI Internal|UEFI) Shell"'),
        (BootNoBootLoader, r"^(?:Missing operating system|Operating system not found)"),
        (BootNoBootLoader, r"^GRUB.*(?:Geom|Hard Disk|Read) Error"),
        (BootNoBootLoader, r"^error: .*you need to load the kernel first"),
        (BootNoBootLoader, r"^Entering rescue mode"),
        (BootNoBootLoader, r"Minimal BASH-like line editing is supported"),
        (BootNoRoot, r"Kernel panic - not syncing: .*(?:VFS: )?Unable to mount root fs"),
        (BootKernelPanic, r"Kernel panic - not syncing"),
        (BootNoRoot, r"ALERT! .*does not exist"),
        (BootNoRoot, r"No init found\. Try passing init="),
        (BootNoRoot, r"dracut.*(?:Warning|FATAL): Could not boot"),
        (BootNoRoot, r"Generating \"/run/initramfs/rdsosreport"),
        (BootNoRoot, r"ERROR: Failed to mount .* on real root"),
        (BootEmergencyMode, r"\[DEPEND\] Dependency failed for (?:loc\S*\.t\S* - )?Local File Systems"),
        (BootEmergencyMode, r"systemd\[1\]: Dependency failed for (?:loc\S*\.t\S* - )?Local File Systems"),
        (BootEmergencyMode, r"(?:You are in|Welcome to) (?:emergency|rescue) mode"),
        (BootEmergencyMode, r"Reached target .*(?:Emergency Mode|Rescue Mode|emergency\.target|rescue\.target)"),
        (BootEmergencyMode, r"Cannot open access to console, the root account is locked"),
    )
)

# Prompts: they have no line end, so they are looked for in the last, unfinished line too.
_PROMPTS: tuple[tuple[Cause, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern))
    for cause, pattern in (
        (BootNoBootLoader, r"^grub(?: rescue)?>"),
        (BootNoBootLoader, r"^Shell>"),
        (BootNoRoot, r"^\(initramfs\)"),
        (BootNoRoot, r"^(?:dracut|initqueue|pre-mount|switch_root):/[^ ]*#"),
        (BootNoRoot, r"^\[rootfs .*\]#"),
        (BootEmergencyMode, r"^(?:Give root password|Press Enter) for maintenance"),
    )
)
_LOGIN = re.compile(r"^\S{1,64} login:$")

# Lines that go before and say why. They stop nothing by themselves.
_HINTS: tuple[tuple[Cause, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern))
    for cause, pattern in (
        (BootNoBootLoader, r"^Boot failed: "),
        (BootNoBootLoader, r"^BdsDxe: failed to (?:load|start) "),
        (BootNoBootLoader, r"^error: "),
        (BootKernelPanic, r"(?:Failed to execute|Requested init|Run /\S+ as init).*error"),
        (BootNoRoot, r"VFS: Cannot open root device"),
        (BootNoRoot, r"Gave up waiting for root"),
        (BootNoRoot, r"mount: mounting .* on /root failed|mount: /sysroot: "),
        (BootNoRoot, r"dracut-initqueue.*timeout|dracut.*Warning: .* does not exist"),
        (BootNoRoot, r"Dependency failed for .*(?:Initrd Root|/sysroot|sysroot\.mount|initrd-root)"),
        (BootNoRoot, r"^ERROR: device '.*' not found"),
        (BootEmergencyMode, r"Timed out waiting for device "),
        (BootEmergencyMode, r"(?:\[FAILED\]|systemd\[1\]:) Failed to (?:mount|start File System Check|start .*fsck)"),
        (BootEmergencyMode, r"\[DEPEND\].* Dependency failed for "),
    )
)

# Most lines say nothing of all this; one search tells.
_ANY = re.compile("|".join(row[1].pattern for row in (*_STAGES, *_CAUSES, *_PROMPTS, *_HINTS)) + "|" + _LOGIN.pattern)


def read(text: bytes, before: Reading = Reading()) -> Reading:
    """The reading of what came before and `text`. Once a cause is found it stays."""
    *lines, partial = (before.partial + text).split(b"\n")
    reading, last_line = before, before.last_line
    for line in lines:
        shown = _shown(line)
        if not shown or reading.cause is not None:
            continue
        last_line = shown
        if _ANY.search(shown):
            reading = _line(reading, shown)
    shown = _shown(partial)
    reading = replace(reading, last_line=last_line[:_SHOWN_CHARACTERS])
    return replace(_prompt(reading, shown) if shown else reading, partial=partial[-_LINE_BYTES:])


def _shown(line: bytes) -> str:
    return " ".join(cleaned(line[:_LINE_BYTES]).split())


def _line(reading: Reading, line: str) -> Reading:
    reading = _prompt(reading, line)
    if reading.cause is not None:
        return reading
    for cause, pattern in _CAUSES:
        if pattern.search(line):
            return _stopped(reading, cause, line)
    for stage, pattern in _STAGES:
        if stage > reading.stage and pattern.search(line):
            reading = replace(reading, stage=stage)
    for cause, pattern in _HINTS:
        kept = sum(of is cause for of, _ in reading.hints)
        if kept < _HINTS_KEPT and pattern.search(line) and (cause, line) not in reading.hints:
            return replace(reading, hints=(*reading.hints, (cause, line[:_SHOWN_CHARACTERS])))
    return reading


def _prompt(reading: Reading, line: str) -> Reading:
    if reading.cause is not None:
        return reading
    for cause, pattern in _PROMPTS:
        if pattern.search(line):
            return _stopped(reading, cause, line)
    if _LOGIN.search(line):
        return replace(reading, stage=Stage.MULTI_USER, last_line=line)
    return reading


def _stopped(reading: Reading, cause: Cause, line: str) -> Reading:
    line = line[:_SHOWN_CHARACTERS]
    explained = [hint for of, hint in reading.hints if of is cause and hint != line]
    stage = max(reading.stage, _IMPLIED.get(cause, reading.stage))
    return replace(reading, stage=stage, cause=cause, evidence=" / ".join([*explained, line]), last_line=line)

"""The probe: a program that runs in a throw-away copy of the image and reports what the guest has become.

Here are the files that make the probe, and the reader of its report. The guest is hostile, so the report is too: it
is bounded, unknown lines are passed over, and what does not parse counts as not said. docs/verification.md describes
the report line by line.
"""

from __future__ import annotations

import importlib.resources
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from rehost.verification.console import cleaned

DIRECTORY = "rehost-probe"  # below /etc
UNIT = "rehost-probe.service"
SETTLE_SECONDS = 30  # for services that are up before they listen, and for a late lease
SECTION_BYTES = 256 << 10  # of each part of the report
SCRIPT_BYTES = 256 << 10  # of the output of the user's script
_FACTS_KEPT = 4096  # of each kind
_FACT_BYTES = 1024  # of each line
_EXPECTED_PORTS = 256
_SINGLE_TAGS = frozenset(("probe", "kernel", "boot-id", "state", "uptime", "facts", "script-status", "end"))
_LIST_TAGS = frozenset(("failed", "job", "mount", "fstab", "tcp", "udp", "fib4", "inet6", "route"))

# Started beside the first units, so that it can tell of a system that never gets to its default target; `simple`,
# so that the system does not wait for the probe that waits for the system.
_UNIT_TEXT = f"""\
[Unit]
Description=Rehost verification probe
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=simple
ExecStart=/bin/sh /etc/{DIRECTORY}/probe
StandardInput=null
StandardOutput=null
StandardError=null
TimeoutStopSec=5
"""


@dataclass(frozen=True)
class Port:
    """A socket that listens, or should."""

    protocol: str  # tcp, udp
    number: int
    loopback: bool  # it answers the guest itself alone


@dataclass(frozen=True)
class Mount:
    """A row of the guest's /etc/fstab or /proc/self/mounts."""

    device: str
    point: str
    filesystem: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class ProbeReport:
    """What the guest said so far. Text is safe to show, every list bounded."""

    started: bool = False  # the probe runs
    state: str | None = None  # of `systemctl is-system-running`, once it is final or the probe's limit has passed
    facts: bool = False  # all that follows has been said, but the script
    complete: bool = False  # all has been said
    kernel: str | None = None
    boot_id: str | None = None
    uptime_seconds: float | None = None
    failed_units: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()  # units that systemd still works on
    mounts: tuple[Mount, ...] = ()
    fstab: tuple[Mount, ...] = ()
    ports: frozenset[Port] = field(default_factory=frozenset)
    addresses: tuple[str, ...] = ()  # without loopback and link-local ones
    default_route: bool = False
    script_status: int | None = None
    script_output: str | None = None


def files(
    *, state_seconds: int, script_seconds: int, expected: Iterable[Port], script: str | None
) -> dict[str, tuple[bytes, int]]:
    """The probe's files: {path below /etc: (content, permission bits)}.

    `state_seconds` is the guest's uptime at which the probe reports in whatever state the system is.
    """
    ports = sorted({(port.protocol, port.number) for port in expected})[:_EXPECTED_PORTS]
    words = " ".join(f"{protocol}:{number:04X}" for protocol, number in ports if protocol in ("tcp", "udp"))
    limits = (
        f"STATE_SECONDS={state_seconds}\nSETTLE_SECONDS={SETTLE_SECONDS}\nSCRIPT_SECONDS={script_seconds}\n"
        f"SECTION_BYTES={SECTION_BYTES}\nSCRIPT_BYTES={SCRIPT_BYTES}\nEXPECTED='{words}'\n"
    )
    program = importlib.resources.files("rehost.verification").joinpath("probe.sh").read_bytes()
    made = {
        f"{DIRECTORY}/probe": (program, 0o755),
        f"{DIRECTORY}/limits": (limits.encode(), 0o644),
        f"systemd/system/{UNIT}": (_UNIT_TEXT.encode(), 0o644),
    }
    if script is not None:
        made[f"{DIRECTORY}/script"] = (script.encode(), 0o700)
    return made


def parse(text: bytes) -> ProbeReport:
    """The report in what the guest said so far. Never raises: what does not parse counts as not said."""
    lines: dict[str, list[bytes]] = {}
    for line in text.split(b"\n")[:-1]:  # the last one has no end yet
        word, _, rest = line.partition(b" ")
        tag = word.decode("ascii", "replace")
        if tag == "script":
            lines.setdefault(tag, []).append(rest)
        elif tag in _SINGLE_TAGS | _LIST_TAGS and len(lines.setdefault(tag, [])) < _FACTS_KEPT:
            lines[tag].append(rest[:_FACT_BYTES])
    report = ProbeReport(
        started="probe" in lines,
        state=_word(lines, "state"),
        facts="facts" in lines,
        complete="end" in lines,
        kernel=_word(lines, "kernel"),
        boot_id=_word(lines, "boot-id"),
        uptime_seconds=_number(_word(lines, "uptime")),
        failed_units=_first_words(lines.get("failed", ())),
        jobs=tuple(words[1] for words in _words(lines.get("job", ())) if len(words) > 1),
        mounts=_mounts(lines.get("mount", ())),
        fstab=_mounts(lines.get("fstab", ())),
        ports=frozenset([*_ports("tcp", lines.get("tcp", ())), *_ports("udp", lines.get("udp", ()))]),
        addresses=(*_ipv4(lines.get("fib4", ())), *_ipv6(lines.get("inet6", ()))),
        default_route=any(words[1:2] == ["00000000"] for words in _words(lines.get("route", ()))),
    )
    status = _number(_word(lines, "script-status"))
    output = None
    if "script" in lines or status is not None:
        output = "\n".join(cleaned(line) for line in lines.get("script", []))[:SCRIPT_BYTES]
    return replace(report, script_status=int(status) if status is not None else None, script_output=output)


def _words(lines: Sequence[bytes]) -> Iterable[list[str]]:
    return (words for line in lines if (words := cleaned(line).split()))


def _word(lines: dict[str, list[bytes]], tag: str) -> str | None:
    return next((words[0] for words in _words(lines.get(tag, ()))), None)


def _first_words(lines: Sequence[bytes]) -> tuple[str, ...]:
    # systemctl before 248 draws a dot before the name even here.
    return tuple(next((word for word in words if word not in "●*×"), words[0]) for words in _words(lines))


def _number(word: str | None) -> float | None:
    return float(word) if word and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", word, re.ASCII) else None


def _mounts(lines: Sequence[bytes]) -> tuple[Mount, ...]:
    """Rows in the form of fstab(5): six words, octal escapes for spaces, # for comments."""
    rows = [words for words in _words(lines) if not words[0].startswith("#") and len(words) >= 2]
    padded = [[_unescaped(word) for word in words] + ["auto", "defaults"] for words in rows]
    return tuple(Mount(words[0], _normal(words[1]), words[2], tuple(words[3].split(","))) for words in padded)


def _unescaped(word: str) -> str:
    text = re.sub(r"\\([0-3][0-7]{2})", lambda found: chr(int(found[1], 8)), word)
    return "".join(c if c.isprintable() else "?" for c in text)


def _normal(point: str) -> str:
    return re.sub(r"/+", "/", point).rstrip("/") or "/" if point.startswith("/") else point


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as /proc/net/tcp and udp print it: words of 32 bits, each in the byte order of the machine."""
    raw = bytes.fromhex(text)
    return ipaddress.ip_address(b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))


def _ports(protocol: str, lines: Sequence[bytes]) -> Iterable[Port]:
    for words in _words(lines):
        local = words[1] if len(words) > 1 else ""
        if found := re.fullmatch(r"([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})", local):
            yield Port(protocol, int(found[2], 16), is_loopback(_address(found[1])))


def is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """127.0.0.0/8 and ::1, also as IPv4-mapped IPv6."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _ipv4(lines: Sequence[bytes]) -> tuple[str, ...]:
    """The machine's own addresses in /proc/net/fib_trie: a leaf `|-- ADDRESS`, then `/32 host LOCAL`."""
    found: list[str] = []
    leaf = ""
    for words in _words(lines):
        if words[0] == "|--" and len(words) > 1:
            leaf = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            found += _told(leaf, ipaddress.IPv4Address)
    return tuple(dict.fromkeys(found))


def _ipv6(lines: Sequence[bytes]) -> tuple[str, ...]:
    """The addresses in /proc/net/if_inet6: 32 hexadecimal digits first."""
    found: list[str] = []
    for words in _words(lines):
        if re.fullmatch(r"[0-9a-f]{32}", words[0]):
            found += _told(bytes.fromhex(words[0]), ipaddress.IPv6Address)
    return tuple(dict.fromkeys(found))


def _told(raw: str | bytes, kind: Callable[[str | bytes], ipaddress.IPv4Address | ipaddress.IPv6Address]) -> list[str]:
    try:
        address = kind(raw)
    except ValueError:
        return []
    return [] if address.is_loopback or address.is_link_local else [str(address)]

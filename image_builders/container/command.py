"""How a server's services are started in a container: systemd where it is there, else what was listening."""

from __future__ import annotations

import ipaddress
import re
import shlex
from dataclasses import dataclass

from image_builders.container.left_out import rules
from rehost.errors import BuildUnsupported
from rehost.replication.tree import Change, Put, Tree
from rehost.source.inventory import Inventory, Listener

SUPERVISOR = b"usr/local/sbin/rehost-services"
_BINARY_DIRECTORIES = (
    b"usr/local/sbin",
    b"usr/local/bin",
    b"usr/sbin",
    b"usr/bin",
    b"sbin",
    b"bin",
)
_SYSTEMD = (b"lib/systemd/systemd", b"usr/lib/systemd/systemd")
_PROCESS_NAME = re.compile(r"[A-Za-z0-9._+-]{1,64}")
_SCRIPT_BYTES = 262_144
_FIRST_EPHEMERAL_PORT = 32_768  # above it the kernel gives ports to whoever asks: not a service's own


@dataclass(frozen=True)
class Start:
    """How the container starts. `changes` is what its command needs in the tree."""

    command: tuple[str, ...]
    systemd: bool
    stop_signal: str
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ports:
    """Where the container is expected to listen, as "80/tcp", sorted by number."""

    exposed: tuple[str, ...]  # reachable from other machines on the source
    local: tuple[str, ...]  # services on the loopback interface alone; TCP only


def start_of(tree: Tree, inventory: Inventory, command: tuple[str, ...] = ()) -> Start:
    """How this server starts as a container; `command`, where given, is taken as it is.

    Raises BuildUnsupported where there is neither systemd nor a service whose program can be found.
    """
    if command:
        systemd = _is_systemd(tree, command[0].encode("utf-8", "surrogateescape"))
        return Start(command, systemd, "SIGRTMIN+3" if systemd else "SIGTERM")
    for path in (b"sbin/init", *_SYSTEMD):
        if _is_systemd(tree, path):
            # The signal on which systemd shuts down in an orderly way (systemd(1), SIGNALS).
            return Start((f"/{path.decode()}",), True, "SIGRTMIN+3")
    return _supervised(tree, inventory)


def _is_systemd(tree: Tree, path: bytes) -> bool:
    entry = tree.resolve(path)
    return entry is not None and entry.is_file and entry.path in _SYSTEMD


def _supervised(tree: Tree, inventory: Inventory) -> Start:
    names = sorted({listener.process for listener in _services(inventory) if listener.process})
    scripts, programs, lost = [], [], []
    for name in names:
        if not _PROCESS_NAME.fullmatch(name):
            continue
        script = _start_script(tree, name)
        program = None if script else _program(tree, name)
        if script:
            scripts.append(script)
        elif program:
            programs.append(program)
        else:
            lost.append(name)
    warnings = tuple(f"Nothing in the server's files starts the listening process {name}." for name in lost)
    if not scripts and not programs:
        raise BuildUnsupported(
            what="The container image",
            reason="the server has no systemd, and no program was found for what listened on it"
            " (give a command with the request)",
        )
    if not scripts and len(programs) == 1:
        return Start((programs[0],), False, "SIGTERM", warnings=warnings)
    text = _supervisor(sorted(set(scripts)), programs)
    change = Put(SUPERVISOR, text.encode(), mode=0o755)
    return Start((f"/{SUPERVISOR.decode()}",), False, "SIGTERM", (change,), warnings)


def _start_script(tree: Tree, process: str) -> str | None:
    """The script of /etc/init.d that has the process' name, or else one that names its program."""
    if _executable(tree, b"etc/init.d/" + process.encode()):
        return f"/etc/init.d/{process}"
    mention = re.compile(rb"(?m)^[^#\n]*/s?bin/" + re.escape(process.encode()) + rb"(?![A-Za-z0-9._+-])")
    for path in tree.children(b"etc/init.d"):
        name = path.rpartition(b"/")[2].decode("ascii", "replace")
        if not _PROCESS_NAME.fullmatch(name) or not _executable(tree, path):
            continue
        if mention.search(tree.read(path, _SCRIPT_BYTES) or b""):
            return f"/etc/init.d/{name}"
    return None


def _program(tree: Tree, process: str) -> str | None:
    for directory in _BINARY_DIRECTORIES:
        if _executable(tree, directory + b"/" + process.encode()):
            return f"/{directory.decode()}/{process}"
    return None


def _executable(tree: Tree, path: bytes) -> bool:
    entry = tree.resolve(path)
    return entry is not None and entry.is_file and bool(entry.mode & 0o111)


def _supervisor(scripts: list[str], programs: list[str]) -> str:
    """A shell script that starts the services, waits, and stops them when the container is stopped."""
    start = [f"{shlex.quote(script)} start" for script in scripts]
    start += [f'{shlex.quote(program)} & children="$children $!"' for program in programs]
    stop = [f"    {shlex.quote(script)} stop" for script in reversed(scripts)]
    return "\n".join(
        [
            "#!/bin/sh",
            "# Made by Rehost: starts what listened on the server, and stops it with the container.",
            "children= nap=",
            "end() {",
            "    trap - TERM INT",
            *stop,
            "    kill $children $nap 2>/dev/null",
            "    wait",
            "    exit 0",
            "}",
            "trap end TERM INT",
            *start,
            # A sleep in the background, because a trap runs only once the command in the foreground has ended.
            "while :; do sleep 3600 & nap=$!; wait $nap; done",
            "",
        ]
    )


def ports_of(inventory: Inventory) -> Ports:
    """The ports of the source's services that start in the container too."""
    exposed, local = set(), set()
    for listener in _services(inventory):
        if not 0 < listener.port < 65_536:
            continue
        port = (listener.port, listener.protocol)
        if not _is_loopback(listener.address):
            exposed.add(port)
        elif (
            listener.protocol == "tcp"
            and listener.port < _FIRST_EPHEMERAL_PORT
            and (listener.unit or "") in inventory.active_services
        ):
            local.add(port)
    return Ports(
        tuple(f"{number}/{protocol}" for number, protocol in sorted(exposed)),
        tuple(f"{number}/{protocol}" for number, protocol in sorted(local - exposed)),
    )


def _services(inventory: Inventory) -> list[Listener]:
    masked, silent = rules().masked_units, rules().silent_processes
    return [
        x for x in inventory.listeners if x.unit not in masked and x.process not in silent and not _is_of_a_login(x)
    ]


def _is_of_a_login(listener: Listener) -> bool:
    """Started by hand, or by somebody's login: systemd keeps such processes in scopes and starts none of them."""
    return (listener.unit or "").endswith(".scope")


def not_started(inventory: Inventory) -> tuple[str, ...]:
    """A warning for each port that was open on the source and that nothing opens in the container."""
    return tuple(
        f"{x.port}/{x.protocol} was opened by {x.process or 'a process'} of a login ({x.unit}): nothing starts it"
        " in the container."
        for x in inventory.listeners
        if _is_of_a_login(x)
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False

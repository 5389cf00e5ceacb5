"""One container on trial: started from an image on a network that leads nowhere, looked into, and always removed.

It has no privileges, fewer capabilities than the engine's default, and limits for memory, processes and log. Its
network is internal: the engine lets nothing of it out, and no port is published; the worker reaches it by its address.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from docker.client import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.types import LogConfig

from rehost.engine import SYSTEMD_SLICE, SYSTEMD_TMPFS, engine, reason_of, systemd_volumes
from rehost.errors import ContainerEngineFailed, ContainerExitedEarly
from rehost.verification.console import cleaned

log = logging.getLogger(__name__)

LABEL = "org.rehost.verification"  # on containers and networks: the time, in seconds since the epoch, when it is over
_MEMORY_BYTES = 4 << 30  # at most, and at most half of what the engine's machine has
_PROCESSES = 4096
_LOG_SIZE = "8m"
_LOG_LINES = 5_000
_OUTPUT_BYTES = 262_144  # of a program in the container
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 500
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LISTENING = "0A"  # TCP_LISTEN (include/net/tcp_states.h)
_SCRIPT = "rehost-verification-script"


class ContainerFacts(Protocol):
    """What a trial has to know of an image; the builder's record has all of it."""

    @property
    def reference(self) -> str: ...
    @property
    def engine_id(self) -> str: ...
    @property
    def systemd(self) -> bool: ...
    @property
    def exposed_ports(self) -> tuple[str, ...]: ...
    @property
    def local_ports(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Ran:
    """A program that was run in the container. `status` None: it did not end in time."""

    status: int | None
    output: str  # standard output and error, bounded


@dataclass(frozen=True)
class Listening:
    """Where the container listens: TCP ports by whether other machines can reach them, and UDP ports."""

    tcp: frozenset[int]
    local_tcp: frozenset[int]
    udp: frozenset[int]


class Trial:
    """A container, as `on_trial` gives it."""

    def __init__(self, client: DockerClient, container: Container) -> None:
        self._client = client
        self._container = container

    def start(self) -> None:
        """Start it. Raises ContainerExitedEarly where its command cannot be run."""
        try:
            self._container.start()
        except APIError as error:
            self._container.reload()
            status = self._container.attrs["State"].get("ExitCode")
            if status not in (126, 127):  # as shells have it: cannot be run, not found
                raise
            raise ContainerExitedEarly(status=status, evidence=reason_of(error)) from error

    def check_alive(self) -> None:
        """Raises ContainerExitedEarly, with its last words, where it has ended."""
        self._container.reload()
        state = self._container.attrs["State"]
        if state.get("Running"):
            return
        words = self.last_lines() or state.get("Error") or "it printed nothing"
        if state.get("OOMKilled"):
            words = f"it needed more memory than it may have. {words}"
        raise ContainerExitedEarly(status=state.get("ExitCode"), evidence=words)

    def address(self) -> str | None:
        """Its address on the internal network, where there is one."""
        self._container.reload()
        networks: dict[str, dict[str, Any]] = self._container.attrs["NetworkSettings"]["Networks"]
        return next((network["IPAddress"] for network in networks.values() if network.get("IPAddress")), None)

    def run(self, argv: Sequence[str], seconds: float) -> Ran:
        """Run a program in the container. Raises ContainerExitedEarly where the container has ended meanwhile."""
        kept = bytearray()
        failure: list[Exception] = []
        try:
            exec_id: str = self._client.api.exec_create(self._container.id, list(argv))["Id"]
        except APIError:
            self.check_alive()
            raise

        def read() -> None:
            try:
                for piece in self._client.api.exec_start(exec_id, stream=True):
                    if len(kept) < _OUTPUT_BYTES:
                        kept.extend(piece[: _OUTPUT_BYTES - len(kept)])
            except Exception as error:  # told by the thread that waits
                failure.append(error)

        reader = threading.Thread(
            target=read, daemon=True
        )  # it ends with the program, at the latest with the container
        reader.start()
        reader.join(max(seconds, 0.1))
        output = "\n".join(cleaned(line) for line in bytes(kept).splitlines())
        if reader.is_alive():
            return Ran(None, output)
        if failure:
            self.check_alive()
            raise ContainerEngineFailed(action=f"run {argv[0]} in the container", reason=failure[0]) from failure[0]
        return Ran(self._client.api.exec_inspect(exec_id)["ExitCode"], output)

    def run_script(self, script: str, seconds: float) -> Ran:
        """Put the user's script into the container and run it there, by its own interpreter or by /bin/sh."""
        content = script.encode()
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            member = tarfile.TarInfo(_SCRIPT)
            member.size, member.mode = len(content), 0o700
            tar.addfile(member, io.BytesIO(content))
        self._container.put_archive("/", stream.getvalue())
        path = f"/{_SCRIPT}"
        return self.run([path] if script.startswith("#!") else ["/bin/sh", path], seconds)

    def listening(self) -> Listening | None:
        """Where it listens, read from /proc inside; None where the image has no `cat`."""
        files = [f"/proc/net/{name}" for name in ("tcp", "tcp6", "udp", "udp6")]
        ran = self.run(["cat", *files], 10.0)
        if "local_address" not in ran.output:
            return None
        return parse_listening(ran.output)

    def log(self) -> bytes:
        """The end of what it printed."""
        return bytes(self._container.logs(stdout=True, stderr=True, tail=_LOG_LINES))

    def last_lines(self) -> str:
        """Its last words on one line, safe to show."""
        lines = [text for line in self.log().splitlines() if (text := cleaned(line).strip())]
        return " | ".join(lines[-_SHOWN_LINES:])[-_SHOWN_CHARACTERS:]


def parse_listening(text: str) -> Listening:
    """Read /proc/net/{tcp,tcp6,udp,udp6}, one after the other (proc(5)); a table starts with its heading."""
    tcp: set[int] = set()
    local_tcp: set[int] = set()
    udp: set[int] = set()
    table = 0
    for line in text.splitlines():
        fields = line.split()
        if "local_address" in line:
            table += 1
            continue
        if len(fields) < 4 or ":" not in fields[1]:
            continue
        address, _, port_text = fields[1].partition(":")
        port = int(port_text, 16)
        if table > 2:
            udp.add(port)
        elif fields[3] == _LISTENING:
            # Addresses are words of the machine's own byte order: 127.0.0.1 ends in 7F on a little-endian one.
            loopback = (
                address.endswith("7F") or address.startswith("7F") if len(address) == 8 else _is_loopback6(address)
            )
            (local_tcp if loopback else tcp).add(port)
    return Listening(frozenset(tcp), frozenset(local_tcp | tcp), frozenset(udp))


def _is_loopback6(address: str) -> bool:
    return address in ("00000000000000000000000001000000", "00000000000000000000000000000001")


@contextlib.contextmanager
def on_trial(client: DockerClient, image: ContainerFacts, hostname: str, lifetime_seconds: float) -> Iterator[Trial]:
    """The image as a container that waits for its start; it and its network are removed whatever happens.

    After `lifetime_seconds` `reap_containers` may take it for forgotten.
    """
    name = f"rehost-verification-{secrets.token_hex(6)}"
    labels = {LABEL: str(int(time.time() + lifetime_seconds))}
    info = client.info()
    try:
        client.networks.create(name, driver="bridge", internal=True, labels=labels)
        memory = min(_MEMORY_BYTES, int(info.get("MemTotal") or _MEMORY_BYTES * 2) // 2)
        container = client.containers.create(
            image.engine_id,
            name=name,
            labels=labels,
            network=name,
            hostname=hostname if _HOSTNAME.fullmatch(hostname) else None,
            mem_limit=memory,
            memswap_limit=memory,
            pids_limit=_PROCESSES,
            # Set-id programs and file capabilities of the server have to work, so new privileges are not forbidden.
            cap_drop=["MKNOD"],
            log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": _LOG_SIZE, "max-file": "1"}),
            **(_for_systemd(str(info.get("CgroupVersion", "1"))) if image.systemd else {}),
        )
        yield Trial(client, container)
    finally:
        _remove(client, name)


def _for_systemd(cgroup_version: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "tty": True,  # systemd tells its progress to a terminal alone
        "tmpfs": dict(SYSTEMD_TMPFS),
        "volumes": list(systemd_volumes(cgroup_version)),
    }
    if cgroup_version == "2":
        options |= {"cgroupns": "host", "cgroup_parent": SYSTEMD_SLICE}
    return options


def _remove(client: DockerClient, name: str) -> None:
    """Remove container and network of that name; what cannot be removed now is left to `reap_containers`."""
    _try(name, lambda: client.api.remove_container(name, force=True, v=True))
    _try(name, lambda: client.api.remove_network(name))


def _try(name: str, remove: Callable[[], None]) -> None:
    try:
        remove()
    except NotFound:
        return
    except Exception:
        log.warning("%s could not be removed from the engine", name, exc_info=True)


def reap_containers() -> int:
    """Remove containers and networks of verifications whose time is over: their worker died. The number of containers.

    Raises ContainerEngineAway, ContainerEngineFailed.
    """
    now, reaped = time.time(), 0
    with engine("remove forgotten containers") as client:
        for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
            if _is_over(container.labels, now):
                _remove(client, str(container.name))
                reaped += 1
        for network in client.networks.list(filters={"label": LABEL}):
            if _is_over(network.attrs.get("Labels") or {}, now):
                _remove(client, str(network.name))
    return reaped


def _is_over(labels: dict[str, str], now: float) -> bool:
    text = labels.get(LABEL, "")
    return text.isdecimal() and float(text) < now

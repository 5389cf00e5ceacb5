"""One guest in QEMU, for as long as a block lasts.

The guest's serial console, its report port and QEMU's monitor (QMP) are socket pairs that QEMU inherits: there is no
path that another user of the worker could open, and the end of QEMU is the end of the stream. QEMU itself runs with
its seccomp sandbox. What the guest prints is hostile: it is kept up to a limit and read on beyond it, so that a guest
which prints for ever neither fills a disk nor stands still.

QMP: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from rehost.disk_formats import DiskFormat, driver_of
from rehost.errors import ProgramFailed, ProgramNotFound, ProgramTimeout
from rehost.run import Process, spawn
from rehost.verification.console import cleaned

T = TypeVar("T")

PROGRAM = "qemu-system-x86_64"
REPORT_PORT = "org.rehost.probe"  # in the guest: /dev/virtio-ports/org.rehost.probe
CONSOLE_BYTES = 16 << 20  # kept of the console
REPORT_BYTES = 4 << 20  # kept of the report port
_QMP_LINE_BYTES = 1 << 20
_QMP_SECONDS = 30.0  # for one command, and for QEMU to come up on a busy machine
_QUIT_SECONDS = 10.0
_LINE_CHARACTERS = 4096  # of a console line that never ends, before the log breaks it
_BANNER_SECONDS = 15.0  # for a service's first words on one connection
_WAIT_SECONDS = 1.0  # at a time, so that a thread that is told to stop hears it
_RETRY_SECONDS = 0.5  # between two tries to reach a port of the guest

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# Code and variables of the UEFI firmware: Debian and Ubuntu, Fedora, Arch.
_OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)


@dataclass(frozen=True)
class MachineSpec:
    """What the guest is made of."""

    disk: Path | None = None
    disk_format: DiskFormat = "raw"
    data_disks: tuple[tuple[Path, str], ...] = ()  # further disks and their formats; never written to
    writable: bool = False  # False: the image is only read; what the guest writes is thrown away at the end
    durable: bool = True  # False: what the guest flushes need not survive the worker; for throw-away copies
    firmware: Literal["bios", "uefi"] = "bios"
    memory_mib: int = 1024
    cpus: int = 2
    accelerator: Literal["kvm", "tcg"] = "tcg"
    network: bool = True
    restricted: bool = True  # the guest reaches nothing outside; forwards to it work all the same
    forwards: tuple[int, ...] = ()  # TCP ports of the guest; each gets a free port on the worker's loopback
    kernel: Path | None = None  # boots this kernel instead of the disk
    initrd: Path | None = None
    command_line: str = ""  # of that kernel


class Recording:
    """What came out of one of the guest's ports so far, up to `limit` bytes. What comes later is read and dropped."""

    def __init__(self, connection: socket.socket, changed: threading.Condition, limit: int, log: Path | None) -> None:
        self._connection = connection
        self._changed = changed
        self._limit = limit
        self._data = bytearray()
        self._log = log
        self.capped = False
        self.ended = False  # the guest is gone
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def since(self, position: int) -> bytes:
        """The bytes from `position` on."""
        with self._changed:
            return bytes(self._data[position:])

    def __len__(self) -> int:
        return len(self._data)

    def join(self) -> None:
        """Wait until all that the guest said has been recorded; for when QEMU has ended."""
        self._thread.join(timeout=_QUIT_SECONDS)

    def _record(self) -> None:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log.open("w", encoding="utf-8")) if self._log else None
            partial = b""
            with contextlib.suppress(OSError):
                while piece := self._connection.recv(65_536):
                    with self._changed:
                        kept = piece[: self._limit - len(self._data)]
                        self._data += kept
                        self.capped = self.capped or len(kept) < len(piece)
                        self._changed.notify_all()
                    if log:
                        *lines, partial = (partial + kept).split(b"\n")
                        if len(partial) > _LINE_CHARACTERS:
                            lines, partial = [*lines, partial], b""
                        log.writelines(cleaned(line) + "\n" for line in lines)
                        log.flush()
            if log:
                log.write(cleaned(partial) + "\n" if partial else "")
                log.write(f"[the log ends here: more than {self._limit} bytes]\n" if self.capped else "")
        with self._changed:
            self.ended = True
            self._changed.notify_all()


class Monitor:
    """A small client of QMP over a connected socket. One command at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()
        self._lock = threading.Lock()
        self._receive()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """What the command returns. Raises ProgramFailed where QEMU refuses, ProgramTimeout where it is silent."""
        with self._lock:
            request = {"execute": command, "arguments": arguments}
            try:
                self._connection.sendall(json.dumps(request).encode() + b"\n")
            except OSError as error:
                raise ProgramFailed(program=PROGRAM, status="unknown", stderr=f"QMP {command}: {error}") from error
            while True:
                answer = self._receive()
                if "error" in answer:
                    reason = str(answer["error"].get("desc", answer["error"]))[:500]
                    raise ProgramFailed(program=PROGRAM, status="none", stderr=f"QMP {command}: {reason}")
                if "return" in answer:
                    return answer["return"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _QMP_SECONDS
        while b"\n" not in self._received:
            if len(self._received) > _QMP_LINE_BYTES:
                raise ProgramFailed(program=PROGRAM, status="unknown", stderr="QMP: a line without end")
            self._connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = self._connection.recv(65_536)
            except TimeoutError:
                raise ProgramTimeout(program=f"{PROGRAM} (QMP)", seconds=_QMP_SECONDS) from None
            except OSError:
                piece = b""
            if not piece:
                raise ProgramFailed(program=PROGRAM, status="unknown", stderr="QMP: QEMU has ended")
            self._received += piece
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ProgramFailed(program=PROGRAM, status="unknown", stderr="QMP: not an object")
        return answer


class Machine:
    """A guest under way; a context manager. On the way out of the block QEMU is ended and its scratch removed.

    `scratch` is an existing directory for what is thrown away; `console_log` a file that the console is written to,
    line by line, without control characters. Raises ProgramNotFound (QEMU, or firmware for UEFI, is missing) and
    ProgramFailed (QEMU refuses to start) on the way in.
    """

    def __init__(self, spec: MachineSpec, *, scratch: Path, console_log: Path) -> None:
        self.spec = spec
        self.ports: Mapping[int, int] = {}  # port of the guest -> port on 127.0.0.1
        self._scratch = scratch
        self._console_log = console_log
        self._stack = contextlib.ExitStack()
        self._changed = threading.Condition()
        self._started = 0.0
        self._process: Process
        self._monitor: Monitor
        self.console: Recording
        self.report: Recording

    def __enter__(self) -> Machine:
        with contextlib.ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="machine-", dir=self._scratch))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            ours, theirs = {}, {}
            for name in ("console", "report", "qmp"):
                ours[name], theirs[name] = socket.socketpair()
                stack.callback(ours[name].close)
            try:
                argv = _command(self.spec, folder, {name: end.fileno() for name, end in theirs.items()})
                passed = [end.fileno() for end in theirs.values()]
                # The overlay of snapshot=on is an unlinked file in TMPDIR.
                self._process = stack.enter_context(spawn(argv, pass_fds=passed, env={"TMPDIR": str(folder)}))
            finally:
                for end in theirs.values():
                    end.close()
            self._started = time.monotonic()
            self.console = Recording(ours["console"], self._changed, CONSOLE_BYTES, self._console_log)
            stack.callback(self.console.join)
            self.report = Recording(ours["report"], self._changed, REPORT_BYTES, None)
            stack.callback(self.report.join)
            stack.callback(self._process.end)
            try:
                self._monitor = Monitor(ours["qmp"])
                self.ports = self._find_ports()
            except ProgramFailed as error:
                with contextlib.suppress(ProgramTimeout):
                    status = self._process.wait(_QUIT_SECONDS)
                    stderr = self._process.stderr().strip()[-2000:]
                    raise ProgramFailed(program=PROGRAM, status=status, stderr=stderr) from error
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _find_ports(self) -> dict[int, int]:
        if not self.spec.forwards:
            return {}
        # QEMU binds port 0 and tells the port that it got here alone, in a table for people.
        told = self._monitor.execute("human-monitor-command", **{"command-line": "info usernet"})
        rows = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)\s", str(told))
        ports = {int(guest): int(host) for host, guest in rows}
        if set(ports) != set(self.spec.forwards):
            raise ProgramFailed(program=PROGRAM, status="none", stderr=f"forwards: asked {self.spec.forwards}: {told}")
        return ports

    @property
    def seconds(self) -> float:
        """Since power on."""
        return time.monotonic() - self._started

    @property
    def running(self) -> bool:
        """QEMU has not ended."""
        return self._process.popen.poll() is None

    @property
    def process_id(self) -> int:
        """Of QEMU."""
        return self._process.popen.pid

    def stderr(self) -> str:
        """The end of what QEMU complained about."""
        return self._process.stderr()

    def status(self) -> str:
        """QEMU's run state: `running`, `shutdown`, `internal-error` …"""
        return str(self._monitor.execute("query-status")["status"])

    def screenshot(self, path: Path) -> None:
        """Write the screen as PNG. Raises ProgramFailed where QEMU cannot (before 7.1, or no screen)."""
        self._monitor.execute("screendump", filename=str(path.absolute()), format="png")

    def power_down(self) -> None:
        """Press the power button; the guest decides what it does then."""
        self._monitor.execute("system_powerdown")

    def quit(self) -> None:
        """End QEMU at once, as if the plug were pulled; returns when it is gone."""
        with contextlib.suppress(ProgramFailed):  # it may go before it answers
            self._monitor.execute("quit")
        with contextlib.suppress(ProgramTimeout):
            self._process.wait(_QUIT_SECONDS)
        self._process.end()

    def wait_for(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """What `look` gives as soon as it gives something; None after `timeout` seconds or when the guest is gone.

        `look` is called whenever something came from the guest, once a second, and last when the guest is gone.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                seen = (len(self.console), len(self.report), self.console.ended)
            if (found := look()) is not None:
                return found
            left = deadline - time.monotonic()
            if left <= 0 or seen[2]:
                return None
            with self._changed:
                if seen == (len(self.console), len(self.report), self.console.ended):
                    self._changed.wait(min(left, _WAIT_SECONDS))

    def wait_for_console(self, pattern: bytes, timeout: float) -> re.Match[bytes] | None:
        """The first match of the regular expression on the console; None after `timeout` seconds or at the end."""
        return self.wait_for(lambda: re.search(pattern, self.console.since(0)), timeout)

    def wait_for_banner(self, port: int, prefix: bytes, timeout: float) -> bytes | None:
        """The first bytes that the service on that forwarded port sends by itself, once they start with `prefix`.

        A forwarded port takes connections before anything listens in the guest: only the service's own words prove
        that it is up. None after `timeout` seconds, or when the guest is gone.
        """
        deadline = time.monotonic() + timeout
        while self.running and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(OSError):
                # QEMU takes the connection before the guest has a network; one from that time is never answered.
                limit = min(left, _BANNER_SECONDS)
                with socket.create_connection(("127.0.0.1", self.ports[port]), timeout=limit) as connection:
                    banner = b""
                    while len(banner) < len(prefix) and (piece := connection.recv(256)):
                        banner += piece
                    if banner.startswith(prefix):
                        return banner
            self.wait_for_exit(_RETRY_SECONDS)
        return None

    def wait_for_exit(self, timeout: float) -> int | None:
        """QEMU's exit status; None if it still runs after `timeout` seconds."""
        with contextlib.suppress(ProgramTimeout):
            return self._process.wait(timeout)
        return None


def _command(spec: MachineSpec, folder: Path, descriptors: Mapping[str, int]) -> list[str]:
    """QEMU's command line. Everything that is in the machine is named here (`-nodefaults`)."""
    argv = [PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-sandbox", _SANDBOX, "-display", "none"]
    argv += ["-machine", "q35", "-smp", str(spec.cpus), "-m", f"{spec.memory_mib}M", "-rtc", "base=utc"]
    argv += ["-accel", "kvm", "-cpu", "host"] if spec.accelerator == "kvm" else []
    argv += ["-accel", "tcg,thread=multi", "-cpu", "max"] if spec.accelerator == "tcg" else []
    for name, descriptor in descriptors.items():
        argv += ["-chardev", f"socket,id={name},fd={descriptor}"]
    argv += ["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console", "-vga", "std"]
    argv += ["-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=report,name={REPORT_PORT}"]
    argv += ["-device", "virtio-rng-pci"]  # old kernels wait for entropy as they boot
    # Only what has a bootindex is booted: no network boot after a disk that does not start.
    argv += ["-boot", "strict=on,menu=off"]
    if spec.firmware == "uefi":
        code, variables = _ovmf()
        own = folder / "variables.fd"
        shutil.copyfile(variables, own)
        argv += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_escaped(code)}"]
        argv += ["-drive", f"if=pflash,unit=1,format=raw,file={_escaped(own)}"]
    else:
        # SeaBIOS shows its screen on this port too (docs/Runtime_config.md of SeaBIOS); a little-endian number.
        port = folder / "sercon-port"
        port.write_bytes((0x3F8).to_bytes(2, "little"))
        argv += ["-fw_cfg", f"name=etc/sercon-port,file={_escaped(port)}"]
    if spec.disk is not None:
        cache = "writeback" if spec.writable and spec.durable else "unsafe"
        argv += [
            "-drive",
            f"if=none,id=disk,driver={driver_of(spec.disk_format)},file.driver=file,"
            f"file.filename={_escaped(spec.disk.absolute())},cache={cache},discard=unmap,"
            f"snapshot={'off' if spec.writable else 'on'}",
        ]
        first = "" if spec.kernel else ",bootindex=0"  # a kernel of its own has that place
        argv += ["-device", f"virtio-blk-pci,drive=disk{first}"]
    for number, (path, kind) in enumerate(spec.data_disks, 1):
        argv += [
            "-drive",
            f"if=none,id=data{number},driver={driver_of(kind)},file.driver=file,"
            f"file.filename={_escaped(path.absolute())},cache=unsafe,discard=unmap,snapshot=on",
        ]
        argv += ["-device", f"virtio-blk-pci,drive=data{number}"]
    if spec.network:
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in spec.forwards)
        argv += ["-netdev", f"user,id=net,restrict={'on' if spec.restricted else 'off'}{forwards}"]
        argv += ["-device", "virtio-net-pci,netdev=net,romfile="]
    if spec.kernel is not None:
        argv += ["-kernel", str(spec.kernel), "-append", spec.command_line]
        argv += ["-initrd", str(spec.initrd)] if spec.initrd else []
    return argv


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _ovmf() -> tuple[Path, Path]:
    for code, variables in _OVMF:
        if Path(code).is_file() and Path(variables).is_file():
            return Path(code), Path(variables)
    raise ProgramNotFound(program="OVMF, the UEFI firmware for QEMU,")

"""An sshd of our own on loopback, with keys and configuration of its own, which leaves the machine's alone."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import time
from pathlib import Path

from demo.registry import free_port
from rehost.run import Process, run, spawn
from rehost.source.connect import SshConnection

_WAIT_SECONDS = 20.0


class Sshd:
    """An sshd with keys and configuration of its own, on a free port of 127.0.0.1. It logs in the present user."""

    host = "127.0.0.1"

    def __init__(self, directory: Path, program: str) -> None:
        if os.geteuid() == 0:
            # Where sshd drops its rights; its package makes the folder at boot.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.directory = directory
        self.identity_file = directory / "identity"
        self.known_hosts = directory / "known_hosts"
        self.port = free_port()
        self._program = program
        self._running = contextlib.ExitStack()
        self._process: Process | None = None
        for name in ("identity", "host_key", "other_key"):
            _keygen(directory / name)
        shutil.copy(directory / "identity.pub", directory / "authorized_keys")
        self.known_hosts.write_text(self.known_host("host_key"))
        (directory / "sshd_config").write_text(
            f"""Port {self.port}
ListenAddress {self.host}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
MaxStartups 100
"""
        )

    def known_host(self, key: str) -> str:
        """The line of a known_hosts file for one of the keys: `host_key` is the true one, `other_key` another."""
        kind, value = (self.directory / f"{key}.pub").read_text().split()[:2]
        return f"[{self.host}]:{self.port} {kind} {value}\n"

    def connection(self, **changed: object) -> SshConnection:
        """The connection to it, with some fields changed."""
        fields: dict[str, object] = {
            "host": self.host,
            "port": self.port,
            "user": _user(),
            "identity_file": str(self.identity_file),
            "known_hosts": str(self.known_hosts),
        }
        return SshConnection.model_validate(fields | changed)

    @property
    def running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    def start(self) -> None:
        """Listen; returns once it answers."""
        assert self._process is None
        argv = [self._program, "-D", "-e", "-f", str(self.directory / "sshd_config")]
        with (self.directory / "log").open("ab") as log:
            self._process = self._running.enter_context(spawn(argv, stdout=log, stderr=log))
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 5) as peer:
                if peer.recv(4) == b"SSH-":
                    return
            if self._process.popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd did not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def descendants(self) -> set[int]:
        """Every process below the listener: sessions, and what runs in them."""
        assert self._process is not None
        found: set[int] = set()
        todo = children(self._process.popen.pid)
        while todo:
            pid = todo.pop()
            found.add(pid)
            todo += children(pid)
        return found

    def kill_sessions(self) -> None:
        """End every connection at once, as if the cable were pulled; the listener goes on."""
        assert self._process is not None
        for pid in self._sessions(self._process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the listener and every connection; nothing answers on the port afterwards."""
        process, self._process = self._process, None
        if process is None:
            return
        process.popen.send_signal(signal.SIGSTOP)  # no new session while the present ones are ended
        for pid in self._sessions(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.popen.kill()
        self._running.close()

    def restart(self) -> None:
        """Kill it, then listen again on the same port with the same keys."""
        self.kill()
        self.start()

    @staticmethod
    def _sessions(process: Process) -> list[int]:
        # With separated rights a session is two processes of sshd, and what they run is not ended here.
        found = children(process.popen.pid)
        return found + [child for pid in found for child in children(pid) if b"sshd" in _command(child)]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def children(pid: int) -> list[int]:
    """The processes that this one started itself."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _keygen(path: Path) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], timeout=30)


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name

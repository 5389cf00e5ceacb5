"""The one place that runs programs.

Every program gets an argv list (no shell reads a word of it), a small environment of its own, standard input from
nothing unless said otherwise, a process group that is ended whatever way the caller leaves, and a time limit. Its
standard error is kept, bounded, for the error message. `setpriv --pdeathsig` ends it with us even when we are killed by
SIGKILL.

Not to be confused with `tasks`: nothing here knows what the programs are for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rehost.errors import ProgramFailed, ProgramNotFound, ProgramTimeout

log = logging.getLogger(__name__)

PIPE = subprocess.PIPE  # what `spawn` takes for a pipe of the caller's

_KEPT_VARIABLES = (
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "DOCKER_HOST",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "XDG_RUNTIME_DIR",
)
_STDERR_KEPT = 16_384  # bytes of a program's standard error that an error message may draw on
_TERM_SECONDS = 5.0  # what a program has after SIGTERM, before SIGKILL
# Who was killed before setpriv had asked for the signal sends none. The program's own words are never read by it.
_UNLESS_ORPHANED = ("sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Completed:
    """A program that ended: its status and what it printed."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every program: a sound PATH, an English and UTF-8 locale, and little else."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    path = os.environ.get("PATH", "")
    directories = [d for d in path.split(":") if d] + [
        "/usr/local/sbin",
        "/usr/sbin",
        "/sbin",
        "/usr/bin",
        "/bin",
    ]
    return {
        **kept,
        "PATH": ":".join(dict.fromkeys(directories)),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        **(extra or {}),
    }


def find(program: str) -> str | None:
    """Where the program is, or None."""
    return shutil.which(program, path=environment()["PATH"])


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> Completed:
    """Run a program to its end and return what it printed.

    `timeout` is in seconds. Raises ProgramNotFound, ProgramTimeout, and (with `check`) ProgramFailed for a status
    other than zero.
    """
    with spawn(argv, stdin=subprocess.PIPE if input is not None else None, env=env, cwd=cwd) as process:
        try:
            stdout, _ = process.popen.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ProgramTimeout(program=argv[0], seconds=timeout) from None
        completed = Completed(tuple(argv), process.popen.returncode, stdout, process.stderr())
    if check and completed.status != 0:
        log.error("failed with status %s: %s", completed.status, " ".join(argv))
        raise ProgramFailed(program=argv[0], status=completed.status, stderr=completed.stderr.strip()[-2000:])
    return completed


class Process:
    """A program under way, as `spawn` gives it."""

    def __init__(self, popen: subprocess.Popen[bytes], argv: Sequence[str]) -> None:
        self.popen = popen
        self.argv = tuple(argv)
        self._stderr = bytearray()
        # Ours alone: Popen.communicate would read it too, and each would get a part.
        self._pipe, popen.stderr = popen.stderr, None
        self._drain = threading.Thread(target=self._keep_stderr, daemon=True)
        self._drain.start()

    def _keep_stderr(self) -> None:
        if self._pipe is None:  # it goes to a file of the caller's
            return
        with contextlib.suppress(ValueError, OSError), self._pipe as pipe:
            while piece := os.read(pipe.fileno(), 65_536):
                self._stderr += piece
                del self._stderr[:-_STDERR_KEPT]

    def stderr(self) -> str:
        """The end of its standard error; complete once the program has ended."""
        if self.popen.poll() is not None:
            self._drain.join(timeout=1.0)
        return bytes(self._stderr).decode("utf-8", "replace")

    @property
    def stdin(self) -> IO[bytes]:
        assert self.popen.stdin is not None
        return self.popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    def wait(self, timeout: float) -> int:
        """The exit status; raises ProgramTimeout after `timeout` seconds."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProgramTimeout(program=self.argv[0], seconds=timeout) from None

    def end(self, grace: float = _TERM_SECONDS) -> None:
        """End the whole process group: SIGTERM, then SIGKILL for who is left of it after `grace` seconds.

        The leader may go before its children have unwound, so that it is the group which is waited for.
        """
        if self._signal(signal.SIGTERM):
            deadline = time.monotonic() + grace
            while time.monotonic() < deadline:
                self.popen.poll()  # a leader that is not reaped would count as alive
                if not self._signal(0):
                    break
                time.sleep(_LOOK_SECONDS)
            self._signal(signal.SIGKILL)
        self.popen.wait()

    def _signal(self, number: int) -> bool:
        """Whether there was anybody in the group to send it to."""
        try:
            os.killpg(self.popen.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


@contextlib.contextmanager
def spawn(
    argv: Sequence[str],
    *,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = subprocess.PIPE,
    stderr: IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[Process]:
    """Start a program; on the way out of the block its whole process group is ended.

    Standard input is nothing, standard output a pipe, unless given; standard error is kept, unless given a file.
    Raises ProgramNotFound.
    """
    found = find(argv[0])
    if found is None:
        raise ProgramNotFound(program=argv[0])
    setpriv = find("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL", "--", *_UNLESS_ORPHANED, str(os.getpid())] if setpriv else []
    log.debug("run: %s", " ".join(argv))
    popen = subprocess.Popen(
        [*guard, found, *argv[1:]],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=subprocess.PIPE if stderr is None else stderr,
        env=environment(env),
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    process = Process(popen, argv)
    try:
        yield process
    finally:
        process.end()
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError, BrokenPipeError):
                    pipe.close()

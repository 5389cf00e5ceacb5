"""Runs the source's own programs, with a bound on their time and on what is kept of their words."""

import os
import select
import signal
import subprocess
import time
from typing import Dict, List, Optional, Tuple

PROGRAM_SECONDS = 60.0
_KEPT = 8192  # bytes of what a program says; of more, the end
_STANDARD = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """Something that cannot be had here; its text says why, for people."""


def environment() -> Dict[str, str]:
    path = os.environ.get("PATH", "")
    # LVM tells of descriptors that it did not open; they are its caller's business.
    return {
        "PATH": path + ":" + _STANDARD if path else _STANDARD,
        "LANG": "C",
        "LC_ALL": "C",
        "HOME": os.environ.get("HOME", "/"),
        "LVM_SUPPRESS_FD_WARNINGS": "1",
    }


def output_of(argv: List[str]) -> bytes:
    """What the program prints. Raises Refused with its last words where it is not there, fails or takes too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=PROGRAM_SECONDS,
        )
    except FileNotFoundError as error:
        raise Refused("there is no program `%s`" % argv[0]) from error
    except subprocess.TimeoutExpired as error:
        raise Refused("`%s` did not end within %d seconds" % (argv[0], PROGRAM_SECONDS)) from error
    if done.returncode != 0:
        raise Refused("`%s`: %s" % (argv[0], last_line(done.stderr) or "status %d" % done.returncode))
    return done.stdout


def last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def shell(text: str, seconds: float) -> Tuple[Optional[int], str]:
    """Run a command of the user's by /bin/sh; its status, or None if it had to be killed, and the end of its words.

    What it left running in the background is not waited for.
    """
    process = subprocess.Popen(
        ["/bin/sh", "-c", text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    said, talks = b"", True
    while process.poll() is None or talks:
        ended = process.returncode is not None
        wait = 0.0 if ended else min(0.1, max(0.0, deadline - time.monotonic()))
        if talks and select.select([process.stdout], [], [], wait)[0]:
            piece = os.read(process.stdout.fileno(), 65536)
            said, talks = (said + piece)[-_KEPT:], bool(piece)
        elif ended:
            break
        elif not talks:
            time.sleep(wait)
        if not ended and time.monotonic() >= deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
            return None, said.decode("utf-8", "replace")
    process.stdout.close()
    return process.returncode, said.decode("utf-8", "replace")

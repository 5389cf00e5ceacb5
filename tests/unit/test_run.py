"""The one place that runs programs: what it promises of argv, environment, time, groups and messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rehost.errors import ProgramFailed, ProgramNotFound, ProgramTimeout
from rehost.run import PIPE, environment, run, spawn

_WAIT_SECONDS = 20.0


def gone(process: int) -> bool:
    """Whether the process has ended; a zombie has."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_no_word_is_read_by_a_shell() -> None:
    words = ["$(id)", "; true", "*", "a b", ""]
    assert run(["printf", "%s\\n", *words], timeout=30).stdout.decode().split("\n")[:-1] == words


def test_a_program_that_fails_tells_the_end_of_what_it_complained_of() -> None:
    with pytest.raises(ProgramFailed) as caught:
        run(["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; echo the cause >&2; exit 3"], timeout=30)
    assert caught.value.facts["status"] == 3
    assert caught.value.message.endswith("the cause")
    assert len(caught.value.message) < 3000
    assert run(["sh", "-c", "exit 3"], timeout=30, check=False).status == 3


def test_a_program_that_is_missing_is_an_error_of_its_own() -> None:
    with pytest.raises(ProgramNotFound, match="no-such-program"):
        run(["no-such-program"], timeout=30)


def test_standard_input_is_nothing_unless_it_is_given() -> None:
    assert run(["cat"], timeout=30).stdout == b""
    assert run(["cat"], timeout=30, input=b"given").stdout == b"given"


def test_the_environment_is_small_and_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_USER", "x")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    told = dict(line.split("=", 1) for line in run(["env"], timeout=30).stdout.decode().splitlines())
    assert "SECRET_OF_THE_USER" not in told
    assert told["LC_ALL"] == "C.UTF-8"
    assert "/usr/sbin" in environment()["PATH"].split(":")


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "child"
    with pytest.raises(ProgramTimeout):
        run(["sh", "-c", f"sleep 600 & echo $! > {note}; wait"], timeout=1)
    assert gone(int(note.read_text()))


def test_a_child_has_its_time_to_unwind_even_where_its_parent_goes_at_once(tmp_path: Path) -> None:
    child = tmp_path / "child.sh"
    child.write_text(
        f"trap 'sleep 0.5; echo unwound > {tmp_path}/done; exit' TERM; echo ready; while :; do sleep 0.05; done"
    )
    with spawn(["sh", "-c", f"trap 'exit 0' TERM; sh {child} & wait"]) as process:
        assert process.stdout.readline() == b"ready\n"
    assert (tmp_path / "done").read_text() == "unwound\n"


def test_what_does_not_hear_sigterm_is_killed() -> None:
    with spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]) as process:
        assert process.stdout.readline() == b"ready\n"
        process.end(grace=0.2)
        assert process.popen.returncode == -signal.SIGKILL


def test_an_interrupt_ends_the_program() -> None:
    with pytest.raises(KeyboardInterrupt), spawn(["sleep", "600"], stdin=PIPE) as process:
        raise KeyboardInterrupt
    assert process.popen.returncode is not None


def test_a_program_does_not_outlive_a_rehost_that_was_killed() -> None:
    code = (
        "from rehost.run import spawn\nwith spawn(['sleep', '600']) as p: print(p.popen.pid, flush=True); p.wait(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(child)

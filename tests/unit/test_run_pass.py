"""Who does a run: the mark that its process leaves, read by others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tasks.run_pass import owner_is_alive, owner_is_dead, sign


def test_a_process_that_died_and_was_not_reaped_yet_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REHOST_HOME", str(tmp_path))
    process = os.fork()
    if process == 0:
        signal.pause()
        os._exit(0)
    sign("r-1", process)
    assert (owner_is_alive("r-1"), owner_is_dead("r-1")) == (True, False)
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)  # it has ended, and is left for a parent to reap
    try:
        assert (owner_is_alive("r-1"), owner_is_dead("r-1")) == (False, True)
    finally:
        os.waitpid(process, 0)

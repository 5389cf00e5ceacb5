"""`rehost up`: a service that ends is started again, and one that ends again and again ends them all."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from rehost.cli import up
from rehost.cli.up import Service, ServiceEnded, Services


def service(tmp_path: Path, script: str) -> Service:
    return Service("worker", ["sh", "-c", script], {}, tmp_path / "worker.log")


def mend_until(running: Services, look: threading.Event | None, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while (look is None or not look.is_set()) and time.monotonic() < deadline:
        running.mend()
        time.sleep(0.01)
    assert look is None or look.is_set(), "it was not started again"


def test_a_service_that_ends_is_started_again_after_what_has_to_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_PAUSES", (0.1, 0.1))
    said: list[str] = []
    again = threading.Event()
    once = service(tmp_path, f"test -e {tmp_path}/begun && exec sleep 60; touch {tmp_path}/begun; exit 7")
    running = Services(threading.Event(), said.append)
    running.add(once, again.set)
    once.start()
    try:
        mend_until(running, again)
        assert once.status() is None
        running.mend()
    finally:
        once.end()
    assert said == [
        "worker ended with status 7; it is started again in 0 s",
        f"worker was started again (log: {once.log})",
    ]


def test_a_service_that_ends_again_and_again_ends_them_all_and_its_log_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_PAUSES", (0.0, 0.0, 0.0))
    broken = service(tmp_path, "echo no port is free; exit 3")
    running = Services(threading.Event(), lambda line: None)
    running.add(broken)
    broken.start()
    try:
        with pytest.raises(ServiceEnded, match=r"status 3.*no port is free"):
            mend_until(running, None)
    finally:
        broken.end()
    assert broken.log.read_text().count("no port is free") == 4


def test_nothing_is_started_again_while_the_services_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_PAUSES", (0.0,))
    stop = threading.Event()
    ended = service(tmp_path, "exit 0")
    running = Services(stop, lambda line: pytest.fail(line))
    running.add(ended)
    ended.start()
    try:
        stop.set()
        mend_until(running, None, 0.5)
    finally:
        ended.end()

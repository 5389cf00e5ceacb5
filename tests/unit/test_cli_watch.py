"""`rehost job watch` and `rehost job logs` against an API that breaks off, refuses, lags and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from rehost.cli import logs, main as cli, watch
from rehost.settings import settings

_JOB = {
    "id": "j-1",
    "name": "web1",
    "status": "Running",
    "business_status": "Syncing",
    "queued": False,
    "progress": 10,
    "eta_seconds": 62,
    "bytes_done": 3 << 20,
    "bytes_total": 6 << 30,
    "bytes_per_second": 2 << 20,
    "status_info": "What the store lacks is being copied.",
    "next_step": "Wait.",
    "next_run_at": None,
    "error": None,
}
_DONE = {**_JOB, "status": "Finished", "business_status": None, "progress": 100, "next_step": "Launch it."}


def event(name: str, id: str, data: dict[str, Any]) -> str:
    return f"event: {name}\nid: {id}\ndata: {json.dumps(data)}\n\n"


def progress(percent: int, **facts: Any) -> str:
    return event(
        "progress", f"p{percent}", {"type": "job.progress", "job_id": "j-1", **_JOB, "progress": percent, **facts}
    )


RESULT = event("result", "r", {"type": "job.result", "job": _DONE})

Answer = tuple[int, str, str]  # status, media type, body


class Api:
    """Answers as the test says: one answer after the other for each path; the last one stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer | Callable[[dict[str, list[str]]], Answer]]] = {}
        self.asked: list[tuple[str, str | None]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                api.asked.append((parts.path, self.headers["Last-Event-ID"]))
                waiting = api.answers[parts.path]
                found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                status, media_type, body = found(parse_qs(parts.query)) if callable(found) else found
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def stream(self, *bodies: str) -> None:
        self.answers["/v1/jobs/j-1/events"] = [(200, "text/event-stream", body) for body in bodies]

    def look(self, *jobs: dict[str, Any]) -> None:
        self.answers["/v1/jobs/j-1"] = [(200, "application/json", json.dumps(job)) for job in jobs]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Api]:
    api = Api()
    monkeypatch.setenv("REHOST_HOME", str(tmp_path))
    monkeypatch.setenv("REHOST_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("REHOST_API_PORT", str(api.server.server_address[1]))
    monkeypatch.setattr(watch, "_SECONDS", 0.01)
    monkeypatch.setattr(logs, "_SECONDS", 0.01)
    settings.cache_clear()
    thread = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield api
    api.server.shutdown()
    thread.join(30)
    api.server.server_close()
    settings.cache_clear()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_stream_that_ends_with_the_result_is_all_that_is_asked_for(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.stream("retry: 2000\n\n" + progress(10) + ": alive\n\n" + progress(11) + RESULT)
    assert cli.main(["job", "watch", "j-1"]) == 0
    told = lines(capsys)
    assert [line.get("progress") for line in told] == [10, 11, None]
    assert told[0]["bytes_per_second"] == 2 << 20
    assert told[-1] == {"type": "job.result", "job": _DONE}
    assert [path for path, _ in api.asked] == ["/v1/jobs/j-1/events"]


def test_a_stream_that_breaks_off_is_taken_up_again_where_it_was(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.stream(progress(10), "", progress(30) + RESULT)
    api.look({**_JOB, "progress": 20}, {**_JOB, "progress": 20})
    assert cli.main(["job", "watch", "j-1", "--json"]) == 0
    assert [line.get("progress") for line in lines(capsys)] == [10, 20, 30, None]
    assert [last for path, last in api.asked if path.endswith("/events")] == [None, "p10", "p10"]


def test_without_a_stream_the_job_is_looked_at(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    full = {"code": "Streams.TooMany", "detail": "There are 200 streams of events already.", "remedy": "Close some."}
    api.answers["/v1/jobs/j-1/events"] = [(429, "application/problem+json", json.dumps(full))]
    api.look({**_JOB, "queued": True, "status": "Ready", "progress": 0}, _JOB, _DONE)
    assert cli.main(["job", "watch", "j-1"]) == 0
    told = lines(capsys)
    assert [(line.get("status"), line.get("progress")) for line in told[:-1]] == [
        ("Ready", 0),
        ("Running", 10),
        ("Finished", 100),
    ]
    assert told[0]["queued"] is True


def test_what_answers_wrongly_is_told_and_not_waited_for(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    gone = {"code": "Job.NotFound", "detail": "There is no job j-1.", "remedy": "List what exists."}
    api.answers["/v1/jobs/j-1/events"] = [(404, "application/problem+json", json.dumps(gone))]
    assert cli.main(["job", "watch", "j-1"]) == 2
    assert "Job.NotFound" in capsys.readouterr().err


def test_an_api_that_stays_away_is_given_up(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("REHOST_API_PORT", str(port))
    monkeypatch.setattr(watch, "_SILENT_LOOKS", 3)
    settings.cache_clear()
    assert cli.main(["job", "watch", "j-1"]) == 75


def test_on_a_terminal_there_is_a_bar_with_bytes_rate_and_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.stream(progress(10, name="web1\x1b[2J") + RESULT)
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
            while piece := os.read(ours, 1 << 16):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        assert cli.main(["job", "watch", "j-1"]) == 0
    reader.join(30)
    os.close(ours)
    shown = b"".join(pieces).decode()
    assert "Syncing" in shown
    assert "3.0 MiB of 6.0 GiB, 2.0 MiB/s, 0:01:02 left" in shown
    assert "web1\x1b[2J" not in shown
    assert "Finished: " in shown


# --- logs -------------------------------------------------------------------------------------------------------


def entry(number: int, message: str, **facts: Any) -> dict[str, Any]:
    time = f"2026-01-02T03:04:{number:02}Z"
    return {
        "id": str(number),
        "time": time,
        "level": "info",
        "run_id": "r-1",
        "stage": "transfer",
        "message": message,
    } | facts


def page(entries: list[dict[str, Any]], cursor: str | None = None) -> Answer:
    return 200, "application/json", json.dumps({"items": entries, "next_cursor": cursor, "total": 9})


def test_a_log_is_printed_page_by_page(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["/v1/jobs/j-1/runs"] = [(200, "application/json", json.dumps({"items": [{"id": "r-1"}]}))]

    def answer(query: dict[str, list[str]]) -> Answer:
        assert (query["run_id"], query["order"], query["level"]) == (["r-1"], ["oldest"], ["warning"])
        if "cursor" not in query:
            return page([entry(1, "begins")], "c1")
        assert query["cursor"] == ["c1"]
        return page([entry(2, "two lines\n2026-01-02 error forged\x1b[2J", stage=None, level="error")])

    api.answers["/v1/jobs/j-1/logs"] = [answer]
    assert cli.main(["job", "logs", "j-1", "--level", "warning"]) == 0
    first, second, further = capsys.readouterr().out.splitlines()
    assert first.split()[2:] == ["info", "transfer", "begins"]
    assert second.split()[2:] == ["error", "-", "two", "lines"]
    assert further.startswith("    2026-01-02 error forged")
    assert "\x1b" not in further
    assert cli.main(["job", "logs", "j-1", "--level", "warning", "--json", "--run", "r-1"]) == 0
    assert [line["id"] for line in lines(capsys)] == ["1", "2"]


def test_a_log_is_followed_until_the_job_rests_and_late_lines_are_not_lost(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answers["/v1/jobs/j-1/runs"] = [
        (200, "application/json", json.dumps({"items": []})),  # it waits for its turn
        (200, "application/json", json.dumps({"items": [{"id": "r-1"}]})),
    ]
    api.look({**_JOB, "queued": True, "status": "Ready"}, _JOB, _JOB, _DONE)
    one, two, three, late = entry(1, "one"), entry(3, "three"), entry(4, "four"), entry(2, "late")
    api.answers["/v1/jobs/j-1/logs"] = [
        page([one]),
        page([one, two]),
        page([one, two]),  # the job rests; the end of its log is still on its way
        page([one, late, two, three]),
    ]
    assert cli.main(["job", "logs", "j-1", "--follow", "--json"]) == 0
    assert [line["message"] for line in lines(capsys)] == ["one", "three", "late", "four"]


def test_a_late_line_of_the_page_before_is_not_lost(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["/v1/jobs/j-1/runs"] = [(200, "application/json", json.dumps({"items": [{"id": "r-1"}]}))]
    api.look(_JOB, _DONE)
    there = [entry(2, "two"), entry(3, "three")]

    def answer(query: dict[str, list[str]]) -> Answer:
        """Pages of one line; a cursor is the number of the last one."""
        after = int(query.get("cursor", ["0"])[0])
        found = [one for one in there if int(one["id"]) > after]
        if len(found) == 1:  # whoever asks for the end has seen the rest
            there[:] = [entry(1, "late"), entry(2, "two"), entry(3, "three")]
        return page(found[:1], found[0]["id"] if len(found) > 1 else None)

    api.answers["/v1/jobs/j-1/logs"] = [answer]
    assert cli.main(["job", "logs", "j-1", "--follow", "--json"]) == 0
    assert [line["message"] for line in lines(capsys)] == ["two", "three", "late"]


def test_a_job_that_has_not_run_has_no_log(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["/v1/jobs/j-1/runs"] = [(200, "application/json", json.dumps({"items": []}))]
    assert cli.main(["job", "logs", "j-1"]) == 2
    assert "no runs yet" in capsys.readouterr().err

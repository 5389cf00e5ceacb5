"""Every error of the API is a problem."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from starlette.types import Message, Receive, Scope, Send

from api import limits
from api.limits import MAX_REQUEST_BYTES
from api.request_ids import LineFormatter, RequestIdFilter
from rehost.catalog.catalog import Catalog
from rehost.settings import Settings
from tests.support.api import JSON, app, catalog, client, empty, orders, refused, settings


def test_errors_of_the_framework_are_problems_too(empty: TestClient) -> None:
    refused(empty.get("/v1/nothing"), 404, "Route.NotFound")
    refused(empty.get("/v1/sources/"), 404, "Route.NotFound")
    assert empty.put("/v1/sources").headers["allow"] == "GET, HEAD, OPTIONS, POST"
    refused(empty.put("/v1/sources"), 405, "Method.NotAllowed")
    for content in (b"{", b"", b"\xff\xfe", b"[" * 100_000):
        refused(empty.post("/v1/sources", content=content, headers=JSON), 422, "InvalidParameter")
    refused(
        empty.post("/v1/sources", content=b"{}", headers={"Content-Type": "text/plain"}), 415, "MediaType.Unsupported"
    )
    refused(empty.post("/v1/sources", content=b"{}"), 415, "MediaType.Unsupported")
    refused(empty.post("/v1/sources", json=["x"]), 422, "InvalidParameter")


@pytest.mark.parametrize(
    "content",
    [
        b'{"connection": {"kind": "path", "root": "/x"}, "name": "a1", "name": "b1"}',
        b'{"connection": {"kind": "ssh", "host": "h", "port": NaN}}',
        b'{"connection": {"kind": "ssh", "host": "h", "port": -Infinity}}',
        b'{"connection": {"kind": "ssh", "host": "h", "port": ' + b"9" * 5000 + b"}}",
        b'{"connection": {"kind": "ssh", "host": "h", "port": ' + b"9" * 100 + b"}}",
        b'{"connection": {"kind": "ssh", "host": "h", "port": 1e999}}',
        b'{"connection": {"kind": "path", "root": "/\\u0000"}}',
        b'{"connection": {"kind": "path", "root": "/\\ud800"}}',
        b'{"connection": {"kind": "path", "root": "/"}, "tags": {"\\ud800": "\\u0000"}}',
        b'{"connection": {"kind": "path", "root": "/\xff"}}',
        b'{"tags": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=lambda content: content[:70].decode("latin1"),
)
def test_json_that_is_none_or_ambiguous_is_refused(empty: TestClient, content: bytes) -> None:
    refused(empty.post("/v1/sources", content=content, headers=JSON), 422, "InvalidParameter")


def test_odd_requests_are_answered_like_any_other(empty: TestClient) -> None:
    refused(empty.get("/v1/jobs/%00"), 404, "Route.NotFound")
    refused(empty.get("/v1/jobs/%ff%fe"), 404, "Job.NotFound")
    refused(empty.get("/v1/jobs?name=%00"), 422, "InvalidParameter")
    refused(empty.get("/v1/jobs?name=" + "x" * 9000), 414, "Uri.TooLong")
    refused(empty.get("/v1/jobs/" + "x" * 9000), 414, "Uri.TooLong")
    assert empty.request("GET", "/v1/jobs", content=b"{", headers=JSON).status_code == 200
    assert empty.request("GET", "/v1/jobs", content=b"not looked at").status_code == 200
    refused(empty.request("BREW", "/v1/jobs"), 405, "Method.NotAllowed")
    assert empty.request("TRACE", "/v1/jobs").status_code == 405


def test_head_is_a_get_without_its_body_and_options_names_the_methods(empty: TestClient) -> None:
    shown, asked = empty.get("/v1/jobs"), empty.head("/v1/jobs")
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-length"] == shown.headers["content-length"]
    assert empty.head("/v1/jobs/j-none").status_code == 404
    options = empty.options("/v1/jobs")
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", "GET, HEAD, OPTIONS, POST")
    refused(empty.options("/v1/nothing"), 404, "Route.NotFound")


def test_a_request_keeps_its_id_in_headers_problems_and_the_log(
    empty: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    given = "trace-1.2_3"
    with caplog.at_level(logging.INFO, "api.access"):
        answer = empty.get("/v1/jobs/a%0Ab?secret=1", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == given
    [line] = [record.getMessage() for record in caplog.records if record.name == "api.access"]
    assert 'method="GET" path="/v1/jobs/a\\nb" status=422' in line
    assert "secret" not in line
    made = {
        empty.get("/v1/jobs", headers={"X-Request-Id": bad}).headers["x-request-id"] for bad in ("", "a b", "x" * 129)
    }
    assert len(made) == 3
    assert all(len(id) == 16 for id in made)


def test_a_line_of_the_log_stays_one_line(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.LogRecord("api", logging.INFO, __file__, 1, "path %s", ("a\n2026 ERROR forged\x1b[31m",), None)
    assert RequestIdFilter().filter(record)
    line = LineFormatter("%(levelname)s request_id=%(request_id)s %(message)s").format(record)
    assert line == "INFO request_id=- path a\\n2026 ERROR forged\\x1b[31m"


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)
    sent: list[Message] = []

    async def nothing() -> Message:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        sent.append(message)

    async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the request is not passed on")

    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": []}
    anyio.run(limits.RequestLimits(never), scope, nothing, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "Request.Timeout"


def test_a_request_that_is_too_large_is_refused_before_it_is_read(empty: TestClient) -> None:
    large = b" " * (MAX_REQUEST_BYTES + 1)
    refused(empty.post("/v1/sources", content=large, headers=JSON), 413, "Request.TooLarge")

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    refused(empty.post("/v1/sources", content=pieces(), headers=JSON), 413, "Request.TooLarge")
    refused(empty.post("/v1/sources", content=b" " * MAX_REQUEST_BYTES, headers=JSON), 422, "InvalidParameter")


def test_what_nobody_foresaw_is_a_problem_that_tells_nothing_inner(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Catalog, _id: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Catalog, "source", broken)
    answer = client.get("/v1/sources/s-1")
    refused(answer, 500, "Internal")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_a_catalog_that_is_away_is_told(client: TestClient, settings: Settings, catalog: Catalog) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    with catalog._database.write() as session:
        session.execute(text("DROP TABLE schema_version"))
    answer = client.get("/healthz")
    refused(answer, 503, "Catalog.Unavailable")
    assert answer.headers["retry-after"]

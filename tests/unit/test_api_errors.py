"""Every error of the API is a problem."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.limits import MAX_REQUEST_BYTES
from rehost.catalog.catalog import Catalog
from rehost.settings import Settings
from tests.support.api import JSON, app, catalog, client, empty, orders, refused, settings


def test_errors_of_the_framework_are_problems_too(empty: TestClient) -> None:
    refused(empty.get("/v1/nothing"), 404, "Route.NotFound")
    refused(empty.get("/v1/sources/"), 404, "Route.NotFound")
    assert empty.put("/v1/sources").headers["allow"] == "GET, POST"
    refused(empty.put("/v1/sources"), 405, "Method.NotAllowed")
    for content in (b"{", b"", b"\xff\xfe", b"[" * 100_000):
        refused(empty.post("/v1/sources", content=content, headers=JSON), 422, "InvalidParameter")
    refused(empty.post("/v1/sources", content=b"{}", headers={"Content-Type": "text/plain"}), 422, "InvalidParameter")
    refused(empty.post("/v1/sources", json=["x"]), 422, "InvalidParameter")


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


def test_a_catalog_that_is_away_is_told(client: TestClient, settings: Settings, catalog: Catalog) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    with catalog._database.write() as session:
        session.execute(text("DROP TABLE schema_version"))
    answer = client.get("/healthz")
    refused(answer, 503, "Catalog.Unavailable")
    assert answer.headers["retry-after"]

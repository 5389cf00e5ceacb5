"""Who may ask the API, and where it listens."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.serve import check_bind_address
from rehost.errors import InvalidParameter
from rehost.settings import Settings
from tests.support.api import app, client, empty, orders, refused, settings


def test_with_keys_only_who_has_one_is_answered(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api_keys=("first-key", "zweiter-schlüssel"))
    with TestClient(create_app(settings), base_url="http://rehost.example.org") as client:
        answer = client.get("/v1/sources")
        refused(answer, 401, "Unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer first-ke", "Bearer ", "Basic first-key", "first-key"):
            refused(client.get("/v1/sources", headers={"Authorization": wrong}), 401, "Unauthenticated")
        assert client.get("/v1/sources", headers={"Authorization": "Bearer first-key"}).status_code == 200
        refused(client.post("/v1/sources", content=b"{"), 401, "Unauthenticated")
        assert client.get("/healthz").status_code == 200


def test_without_keys_only_this_machine_by_its_own_name_is_answered(app: FastAPI) -> None:
    with TestClient(app) as client:
        for host, status in (
            ("127.0.0.1:8420", 200),
            ("localhost", 200),
            ("[::1]:8420", 200),
            ("[::1]", 200),
            ("evil.example.org", 403),
            ("127.0.0.1.evil.example.org:8420", 403),
        ):
            assert client.get("/v1/sources", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 422),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1"}, 422),
        ({"Sec-Fetch-Site": "none"}, 422),
        ({"Origin": "http://127.0.0.1"}, 422),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "https://evil.example.org"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
    ids=str,
)
def test_pages_of_other_sites_change_nothing(empty: TestClient, headers: dict[str, str], status: int) -> None:
    assert empty.post("/v1/sources", json={}, headers=headers).status_code == status
    assert empty.get("/v1/sources", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "keys", "served"), [("127.0.0.1", (), True), ("0.0.0.0", (), False), ("0.0.0.0", ("k",), True)]
)
def test_another_bind_address_is_refused_without_a_key(
    tmp_path: Path, host: str, keys: tuple[str, ...], served: bool
) -> None:
    settings = Settings(home=tmp_path, api_host=host, api_keys=keys)
    if served:
        check_bind_address(settings)
    else:
        with pytest.raises(InvalidParameter, match="REHOST_API_KEYS"):
            check_bind_address(settings)


def test_keys_are_a_list_by_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REHOST_API_KEYS", "one, two,,")
    assert Settings(home=tmp_path).api_keys == ("one", "two")
    monkeypatch.delenv("REHOST_API_KEYS")
    assert Settings(home=tmp_path).api_keys == ()


def test_the_document_of_the_api_describes_every_route(empty: TestClient) -> None:
    document = empty.get("/openapi.json").json()
    assert {"/v1/sources", "/v1/jobs/{id}/start", "/v1/images/{id}", "/v1/regions", "/healthz"} <= set(
        document["paths"]
    )
    fields = document["components"]["schemas"]["JobSpec"]["properties"]
    assert {"targets", "disks", "incremental", "valid_until"} <= set(fields)

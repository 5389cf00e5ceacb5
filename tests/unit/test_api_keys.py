"""Keys of the API: scopes, hashes, what is remembered of them, and how many wrong ones are looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pydantic
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text, update

from api.app import create_app
from api.dependencies import get_orchestration
from api.security import MAX_FAILURES, Failures, scope_needed
from api.serve import check_bind_address
from rehost.catalog.catalog import Catalog
from rehost.catalog.scopes import Scope
from rehost.catalog.tables import ApiKeyRow
from rehost.cli import main as cli
from rehost.cli.client import Client
from rehost.errors import ApiKeyDuplicate, ApiKeyNotFound, InvalidParameter, TooManyRequests
from rehost.settings import Settings
from tests.support.api import Orders, refused

Keys = dict[Scope, str]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)
    app.dependency_overrides[get_orchestration] = Orders
    with TestClient(app, base_url="http://rehost.example.org", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def keys(settings: Settings, client: TestClient) -> Keys:
    with Catalog.open(settings) as catalog:
        return {scope: catalog.add_api_key(f"for {scope}", scope) for scope in Scope}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/v1/jobs", Scope.READ),
        ("HEAD", "/v1/images/m-1/disks/0", Scope.READ),
        ("POST", "/v1/jobs", Scope.RUN),
        ("POST", "/v1/jobs/start", Scope.RUN),
        ("POST", "/v1/jobs/j-1/cut-over", Scope.RUN),
        ("PATCH", "/v1/jobs/j-1", Scope.RUN),
        ("POST", "/v1/sources/s-1/discover", Scope.RUN),
        ("POST", "/v1/sources", Scope.ADMIN),
        ("PATCH", "/v1/sources/s-1", Scope.ADMIN),
        ("DELETE", "/v1/jobs/j-1", Scope.ADMIN),
        ("DELETE", "/v1/images/m-1", Scope.ADMIN),
        ("PATCH", "/v1/images/m-1", Scope.ADMIN),
        ("POST", "/v1/something-new", Scope.ADMIN),
    ],
)
def test_each_request_needs_a_scope_and_the_larger_ones_have_it(
    client: TestClient, keys: Keys, method: str, path: str, needed: Scope
) -> None:
    assert scope_needed(method, path) is needed
    for scope, key in keys.items():
        answer = client.request(method, path, headers=bearer(key))
        if scope.covers(needed):
            assert answer.status_code not in (401, 403), answer.text
        elif path != "/v1/something-new":
            told = refused(answer, 403, "Forbidden")
            assert f"scope {scope}, and this needs {needed}" in told["detail"]


def test_the_document_names_the_scope_of_each_operation(client: TestClient) -> None:
    paths = client.app.openapi()["paths"]  # type: ignore[attr-defined]
    assert paths["/v1/jobs"]["post"]["security"] == [{"key": ["run"]}]
    assert paths["/v1/sources"]["post"]["security"] == [{"key": ["admin"]}]
    assert all(
        operation["security"] for path, of in paths.items() if path.startswith("/v1") for operation in of.values()
    )


def test_of_a_key_its_hash_alone_is_kept_and_its_use_to_the_minute(
    client: TestClient, keys: Keys, settings: Settings
) -> None:
    with Catalog.open(settings) as catalog:
        [one] = [key for key in catalog.api_keys() if key.scope is Scope.READ]
        assert one.hash == hashlib.sha256(keys[Scope.READ].encode()).hexdigest()
        assert one.last_used_at is None
        stored = (settings.home / "catalog.db").read_bytes() + (settings.home / "catalog.db-wal").read_bytes()
        assert not any(key.encode() in stored for key in keys.values())

        def used() -> object:
            assert client.get("/v1/jobs", headers=bearer(keys[Scope.READ])).status_code == 200
            return next(key.last_used_at for key in catalog.api_keys() if key.scope is Scope.READ)

        first = used()
        assert first is not None and used() == first
        with catalog._database.write() as session:
            earlier = catalog.api_keys()[1].created_at - timedelta(minutes=2)
            session.execute(update(ApiKeyRow).values(last_used_at=earlier))
        assert used() != earlier
        catalog.remove_api_key("for read")
        refused(client.get("/v1/jobs", headers=bearer(keys[Scope.READ])), 401, "Unauthenticated")
        with pytest.raises(ApiKeyNotFound):
            catalog.remove_api_key("for read")
        with pytest.raises(ApiKeyDuplicate):
            catalog.add_api_key("for run", Scope.READ)


def test_many_wrong_keys_are_not_looked_at_any_more(client: TestClient, keys: Keys) -> None:
    for _ in range(3):  # to ask without a key is no guess
        refused(client.get("/v1/jobs"), 401, "Unauthenticated")
    for _ in range(MAX_FAILURES):
        refused(client.get("/v1/jobs", headers=bearer("guess")), 401, "Unauthenticated")
    answer = client.get("/v1/jobs", headers=bearer("guess"))
    refused(answer, 429, "TooManyRequests")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    refused(client.get("/v1/jobs", headers=bearer(keys[Scope.READ])), 429, "TooManyRequests")
    refused(client.get("/v1/jobs"), 401, "Unauthenticated")
    assert client.get("/healthz").status_code == 200


def test_the_memory_of_wrong_keys_is_bounded_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1000.0
    monkeypatch.setattr("api.security.time.monotonic", lambda: moment)
    monkeypatch.setattr("api.security._MAX_CLIENTS", 5)
    failures = Failures()
    for _ in range(MAX_FAILURES):
        failures.add("one")
    with pytest.raises(TooManyRequests):
        failures.check("one")
    failures.check("two")
    moment += 61
    failures.check("one")
    failures.add("one")
    failures.check("one")
    for number in range(50):
        failures.add(f"client {number}")
    assert len(failures._since) == 5


def test_a_key_lets_the_api_listen_and_its_removal_does_not_open_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api_host="0.0.0.0")
    with pytest.raises(InvalidParameter, match="rehost key add"):
        check_bind_address(settings)
    with Catalog.open(settings) as catalog:
        catalog.add_api_key("one", Scope.READ)
        check_bind_address(settings)
        catalog.remove_api_key("one")
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        refused(client.get("/v1/jobs"), 401, "Unauthenticated")


def test_a_configured_key_may_be_a_hash_and_in_the_file_has_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = "sha256:" + hashlib.sha256(b"secret").hexdigest()
    settings = Settings(home=tmp_path, api_keys=(hashed, "plain"))
    assert settings.key_to_send == "plain"
    with TestClient(create_app(settings), base_url="http://rehost.example.org") as client:
        for key, status in (("secret", 200), ("plain", 200), (hashed, 401), (hashed[7:], 401)):
            assert client.get("/v1/jobs", headers=bearer(key)).status_code == status
    file = tmp_path / "rehost.toml"
    monkeypatch.setenv("REHOST_CONFIG", str(file))
    file.write_text(f'api_keys = ["{hashed}"]\n')
    assert Settings(home=tmp_path).api_keys == (hashed,)
    assert Settings(home=tmp_path).key_to_send is None
    for wrong in ('api_keys = ["plain"]', 'api_keys = "plain"', 'api_keys = ["sha256:12"]', 'api_key = "plain"'):
        file.write_text(wrong)
        with pytest.raises(pydantic.ValidationError):
            Settings(home=tmp_path)
    file.write_text("")
    monkeypatch.setenv("REHOST_API_KEY", "mine")
    assert Settings(home=tmp_path).key_to_send == "mine"
    client_of_it = Client(Settings(home=tmp_path))
    assert client_of_it._http.headers["authorization"] == "Bearer mine"
    client_of_it.close()


def test_keys_are_made_listed_and_removed_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rehost.cli.own.settings", lambda: Settings(home=tmp_path / "home"))
    assert cli.main(["key", "add", "ci", "--scope", "run", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key"].startswith("rehost_") and len(made["key"]) > 45
    assert cli.main(["key", "add", "ci", "--scope", "read"]) == 11
    assert cli.main(["key", "add", "look", "--scope", "read"]) == 0
    assert capsys.readouterr().out.startswith("rehost_")
    assert cli.main(["key", "list", "--json"]) == 0
    shown = capsys.readouterr().out
    assert [(key["name"], key["scope"]) for key in json.loads(shown)["items"]] == [("ci", "run"), ("look", "read")]
    assert made["key"] not in shown and "hash" not in shown
    assert cli.main(["key", "list"]) == 0
    assert "never" in capsys.readouterr().out
    assert cli.main(["key", "remove", "ci"]) == 0
    assert cli.main(["key", "remove", "ci"]) == 2
    with Catalog.open(Settings(home=tmp_path / "home")) as catalog, catalog._database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM api_keys")) == 1

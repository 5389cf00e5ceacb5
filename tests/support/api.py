"""Fixtures for tests of the API: a real catalog, a real `path` source, a stand-in for what it asks of Prefect.

A test module imports the fixtures that it uses, and those that they use in turn:

    from tests.support.api import Orders, app, catalog, client, created, orders, refused, settings, source_id, tree
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import compile_path

from api.app import create_app
from api.dependencies import get_orchestration
from api.problems import MEDIA_TYPE
from rehost.catalog.catalog import Catalog
from rehost.errors import OrchestrationAway
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory

JSON = {"Content-Type": "application/json"}
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "remedy", "retryable", "request_id", "errors"}


@dataclass
class Orders:
    """Stands in for flows.orchestration: writes down what is asked, or is away.

    Every function of the orchestration is answered, those that are not named here too: with what `answers` holds for
    it, a value or a function of the same arguments, else None.
    """

    asked: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    answers: dict[str, Any] = field(default_factory=dict)

    def _ask(self, what: str, which: Any, facts: dict[str, Any]) -> None:
        if what in self.away:
            raise OrchestrationAway(url="http://prefect", reason="refused")
        self.asked.append((what, which, facts))

    async def start_run(self, job_id: str, **facts: Any) -> str:
        self._ask("start_run", job_id, facts)
        return self._flow_run()

    def _flow_run(self) -> str:
        return f"flow-{len(self.asked)}"

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def ask(*which: Any, **facts: Any) -> Any:
            self._ask(name, which[0] if len(which) == 1 else which, facts)
            answer = self.answers.get(name, self._flow_run() if name.startswith("start_") else None)
            return answer(*which, **facts) if callable(answer) else answer

        return ask

    def names(self) -> list[str]:
        return [name for name, _, _ in self.asked]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def orders() -> Orders:
    return Orders()


@pytest.fixture
def app(settings: Settings, orders: Orders) -> FastAPI:
    app = create_app(settings)
    app.dependency_overrides[get_orchestration] = lambda: orders
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An API for requests that are refused: nothing is ever stored in it."""
    app = create_app(Settings(home=tmp_path_factory.mktemp("empty")))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def catalog(app: FastAPI, client: TestClient) -> Catalog:
    found = app.state.catalog
    assert isinstance(found, Catalog)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "web1"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("web1\n")
    (root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    (root / "bin").mkdir()
    return root


@pytest.fixture
def source_id(catalog: Catalog, tree: Path) -> str:
    """A source that was discovered before."""
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    return catalog.add_source(PathConnection(root=str(tree)), inventory).id


def job_body(source_id: str, **fields: Any) -> dict[str, Any]:
    return {"source_id": source_id, "region_id": "local", **fields}


def created(client: TestClient, source_id: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=job_body(source_id, **fields))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The problem that was answered; it is whole, and the document of the API has its code for that operation."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == MEMBERS
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["remedy"]
    if code in {"Route.NotFound", "Method.NotAllowed"}:
        return dict(body)  # of no operation
    told = told_codes(answer.request.method, answer.request.url.path)
    assert told is None or code in told, f"{answer.request.method} {answer.request.url.path} does not document {code}"
    return dict(body)


def told_codes(method: str, path: str) -> set[str] | None:
    """The codes that the document of the API has for an operation; None where there is no such operation."""
    for template, operations in _document()["paths"].items():
        if method.lower() in operations and compile_path(template)[0].match(path):
            answers = operations[method.lower()]["responses"].values()
            return {
                code for answer in answers for code in answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
            }
    return None


@functools.cache
def _document() -> dict[str, Any]:
    return create_app(Settings(home=Path("/nowhere"))).openapi()

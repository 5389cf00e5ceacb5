"""The API answers what its OpenAPI document says, whatever it is asked; on both databases.

Requests are made of the document by schemathesis: right ones, and ones that are wrong in some place. Half of them get
ids that exist. Connections lead to a small tree, or nowhere; what the API asks of Prefect is written down by a
stand-in. REHOST_FUZZ_EXAMPLES sets how many requests are made of each operation.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings as example_settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api import look, registration
from api.app import create_app
from api.dependencies import get_orchestration
from rehost.catalog.catalog import Catalog
from rehost.catalog.log_entries import LogEntry
from rehost.catalog.records import Figures, Page
from rehost.errors import SourceUnreachable
from rehost.settings import Settings
from rehost.source.connect import PathConnection, open_session
from rehost.source.inventory import Inventory
from rehost.verification.report import VerificationReport
from tests.support.api import Orders, job_body

EXAMPLES = int(os.environ.get("REHOST_FUZZ_EXAMPLES", "6"))
CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STREAMS = {"follow_job"}  # it ends with the run that it follows
_DOCUMENT = create_app(Settings(home=Path("/nowhere"))).openapi()
_SCHEMA = schemathesis.openapi.from_dict(_DOCUMENT)
_OPERATIONS = [
    (path, method.upper(), operation["operationId"])
    for path, operations in _DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if operation["operationId"] not in STREAMS
]


class Served:
    """An API with something of every kind in it."""

    def __init__(self, client: TestClient, catalog: Catalog, tree: Path) -> None:
        self.client, self.catalog, self.tree = client, catalog, tree
        source = self.source()
        body = job_body(source, incremental={"interval_hours": 6}, verification={"enabled": False})
        job = client.post("/v1/jobs", json=body).json()["id"]
        begun = client.get(f"/v1/jobs/{job}/runs").json()["items"][0]
        run = catalog.claim_run(job, flow_run_id=begun["flow_run_id"])
        image = catalog.add_image(job, run.id, Figures(), id="m-" + "a" * 20, kind="disk", name="web")
        report = VerificationReport(subject="bios", status="succeeded")
        catalog.add_verification(job, run.id, image.id, report)
        catalog.finish_run(run.id)
        self.verifications = [one.id for one in catalog.verifications(job).items]
        for mode in ("create_only", "now"):
            client.post("/v1/jobs", json=job_body(self.source(), execution={"mode": mode}))

    def source(self) -> str:
        inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
        return self.catalog.add_source(PathConnection(root=str(self.tree)), inventory).id

    def ids(self, path: str) -> list[str]:
        if path.startswith("/v1/jobs"):
            return [job.id for job in self.catalog.jobs(limit=50).items]
        if path.startswith("/v1/sources"):
            return [source.id for source in self.catalog.sources(limit=50).items]
        if path.startswith("/v1/images"):
            return [image.id for image in self.catalog.images(limit=50).items]
        return self.verifications

    def with_real_ids(self, case: Case[Any]) -> None:
        """Every other request names what there is; which one hangs on the request alone."""
        chosen = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode("utf-8", "surrogatepass"))
        if chosen % 2:
            return
        if case.path_parameters and "id" in case.path_parameters and (ids := self.ids(case.path)):
            case.path_parameters["id"] = ids[chosen // 2 % len(ids)]
        if isinstance(case.body, dict) and "source_id" in case.body:
            case.body["source_id"] = self.source()
            case.body["region_id"] = "local"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    tree = tmp_path_factory.mktemp("tree")
    (tree / "etc").mkdir()
    (tree / "etc/hostname").write_text("web1\n")
    with contextlib.ExitStack() as stack:
        url = None
        if request.param == "postgresql":
            url = stack.enter_context(_database(request))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (registration, look):
            patch.setattr(module, "open_session", _to_the_tree(tree))
        app = create_app(Settings(home=home, database_url=url))
        orders = Orders(answers={"workers_online": 1, "read_logs": Page[LogEntry](items=(), total=0)})
        app.dependency_overrides[get_orchestration] = lambda: orders
        client = stack.enter_context(
            TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False)
        )
        yield Served(client, _catalog(app), tree)


@contextlib.contextmanager
def _database(request: pytest.FixtureRequest) -> Iterator[str]:
    server = request.getfixturevalue("_postgresql_server")
    if not server.running:
        server.start()
    with server.database() as name:
        yield server.url(name)


def _catalog(app: FastAPI) -> Catalog:
    found = app.state.catalog
    assert isinstance(found, Catalog)
    return found


def _to_the_tree(tree: Path) -> Any:
    def opened(connection: Any, **named: Any) -> Any:
        if len(repr(connection)) % 3 == 0:
            raise SourceUnreachable(host="web1", reason="no route")
        return open_session(PathConnection(root=str(tree)), **named)

    return opened


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("path", "method", "name"), _OPERATIONS, ids=[name for _, _, name in _OPERATIONS])
def test_an_operation_answers_as_its_document_says(served: Served, path: str, method: str, name: str) -> None:
    operation = _SCHEMA[path][method]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @given(case=operation.as_strategy(generation_mode=mode))
        @example_settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        def ask(case: Case[Any]) -> None:
            served.with_real_ids(case)
            sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
            sent.pop("cookies", None)
            answer = served.client.request(**sent)
            if answer.status_code not in (204, 304):
                assert "x-request-id" in answer.headers
            case.validate_response(answer, checks=CHECKS)

        with contextlib.suppress(Unsatisfiable):  # nothing of such an operation can be wrong
            ask()


def test_every_operation_is_told_whole() -> None:
    names = [operation["operationId"] for of in _DOCUMENT["paths"].values() for operation in of.values()]
    assert len(names) == len(set(names))
    for path, operations in _DOCUMENT["paths"].items():
        for method, operation in operations.items():
            told = f"{method} {path}"
            assert operation["summary"] and operation["description"] and operation["tags"], told
            for status, answer in operation["responses"].items():
                assert "X-Request-Id" in answer["headers"], told
                problem = answer.get("content", {}).get("application/problem+json")
                assert problem is None or problem["examples"], f"{told} {status} names no code"
                assert int(status) < 400 or problem is not None, f"{told} {status} is no problem"
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                assert _has_example(body), f"{told} has no example of its body"


def _has_example(body: dict[str, Any]) -> bool:
    schemas = [body["schema"], *body["schema"].get("anyOf", [])]
    named = [_DOCUMENT["components"]["schemas"].get(one.get("$ref", "").rpartition("/")[2], {}) for one in schemas]
    return any("examples" in place or "example" in place for place in (body, *schemas, *named))

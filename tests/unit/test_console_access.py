"""Who gets into the console, and whose forms it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.console.access import COOKIE
from api.console.pages import local_path
from api.console.sessions import MAX_SESSIONS, Flash, Sessions
from rehost.catalog.job import JobSpec
from rehost.catalog.scopes import Scope
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.api import tree
from tests.support.pages import Page

__all__ = ["tree"]

KEY = "a-key-of-this-test"
HERE = {"Origin": "http://127.0.0.1"}


@pytest.fixture
def open_console(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=tmp_path)), base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(Settings(home=tmp_path, api_keys=(KEY,)))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


def test_without_keys_the_console_is_open_to_this_machine_alone(open_console: TestClient) -> None:
    answer = open_console.get("/")
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    for name in ("rehost.example.org", "127.0.0.1.example.org", "evil:8420"):
        refused = open_console.get("/", headers={"Host": name})
        assert refused.status_code == 403 and "Forbidden" in refused.text
    assert open_console.get("/login").headers["location"] == "/"


def test_a_form_of_another_site_or_of_another_session_does_nothing(open_console: TestClient) -> None:
    token = Page(open_console.get("/sources/new").text).token()
    good = {"_token": token, "/connection/kind": "path", "/connection/root": "relative"}
    for headers in ({}, {"Origin": "http://evil"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9999"}):
        answer = open_console.post("/sources/new", data=good, headers=headers)
        assert answer.status_code == 403 and "Form.Refused" in answer.text, headers
    for forged in (
        {**good, "_token": "wrong"},
        {**good, "_token": "ü"},
        {k: v for k, v in good.items() if k[0] == "/"},
    ):
        answer = open_console.post("/sources/new", data=forged, headers=HERE)
        assert answer.status_code == 403 and "Form.Refused" in answer.text
    assert open_console.post("/sources/new", data=good, headers=HERE).status_code == 422  # taken, and judged
    open_console.cookies.clear()
    assert open_console.post("/sources/new", data=good, headers=HERE).status_code == 403


def test_with_keys_every_page_asks_for_one_and_the_cookie_holds_none(locked: TestClient) -> None:
    for path in ("/", "/sources", "/sources/new", "/images", "/jobs/new"):
        answer = locked.get(path)
        assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/login")
        assert "set-cookie" not in answer.headers
    assert locked.post("/sources/new", data={}, headers=HERE).headers["location"] == "/login"
    page = Page(locked.get("/login?next=/sources").text)
    assert page.faults() == []
    wrong = locked.post("/login", data={"key": "x" + KEY, "next": "/sources"}, headers=HERE)
    assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
    assert locked.post("/login", data={"key": KEY}, headers={"Origin": "http://evil"}).status_code == 403
    entered = locked.post("/login", data={"key": f" {KEY} ", "next": "/sources"}, headers=HERE)
    assert (entered.status_code, entered.headers["location"]) == (303, "/sources")
    assert KEY not in entered.headers["set-cookie"]
    assert locked.get("/sources").status_code == 200


def test_logging_out_ends_the_session_for_whoever_has_the_cookie(locked: TestClient) -> None:
    locked.post("/login", data={"key": KEY}, headers=HERE)
    cookie = locked.cookies[COOKIE]
    page = Page(locked.get("/").text)
    assert page.faults() == []
    assert locked.post("/logout", data={"_token": page.token()}, headers=HERE).headers["location"] == "/login"
    locked.cookies.set(COOKIE, cookie)
    assert locked.get("/").status_code == 303


def test_a_cookie_that_nobody_gave_opens_nothing(locked: TestClient) -> None:
    locked.cookies.set(COOKIE, "made-up")
    assert locked.get("/").status_code == 303


@pytest.mark.parametrize(
    ("asked", "gone_to"),
    [
        ("/jobs/j-1?x=1", "/jobs/j-1?x=1"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("", "/"),
    ],
)
def test_after_logging_in_one_stays_on_this_site(asked: str, gone_to: str) -> None:
    assert local_path(asked) == gone_to


def test_sessions_are_bounded_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    first = sessions.begin(None)
    assert sessions.find(first.id) is first
    for _ in range(MAX_SESSIONS):
        sessions.begin(None)
    assert sessions.find(first.id) is None
    last = sessions.begin("hash")
    monkeypatch.setattr("api.console.sessions.time.monotonic", lambda: last.ends + 1)
    assert sessions.find(last.id) is None
    for _ in range(1000):
        last.flash(Flash("good", "again"))
    assert len(last.take_flashes()) < 100 and last.take_flashes() == []


def test_a_key_that_may_only_look_has_no_buttons_and_one_that_may_run_deletes_nothing(
    open_console: TestClient, tree: Path
) -> None:
    catalog = open_console.app.state.catalog  # type: ignore[attr-defined]
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    source = catalog.add_source(PathConnection(root=str(tree)), inventory)
    job = catalog.create_job(JobSpec(source_id=source.id, region_id="local", name="web1-move"))
    pages = ("/", "/sources", f"/sources/{source.id}", "/images", f"/jobs/{job.id}")
    for scope in Scope:
        key = catalog.add_api_key(scope.value, scope)
        open_console.cookies.clear()
        assert open_console.post("/login", data={"key": key}, headers=HERE).status_code == 303
        shown = [Page(open_console.get(path).text) for path in pages]
        posts = {form["action"] for page in shown for form in page.all("form") if form["method"] == "post"}
        links = {link["href"] for page in shown for link in page.all("a")}
        closed = {Scope.READ: ["start", "stop", "delete"], Scope.RUN: ["delete"], Scope.ADMIN: []}[scope]
        for action in closed:
            data = {"_token": shown[0].token()}
            answer = open_console.post(f"/jobs/{job.id}/{action}", data=data, headers=HERE)
            assert answer.status_code == 403 and f"has the scope {scope}" in answer.text
            assert open_console.get(f"/jobs/{job.id}/{action}").status_code == 403  # nor is one asked whether to
        mark = open_console.post("/images/m-0/use", data={"_token": shown[0].token(), "in_use": "true"}, headers=HERE)
        assert mark.status_code == (404 if scope is Scope.ADMIN else 403)  # as PATCH /v1/images/{id}
        if scope is Scope.READ:
            assert posts == {"/logout"}
        assert (f"/jobs/{job.id}/start" in posts) == (scope is not Scope.READ)
        assert (f"/jobs/{job.id}/delete" in links) == (scope is Scope.ADMIN)
        assert ("/sources/new" in links) == (scope is Scope.ADMIN)
        assert open_console.get("/sources/new").status_code == (200 if scope is Scope.ADMIN else 403)

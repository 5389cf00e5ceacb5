"""Sources and jobs from CSV files: a row for each, each answered for itself."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api import imports as importing
from api.models import SourceSpec
from rehost.catalog import idempotency, imports, sheet
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.errors import InvalidParameter, SourceUnreachable
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.api import Orders, app, catalog, client, orders, refused, settings, source_id, tree

CSV = {"Content-Type": "text/csv; charset=utf-8"}
PLAIN = "InvalidParameter"
INVENTORY = Inventory(hostname="web", os_id="debian", architecture="x86_64")


def sent(client: TestClient, what: str, content: str | bytes, dry_run: bool = False, key: str = "") -> dict[str, Any]:
    answer = client.post(
        f"/v1/{what}/import{'?dry_run=true' if dry_run else ''}",
        content=content,
        headers={**CSV, **({"Idempotency-Key": key} if key else {})},
    )
    assert answer.status_code == 200, answer.text
    body = dict(answer.json())
    assert body["total"] == len(body["items"]) == body["succeeded"] + body["failed"]
    assert all(item["ok"] == (item["error"] is None) == (item["outcome"] != "failed") for item in body["items"])
    return body


def outcomes(body: dict[str, Any]) -> list[tuple[int, str]]:
    return [(item["row"], item["outcome"]) for item in body["items"]]


def faults(item: dict[str, Any]) -> set[tuple[str, str]]:
    return {(fault["column"], fault["code"]) for fault in item["error"]["errors"]}


@pytest.fixture
def trees(tmp_path: Path) -> list[Path]:
    roots = [tmp_path / f"server{number}" for number in range(3)]
    for number, root in enumerate(roots):
        (root / "etc").mkdir(parents=True)
        (root / "etc/hostname").write_text(f"server{number}\n")
    return roots


def test_one_bad_row_spoils_no_other(client: TestClient, trees: list[Path]) -> None:
    text = "\r\n".join(
        [
            "name,path,host,port,tags",
            f"one,{trees[0]},,,team=web; stage = live",
            f"2bad,{trees[1]},,70000,team",  # a name, a port that a path has not, tags
            f"same,{trees[0]},,,",
            f'"away",{trees[0]}/none,,,',
            "",
            f',"{trees[2]}",,,',
            "short",
            "both,/x,host,,",
        ]
    )
    body = sent(client, "sources", b"\xef\xbb\xbf" + text.encode())
    assert outcomes(body) == [
        (2, "created"),
        (3, "failed"),
        (4, "failed"),
        (5, "failed"),
        (7, "created"),
        (8, "failed"),
        (9, "failed"),
    ]
    items = {item["row"]: item for item in body["items"]}
    assert items[2]["source"]["hostname"] == "server0"
    assert client.get(f"/v1/sources/{items[2]['source']['id']}").json()["tags"] == {"team": "web", "stage": "live"}
    assert faults(items[3]) == {("name", PLAIN), ("port", PLAIN), ("tags", PLAIN)}
    assert "row 2" in items[4]["error"]["message"]
    assert items[5]["error"]["code"].startswith("Source.") and items[5]["error"]["errors"] == []
    assert items[7]["source"]["name"] == "server2"
    assert items[8]["error"]["message"] == "the row has 1 cells for 5 columns."
    assert faults(items[9]) == {("host", PLAIN)}
    again = sent(client, "sources", text)
    assert outcomes(again)[0] == (2, "known") and again["items"][0]["source"] == items[2]["source"]
    assert client.get("/v1/sources").json()["total"] == 2


def test_a_dry_run_of_sources_connects_to_nobody(client: TestClient) -> None:
    body = sent(client, "sources", "host,user\nweb1.invalid,root\n-oProxyCommand=x,root\n", dry_run=True)
    assert outcomes(body) == [(2, "valid"), (3, "failed")]
    assert faults(body["items"][1]) == {("host", PLAIN)}
    assert client.get("/v1/sources").json()["total"] == 0


def test_servers_are_discovered_at_once_but_not_all(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, here, most = threading.Lock(), 0, 0
    full = threading.Event()

    def register(spec: SourceSpec, catalog: Catalog) -> Any:
        nonlocal here, most
        with lock:
            here, most = here + 1, max(most, here + 1)
            if here == importing.AT_ONCE:
                full.set()
        assert full.wait(60), "so many are asked at the same time"
        with lock:
            here -= 1
        raise SourceUnreachable(host="x", reason="no route")

    monkeypatch.setattr("api.registration.register", register)
    rows = "".join(f"web{number}\n" for number in range(3 * importing.AT_ONCE))
    body = sent(client, "sources", "host\n" + rows)
    assert body["failed"] == 3 * importing.AT_ONCE and most == importing.AT_ONCE
    assert body["items"][0]["error"]["code"] == "Source.Unreachable"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"host\n\xff\xfe\n", "UTF-8"),
        (b'host\n"web1\n', "no CSV"),
        (b"\n", "is empty"),
        (b"host\n", "has 0 rows"),
        (b"host\n" + b"".join(b"web%d\n" % n for n in range(sheet.MAX_ROWS + 1)), "has 1001 rows"),
        (b"host;user\nweb1;root\n", "separated by commas"),
        (b"host,password\nweb1,x\n", "'password'"),
        (b"host,host\nweb1,web1\n", "the column host twice"),
        (b"host\nweb\x001\n", "NUL"),
    ],
)
def test_a_file_that_is_no_table_is_refused_as_a_whole(client: TestClient, content: bytes, reason: str) -> None:
    told = refused(client.post("/v1/sources/import", content=content, headers=CSV), 422, PLAIN)
    assert reason in told["errors"][0]["message"]


def test_a_thousand_rows_are_taken(client: TestClient) -> None:
    body = sent(client, "sources", "host\n" + "".join(f"web{n}\n" for n in range(sheet.MAX_ROWS)), dry_run=True)
    assert body["succeeded"] == sheet.MAX_ROWS


def test_a_body_that_is_no_csv_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/jobs/import", content="source\n", headers={"Content-Type": "text/plain"})
    refused(answer, 415, "MediaType.Unsupported")


def test_the_same_file_with_the_same_key_makes_nothing_twice(client: TestClient, source_id: str) -> None:
    text = f"source,execution\n{source_id},create_only\n"
    first = sent(client, "jobs", text, key="k1")
    assert outcomes(first) == [(2, "created")]
    assert sent(client, "jobs", text, key="k1") == first
    assert outcomes(sent(client, "jobs", text, key="k2")) == [(2, "failed")]
    other = client.post("/v1/jobs/import", content="source\nx\n", headers={**CSV, "Idempotency-Key": "k1"})
    refused(other, 422, "IdempotencyKey.Reused")
    assert client.get("/v1/jobs").json()["total"] == 1


def test_a_file_that_takes_an_hour_is_not_done_twice(
    client: TestClient, source_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, headers = f"source,execution\n{source_id},create_only\n", {**CSV, "Idempotency-Key": "k1"}
    done = importing.import_jobs
    answers: list[Any] = []

    def take_an_hour(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(idempotency, "now", lambda: now() + timedelta(hours=1))
        answers.append(client.post("/v1/jobs/import", content=text, headers=headers))
        return done(*given, **named)

    monkeypatch.setattr(importing, "import_jobs", take_an_hour)
    assert outcomes(sent(client, "jobs", text, key="k1")) == [(2, "created")]
    refused(answers[0], 409, "IdempotencyKey.Busy")


def add(catalog: Catalog, name: str) -> str:
    return catalog.add_source(PathConnection(root=f"/srv/{name}"), INVENTORY, name=name).id


def test_jobs_are_made_of_rows(client: TestClient, catalog: Catalog, orders: Orders) -> None:
    ids = [add(catalog, name) for name in ("web1", "web2", "twin", "twin")]
    at = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    text = (
        "source,name,formats,container,interval_hours,max_images,execution,exclude,tags,verification,image\n"
        f"web1,shop,qcow2;raw,shop/web1:v1,24,5,create_only,/var/cache;/tmp,team=web,no,\n"
        f"{ids[1]},front,,,,,{at},,,,\n"
        "twin,,,,,,,,,,\n"
        "none,,,,,,,,,,\n"
        f"{ids[2]},,,shop/twin,,,,,,,no\n"
        f"{ids[3]},,vmdk,,0,11,soon,,acs:=,maybe,\n"
        ",x1,,,,,,,,,\n"
        f"{ids[3]},shop,raw,,,,,,,,no\n"
    )
    body = sent(client, "jobs", text)
    assert [outcome for _, outcome in outcomes(body)] == ["created"] * 2 + ["failed"] * 2 + ["created"] + ["failed"] * 3
    items = {item["row"]: item for item in body["items"]}
    job = client.get(f"/v1/jobs/{items[2]['job']['id']}").json()
    assert (job["name"], job["exclude"], job["tags"]) == ("shop", ["/var/cache", "/tmp"], {"team": "web"})
    assert job["targets"]["image"]["formats"] == ["qcow2", "raw"]
    assert job["targets"]["container_image"] == {
        "namespace": "shop",
        "repository": "web1",
        "tag": "v1",
        "credentials": None,
    }
    assert (job["incremental"]["interval_hours"], job["incremental"]["max_images"]) == (24, 5)
    assert job["verification"]["enabled"] is False and job["status"] == "Ready"
    assert (
        items[3]["job"]["status"] == "Ready" and client.get(f"/v1/jobs/{items[3]['job']['id']}").json()["next_run_at"]
    )
    assert faults(items[4]) == {("source", PLAIN)} and "2 sources" in items[4]["error"]["message"]
    assert (items[5]["error"]["code"], faults(items[5])) == ("Source.NotFound", {("source", "Source.NotFound")})
    assert items[6]["job"]["status"] == "Running"
    assert client.get(f"/v1/jobs/{items[6]['job']['id']}").json()["targets"]["image"] is None
    assert faults(items[7]) == {
        ("formats", PLAIN),
        ("interval_hours", "Schedule.OutOfRange"),
        ("max_images", PLAIN),
        ("execution", PLAIN),
        ("tags", PLAIN),
        ("verification", PLAIN),
    }
    assert faults(items[8]) == {("source", PLAIN)}
    assert faults(items[9]) == {("image", PLAIN)}
    assert orders.names() == ["start_run", "start_run"]


def test_jobs_that_an_import_starts_are_a_batch(client: TestClient, catalog: Catalog, tmp_path: Path) -> None:
    sources = [catalog.add_source(PathConnection(root=str(tmp_path)), INVENTORY).id for _ in range(12)]
    rows = "".join(f"{id},local,web-{number}\n" for number, id in enumerate(sources))
    body = sent(client, "jobs", f"source,region,name\n{rows}")
    jobs = [item["job"] for item in body["items"]]
    assert [job["queued"] for job in jobs] == [False] * 10 + [True] * 2


def test_where_prefect_is_away_the_rows_say_so_and_leave_no_job(
    client: TestClient, catalog: Catalog, orders: Orders
) -> None:
    add(catalog, "web1"), add(catalog, "web2")
    orders.away.add("start_run")
    body = sent(client, "jobs", "source,execution\nweb1,now\nweb2,create_only\n")
    assert outcomes(body) == [(2, "failed"), (3, "created")]
    assert (body["items"][0]["error"]["code"], body["items"][0]["error"]["retryable"]) == ("Prefect.Unavailable", True)
    assert client.get("/v1/jobs").json()["total"] == 1


def test_a_dry_run_of_jobs_tells_what_earlier_rows_take(
    client: TestClient, catalog: Catalog, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("web1", "web2", "web3"):
        add(catalog, name)
    text = "source,name\nweb1,shop\nweb1,\nweb2,shop\nweb3,third\n"
    body = sent(client, "jobs", text, dry_run=True)
    assert outcomes(body) == [(2, "valid"), (3, "failed"), (4, "failed"), (5, "valid")]
    assert "of row 2" in body["items"][1]["error"]["message"]
    assert body["items"][2]["error"]["code"] == "JobName.Duplicate"
    assert body["items"][0]["plan"]["hostname"] == "web"
    assert client.get("/v1/jobs").json()["total"] == 0 and orders.asked == []
    monkeypatch.setattr(importing, "MAX_JOBS", 1)
    assert sent(client, "jobs", text, dry_run=True)["items"][3]["error"]["code"] == "QuotaExceeded.Job"


def test_a_row_that_asks_wrongly_says_so_by_its_columns() -> None:
    assert set(imports.places(imports.SOURCE_COLUMNS).values()) <= set(imports.SOURCE_COLUMNS)
    assert set(imports.places(imports.JOB_COLUMNS).values()) <= set(imports.JOB_COLUMNS)
    row = sheet.Row(2, {"source": "web1", "image": "perhaps"})
    with pytest.raises(InvalidParameter):
        imports.job_of(row)


@pytest.mark.parametrize(("what", "columns"), [("sources", imports.SOURCE_COLUMNS), ("jobs", imports.JOB_COLUMNS)])
def test_the_page_has_every_column_and_examples_that_are_taken(
    client: TestClient, catalog: Catalog, what: str, columns: dict[str, imports.Column]
) -> None:
    page = (Path(__file__).parents[2] / "docs/csv.md").read_text(encoding="utf-8")
    _, _, part = page.partition(f"## {what.capitalize()}\n")
    part = part.partition("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", part, re.MULTILINE))
    assert table == {name: column.meaning for name, column in columns.items()}
    (example,) = re.findall(r"```csv\n(.*?)```", part, re.DOTALL)
    for name in ("web1", "web2", "db1"):
        add(catalog, name)
    body = sent(client, what, example, dry_run=True)
    assert body["total"] == 3 and body["failed"] == 0, body

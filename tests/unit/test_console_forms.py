"""The console's forms: what they make, where they show what is wrong, and that what was filled in stays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Figures, Job, Source
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Disk, Inventory, Partition, Record, Volume
from tests.support.api import Orders, app, catalog, client, orders, settings, tree
from tests.support.pages import Element, Page

__all__ = ["app", "catalog", "client", "orders", "settings", "tree"]

_GIB = 1 << 30
HERE = {"Origin": "http://127.0.0.1"}


class ContainerFacts(Record):
    """As much of an image.json as is looked at here."""

    kind: str = "container"
    name: str = "a/b"
    reference: str = "a/b:latest"
    engine_id: str = "sha256:0"
    location: str = "/nowhere"


class DiskFacts(Record):
    """As much of an image.json as is looked at here."""

    disks: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, file: Path) -> DiskFacts:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        size = file.stat().st_size
        facts = {"index": 0, "role": "system", "format": "raw", "virtual_size": size, "file_size": size}
        return cls(disks=({**facts, "sha256": digest, "location": str(file)},))


def fields(form: Element) -> dict[str, list[str]]:
    """What a browser would send of that form, as it stands."""
    sent: dict[str, list[str]] = {}
    for element in form.all():
        if element.tag == "select":
            options = list(element.all("option"))
            chosen = next((option for option in options if "selected" in option.attributes), options[0])
            sent.setdefault(element["name"], []).append(chosen["value"])
        if element.tag == "textarea":
            sent.setdefault(element["name"], []).append("".join(element.texts).removeprefix("\n"))
        if element.tag != "input" or "disabled" in element.attributes or not element["name"]:
            continue
        if element["type"] in ("checkbox", "radio") and "checked" not in element.attributes:
            continue
        sent.setdefault(element["name"], []).append(element["value"])
    return sent


def send(
    client: TestClient, address: str, changed: Mapping[str, str | list[str] | None], action: str = ""
) -> tuple[int, Page, str]:
    """Fill the form of a page and send it; None takes a field away. Status, page, and where it ends."""
    page = Page(client.get(address).text)
    (form,) = [form for form in page.all("form") if form["action"] == (action or address.partition("?")[0])]
    sent: dict[str, Any] = {**fields(form), **changed}
    data = {name: value for name, value in sent.items() if value is not None}
    answer = client.post(form["action"], data=data, headers=HERE)
    told = Page(answer.text)
    assert told.faults() == []
    return answer.status_code, told, answer.url.path


def fault_at(page: Page, pointer: str) -> str:
    """What the page says is wrong with a field."""
    id = "f" + pointer.replace("/", "-")
    return page.by_id(f"{id}-fault").text


@pytest.fixture
def source(catalog: Catalog, tree: Path) -> Source:
    partitions = (
        Partition(path="/dev/vda1", device="0_1", start=1 << 20, size_bytes=_GIB, filesystem="vfat", used_bytes=1),
        Partition(
            path="/dev/vda2",
            device="0_2",
            start=2 * _GIB,
            size_bytes=16 * _GIB,
            filesystem="ext4",
            mount_point="/",
            used_bytes=2 * _GIB,
            can_block=True,
        ),
    )
    inventory = Inventory(
        hostname="web1",
        os_id="debian",
        architecture="x86_64",
        disks=(
            Disk(index=0, path="/dev/vda", size_bytes=20 * _GIB, table="gpt", partitions=partitions),
            Disk(index=1, path="/dev/vdb", size_bytes=20 * _GIB, table="gpt"),
        ),
        volumes=(
            Volume(mount_point="/", filesystem="ext4", size_bytes=16 * _GIB, used_bytes=2 * _GIB, device="/dev/vda2"),
        ),
    )
    return catalog.add_source(PathConnection(root=str(tree)), inventory, name="web1")


def new_job(source: Source) -> str:
    return f"/jobs/new?source_id={source.id}"


NO_DATA_DISK: dict[str, str | list[str] | None] = {"disk/1/include": None}


def test_a_source_is_registered_by_a_form(client: TestClient, catalog: Catalog, tree: Path) -> None:
    filled = {"/connection/kind": "path", "/connection/root": str(tree), "/name": "moved", "/tags": "wave=1\r\n a = b "}
    status, page, address = send(client, "/sources/new", filled)
    (source,) = catalog.sources().items
    assert (status, address) == (200, f"/sources/{source.id}")
    assert (source.name, source.tags, source.inventory.hostname) == ("moved", {"wave": "1", "a": "b"}, "web1")
    assert "is registered" in page.text
    assert "is registered" not in client.get(address).text, "it is told once"


@pytest.mark.parametrize(
    ("filled", "pointer"),
    [
        ({"/connection/kind": "ssh", "/connection/host": ""}, "/connection/host"),
        ({"/connection/kind": "ssh", "/connection/host": "-oProxyCommand=x"}, "/connection/host"),
        ({"/connection/kind": "ssh", "/connection/host": "h", "/connection/port": "ssh"}, "/connection/port"),
        ({"/connection/kind": "ssh", "/connection/host": "h", "/connection/port": "70000"}, "/connection/port"),
        ({"/connection/kind": "path", "/connection/root": "relative"}, "/connection/root"),
        ({"/connection/kind": "disk", "/connection/disks": " \n "}, "/connection/disks"),
        ({"/connection/kind": "path", "/connection/root": "/x", "/name": "1st"}, "/name"),
        ({"/connection/kind": "path", "/connection/root": "/x", "/tags": "no pair"}, "/tags"),
    ],
)
def test_what_is_wrong_with_a_source_is_told_at_its_field_and_what_was_filled_in_stays(
    client: TestClient, catalog: Catalog, filled: dict[str, str], pointer: str
) -> None:
    status, page, _ = send(client, "/sources/new", {**filled, "/description": "<b>kept & shown</b>"})
    assert status == 422 and not catalog.sources().items
    assert fault_at(page, pointer)
    assert page.by_id("f" + pointer.replace("/", "-"))["aria-invalid"] == "true"
    assert page.by_id("f-description")["value"] == "<b>kept & shown</b>"
    assert "InvalidParameter" in page.text and "What to do" in page.text


def test_a_source_that_does_not_answer_is_told_with_its_remedy_and_nothing_is_stored(
    client: TestClient, catalog: Catalog
) -> None:
    filled = {"/connection/kind": "path", "/connection/root": "/there/is/no/such/folder"}
    status, page, _ = send(client, "/sources/new", filled)
    assert status >= 400 and "What to do" in page.text and not catalog.sources().items
    assert page.by_id("f-connection-root")["value"] == "/there/is/no/such/folder"


def test_the_form_as_it_stands_makes_the_job_that_the_api_would_make_of_nothing_but_the_source(
    client: TestClient, catalog: Catalog, orders: Orders, source: Source
) -> None:
    _, page, address = send(client, new_job(source), {**NO_DATA_DISK, "do": "create"})
    (job,) = catalog.jobs().items
    assert address == f"/jobs/{job.id}" and "is made" in page.text
    assert orders.names() == ["start_run"]
    plain = client.post("/v1/jobs?dry_run=true", json={"source_id": source.id, "region_id": "local"}).json()
    given = plain.get("spec") or {}
    for name in ("exclude", "execution", "incremental", "network", "replication", "verification", "hooks", "tags"):
        if name in given:
            assert job.model_dump(mode="json")[name] == given[name], name


def test_every_field_of_the_form_arrives(client: TestClient, catalog: Catalog, source: Source) -> None:
    start = datetime.now(UTC) + timedelta(hours=1)
    filled: dict[str, str | list[str] | None] = {
        "/name": "moved",
        "/description": "to the new house",
        "/targets/image/name": "image-1",
        "/targets/image/formats": ["qcow2", "vhd"],
        "/targets/image/boot_mode": "uefi",
        "/execution/mode": "at",
        "/execution/start_at": f"{start:%Y-%m-%dT%H:%M}",
        "repeat": "cron",
        "/incremental/cron": "15 3 * * *",
        "/incremental/timezone": "Europe/Berlin",
        "/incremental/max_images": "5",
        "/disks/block_replication": "true",
        "/disks/system/size_gib": "40",
        "partition/0_2/block": "true",
        "/verification/boot_timeout_seconds": "120",
        "/verification/script": "#!/bin/sh\r\ntrue\r\n",
        "/verification/script_timeout_seconds": "60",
        "/replication/bandwidth_limit_kbps": "4000",
        "/replication/compress_level": "3",
        "/replication/checksum": "true",
        "/exclude": "/var/cache\r\n\r\n/tmp/*",
        "/consistency/method": "live",
        "/hooks/pre_snapshot": "sync",
        "/hooks/timeout_seconds": "30",
        "/tags": "wave=2",
        "do": "create",
        **NO_DATA_DISK,
    }
    status, page, _ = send(client, new_job(source), filled)
    assert status == 200, page.text
    job = catalog.job(catalog.jobs().items[0].id)
    assert (job.name, job.description, job.tags) == ("moved", "to the new house", {"wave": "2"})
    assert job.targets.image is not None
    assert (job.targets.image.name, job.targets.image.formats) == ("image-1", ("qcow2", "vhd"))
    assert job.targets.image.boot_mode == "uefi"
    assert job.execution.model_dump(mode="json")["start_at"] == f"{start:%Y-%m-%dT%H:%M}:00Z"
    assert job.incremental is not None
    assert (job.incremental.cron, job.incremental.timezone) == ("15 3 * * *", "Europe/Berlin")
    assert job.incremental.max_images == 5
    assert job.disks.system.size_gib == 40 and job.disks.system.partitions[0].block
    assert [(disk.index, disk.include) for disk in job.disks.data] == [(1, False)]
    assert job.verification.script == "#!/bin/sh\ntrue"
    assert (job.replication.bandwidth_limit_kbps, job.replication.checksum) == (4000, True)
    assert job.exclude == ("/var/cache", "/tmp/*")
    assert (job.consistency.method, job.hooks.pre_snapshot, job.hooks.timeout_seconds) == ("live", "sync", 30)


@pytest.mark.parametrize(
    ("filled", "pointer"),
    [
        ({"/name": "x"}, "/name"),
        ({"image": None}, "image"),
        ({"/targets/image/formats": None}, "/targets/image/formats"),
        ({"container": "true", "/targets/container_image/namespace": ""}, "/targets/container_image/namespace"),
        (
            {"container": "true", "/targets/container_image/repository": "UPPER"},
            "/targets/container_image/repository",
        ),
        ({"/execution/mode": "at", "/execution/start_at": ""}, "/execution/start_at"),
        ({"/execution/mode": "at", "/execution/start_at": "2001-01-01T00:00"}, "/execution/start_at"),
        ({"repeat": "hours", "/incremental/interval_hours": "0"}, "/incremental/interval_hours"),
        ({"repeat": "hours", "/incremental/interval_hours": ""}, "repeat"),
        ({"repeat": "cron", "/incremental/cron": "* * * * *"}, "/incremental/cron"),
        ({"/disks/system/size_gib": "19"}, "/disks/system/size_gib"),
        ({"/disks/system/size_gib": "many"}, "/disks/system/size_gib"),
        ({"partition/0_2/size_mib": "1"}, "partition/0_2/size_mib"),
        ({"partition/0_2/size_mib": "a lot"}, "partition/0_2/size_mib"),
        ({"partition/0_2/block": "true"}, "partition/0_2/block"),
        ({"disk/1/include": "true"}, "disk/1/include"),
        ({"disk/1/size_gib": "1"}, "disk/1/size_gib"),
        ({"/verification/boot_timeout_seconds": "5"}, "/verification/boot_timeout_seconds"),
        ({"/replication/compress_level": "11"}, "/replication/compress_level"),
        ({"/network/mode": "private"}, "/network/vswitch_id"),
        ({"/tags": "aliyun=1"}, "/tags"),
        ({"/valid_until": "2001-01-01T00:00"}, "/valid_until"),
    ],
)
def test_what_is_wrong_with_a_job_is_told_at_its_field(
    client: TestClient, catalog: Catalog, source: Source, filled: dict[str, Any], pointer: str
) -> None:
    for do in ("plan", "create"):
        sent = {**NO_DATA_DISK, "/exclude": "/kept", **filled, "do": do}
        status, page, _ = send(client, new_job(source), sent)
        assert status == 422, page.text
        assert fault_at(page, pointer), pointer
        assert "".join(page.by_id("f-exclude").texts).strip() == "/kept"
    assert not catalog.jobs().items


def test_all_faults_are_told_at_once(client: TestClient, source: Source) -> None:
    sent = {**NO_DATA_DISK, "/name": "x", "/tags": "aliyun=1", "/disks/system/size_gib": "1", "do": "create"}
    _, page, _ = send(client, new_job(source), sent)
    for pointer in ("/name", "/tags", "/disks/system/size_gib"):
        assert fault_at(page, pointer)
    links = {link["href"] for link in page.by_id("wrong").all("a")}
    assert {"#f-name", "#f-tags", "#f-disks-system-size_gib"} <= links


def test_the_plan_is_shown_and_nothing_is_made(
    client: TestClient, catalog: Catalog, orders: Orders, source: Source
) -> None:
    sent = {**NO_DATA_DISK, "/name": "moved", "container": "true", "do": "plan"}
    sent |= {"/targets/container_image/namespace": "shop", "/targets/container_image/repository": "web1"}
    status, page, _ = send(client, new_job(source), sent)
    assert status == 200
    assert "shop/web1:latest" in page.by_id("plan").text and "2.0 GiB" in page.by_id("plan").text
    assert not catalog.jobs().items and not orders.asked
    assert page.by_id("f-name")["value"] == "moved"


def test_a_form_that_is_sent_twice_makes_one_job(client: TestClient, catalog: Catalog, source: Source) -> None:
    page = Page(client.get(new_job(source)).text)
    (form,) = [form for form in page.all("form") if form["action"] == "/jobs/new"]
    data = {**fields(form), "do": "create"}
    data.pop("disk/1/include")
    first = client.post("/jobs/new", data=data, headers=HERE)
    second = client.post("/jobs/new", data=data, headers=HERE)
    assert first.url == second.url and second.status_code == 200
    assert catalog.jobs().total == 1


def test_a_second_job_for_a_source_is_a_conflict_that_names_the_first(
    client: TestClient, catalog: Catalog, source: Source
) -> None:
    send(client, new_job(source), {**NO_DATA_DISK, "do": "create"})
    status, page, _ = send(client, new_job(source), {**NO_DATA_DISK, "do": "create"})
    assert status == 409 and "Source.HasUnfinishedJob" in page.text and catalog.jobs().items[0].id in page.text


def test_where_prefect_is_away_the_form_says_so_and_stays(
    client: TestClient, catalog: Catalog, orders: Orders, source: Source
) -> None:
    orders.away = {"start_run"}
    status, page, _ = send(client, new_job(source), {**NO_DATA_DISK, "/name": "moved", "do": "create"})
    assert status == 503 and "Prefect.Unavailable" in page.text
    assert page.by_id("f-name")["value"] == "moved" and not catalog.jobs().items


@pytest.fixture
def job(client: TestClient, catalog: Catalog, source: Source) -> Job:
    send(client, new_job(source), {**NO_DATA_DISK, "/execution/mode": "create_only", "do": "create"})
    return catalog.jobs().items[0]


def test_a_button_starts_the_job_and_a_page_asks_before_it_is_stopped(
    client: TestClient, catalog: Catalog, orders: Orders, job: Job
) -> None:
    _, page, address = send(client, f"/jobs/{job.id}", {}, action=f"/jobs/{job.id}/start")
    assert address == f"/jobs/{job.id}" and "is started" in page.text
    catalog.claim_run(job.id, flow_run_id=catalog.runs(job.id).items[0].flow_run_id or "")
    catalog.set_stage(job.id, "Syncing")
    _, page, _ = send(client, f"/jobs/{job.id}/stop", {})
    assert "is being stopped" in page.text and orders.names()[-1] == "cancel_run"


def test_an_action_that_is_not_allowed_is_told_on_the_page_of_the_job(client: TestClient, job: Job) -> None:
    token = Page(client.get(f"/jobs/{job.id}").text).token()
    answer = client.post(f"/jobs/{job.id}/stop", data={"_token": token}, headers=HERE)
    assert "Job.InvalidStatus" in Page(answer.text).text and answer.url.path == f"/jobs/{job.id}"
    assert client.post(f"/jobs/{job.id}/explode", data={"_token": token}, headers=HERE).status_code == 404


def test_ticked_jobs_are_started_each_for_itself(
    client: TestClient, catalog: Catalog, orders: Orders, job: Job
) -> None:
    token = Page(client.get("/").text).token()
    data = {"_token": token, "job": [job.id, job.id, "j-nothing"], "back": "/?q=web"}
    answer = client.post("/jobs/start/batch", data=data, headers=HERE)
    assert (answer.url.path, answer.url.query) == ("/", b"q=web")
    text = Page(answer.text).text
    assert "1 job is started" in text and "Job.NotFound" in text
    assert orders.names() == ["start_run"]
    none = client.post("/jobs/stop/batch", data={"_token": token, "back": "//evil"}, headers=HERE)
    assert "No job is ticked" in Page(none.text).text and none.url.path == "/"


def test_a_source_is_discovered_again_and_one_that_does_not_answer_says_why(
    client: TestClient, catalog: Catalog, source: Source, tree: Path
) -> None:
    address = f"/sources/{source.id}"
    _, page, _ = send(client, address, {}, action=f"{address}/discover")
    assert "answered" in page.text
    tree.rename(tree.with_name("elsewhere"))
    _, page, _ = send(client, address, {}, action=f"{address}/discover")
    assert "did not answer" in page.text and catalog.source(source.id).state == "unavailable"


def test_a_job_is_deleted_after_a_page_has_asked(client: TestClient, catalog: Catalog, job: Job) -> None:
    page = Page(client.get(f"/jobs/{job.id}/delete").text)
    assert "Its images stay" in page.text
    _, page, address = send(client, f"/jobs/{job.id}/delete", {})
    assert address == "/" and "is deleted" in page.text and not catalog.jobs().items


def test_a_job_that_waits_is_verified_and_cut_over(
    client: TestClient, catalog: Catalog, orders: Orders, source: Source
) -> None:
    spec = {"repeat": "hours", "/incremental/interval_hours": "1", "/verification/enabled": None, "image": None}
    container = {
        "container": "true",
        "/targets/container_image/namespace": "a",
        "/targets/container_image/repository": "b",
    }
    send(client, new_job(source), {**NO_DATA_DISK, **spec, **container, "do": "create"})
    job = catalog.jobs().items[0]
    run = catalog.runs(job.id).items[0]
    catalog.claim_run(job.id, flow_run_id=run.flow_run_id or "")
    catalog.record_snapshot(run.id, "t-1", Figures())
    catalog.add_image(job.id, run.id, ContainerFacts(), id="m-0123456789abcdefghij", kind="container", name="a/b")
    catalog.finish_run(run.id)
    _, page, _ = send(client, f"/jobs/{job.id}/verify", {})
    assert "is being verified" in page.text and "start_verification" in orders.names()
    assert "pending" in page.text
    test = catalog.verifications(job.id).items[0]
    assert "The test has not ended" in client.get(f"/verifications/{test.id}").text
    _, page, _ = send(client, f"/jobs/{job.id}/verify", {})
    assert "Verification.UnderWay" in page.text
    _, page, _ = send(client, f"/jobs/{job.id}/cut-over", {"sync": "true"})
    assert "is cut over" in page.text and catalog.runs(job.id).items[0].kind == "cut_over"


def test_an_image_is_marked_downloaded_and_deleted(
    client: TestClient, catalog: Catalog, settings: Settings, job: Job
) -> None:
    run = catalog.begin_run(job.id, kind="manual")
    file = settings.images_path("local") / "m-0123456789abcdefghij" / "disk-0.raw"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"the disk")
    catalog.add_image(job.id, run.id, DiskFacts.of(file), id=file.parent.name, kind="disk", name="moved")
    address = f"/images/{file.parent.name}"
    (link,) = [link["href"] for link in Page(client.get(address).text).all("a") if "/disks/" in link["href"]]
    answer = client.get(link)
    assert answer.content == b"the disk" and "moved.raw" in answer.headers["content-disposition"]
    assert client.get(f"{address}/disks/7", headers={"Accept": "text/html"}).status_code == 404
    _, page, _ = send(client, address, {}, action=f"{address}/use")
    assert "in use" in page.text
    assert "not possible while the image is in use" in Page(client.get(f"{address}/delete").text).text
    token = page.token()
    refused = client.post(f"{address}/delete", data={"_token": token}, headers=HERE)
    assert "ImageInUse" in refused.text and file.exists()
    _, page, _ = send(client, address, {}, action=f"{address}/use")
    assert "its run or a test still uses it" in page.text
    catalog.stop_run(run.id)
    send(client, address, {}, action=f"{address}/use")
    _, page, _ = send(client, address, {}, action=f"{address}/use")
    assert "is no longer in use" in page.text
    _, page, ended = send(client, f"{address}/delete", {})
    assert ended == "/images" and "is deleted" in page.text and not file.exists()


def test_a_source_is_removed_after_a_page_has_asked_and_with_a_job_only_by_force(
    client: TestClient, catalog: Catalog, source: Source, job: Job
) -> None:
    address = f"/sources/{source.id}"
    _, page, ended = send(client, f"{address}/delete", {})
    assert ended == address and catalog.source(source.id)
    assert any("force" in note.text for note in page.all("div") if note["role"] == "alert"), page.text
    _, page, ended = send(client, f"{address}/delete", {"force": "true"})
    assert ended == "/sources" and "is removed" in page.text
    assert not catalog.jobs().items and not catalog.sources().items


def test_a_job_is_deleted_with_its_images_where_the_box_is_ticked(
    client: TestClient, catalog: Catalog, settings: Settings, job: Job
) -> None:
    run = catalog.begin_run(job.id, kind="manual")
    file = settings.images_path("local") / "m-0123456789abcdefghij" / "disk-0.raw"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"the disk")
    image = catalog.add_image(job.id, run.id, DiskFacts.of(file), id=file.parent.name, kind="disk", name="moved")
    catalog.stop_run(run.id)
    catalog.mark_image(image.id, in_use=True)
    _, page, ended = send(client, f"/jobs/{job.id}/delete", {"images": "true"})
    assert "ImageInUse" in page.text and ended == f"/jobs/{job.id}" and file.exists()
    catalog.mark_image(image.id, in_use=False)
    send(client, f"/jobs/{job.id}/delete", {"images": "true"})
    assert not catalog.jobs().items and not catalog.images().items and not file.exists()

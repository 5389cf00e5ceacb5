"""The console's pages on a real catalog, with what a hostile server would say of itself."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.console.rendering import moment, render, size, span, visible
from rehost.catalog.catalog import Catalog
from rehost.catalog.job import JobSpec
from rehost.catalog.records import Figures, Image, Job, Source, VerificationRecord
from rehost.errors import BootKernelPanic
from rehost.settings import Settings
from rehost.source.connect import PathConnection, SshConnection
from rehost.source.inventory import Disk, Interface, Inventory, Layer, Listener, Partition, Record, Volume
from rehost.verification.report import Check, Evidence, Failure, VerificationReport
from tests.support.api import app, catalog, client, orders, settings
from tests.support.pages import Page

__all__ = ["app", "catalog", "client", "orders", "settings"]

SCRIPT = "<script>alert(1)</script>"
TURNED = "\u202egnp.exe"
ANSI = "\x1b[31mred\x1b[0m\x07"
HOSTILE = f"{SCRIPT}\"'>{TURNED}{ANSI}{{{{7777*7777}}}}"
_GIB = 1 << 30


class ImageRecord(Record):
    kind: str = "disk"
    disks: tuple[dict[str, Any], ...]
    os: str = HOSTILE
    architecture: str = "x86_64"
    boot_modes: tuple[str, ...] = ("bios",)


def hostile_inventory() -> Inventory:
    partition = Partition(
        path=f"/dev/{HOSTILE}",
        device="0_1",
        start=1 << 20,
        size_bytes=8 * _GIB,
        filesystem=HOSTILE,
        label=HOSTILE,
        mount_point=f"/{HOSTILE}",
        used_bytes=_GIB,
        can_block=False,
        cannot_block_reason=HOSTILE,
    )
    small = Partition(path="/dev/vda2", device="0_2", start=9 * _GIB, size_bytes=1 << 20, can_block=True)
    return Inventory(
        hostname=HOSTILE,
        os_id=HOSTILE,
        os_name=HOSTILE,
        kernel=HOSTILE,
        architecture=HOSTILE,
        interfaces=(Interface(name=HOSTILE, addresses=(HOSTILE,)),),
        disks=(
            Disk(index=0, path=HOSTILE, size_bytes=20 * _GIB, table="gpt", partitions=(partition, small)),
            Disk(index=1, path="/dev/vdb", size_bytes=4 * _GIB),
        ),
        layers=(Layer(kind="lvm", path=HOSTILE, members=(HOSTILE,)),),
        volumes=(Volume(mount_point=f"/{HOSTILE}", filesystem="ext4", size_bytes=_GIB, used_bytes=1, device=HOSTILE),),
        listeners=(Listener(protocol="tcp", address=HOSTILE, port=80, process=HOSTILE),),
        failed_units=(HOSTILE,),
    )


@pytest.fixture
def source(catalog: Catalog) -> Source:
    connection = SshConnection(host="web1.example.org", port=2222, user="root")
    return catalog.add_source(connection, hostile_inventory(), name="web1", tags={HOSTILE[:30]: HOSTILE[:30]})


@pytest.fixture
def job(catalog: Catalog, source: Source) -> Job:
    """A job whose only run made an image that failed its test."""
    made = catalog.create_job(
        JobSpec(source_id=source.id, region_id="local", name="web1-move", exclude=(HOSTILE,), tags={"a": "b"})
    )
    run = catalog.begin_run(made.id, kind="manual")
    catalog.claim_run(made.id, flow_run_id="8b0b2c3e-0000-4000-8000-000000000001")
    catalog.record_snapshot(run.id, "t-1", Figures(files_total=12000, files_changed=12, bytes_new=5 << 20))
    return catalog.job(made.id)


def ended(catalog: Catalog, job: Job) -> Job:
    catalog.fail_run(catalog.runs(job.id).items[0].id, BootKernelPanic(evidence=HOSTILE))
    return catalog.job(job.id)


@pytest.fixture
def image(catalog: Catalog, job: Job) -> Image:
    run = catalog.runs(job.id).items[0]
    disk = {
        "index": 0,
        "role": "system",
        "format": "qcow2",
        "virtual_size": 20 * _GIB,
        "file_size": _GIB,
        "sha256": "ab" * 32,
        "location": HOSTILE,
    }
    record = ImageRecord(disks=(disk,))
    return catalog.add_image(job.id, run.id, record, id="m-0123456789abcdefghij", kind="disk", name="web1-move")


@pytest.fixture
def verification(catalog: Catalog, job: Job, image: Image, settings: Settings) -> VerificationRecord:
    folder = settings.evidence_path / "v-0123456789abcdefghij"
    folder.mkdir(parents=True)
    (folder / "console.log").write_bytes(b"\x1b[2J\x1b]0;owned\x07Kernel panic " + SCRIPT.encode() + b"\r\n\xff\n")
    (folder / "screenshot.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = VerificationReport(
        subject=HOSTILE,
        status="failed",
        checks=(Check(name=HOSTILE, status="failed", detail=HOSTILE), Check(name="kernel", status="passed")),
        accelerator="tcg",
        boot_seconds=31.0,
        evidence=Evidence(console_log=str(folder / "console.log"), screenshot=str(folder / "screenshot.png")),
        error=Failure.of(BootKernelPanic(evidence=HOSTILE)),
        script_output=HOSTILE,
    )
    return catalog.add_verification(job.id, catalog.runs(job.id).items[0].id, image.id, report, id=folder.name)


def shown(client: TestClient, path: str, status: int = 200) -> Page:
    """The page, which is as every page has to be, and in which nothing of a server does anything."""
    answer = client.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == status, answer.text[:500]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    for bad in ("<script>alert", "\u202e", "\x1b", "\x07", "None", "60481729"):
        assert bad not in answer.text.replace("&lt;script&gt;", ""), bad
    page = Page(answer.text)
    assert page.faults() == []
    return page


def test_an_empty_console_says_what_to_do_first(client: TestClient) -> None:
    assert "Register the first source" in shown(client, "/").text
    assert "No source yet" in shown(client, "/sources").text
    assert "No image yet" in shown(client, "/images").text
    assert "A job needs a source" in shown(client, "/jobs/new").text


def test_every_page_shows_what_a_hostile_server_said_and_does_nothing_of_it(
    client: TestClient, catalog: Catalog, source: Source, job: Job, image: Image, verification: VerificationRecord
) -> None:
    job = ended(catalog, job)
    addresses = [
        "/",
        "/jobs",
        f"/jobs/{job.id}",
        f"/verifications/{verification.id}",
        "/sources",
        f"/sources/{source.id}",
        "/sources/new",
        "/images",
        f"/images/{image.id}",
        "/jobs/new",
        f"/jobs/new?source_id={source.id}",
    ]
    for address in addresses:
        page = shown(client, address)
        assert page.all("nav"), address
    page = shown(client, f"/sources/{source.id}")
    assert "alert(1)" in page.text  # it is told, as text
    assert "⟨U+202E⟩gnp.exe" in page.text
    assert "␛[31mred␛[0m␇" in page.text
    assert "{{7777*7777}}" in page.text


def test_a_page_that_is_not_there_is_a_page_for_people_and_a_problem_for_programs(client: TestClient) -> None:
    for path in (f"/{SCRIPT}", "/jobs/j-nothing", "/sources/s-nothing", "/images/m-nothing", "/static/console.py"):
        page = shown(client, path, 404)
        assert "NotFound" in page.text and "What to do" in page.text
    assert client.get("/nothing").headers["content-type"] == "application/problem+json"
    assert client.get("/v1/nothing", headers={"Accept": "text/html"}).json()["code"] == "Route.NotFound"


def test_the_reference_of_the_api_is_whole_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', answer.text) == []
    document = client.get("/openapi.json").json()
    text = html.unescape(answer.text)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert f"<code>{method.upper()} {path}</code>" in text
            assert all(
                f"<code>?{one['name']}</code>" in text
                for one in operation.get("parameters", [])
                if one["in"] == "query"
            )
    bodies = [
        one["requestBody"] for each in document["paths"].values() for one in each.values() if "requestBody" in one
    ]
    assert text.count("<pre") == len(bodies), "each body has an example"
    assert '"interval_hours": 12' not in text and '"description": "The shop"' in text, "the first one is shown"
    names = set(re.findall(r'href="#(\w+)"', answer.text)) - {"main"}
    assert names and names <= set(document["components"]["schemas"])
    assert all(f'id="{name}"' in answer.text for name in document["components"]["schemas"])
    assert client.get("/redoc").status_code == 404


def test_an_image_that_is_deleted_is_not_counted(catalog: Catalog, job: Job, image: Image) -> None:
    assert catalog.counts() == (1, 1)
    catalog.fail_run(catalog.runs(job.id).items[0].id, BootKernelPanic(panic="x", console=""))
    catalog.delete_images([image.id])
    assert catalog.counts() == (1, 0)


def test_an_address_with_a_nul_is_refused_before_the_catalog_is_asked(client: TestClient, job: Job) -> None:
    for path in ("/?q=%00", "/sources?q=a%00", f"/jobs/{job.id}/log?run_id=%00", "/jobs/new?source_id=%00"):
        assert "InvalidParameter" in client.get(path).text and client.get(path).status_code == 422


def test_a_job_shows_its_state_its_error_and_its_next_step(
    client: TestClient, catalog: Catalog, job: Job, image: Image, verification: VerificationRecord
) -> None:
    page = shown(client, f"/jobs/{job.id}")
    assert any(bar["value"] == "0" for bar in page.all("progress"))
    assert page.all("noscript"), "without a script the page of a running job is loaded anew by itself"
    job = ended(catalog, job)
    page = shown(client, f"/jobs/{job.id}")
    assert "Boot.KernelPanic" in page.text and job.next_step in page.text
    assert job.error is not None and job.error.remedy in page.text
    assert not page.all("noscript")
    assert f"/verifications/{verification.id}" in [link["href"] for link in page.all("a")]
    assert f"/images/{image.id}" in [link["href"] for link in page.all("a")]
    assert page.all("svg")[1:], "the disk is drawn"
    assert job.prefect_url in [link["href"] for link in page.all("a")]
    assert "12 of 12,000" in page.text and "5.0 MiB" in page.text


def test_only_what_is_allowed_is_a_button_and_the_rest_is_explained(
    client: TestClient, catalog: Catalog, source: Source
) -> None:
    made = catalog.create_job(JobSpec(source_id=source.id, region_id="local", name="web1-move"))

    def buttons() -> dict[str, bool]:
        page = shown(client, f"/jobs/{made.id}")
        group = next(e for e in page.all("div") if e["role"] == "group" and e["aria-label"] == "Actions")
        pressed = {e.text: "disabled" not in e.attributes for e in group.all("button")}
        return pressed | {e.text: True for e in group.all("a")}

    assert buttons()["Start"] and not buttons()["Stop"]
    assert "not while the job is Ready; it is possible in Running, Waiting" in shown(client, f"/jobs/{made.id}").text
    catalog.begin_run(made.id, kind="manual")
    catalog.claim_run(made.id, flow_run_id="f-1")
    catalog.set_stage(made.id, "Syncing")
    assert buttons()["Stop"] and not buttons()["Start"]
    assert "What arrived is kept" in shown(client, f"/jobs/{made.id}/stop").text
    assert "not possible" in shown(client, f"/jobs/{made.id}/start").text


def test_the_list_of_jobs_is_searched_by_job_and_source_filtered_and_paged(
    client: TestClient, catalog: Catalog
) -> None:
    for number in range(30):
        source = catalog.add_source(PathConnection(root="/srv"), Inventory(hostname="h", os_id="d", architecture="x"))
        name = f"{'shop' if number % 2 else 'mail'}-{number:02}"
        catalog.create_job(JobSpec(source_id=source.id, region_id="local", name=name))

    def names(address: str) -> list[str]:
        table = shown(client, address).all("tbody")
        return [next(row.all("a")).text for row in table[0].all("tr")] if table else []

    assert len(names("/")) == 25
    (older,) = [link["href"] for link in shown(client, "/").all("a") if link.text == "Older"]
    assert names(older) == ["mail-04", "shop-03", "mail-02", "shop-01", "mail-00"]
    assert names("/?q=SHOP-0") == ["shop-09", "shop-07", "shop-05", "shop-03", "shop-01"]
    assert names("/?q=%25") == [] and names("/?q=_") == []
    assert names("/?status=Running") == [] and len(names("/?status=Ready")) == 25
    assert len(names("/?status=Nonsense")) == 25
    assert "InvalidParameter" in shown(client, "/?cursor=nonsense", 422).text


def test_a_verification_shows_its_picture_and_what_its_machine_said(
    client: TestClient, catalog: Catalog, job: Job, image: Image, verification: VerificationRecord
) -> None:
    address = f"/verifications/{verification.id}"
    page = shown(client, address)
    assert [picture["src"] for picture in page.all("img")] == [f"{address}/evidence/screenshot"]
    picture = client.get(f"{address}/evidence/screenshot")
    assert (picture.headers["content-type"], picture.content[:4]) == ("image/png", b"\x89PNG")
    assert "Kernel panic" in page.text
    report = VerificationReport(subject="web1:latest", status="succeeded", checks=(Check(name="up", status="passed"),))
    other = catalog.add_verification(job.id, catalog.runs(job.id).items[0].id, image.id, report)
    assert "A container has no screen" in shown(client, f"/verifications/{other.id}").text
    assert client.get(f"/verifications/{other.id}/evidence/screenshot").status_code == 404


def test_files_of_ours_are_kept_by_the_browser_as_long_as_their_address_says_what_they_are(client: TestClient) -> None:
    page = shown(client, "/")
    (address,) = [link["href"] for link in page.all("link") if link["rel"] == "stylesheet"]
    answer = client.get(address)
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "immutable" in answer.headers["cache-control"]
    assert client.get("/static/console.css").headers["cache-control"] == "no-cache"
    assert client.get(address, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\nb\tc", "a\nb\tc"),
        ("\x00\x1b\x7f", "␀␛␡"),
        ("\u202e\u2066\u200b", "⟨U+202E⟩⟨U+2066⟩⟨U+200B⟩"),
        ("ü中", "ü中"),
    ],
)
def test_what_is_not_printable_is_made_visible(text: str, told: str) -> None:
    assert visible(text) == told


def test_figures_are_for_people() -> None:
    assert (size(None), size(0), size(1536), size(5 << 40)) == ("–", "0 B", "1.5 KiB", "5.0 TiB")
    assert (span(12), span(600), span(7200), span(3 * 86400), span(None)) == ("12 s", "10 min", "2.0 h", "3 days", "–")
    assert moment(None) == "–"


def test_a_template_that_lacks_a_value_is_an_error_and_no_page() -> None:
    with pytest.raises(Exception, match="undefined"):
        render("error.html", {})

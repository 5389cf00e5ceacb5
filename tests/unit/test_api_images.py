"""Images over the API: their files whole and in parts, the mark of use, deletion; the evidence of verifications."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict

from api import downloads
from rehost.catalog.catalog import Catalog
from rehost.ids import new_id
from rehost.settings import Settings
from rehost.verification.report import Evidence, VerificationReport
from tests.support.api import app, catalog, client, created, orders, refused, settings, source_id, tree

__all__ = ["app", "catalog", "client", "orders", "settings", "source_id", "tree"]

CONTENT = os.urandom(3000)
PNG = b"\x89PNG\r\n\x1a\n rest"


class Facts(BaseModel):
    """Stands for an image.json."""

    model_config = ConfigDict(extra="allow")


class Made:
    """A job with a run under way, and the images that it made."""

    def __init__(self, catalog: Catalog, settings: Settings, job_id: str) -> None:
        self.catalog, self.settings, self.job_id = catalog, settings, job_id
        catalog.begin_run(job_id, kind="manual")
        self.run_id = catalog.claim_run(job_id, flow_run_id="flow").id

    def disks(self, name: str = "web1") -> str:
        id = new_id("m")
        folder = self.settings.images_path("local") / id
        folder.mkdir(parents=True)
        disks = []
        for index, format in ((0, "qcow2"), (0, "raw"), (1, "vhd")):
            path = folder / f"disk-{index}.{format}"
            path.write_bytes(CONTENT[index:])
            told = hashlib.sha256(CONTENT[index:]).hexdigest()
            disks.append({"index": index, "format": format, "location": str(path), "sha256": told})
        self.catalog.add_image(
            self.job_id, self.run_id, Facts.model_validate({"disks": disks}), id=id, kind="disk", name=name
        )
        return id

    def container(self) -> str:
        id = new_id("m")
        path = self.settings.images_path("local") / id / "image.tar"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
        facts = Facts.model_validate({"location": str(path), "name": "shop/web1", "engine_id": "sha256:12"})
        self.catalog.add_image(self.job_id, self.run_id, facts, id=id, kind="container", name="shop/web1:1")
        return id

    def verification(self, image_id: str) -> str:
        id = new_id("v")
        folder = self.settings.evidence_path / id
        folder.mkdir(parents=True)
        (folder / "console.log").write_bytes(b"\x1b[31mred\x1b[0m\r\n<script>\x07 \xff\x9b2J\n")
        (folder / "screenshot.png").write_bytes(PNG)
        report = VerificationReport(
            subject="bios",
            status="succeeded",
            evidence=Evidence(console_log=str(folder / "console.log"), screenshot=str(folder / "screenshot.png")),
        )
        self.catalog.add_verification(self.job_id, self.run_id, image_id, report, id=id)
        return id


@pytest.fixture
def made(catalog: Catalog, settings: Settings, client: TestClient, source_id: str) -> Made:
    job = created(client, source_id, targets={"image": {}}, execution={"mode": "create_only"})
    return Made(catalog, settings, job["id"])


@pytest.fixture
def disk(made: Made) -> Iterator[str]:
    """The address of a disk with CONTENT."""
    before = _open_files()
    yield f"/v1/images/{made.disks()}/disks/0"
    assert _open_files() - before == set(), "a download left its file open"


def _open_files() -> set[str]:
    links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return {link for link in links if "/images/" in link}


def test_a_disk_is_downloaded_whole_with_what_a_client_needs_to_check_it(client: TestClient, disk: str) -> None:
    answer = client.get(disk)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    headers = answer.headers
    digest = hashlib.sha256(CONTENT)
    assert headers["content-length"] == "3000"
    assert headers["content-type"] == "application/x-qemu-disk"
    assert headers["etag"] == f'"{digest.hexdigest()}"'
    assert headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert (headers["accept-ranges"], headers["x-content-type-options"]) == ("bytes", "nosniff")
    assert headers["content-disposition"] == "attachment; filename=\"disk-0.qcow2\"; filename*=UTF-8''web1.qcow2"
    head = client.head(disk, headers={"Range": "bytes=0-0"})
    assert (head.status_code, head.content) == (200, b"")
    of_each = {"date", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in of_each} == {
        k: v for k, v in headers.items() if k not in of_each
    }


def test_a_file_is_sent_in_pieces(client: TestClient, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_PIECE_BYTES", 7)
    assert client.get(disk).content == CONTENT
    assert client.get(disk, headers={"Range": "bytes=5-30"}).content == CONTENT[5:31]


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=2990-", 2990, 2999),
        ("bytes=2999-99999999999999999999", 2999, 2999),
        ("bytes=-5", 2995, 2999),
        ("bytes=-5000", 0, 2999),
        ("Bytes= 1-2 ", 1, 2),
    ],
)
def test_a_range_is_answered_with_that_part(client: TestClient, disk: str, wanted: str, first: int, last: int) -> None:
    answer = client.get(disk, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, CONTENT[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/3000"
    assert answer.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize("wanted", ["bytes=5-1", "bytes=-", "bytes=x-1", "lines=1-2", "bytes=0-1,5-6", "bytes", ""])
def test_a_range_that_is_none_of_ours_is_answered_with_the_whole(client: TestClient, disk: str, wanted: str) -> None:
    answer = client.get(disk, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("wanted", ["bytes=3000-", "bytes=9999999999999999999-", "bytes=3000-4000", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_size(client: TestClient, disk: str, wanted: str) -> None:
    answer = client.get(disk, headers={"Range": wanted})
    refused(answer, 416, "Range.NotSatisfiable")
    assert answer.headers["content-range"] == "bytes */3000"


def test_a_download_goes_on_only_where_the_file_is_the_same(client: TestClient, disk: str) -> None:
    etag = client.head(disk).headers["etag"]
    part = {"Range": "bytes=100-"}
    assert client.get(disk, headers={**part, "If-Range": etag}).status_code == 206
    for other in ('"other"', f"W/{etag}", "Tue, 24 Nov 2026 00:00:00 GMT"):
        assert client.get(disk, headers={**part, "If-Range": other}).status_code == 200
    for same in (etag, f'"x", W/{etag}', "*"):
        answer = client.get(disk, headers={"If-None-Match": same})
        assert (answer.status_code, answer.content) == (304, b"")
    assert client.get(disk, headers={"If-None-Match": '"x"'}).status_code == 200


def test_each_disk_has_its_formats(client: TestClient, made: Made) -> None:
    id = made.disks("商店:1")
    raw = client.get(f"/v1/images/{id}/disks/0?format=raw")
    assert (raw.content, raw.headers["content-type"]) == (CONTENT, "application/x-raw-disk-image")
    data = client.get(f"/v1/images/{id}/disks/1")
    assert (data.content, data.headers["content-type"]) == (CONTENT[1:], "application/x-vhd-disk")
    assert data.headers["content-disposition"].endswith(
        "filename=\"disk-1.vhd\"; filename*=UTF-8''%E5%95%86%E5%BA%97%3A1-disk-1.vhd"
    )
    told = refused(client.get(f"/v1/images/{id}/disks/0?format=vhd"), 404, "Disk.NotFound")
    assert "qcow2, raw" in told["detail"]
    refused(client.get(f"/v1/images/{id}/disks/2"), 404, "Disk.NotFound")
    refused(client.get(f"/v1/images/{id}/disks/17"), 422, "InvalidParameter")
    refused(client.get(f"/v1/images/{id}/disks/-1"), 422, "InvalidParameter")
    refused(client.get(f"/v1/images/{id}/disks/0?format=vmdk"), 422, "InvalidParameter")
    refused(client.get(f"/v1/images/{id}/archive"), 404, "Disk.NotFound")
    refused(client.get("/v1/images/m-none/disks/0"), 404, "Image.NotFound")


def test_a_file_that_is_not_on_this_machine_says_so(client: TestClient, made: Made, settings: Settings) -> None:
    id = made.disks()
    (settings.images_path("local") / id / "disk-0.qcow2").unlink()
    refused(client.get(f"/v1/images/{id}/disks/0"), 404, "ImageFile.NotFound")
    assert client.head(f"/v1/images/{id}/disks/0").status_code == 404


def test_a_container_image_is_downloaded_as_its_archive(client: TestClient, made: Made) -> None:
    id = made.container()
    answer = client.get(f"/v1/images/{id}/archive", headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.content) == (206, CONTENT[10:])
    assert answer.headers["content-type"] == "application/x-tar"
    assert "web1.tar" in answer.headers["content-disposition"]
    assert client.head(f"/v1/images/{id}/archive").headers["content-length"] == "3000"
    refused(client.get(f"/v1/images/{id}/disks/0"), 404, "Disk.NotFound")


def test_an_image_is_marked_and_deleted(client: TestClient, made: Made, catalog: Catalog, settings: Settings) -> None:
    id = made.disks()
    address = f"/v1/images/{id}"
    refused(client.delete(address), 409, "ImageInUse")  # its run is under way
    catalog.stop_run(made.run_id)
    assert client.get(address).json()["in_use"] is False
    assert client.patch(address, json={"in_use": True}).json()["in_use"] is True
    told = refused(client.delete(address), 409, "ImageInUse")
    assert "marked as `in_use`" in told["detail"]
    assert client.patch(address, json={"in_use": False}).json()["in_use"] is False
    verification = made.verification(id)
    assert client.delete(address).status_code == 204
    assert list(settings.images_path("local").iterdir()) == list(settings.evidence_path.iterdir()) == []
    for again in (client.get(address), client.delete(address), client.patch(address, json={"in_use": True})):
        refused(again, 404, "Image.NotFound")
    shown = client.get(f"/v1/verifications/{verification}")
    assert (shown.status_code, shown.json()["image_id"]) == (200, id)
    refused(client.get(f"/v1/verifications/{verification}/evidence/console_log"), 404, "Evidence.NotFound")


@pytest.mark.parametrize("body", [{}, {"in_use": None}, {"in_use": "maybe"}, {"in_use": True, "name": "x"}, []])
def test_a_change_of_an_image_that_is_not_valid_is_refused(client: TestClient, made: Made, body: Any) -> None:
    refused(client.patch(f"/v1/images/{made.disks()}", json=body), 422, "InvalidParameter")


def test_evidence_is_shown_and_cannot_do_anything(client: TestClient, made: Made, settings: Settings) -> None:
    verification = made.verification(made.disks())
    address = f"/v1/verifications/{verification}/evidence"
    console = client.get(f"{address}/console_log")
    assert console.headers["content-type"] == "text/plain; charset=utf-8"
    assert console.text == "red\n<script> \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}2J"
    screen = client.get(f"{address}/screenshot")
    assert (screen.headers["content-type"], screen.content) == ("image/png", PNG)
    for answer in (console, screen):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    refused(client.get(f"{address}/report"), 404, "Evidence.NotFound")
    refused(client.get(f"{address}/..%2Fconsole.log"), 404, "Route.NotFound")
    refused(client.get(f"{address}/secrets"), 422, "InvalidParameter")
    refused(client.get("/v1/verifications/v-none"), 404, "Verification.NotFound")
    refused(client.get("/v1/verifications/v-none/evidence/report"), 404, "Verification.NotFound")
    (settings.evidence_path / verification / "screenshot.png").unlink()
    refused(client.get(f"{address}/screenshot"), 404, "Evidence.NotFound")


def test_evidence_leads_out_of_its_folder_for_nobody(client: TestClient, made: Made, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps("secret"))
    report = VerificationReport(subject="bios", status="failed", evidence=Evidence(report=str(secret)))
    record = made.catalog.add_verification(made.job_id, made.run_id, made.disks(), report)
    refused(client.get(f"/v1/verifications/{record.id}/evidence/report"), 404, "Evidence.NotFound")


def test_the_document_of_the_api_has_the_downloads(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for method in ("get", "head"):
        operation = paths["/v1/images/{id}/disks/{index}"][method]
        assert {"200", "206", "304", "404", "416", "422"} <= set(operation["responses"])
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(ids) == len(set(ids))

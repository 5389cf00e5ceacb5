"""`rehost image` and the changes of `rehost source`, against a real API on a real socket."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Source
from rehost.cli import export as exporting
from rehost.cli.client import Client
from rehost.errors import DownloadNotWritten
from rehost.ids import new_id
from rehost.settings import Settings
from tests.unit.test_catalog_runs import make_job
from tests.unit.test_cli import catalog, configured, rehost, source

__all__ = ["catalog", "configured", "rehost", "source"]

_CONTENT = os.urandom(3 << 20)


class Facts(BaseModel):
    """Stands for an image.json."""

    model_config = ConfigDict(extra="allow")


@pytest.fixture
def folder(configured: Settings) -> Path:
    """The folder of a new image."""
    folder = configured.images_path("local") / new_id("m")
    folder.mkdir(parents=True)
    return folder


def remember(catalog: Catalog, source: Source, folder: Path, kind: str, **facts: Any) -> str:
    """An image of that folder, whose run has ended; its id."""
    job = make_job(catalog, source)
    catalog.begin_run(job.id, kind="manual")
    run = catalog.claim_run(job.id, flow_run_id="flow")
    catalog.add_image(
        job.id, run.id, Facts.model_validate(facts), id=folder.name, kind=kind, name=catalog.image_name(job.id)
    )
    catalog.stop_run(run.id)
    return folder.name


@pytest.fixture
def disks(catalog: Catalog, source: Source, folder: Path) -> str:
    """An image of two disks."""
    told = []
    for index, format in ((0, "qcow2"), (1, "raw")):
        path = folder / f"disk-{index}.{format}"
        path.write_bytes(_CONTENT[index:])
        digest = hashlib.sha256(_CONTENT[index:]).hexdigest()
        size = path.stat().st_size
        told.append({"index": index, "format": format, "location": str(path), "sha256": digest, "file_size": size})
    return remember(catalog, source, folder, "disk", disks=told)


def test_an_image_is_exported_with_its_checksums_compared(rehost: Any, disks: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    done = rehost("image", "export", disks, str(target), "--json")
    assert done.status == 0, done.err
    assert [Path(path).name for path in done.json["files"]] == ["disk-0.qcow2", "disk-1.raw", "image.json"]
    assert sorted(path.name for path in target.iterdir()) == ["disk-0.qcow2", "disk-1.raw", "image.json"]
    assert ((target / "disk-0.qcow2").read_bytes(), (target / "disk-1.raw").read_bytes()) == (_CONTENT, _CONTENT[1:])
    assert json.loads((target / "image.json").read_text())["id"] == disks
    assert (target.stat().st_mode & 0o777, (target / "disk-0.qcow2").stat().st_mode & 0o777) == (0o700, 0o600)


def test_an_export_goes_on_where_it_ended(
    rehost: Any, disks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk-0.qcow2.part").write_bytes(_CONTENT[:1_000_000])
    (tmp_path / "disk-1.raw").write_bytes(_CONTENT[1:])
    asked: list[tuple[str, int]] = []
    download = Client.download

    def seen(self: Client, path: str, first: int = 0) -> Any:
        asked.append((path.partition("/disks/")[2], first))
        return download(self, path, first)

    monkeypatch.setattr(Client, "download", seen)
    assert rehost("image", "export", disks, str(tmp_path)).status == 0
    assert asked == [("0?format=qcow2", 1_000_000)], "what is there whole is not asked for"
    assert (tmp_path / "disk-0.qcow2").read_bytes() == _CONTENT
    # It ended after the last byte, before the file got its name.
    (tmp_path / "disk-0.qcow2").rename(tmp_path / "disk-0.qcow2.part")
    assert rehost("image", "export", disks, str(tmp_path)).status == 0
    assert (tmp_path / "disk-0.qcow2").read_bytes() == _CONTENT
    assert asked[1:] == [("0?format=qcow2", len(_CONTENT))]


@pytest.mark.parametrize("begun", [b"x" * 1000, _CONTENT + b"x"], ids=["other bytes", "more than the file has"])
def test_what_arrived_otherwise_than_the_image_says_is_removed_and_comes_anew(
    rehost: Any, disks: str, tmp_path: Path, begun: bytes
) -> None:
    (tmp_path / "disk-0.qcow2.part").write_bytes(begun)
    failed = rehost("image", "export", disks, str(tmp_path))
    assert (failed.status, "Image.DownloadDamaged" in failed.err) == (1, True)
    assert list(tmp_path.iterdir()) == [], "nothing looks like an image"
    assert rehost("image", "export", disks, str(tmp_path)).status == 0


def test_a_folder_that_cannot_be_written_says_so(rehost: Any, disks: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = rehost("image", "export", disks, str(tmp_path / "file"))
    assert (failed.status, "Image.DownloadNotWritten" in failed.err) == (1, True)


def _archive(path: Path, content: bytes, name: str | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for member, body in (
            (f"blobs/sha256/{name or hashlib.sha256(content).hexdigest()}", content),
            ("index.json", b"{}"),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))


def test_a_container_image_is_exported_as_its_archive(
    rehost: Any, catalog: Catalog, source: Source, folder: Path, tmp_path: Path
) -> None:
    path = folder / "image.tar"
    _archive(path, _CONTENT)
    id = remember(catalog, source, folder, "container", location=str(path), name="shop/web1", engine_id="sha256:1")
    (tmp_path / "image.tar.part").write_bytes(path.read_bytes()[:700])
    assert rehost("image", "export", id, str(tmp_path)).status == 0
    assert (tmp_path / "image.tar").read_bytes() == path.read_bytes()
    for damaged in (lambda: _archive(path, _CONTENT, "0" * 64), lambda: path.write_bytes(b"no archive")):
        damaged()
        failed = rehost("image", "export", id, str(tmp_path / "again"))
        assert (failed.status, "Image.DownloadDamaged" in failed.err) == (1, True)


def test_a_format_of_the_api_becomes_no_path(tmp_path: Path) -> None:
    disk = {"index": 0, "format": "../../x", "file_size": 1, "sha256": ""}
    with pytest.raises(DownloadNotWritten):
        exporting.files_of({"kind": "disk", "id": "m-1", "disks": [disk]})


def test_an_image_is_kept_released_and_deleted(rehost: Any, disks: str, folder: Path) -> None:
    assert "in use" in rehost("image", "keep", disks).out
    refused = rehost("image", "delete", disks)
    assert (refused.status, "ImageInUse" in refused.err) == (11, True)
    assert rehost("image", "keep", disks, "--release", "--json").json["in_use"] is False
    assert rehost("image", "delete", disks, "--json").json == {"id": disks, "deleted": True}
    assert not folder.exists()
    assert "Image.NotFound" in rehost("image", "show", disks).err


def test_a_source_is_updated_and_removed(rehost: Any, source: Source, catalog: Catalog, tmp_path: Path) -> None:
    words = ("source", "update", source.id)
    changed = rehost(*words, "--name", "front", "--description", "A shop", "--tag", "team=web", "--json").json
    assert (changed["name"], changed["description"], changed["tags"]) == ("front", "A shop", {"team": "web"})
    changed = rehost(*words, "--no-description", "--no-tags", "--json").json
    assert (changed["name"], changed["description"], changed["tags"]) == ("front", None, {})
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("web2\n")
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    assert rehost(*words, "--path", str(tmp_path), "--json").json["inventory"]["hostname"] == "web2"
    for wrong in ((), ("--sudo",), ("--no-tags", "--tag", "a=b"), ("--no-description", "--description", "A")):
        assert rehost(*words, *wrong).status == 2
    make_job(catalog, source)
    refused = rehost("source", "remove", source.id)
    assert (refused.status, "--force" in refused.err or "force=true" in refused.err) == (11, True)
    assert rehost("source", "remove", source.id, "--force", "--json").json == {"id": source.id, "removed": True}
    assert "Source.NotFound" in rehost("source", "show", source.id).err

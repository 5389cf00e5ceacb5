"""How images go: the rule of which, the catalog's word on it, and what is removed of them."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import insert

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Figures, Job, Run, Source
from rehost.catalog.retention import Built, superfluous
from rehost.catalog.states import RunStatus
from rehost.catalog.tables import VerificationRow
from rehost.errors import ImageInUse, ImageNotFound, StoreNoSpace
from rehost.ids import new_id
from rehost.images import removal
from rehost.images.removal import remove_deleted, remove_folder
from rehost.settings import Settings
from rehost.verification.report import VerificationReport
from tests.unit.test_catalog_runs import make_job, source, started

__all__ = ["source"]

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_OK, _FAILED, _RUNNING = RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.RUNNING


def built(
    *runs: RunStatus, kept: int | None = 2, job: str = "j", kinds: str = "d", used: tuple[str, ...] = ()
) -> list[Built]:
    """The images of a job's runs, oldest first; ids are job, number of the run, kind."""
    clock = itertools.count()
    return [
        Built(
            id=(id := f"{job}{number}{kind}{count if count else ''}"),
            kind={"d": "disk", "c": "container"}[kind],
            job_id=job,
            run_id=f"{job}{number}",
            run_status=status,
            run_at=_BEGAN + timedelta(hours=number),
            created_at=_BEGAN + timedelta(hours=number, minutes=next(clock)),
            in_use=id in used,
            kept=kept,
        )
        for number, status in enumerate(runs)
        for count, kind in ((kinds[:at].count(kind), kind) for at, kind in enumerate(kinds))
    ]


@pytest.mark.parametrize(
    ("images", "going"),
    [
        pytest.param(built(), [], id="none"),
        pytest.param(built(_OK, _OK), [], id="no more than are kept"),
        pytest.param(built(_OK, _OK, _OK, _OK), ["j0d", "j1d"], id="the oldest go"),
        pytest.param(built(_OK, _OK, _OK, _OK, kept=None), [], id="a job without the rule"),
        pytest.param(built(_OK, _OK, _OK, used=("j0d",)), ["j1d"], id="the oldest that is not in use"),
        pytest.param(built(_OK, _OK, kept=1, used=("j0d",)), [], id="never the newest"),
        pytest.param(built(_OK, _OK, _OK, used=("j0d", "j1d", "j2d")), [], id="all in use"),
        pytest.param(built(_OK, _OK, _OK, kinds="dc"), ["j0d", "j0c"], id="both kinds of one run"),
        pytest.param(built(_OK, _OK, _OK, kinds="dc", used=("j0c",)), ["j1d", "j1c"], id="a run with one in use stays"),
        pytest.param(built(_OK, kinds="dd"), ["j0d"], id="a stage that was tried again"),
        pytest.param(built(_OK, _OK, _OK, _RUNNING), ["j0d"], id="a run under way counts for nothing"),
        pytest.param(built(_RUNNING, kinds="dd"), [], id="nothing of a run under way"),
        pytest.param(built(_OK, _OK, _FAILED), [], id="a failed one counts for nothing and is looked at"),
        pytest.param(built(_OK, _FAILED, _FAILED), ["j1d"], id="until another one failed"),
        pytest.param(built(_FAILED, _OK), ["j0d"], id="or one succeeded"),
        pytest.param(built(_FAILED, _OK, used=("j0d",)), [], id="but not while it is in use"),
        pytest.param(built(_FAILED, RunStatus.STOPPED, kept=None), ["j0d"], id="a stopped one is as a failed one"),
        pytest.param(built(_OK, _OK) + built(_OK, _OK, job="k"), [], id="each job for itself"),
    ],
)
def test_which_images_no_rule_keeps(images: list[Built], going: list[str]) -> None:
    assert superfluous(images[::-1]) == going


class DiskFacts(BaseModel):
    """Stands for the image.json of a disk image."""

    disks: list[dict[str, Any]]


@pytest.fixture
def configured(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def rotating(catalog: Catalog, source: Source) -> Job:
    return make_job(catalog, source, incremental={"interval_hours": 1, "max_images": 1})


def make_image(catalog: Catalog, configured: Settings, rotating: Job, run: Run) -> str:
    """An image with files and evidence; its id."""
    id = new_id("m")
    folder = configured.images_path("local") / id
    folder.mkdir(parents=True)
    for name in ("disk-0.qcow2", "image.json"):
        (folder / name).write_text(name)
    disk = {"index": 0, "format": "qcow2", "location": str(folder / "disk-0.qcow2"), "sha256": "00" * 32}
    catalog.add_image(
        rotating.id, run.id, DiskFacts(disks=[disk]), id=id, kind="disk", name=catalog.image_name(rotating.id)
    )
    verification_id = new_id("v")
    evidence = configured.evidence_path / verification_id
    evidence.mkdir(parents=True)
    (evidence / "console.log").write_text("up")
    report = VerificationReport(subject="bios", status="succeeded")
    catalog.add_verification(rotating.id, run.id, id, report, id=verification_id)
    return id


def successful(catalog: Catalog, configured: Settings, rotating: Job) -> str:
    """A run that made an image and succeeded; the image's id."""
    run = started(catalog, rotating, new_id("r"))
    snapshot = "n-" + run.id[2:]
    catalog.record_snapshot(run.id, snapshot, Figures())
    id = make_image(catalog, configured, rotating, run)
    catalog.finish_run(run.id)
    return id


def folders(configured: Settings) -> list[str]:
    return sorted(path.name for path in configured.images_path("local").iterdir())


def begin_verification(catalog: Catalog, rotating: Job, image_id: str, status: str = "pending") -> None:
    with catalog._database.write() as session:
        session.execute(
            insert(VerificationRow).values(
                id=new_id("v"),
                job_id=rotating.id,
                run_id=catalog.image(image_id).run_id,
                image_id=image_id,
                subject="bios",
                status=status,
                created_at=datetime.now(UTC),
            )
        )


def test_a_deleted_image_is_shown_no_more_and_then_all_of_it_goes(
    catalog: Catalog, configured: Settings, rotating: Job
) -> None:
    old, new = successful(catalog, configured, rotating), successful(catalog, configured, rotating)
    assert catalog.job(rotating.id).image_ids == (old, new)
    catalog.delete_images([old])
    assert folders(configured) == sorted([old, new]), "the row says so first"
    with pytest.raises(ImageNotFound):
        catalog.image(old)
    with pytest.raises(ImageNotFound):
        catalog.delete_images([old])
    assert [image.id for image in catalog.images().items] == [new]
    assert catalog.job(rotating.id).image_ids == (new,)
    assert [run.image_ids for run in catalog.runs(rotating.id).items] == [(new,), ()]
    assert remove_deleted(catalog, configured) == [old]
    assert folders(configured) == [new]
    assert len(list(configured.evidence_path.iterdir())) == 1
    assert catalog.deleted_images() == [] == remove_deleted(catalog, configured)
    assert catalog.verifications(rotating.id).total == 2, "what was found out is remembered"


def test_what_cannot_be_removed_is_tried_again(
    catalog: Catalog, configured: Settings, rotating: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = successful(catalog, configured, rotating)
    catalog.delete_images([id])

    def fails(folder: Path) -> None:
        raise OSError(5, "Input/output error", str(folder))

    with monkeypatch.context() as broken:
        broken.setattr(removal, "remove_folder", fails)
        assert remove_deleted(catalog, configured) == []
    assert [image.id for image in catalog.deleted_images()] == [id]
    # The process died in the middle of it: half of the folder is gone.
    (configured.images_path("local") / id / "disk-0.qcow2").unlink()
    assert remove_deleted(catalog, configured) == [id]
    assert folders(configured) == []


def test_a_folder_on_another_machine_is_left_to_it(catalog: Catalog, configured: Settings, rotating: Job) -> None:
    id = successful(catalog, configured, rotating)
    catalog.delete_images([id])
    here, away = configured.images_path("local"), configured.home / "away"
    here.rename(away)
    assert remove_deleted(catalog, configured) == []
    away.rename(here)
    assert remove_deleted(catalog, configured) == [id]


def test_a_folder_is_removed_by_two_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for number in range(300):
        (folder / str(number)).mkdir(parents=True)
    with ThreadPoolExecutor(2) as both:
        for one in [both.submit(remove_folder, folder) for _ in range(2)]:
            one.result()
    assert not folder.exists()


def test_what_is_in_use_stays_and_says_why(catalog: Catalog, configured: Settings, rotating: Job) -> None:
    first, second = successful(catalog, configured, rotating), successful(catalog, configured, rotating)
    assert catalog.mark_image(first, in_use=True).in_use
    with pytest.raises(ImageInUse, match=f"{first} is in use: it is marked"):
        catalog.delete_images([second, first])
    assert catalog.images().total == 2, "all or none"
    begin_verification(catalog, rotating, second)
    assert catalog.image(second).in_use
    with pytest.raises(ImageInUse, match=f"{second} is in use: a verification of it is under way"):
        catalog.delete_images([second])
    assert not catalog.mark_image(first, in_use=False).in_use
    catalog.delete_images([first])
    run = started(catalog, rotating, "flow-3")
    third = make_image(catalog, configured, rotating, run)
    with pytest.raises(ImageInUse, match="the run that makes it is under way"):
        catalog.delete_images([third])
    catalog.fail_run(run.id, StoreNoSpace(path="/"))
    catalog.delete_images([third])
    assert [image.id for image in catalog.images().items] == [second]


def test_the_catalog_knows_which_images_and_then_which_snapshots_may_go(
    catalog: Catalog, configured: Settings, rotating: Job
) -> None:
    ids = [successful(catalog, configured, rotating) for _ in range(3)]
    snapshots = [catalog.image(id).snapshot_id for id in ids]
    catalog.mark_image(ids[0], in_use=True)
    assert catalog.superfluous_images() == [ids[1]], "two go, if they may"
    assert catalog.unneeded_snapshots() == [], "images were made from them"
    catalog.delete_images([ids[1]])
    assert catalog.unneeded_snapshots() == [snapshots[1]]
    catalog.mark_image(ids[0], in_use=False)
    assert catalog.superfluous_images() == [ids[0]]
    begin_verification(catalog, rotating, ids[0], "running")
    assert catalog.superfluous_images() == []

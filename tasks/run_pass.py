"""What all stages of one pass share: the run, the job behind it, the source, and a folder for what is between."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Job, Run, Source, VerificationRecord
from rehost.catalog.stages import expected_seconds, stages_of
from rehost.errors import CatalogAway, ImageNotFound
from rehost.replication.open_store import open_store
from rehost.replication.throttle import limited
from rehost.replication.tree import Tree
from rehost.run_progress import RunProgress
from rehost.settings import Region, Settings, settings
from rehost.source.connect import open_session
from rehost.source.session import Session, TellsNotes
from tasks.quiet import tell_a_story
from tasks.reporting import StageProgress, telling

_LEDGER = "images"
_WIRE = "bytes-on-wire"
_NOTES = "notes"
_CATALOG_PATIENCE_SECONDS = 60.0  # a run of hours outlives a restart of the database


@dataclass(frozen=True)
class Pass:
    """One pass of a job along the way from source to image. Only ids, names and paths: nothing here is secret."""

    run: Run
    job: Job
    source: Source
    workspace: Path  # what one stage leaves for the next; gone when the pass has ended
    bar: RunProgress = field(default_factory=lambda: RunProgress({}), compare=False, repr=False)

    @property
    def region(self) -> Region:
        """The destination of the job."""
        found = settings().region(self.job.region_id)
        assert found is not None, "the job's rules have seen to it"
        return found

    @property
    def images_folder(self) -> Path:
        """Where the images of this job's region lie, a folder each."""
        return settings().images_path(self.job.region_id)

    def image_folder(self, image_id: str) -> Path:
        """A new folder for an image. It is in the pass's ledger first, so that a dead process leaves none behind."""
        folder = self.images_folder / image_id
        with (self.workspace / _LEDGER).open("a", encoding="utf-8") as ledger:
            ledger.write(f"{image_id} {self.job.region_id}\n")
            ledger.flush()
            os.fsync(ledger.fileno())
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # an image holds the server's secrets
        return folder

    def progress(self, stage: str) -> StageProgress:
        """The stage begins: its bar, which moves the job's own."""
        return StageProgress(self.job.id, stage, self.bar)


@contextmanager
def source_session(this: Pass) -> Iterator[Session]:
    """A session with the pass's source, under the job's limits, also those that are set while it is open.

    What comes over its wire is counted for the run.
    """
    with (
        catalog() as opened,
        open_session(
            this.source.connection,
            compress_level=this.job.replication.compress_level,
            bandwidth_limit_kbps=opened.bandwidth_limit(this.job.id, datetime.now(UTC)),
            wheels=settings().wheels_path,
        ) as session,
    ):

        def limit(seconds: float) -> int:
            return opened.bandwidth_limit(this.job.id, datetime.fromtimestamp(seconds, UTC))

        try:
            with limited(session, limit):
                yield session
        finally:
            counted = bytes_on_wire(this) + session.bytes_on_wire()
            (this.workspace / _WIRE).write_text(str(counted), encoding="utf-8")
            told = session.notes() if isinstance(session, TellsNotes) else ()
            add_notes(this, told)


def add_notes(this: Pass, told: Iterable[str]) -> None:
    """Something to say to people; what was said in this pass already is not said twice."""
    (this.workspace / _NOTES).write_text(json.dumps(list(dict.fromkeys([*notes(this), *told]))), "utf-8")


def notes(this: Pass) -> list[str]:
    """What the sessions of this pass had to say to people so far."""
    try:
        return list(json.loads((this.workspace / _NOTES).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


def bytes_on_wire(this: Pass) -> int:
    """What came from the source in all sessions of this pass so far, those that broke among them."""
    try:
        return int((this.workspace / _WIRE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0


@contextmanager
def catalog() -> Iterator[Catalog]:
    """The catalog of this process's settings, for the length of a block; an outage of its database is sat out."""
    with Catalog.open(settings(), patience=_CATALOG_PATIENCE_SECONDS) as opened:
        yield opened


@contextmanager
def open_pass(run: Run) -> Iterator[Pass]:
    """Read what the run is about and make its workspace, which goes with the block.

    So do the folders of images that were begun and are in no catalog; the store and the images are not in it.
    """
    with catalog() as opened:
        job = opened.job(run.job_id)
        before = opened.stage_seconds(job.id)
    with _in_workspace(run, job, run.id, _bar(job, before)) as this:
        try:
            with telling(this.bar, job.id, catalog):
                yield this
        finally:
            with suppress(CatalogAway), catalog() as opened:
                opened.record_stage_seconds(run.id, this.bar.seconds())


@contextmanager
def open_trial(test: VerificationRecord) -> Iterator[Pass]:
    """The same for a test of an image of a run that has ended: it has a workspace of its own and moves no bar."""
    with catalog() as opened:
        run = opened.run(test.run_id)
        job = opened.job(run.job_id)
    with _in_workspace(run, job, test.id, RunProgress({})) as this:
        yield this


@contextmanager
def _in_workspace(run: Run, job: Job, name: str, bar: RunProgress) -> Iterator[Pass]:
    tell_a_story()
    with catalog() as opened:
        source = opened.source(run.source_id)
    workspace = workspaces(settings()) / name
    workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
    sign(name, os.getpid())
    try:
        yield Pass(run, job, source, workspace, bar)
    finally:
        _clear(workspace)


def _bar(job: Job, before: Mapping[str, float]) -> RunProgress:
    region = settings().region(job.region_id)
    stages = stages_of(job, publishes=region is not None and region.registry is not None)
    # A flow run that is done again goes on where the bar was.
    return RunProgress(expected_seconds(stages, before), measured=bool(before), percent=job.progress)


def _clear(workspace: Path) -> None:
    ledger = workspace / _LEDGER
    if ledger.exists():
        with catalog() as opened:
            # What follows the last newline was torn by a full disk or a crash.
            for line in ledger.read_text(encoding="utf-8").split("\n")[:-1]:
                image_id, _, region_id = line.partition(" ")
                try:
                    opened.image(image_id)
                except ImageNotFound:
                    shutil.rmtree(settings().images_path(region_id) / image_id, ignore_errors=True)
    shutil.rmtree(workspace, ignore_errors=True)


def workspaces(configured: Settings) -> Path:
    """The folder of all workspaces; a workspace whose run, or test, is not under way is a leftover."""
    return configured.scratch_path / "runs"


def reap_workspaces() -> None:
    """Remove the workspaces of runs and tests that are not under way: their process died before it could."""
    folder = workspaces(settings())
    if not folder.exists():
        return
    # First what is there, then who is alive: a run that begins in between is in both.
    found = list(folder.iterdir())
    signed = list(_owners(settings()).iterdir())
    with catalog() as opened:
        alive = {run.id for run in opened.runs_under_way()} | {test.id for test in opened.verifications_under_way()}
    for workspace in found:
        if workspace.name not in alive:
            _clear(workspace)
    for mark in signed:
        if mark.name not in alive:
            mark.unlink(missing_ok=True)


def _owners(configured: Settings) -> Path:
    """The folder that tells by whom each run or test is done.

    A mark outlives the workspace: the end of the run is told after that has gone, and the process may die in between.
    """
    folder = configured.scratch_path / "owners"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def sign(run_id: str, process: int) -> None:
    """That process of this machine does the run or test; until the run is over, whatever becomes of the process."""
    (_owners(settings()) / run_id).write_text(_identity(process), encoding="utf-8")


def owner_is_dead(run_id: str) -> bool:
    """Whether the process that did the run or test was one of this machine and is gone; False where nobody knows."""
    return _owner_lives(run_id) is False


def owner_is_alive(run_id: str) -> bool:
    """Whether the process that does the run is one of this machine and lives; False where that cannot be told."""
    return _owner_lives(run_id) is True


def end_owner(run_id: str) -> None:
    """Tell the process that does the run to end, if it is one of this machine and lives; it then unwinds."""
    if owner_is_alive(run_id):
        told = (_owners(settings()) / run_id).read_text(encoding="utf-8")
        with suppress(ProcessLookupError):
            os.kill(int(told.split()[2]), signal.SIGTERM)


def _owner_lives(run_id: str) -> bool | None:
    try:
        told = (_owners(settings()) / run_id).read_text(encoding="utf-8")
        machine, _, process, _ = told.split()
        return _identity(int(process)) == told if machine == platform.node() else None
    except (OSError, ValueError):
        return None


def _identity(process: int) -> str:
    """Machine, boot, number and start time of a process: no other one ever has the same four."""
    try:
        # proc(5): the name in parentheses may hold spaces; the state is the third field, the start time the 22nd.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # A killed process is seen until its parent reaps it, and not every machine's first process hurries to.
        started = "gone" if fields[0] in "ZX" else fields[19]
    except OSError:
        started = "gone"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{platform.node()} {boot_id} {process} {started}"


@contextmanager
def snapshot_tree(snapshot_id: str) -> Iterator[Tree]:
    """The files of a snapshot as a Tree over the store, for the length of a block."""
    with open_store(settings()) as store:
        yield Tree(store.files(snapshot_id), store)

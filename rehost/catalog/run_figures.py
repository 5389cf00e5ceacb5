"""How far the runs in the catalog are, and how long the stages of earlier ones took."""

from __future__ import annotations

from sqlalchemy import case, select, update

from rehost.catalog.database import Database, held
from rehost.catalog.jobs import job_row
from rehost.catalog.states import JobStatus, RunStatus
from rehost.catalog.tables import JobRow, RunRow, VerificationRow
from rehost.errors import RunNotFound

_MOST_SECONDS = 2**31 - 1
_MOST_BYTES = 2**63 - 1
STAGE_SECONDS = "stage_seconds"  # beside the figures of the transfer, in their document


class RunFigures:
    """The part of the catalog that remembers the figures of runs."""

    _database: Database

    def set_progress(
        self,
        job_id: str,
        percent: float,
        eta_seconds: float | None = None,
        *,
        bytes_done: int | None = None,
        bytes_total: int | None = None,
        bytes_per_second: float | None = None,
    ) -> None:
        """How far the run is, 0 to 100. It never goes back within a run; a job that is not running is left alone."""
        whole = max(0, min(100, int(percent)))
        eta = None if eta_seconds is None else max(0, min(_MOST_SECONDS, round(eta_seconds)))
        with self._database.write() as session:
            session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.status == JobStatus.RUNNING)
                .values(
                    progress=case((JobRow.progress < whole, whole), else_=JobRow.progress),
                    eta_seconds=eta,
                    bytes_done=_bounded(bytes_done),
                    bytes_total=_bounded(bytes_total),
                    bytes_per_second=_bounded(bytes_per_second),
                )
            )

    def record_stage_seconds(self, run_id: str, seconds: dict[str, float]) -> None:
        """How long each stage of the run took. Raises RunNotFound."""
        with self._database.write() as session:
            row = session.get(RunRow, run_id, with_for_update=held(session))
            if row is None:
                raise RunNotFound(id=run_id)
            row.figures = {**(row.figures or {}), STAGE_SECONDS: {k: round(v, 3) for k, v in seconds.items()}}

    def stage_seconds(self, job_id: str) -> dict[str, float]:
        """How long each stage took in the newest run of the job that succeeded; empty where none has told."""
        with self._database.read() as session:
            figures = session.scalars(
                select(RunRow.figures)
                .where(RunRow.job_id == job_id, RunRow.status == RunStatus.SUCCEEDED)
                .order_by(RunRow.created_at.desc(), RunRow.id.desc())
                .limit(1)
            ).first()
        return dict((figures or {}).get(STAGE_SECONDS, {}))

    def flow_runs(self, job_id: str, run_id: str | None = None) -> dict[str, str]:
        """The flow runs of a job, of its verifications that were asked for by themselves too: id → whose it is.

        With `run_id` that of this run or verification alone. Raises JobNotFound, RunNotFound.
        """
        with self._database.read() as session:
            job_row(session, job_id)
            found: dict[str, str] = {}
            known: set[str] = set()
            for row in (RunRow, VerificationRow):
                for id, flow_run_id in session.execute(select(row.id, row.flow_run_id).where(row.job_id == job_id)):
                    known.add(id)
                    if flow_run_id is not None and run_id in (None, id):
                        found.setdefault(flow_run_id, id)
        if run_id is not None and run_id not in known:
            raise RunNotFound(id=run_id)
        return found


def _bounded(value: float | None) -> int | None:
    return None if value is None else max(0, min(_MOST_BYTES, round(value)))

"""The table of states and actions is the contract's, nothing else repeats it, and each state says what to do now."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rehost.catalog.standing import CASES, Standing, next_step, status_info
from rehost.catalog.states import (
    RULES,
    TRANSITIONS,
    USER_ACTIONS,
    Action,
    BusinessStatus,
    JobStatus,
    RunKind,
    check_action,
    leading_to,
    startable,
)
from rehost.errors import JobInvalidBusinessStatus, JobInvalidStatus
from rehost.verification.report import Failure
from tools import states_doc

CONTRACT: dict[Action, set[str]] = {
    Action.START: {"Ready", "Stopped", "InError", "Waiting"},
    Action.STOP: {"Running", "Waiting"},
    Action.VERIFY: {"Waiting", "Finished"},
    Action.CUT_OVER: {"Waiting"},
    Action.DELETE: {str(status) for status in JobStatus} - {"Running"},
}
MOMENT = datetime(2026, 11, 24, 3, 15, tzinfo=UTC)


def test_the_table_is_the_contract() -> None:
    assert {action: set(RULES[action].origins) for action in USER_ACTIONS} == CONTRACT
    assert RULES[Action.STOP].stages == (BusinessStatus.SYNCING,)
    assert {
        "Ready": {"Running", "Expired", "Deleting"},
        "Running": {"Finished", "Waiting", "Stopped", "InError"},
        "Finished": {"Deleting"},
        "Waiting": {"Running", "Finished", "Stopped", "Expired", "Deleting"},
        "Stopped": {"Running", "Expired", "Deleting"},
        "InError": {"Running", "Expired", "Deleting"},
        "Expired": {"Deleting"},
        "Deleting": set(),
    } == TRANSITIONS
    assert set(leading_to(JobStatus.EXPIRED)) == {"Ready", "Stopped", "InError", "Waiting"}


def test_runs_begin_where_their_kind_may() -> None:
    assert startable(RunKind.MANUAL) == RULES[Action.START].origins
    assert startable(RunKind.SCHEDULE) == (JobStatus.READY, JobStatus.IN_ERROR, JobStatus.WAITING)
    assert startable(RunKind.CUT_OVER) == (JobStatus.WAITING,)


@pytest.mark.parametrize("stage", BusinessStatus)
def test_a_stop_of_a_running_job_is_a_matter_of_its_stage(stage: BusinessStatus) -> None:
    if stage is BusinessStatus.SYNCING:
        check_action("j-1", Action.STOP, JobStatus.RUNNING, stage)
        return
    with pytest.raises(JobInvalidBusinessStatus, match=rf"{stage}; stop is allowed in Syncing\."):
        check_action("j-1", Action.STOP, JobStatus.RUNNING, stage)


def test_a_refusal_names_the_present_and_the_allowed_states() -> None:
    with pytest.raises(JobInvalidStatus, match=r"is Ready; verify is allowed in Waiting, Finished\."):
        check_action("j-1", Action.VERIFY, JobStatus.READY, None)


def test_the_page_of_states_is_the_one_that_the_tables_make() -> None:
    assert states_doc.PAGE.read_text(encoding="utf-8") == states_doc.page(), "run `make docs`"


TOLD = Failure(code="Store.NoSpace", message="The store {is} full.", remedy="Make room.", retryable=True)

STANDINGS: list[tuple[Standing, str, str]] = [
    (Standing(JobStatus.READY), "Nothing has run yet.", "Start the job."),
    (Standing(JobStatus.READY, next_run_at=MOMENT), "starts at 2026-11-24 03:15:00 UTC", "Nothing; the job starts by"),
    (Standing(JobStatus.READY, start_lost=True), "taken away in Prefect", "Start the job."),
    (Standing(JobStatus.READY, queued=True), "Waits for its turn:", "Nothing; it starts by itself"),
    (Standing(JobStatus.WAITING, queued=True, next_run_at=MOMENT), "Waits for its turn:", "Nothing;"),
    (Standing(JobStatus.RUNNING, BusinessStatus.PREPARING), "being checked", "Wait;"),
    (Standing(JobStatus.RUNNING, BusinessStatus.SYNCING), "being copied", "Wait;"),
    (Standing(JobStatus.RUNNING, BusinessStatus.SYNCING, stopping=True), "being stopped", "until the run has stopped"),
    (Standing(JobStatus.RUNNING, BusinessStatus.PROCESSING), "built and tested", "Wait;"),
    (Standing(JobStatus.RUNNING, BusinessStatus.CLEANING), "no longer", "Wait;"),
    (Standing(JobStatus.STOPPED), "was stopped", "Start the job again"),
    (Standing(JobStatus.IN_ERROR, error=TOLD), "The store {is} full.", "Make room. Then start the job again"),
    (Standing(JobStatus.IN_ERROR, error=TOLD, next_run_at=MOMENT), "The store {is} full.", "tries again at 2026-11-24"),
    (Standing(JobStatus.IN_ERROR, error=TOLD, next_run_at=MOMENT, schedule_paused=True), "full.", "room. Then start"),
    (Standing(JobStatus.WAITING, next_run_at=MOMENT), "due at 2026-11-24 03:15:00 UTC", "Cut over when"),
    (Standing(JobStatus.WAITING, next_run_at=MOMENT, schedule_paused=True), "is paused", "Resume the schedule"),
    (Standing(JobStatus.WAITING), "no schedule is registered", "registers its schedule"),
    (Standing(JobStatus.WAITING, next_run_at=MOMENT, verifying=True), "being tested again", "Wait until the test"),
    (Standing(JobStatus.WAITING, next_run_at=MOMENT, verification_failed=True), "newest test", "for a new image"),
    (Standing(JobStatus.FINISHED), "The images exist and passed", "Launch the image"),
    (Standing(JobStatus.FINISHED, verifying=True), "being tested again", "Wait until the test"),
    (Standing(JobStatus.FINISHED, verification_failed=True), "newest test of one failed", "verify the job again"),
    (Standing(JobStatus.EXPIRED, expired_at=MOMENT), "removed at 2026-12-01 03:15:00 UTC", "Make a new job"),
    (Standing(JobStatus.DELETING), "being removed", "Nothing;"),
]


@pytest.mark.parametrize(("standing", "info", "step"), STANDINGS, ids=str)
def test_each_state_says_where_the_job_is_and_what_to_do_now(standing: Standing, info: str, step: str) -> None:
    assert info in status_info(standing)
    assert step in next_step(standing)


def test_a_remedy_that_ends_with_the_start_does_not_say_it_twice() -> None:
    error = TOLD.model_copy(update={"remedy": "Make room, then start the job again."})
    assert next_step(Standing(JobStatus.IN_ERROR, error=error)) == error.remedy


def test_every_line_of_the_page_is_told_to_somebody() -> None:
    spoken = {next(case.when for case in CASES if case.fits(standing)) for standing, _, _ in STANDINGS}
    assert spoken == {case.when for case in CASES}

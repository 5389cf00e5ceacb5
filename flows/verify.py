"""The flow `verify`: the newest images of a job are tested again because its user asked for it. Its state stays."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Completed, Failed

from flows.order import VerifyOrder
from flows.passing import die_with_the_worker
from image_builders.container.record import ContainerImage
from image_builders.disk.record import DiskImage
from rehost.catalog.records import VerificationRecord
from rehost.errors import RehostError, VerificationCrashed, VerificationNotFound
from rehost.verification.subjects import trials_of
from tasks.run_pass import catalog, open_trial
from tasks.verify import verify_boot, verify_container


def fail_rest(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The flow run is over: so is each of its tests that has not told its outcome."""
    with catalog() as opened:
        for test in opened.verifications_of_flow_run(str(flow_run.id)):
            reason = state.message or "its process ended without a word"
            opened.fail_verification(test.id, VerificationCrashed(reason=reason))


@flow(
    name="verify",
    description="The newest images of a job are tested again; the job's state stays as it is.",
    on_cancellation=[fail_rest],
    on_crashed=[fail_rest],
    on_failure=[fail_rest],
    persist_result=False,
)
def verify(order: VerifyOrder) -> State[Any]:
    """Test each image as its verification says, one after the other; one that fails keeps none of the others back."""
    log = get_run_logger()
    die_with_the_worker()
    with catalog() as opened:
        tests = opened.claim_verifications(order.verification_ids, str(this_flow_run.id))
    failed: RehostError | None = None
    for test in tests:
        try:
            _test(test)
        except RehostError as error:
            log.error("%s: %s: %s %s", test.subject, error.code, error.message, error.remedy)
            failed = failed or error
            _fail(test, error)
    if failed is not None:
        return Failed(message=f"{failed.code}: {failed.message} {failed.remedy}")
    return Completed(message="Every image proved itself." if tests else "Nothing was left to be tested.")


def _test(test: VerificationRecord) -> None:
    with open_trial(test) as this, catalog() as opened:
        image = opened.image(test.image_id)
        assert image.snapshot_id is not None, "an image of a run that succeeded has one"
        # A test that a user asked for is not tried again by itself: asking again is as easy.
        if image.kind == "container":
            once = verify_container.with_options(retries=0)
            once(this, ContainerImage.model_validate(image.facts), image.snapshot_id, asked=test.id)
            return
        (firmware,) = [one.firmware for one in trials_of(image.facts) if one.subject == test.subject and one.firmware]
        boot = verify_boot.with_options(retries=0)
        boot(this, DiskImage.model_validate(image.facts), image.snapshot_id, firmware, asked=test.id)


def _fail(test: VerificationRecord, error: RehostError) -> None:
    """The test could not even begin, say because its image is gone; one that has told its outcome keeps it."""
    try:
        with catalog() as opened:
            opened.fail_verification(test.id, error)
    except VerificationNotFound:
        pass  # so is its job

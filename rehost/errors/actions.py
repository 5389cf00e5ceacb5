"""Actions on a job that its images do not allow, and tests of images that are not there, or ended without a word."""

from __future__ import annotations

from rehost.errors.images import VerificationError
from rehost.errors.requests import Conflict, NotFound


class VerificationNotFound(NotFound):
    """There is no verification {id}."""

    code = "Verification.NotFound"


class JobNoImage(Conflict):
    """Job {id} has no {missing} of a run that succeeded."""

    code = "Job.NoImage"
    remedy = "Start the job: its next run makes the images anew."


class ImageNotVerified(Conflict):
    """The newest image of job {id} is not proven: it lacks {missing}."""

    code = "Image.NotVerified"
    remedy = (
        "Verify the job again, or start it for a new image; then cut over. With `sync` a last run makes and tests one."
    )


class VerificationUnderWay(Conflict):
    """The images of job {id} are being tested already, by {verification_id}."""

    code = "Verification.UnderWay"
    remedy = "Wait until that test has ended."


class VerificationCrashed(VerificationError):
    """The test of the image ended without an outcome: {reason}."""

    code = "Verification.Crashed"
    remedy = "Look at the end of the flow run's log, then verify the job again; the image is untouched."
    retryable = True

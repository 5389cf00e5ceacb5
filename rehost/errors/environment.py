"""What this machine lacks."""

from __future__ import annotations

from rehost.errors.base import RunError


class EnvironmentFault(RunError):
    """{detail}"""


class NeedsUnmet(EnvironmentFault):
    """This machine lacks what the job needs: {lacking}. Nothing was started."""

    code = "Environment.Lacking"
    remedy = "Run `rehost doctor`; it says what to install or to start."


class ProgramNotFound(EnvironmentFault):
    """The program {program} is not installed on this machine."""

    code = "Program.NotFound"
    remedy = "Run `rehost doctor`; it names the package."


class ProgramFailed(EnvironmentFault):
    """{program} ended with status {status}: {stderr}"""

    code = "Program.Failed"
    remedy = "The log shows its command line; run it by hand to see more."


class ProgramTimeout(EnvironmentFault):
    """{program} did not end within {seconds} seconds and was stopped."""

    code = "Program.Timeout"
    remedy = "Look at the load of this machine, then start the job again."
    retryable = True

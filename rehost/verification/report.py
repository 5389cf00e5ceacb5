"""What a verification found out: checks, evidence and the error where it failed, as frozen records that are also JSON.

Both kinds of verification give the same report: the test boot of a disk image and the trial run of a container.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from rehost.errors import RehostError
from rehost.source.inventory import Record

Status = Literal["passed", "failed", "skipped"]

JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"


class Check(Record):
    """One thing that was looked at. `skipped` means that it could not be looked at; the detail says why."""

    name: str
    status: Status
    detail: str = ""
    seconds: float = 0.0  # from the start of the verification until this was known


class Failure(Record):
    """An error as API, artifacts and reports tell it."""

    code: str
    message: str
    remedy: str
    retryable: bool

    @classmethod
    def of(cls, error: RehostError) -> Failure:
        """The record of that error."""
        return cls(code=error.code, message=error.message, remedy=error.remedy, retryable=error.retryable)


class Evidence(Record):
    """Files that show what happened; absolute paths on the worker, None where there is no such file."""

    console_log: str | None = None
    screenshot: str | None = None  # PNG
    report: str | None = None  # this report as JSON; the same as Markdown lies beside it


class Findings(Record):
    """What is known of one verification, also while it is under way."""

    subject: str  # what was verified: the image's file name and firmware, or the container's reference
    status: Literal["pending", "running", "succeeded", "failed"]
    checks: tuple[Check, ...] = ()
    accelerator: str | None = None  # kvm or tcg; None for containers
    boot_seconds: float | None = None  # from power on until the subject said that it is up; None: it never did
    evidence: Evidence = Evidence()
    error: Failure | None = None
    script_output: str | None = None  # standard output and error of the user's script, bounded


class VerificationReport(Findings):
    """The outcome of one verification."""

    status: Literal["succeeded", "failed"]


def write_report(report: VerificationReport, directory: Path) -> VerificationReport:
    """Write report.json and report.md into `directory`; the report that is returned names the JSON file."""
    path = directory / JSON_NAME
    told = report.model_copy(update={"evidence": report.evidence.model_copy(update={"report": str(path)})})
    path.write_text(json.dumps(told.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / MARKDOWN_NAME).write_text(markdown(told), encoding="utf-8")
    return told


def markdown(report: VerificationReport) -> str:
    """The report for people, as Markdown. Text of the guest cannot add markup of its own."""
    lines = [f"# Verification of {escaped(report.subject)}: {report.status}", ""]
    facts = []
    if report.accelerator:
        facts.append(f"accelerator {report.accelerator}")
    if report.boot_seconds is not None:
        facts.append(f"up after {report.boot_seconds:.1f} s")
    if facts:
        lines += [", ".join(facts).capitalize() + ".", ""]
    if report.error:
        lines += [f"**{report.error.code}**: {escaped(report.error.message)}", "", escaped(report.error.remedy), ""]
    lines += ["| Check | Status | Detail | Seconds |", "|---|---|---|---:|"]
    lines += [f"| {escaped(c.name)} | {c.status} | {escaped(c.detail)} | {c.seconds:.1f} |" for c in report.checks]
    if report.script_output:
        lines += ["", "## Output of the script", "", *("    " + line for line in report.script_output.splitlines())]
    return "\n".join(lines) + "\n"


_MARKUP = str.maketrans({c: "\\" + c for c in "\\`*_[]<>|#!"} | {"\n": " ", "\r": " "})


def escaped(text: str) -> str:
    """Text for one cell or line of Markdown; nothing in it is markup."""
    return text.translate(_MARKUP)

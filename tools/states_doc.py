"""Write docs/states.md from the table of states; with --check, say whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from rehost.catalog.standing import CASES
from rehost.catalog.states import RULES, USER_ACTIONS, Action, BusinessStatus, JobStatus, Rule

PAGE = Path(__file__).resolve().parents[1] / "docs" / "states.md"

_WORDS = {
    Action.SCHEDULED: "scheduled run",
    Action.FINISH: "run succeeded",
    Action.FAIL: "run failed",
    Action.CANCEL: "run cancelled",
}

_HEAD = """# States of a job

This page is made from the tables that the catalog goes by (`rehost/catalog/states.py`, `standing.py`; `make docs`), and
a test asks the API for every action in every state.
"""

_AFTER_ACTIONS = """
An action that is not allowed is answered 409 `Job.InvalidStatus`, or `Job.InvalidBusinessStatus` where the job is
`Running` at another stage; both name where the job is and where the action is allowed.

- A *start* that comes while the job is `queued` is refused as well; a *stop* takes the job out of the queue.
- *verify* is refused with `Verification.UnderWay` while such a test goes on, and with `Job.NoImage` where no image of a
  run that succeeded exists any more. The job keeps its state; `latest_verification` and
  `GET /v1/jobs/{id}/verifications` tell the outcome.
- *cut-over* without `sync` is refused with `Job.NoImage` where an image is not there any more, and with
  `Image.NotVerified` where the job asks for verification and the newest test of an image did not pass. With `sync` its
  run is of kind `cut_over`. Where that fails the job is `InError` like after any other run and its schedule goes on;
  after a start that succeeds it is `Waiting`, and may be cut over.
- *delete* of a job that is `Deleting` goes on with it.
"""


def page() -> str:
    """The whole page."""
    parts = [
        _HEAD,
        _diagram(),
        "## Actions\n",
        _rows("Action", USER_ACTIONS),
        _AFTER_ACTIONS,
        "## What happens by itself\n",
        _rows("What", (action for action in RULES if action not in USER_ACTIONS)),
        "\n## What is told\n\nThe first line that fits is the job's `status_info` and `next_step`.\n",
        _cases(),
    ]
    return "\n".join(parts)


def _diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> Ready"]
    for origin in JobStatus:
        for target in JobStatus:
            words = [
                _WORDS.get(action, str(action))
                for action, rule in RULES.items()
                if origin in rule.origins and target in rule.targets and origin is not target
            ]
            if words:
                lines.append(f"    {origin} --> {target}: {', '.join(words)}")
    return "\n".join([*lines, "    Deleting --> [*]", "```", ""])


def _rows(title: str, actions: Iterable[Action]) -> str:
    lines = [f"| {title} | Allowed in | Leads to | What happens |", "|---|---|---|---|"]
    for action in actions:
        rule = RULES[action]
        name = f"`{action}`" if action in USER_ACTIONS else f"{str(action)[0].upper()}{str(action)[1:]}"
        targets = ", ".join(f"`{target}`" for target in rule.targets) or "the same state"
        lines.append(f"| {name} | {_origins(rule)} | {targets} | {rule.then} |")
    return "\n".join(lines)


def _origins(rule: Rule) -> str:
    told = []
    for status in rule.origins:
        narrowed = status is JobStatus.RUNNING and rule.stages != tuple(BusinessStatus)
        told.append(f"`{status}`" + (f" + `{'`, `'.join(rule.stages)}`" if narrowed else ""))
    return ", ".join(told)


def _cases() -> str:
    lines = ["| When | `status_info` | `next_step` |", "|---|---|---|"]
    lines += [f"| {case.when} | {_template(case.info)} | {_template(case.step)} |" for case in CASES]
    return "\n".join(lines) + "\n"


def _template(text: str) -> str:
    return text.replace("{", "*").replace("}", "*")


def main() -> int:
    """Exit code 1 where --check finds another page than the tables make."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write docs/errors.md from the error classes; with --check, say whether it is up to date."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import api
import rehost
from rehost.errors import RehostError, error_classes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"


def page() -> str:
    """The table of all codes, sorted."""
    for package in (rehost, api):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)  # an error may be declared where it is raised
    classes = sorted({cls.code: cls for cls in error_classes()}.values(), key=lambda cls: cls.code)
    lines = [
        "# Errors",
        "",
        "Every failure has one of these codes, in the API's answers, in a job's `error`, in Prefect's states and on",
        "the command line. This page is made from the classes (`make docs`).",
        "",
        "| Code | What happened | What to do | Retry helps | HTTP | Exit |",
        "|---|---|---|---|---:|---:|",
    ]
    for cls in classes:
        lines.append(
            f"| `{cls.code}` | {_sentence(cls)} | {_cell(cls.remedy)} | {'yes' if cls.retryable else 'no'} "
            f"| {cls.http_status} | {cls.exit_code} |"
        )
    return "\n".join(lines) + "\n"


def _sentence(cls: type[RehostError]) -> str:
    return _cell(" ".join((cls.__doc__ or "").split()).replace("{", "*").replace("}", "*"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Exit code 1 where --check finds another page than the classes make."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

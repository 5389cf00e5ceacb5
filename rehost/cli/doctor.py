"""`rehost doctor`: every need of this machine, whether it is met, and what to do."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from rehost.needs import NEEDS
from rehost.settings import settings


def main(argv: list[str]) -> int:
    """Show the table, or JSON with `--json`. Exit code 0 when everything is met, else 1."""
    parser = argparse.ArgumentParser(prog="rehost doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args(argv)
    answers = [(need, need.check(settings())) for need in NEEDS]
    if arguments.json:
        rows = [
            {
                "name": need.name,
                "met": answer.met,
                "found": answer.found,
                "needed_for": sorted(need.purposes),
                "why": need.why,
                "remedy": None if answer.met else need.remedy,
            }
            for need, answer in answers
        ]
        json.dump({"needs": rows}, sys.stdout)
        print()
    else:
        table = Table("Need", "Met", "For", "Found", "What to do")
        for need, answer in answers:
            met = "[green]yes[/]" if answer.met else "[red]no[/]"
            table.add_row(need.name, met, need.why, answer.found, "" if answer.met else need.remedy)
        Console().print(table)
    return 0 if all(answer.met for _, answer in answers) else 1

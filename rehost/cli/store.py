"""`rehost store stat|check|gc|forget`: the care of this machine's store, also while no service runs.

Exit codes: 0 the store is sound, 1 failed, 2 usage, 3 something is lost or not put right, 11 somebody else is at it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console

from rehost.cli.output import plain, print_json, print_table, size
from rehost.cli.own import Commands
from rehost.replication.backends.interface import Backend
from rehost.replication.care import check, gc, stat
from rehost.replication.open_store import open_place
from rehost.replication.snapshots import Snapshots

_PARTIAL = 3


def main(argv: list[str]) -> int:
    """Do what the arguments say; the exit code."""
    commands = Commands("store", __doc__, open_place)
    commands.add("stat", _stat, "what the store holds")
    checking = commands.add(
        "check", _check, "whether it is sound; what is hurt is named and put right as far as it can be"
    )
    checking.add_argument("--read-data", action="store_true", help="read and compare every byte of every pack")
    checking.add_argument("--report-only", action="store_true", help="put nothing right")
    collecting = commands.add("gc", _gc, "what no snapshot needs leaves the store")
    collecting.add_argument("--dry-run", action="store_true", help="only tell what would go")
    collecting.add_argument(
        "--grace-hours",
        type=_hours,
        default=gc.GRACE_SECONDS / 3600,
        metavar="HOURS",
        help="packs younger than this stay, for transfers that broke (%(default)s)",
    )
    commands.add("forget", _forget, "take a snapshot away").add_argument("snapshot", metavar="ID")
    return commands.run(argv)


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours < 1e6:
        raise argparse.ArgumentTypeError("is a number of hours")
    return hours


def _stat(place: Backend, arguments: argparse.Namespace) -> int:
    told = asdict(stat.stat(place))
    if arguments.json:
        print_json(told)
        return 0
    sources = told.pop("by_source")
    print_table(["", ""], [[_label(name), _value(name, value)] for name, value in told.items()])
    if sources:
        columns = ["Source", "Snapshots", "Own", "Shared"]
        rows = [[s["source_id"], s["snapshots"], size(s["bytes_own"]), size(s["bytes_shared"])] for s in sources]
        print_table(columns, rows)
    return 0


def _check(place: Backend, arguments: argparse.Namespace) -> int:
    status = Console(stderr=True).status("looking") if sys.stderr.isatty() and not arguments.json else None

    def progress(done: int, total: int) -> None:
        if status is not None:
            status.update(f"{done} of {total} packs read")

    if status is not None:
        status.start()
    try:
        found = check.check(place, read_data=arguments.read_data, report_only=arguments.report_only, progress=progress)
    finally:
        if status is not None:
            status.stop()
    if arguments.json:
        print_json({**asdict(found), "sound": found.sound})
    else:
        _tell(found)
    return 0 if found.sound else _PARTIAL


def _tell(found: check.Checked) -> None:
    for finding in found.findings:
        print(f"{_label(finding.kind)} {finding.name}: {plain(finding.detail)}\n  {finding.remedy}")
    for touched in found.touched:
        print(f"Snapshot {touched.snapshot_id} of {touched.source_id} lacks {touched.chunks} chunks, for example of")
        for path in touched.paths:
            print(f"  {plain(path)}")
        print(f"  {touched.remedy}")
    looked = f"{found.packs} packs, {found.chunks} chunks, {found.snapshots} snapshots"
    read = f", {size(found.bytes_read)} read and compared" if found.read_data else "; their content was not read"
    print(f"{'Sound' if found.sound else 'Not sound'}: {looked}{read}.")


def _gc(place: Backend, arguments: argparse.Namespace) -> int:
    done = gc.collect(place, grace_seconds=arguments.grace_hours * 3600, dry_run=arguments.dry_run)
    told = asdict(done)
    if arguments.json:
        print_json(told)
    else:
        print_table(["", ""], [[_label(name), _value(name, value)] for name, value in told.items()])
        if done.packs_waiting:
            print("What waits goes with a later gc, once those who had the store open before have ended.")
    return _PARTIAL if done.packs_damaged else 0


def _forget(place: Backend, arguments: argparse.Namespace) -> int:
    Snapshots(place).delete(arguments.snapshot)
    if arguments.json:
        print_json({"forgotten": arguments.snapshot})
    return 0


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _value(name: str, value: Any) -> str:
    return size(value) if "bytes" in name else plain(value)

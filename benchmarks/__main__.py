"""Rehost beside its peers on the same work in one run.

`python -m benchmarks` prints a table, and as its last line the same as JSON; it ends with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.directories import one_directory
from benchmarks.measure import Row
from benchmarks.restore import store_to_disk
from demo.server import server_tree
from rehost.run import find


def main() -> int:
    """Run what was asked for, and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--tree", type=Path, help="tar of a Debian server's tree (default: the one that the demo keeps)"
    )
    parser.add_argument(
        "--scratch", type=Path, help="folder on the disk to be measured (default: the temporary folder)"
    )
    parser.add_argument("--only", choices=["disk", "directories"], help="run one of them")
    options = parser.parse_args()
    cases: dict[str, Callable[[Path], Row]] = {
        "disk": lambda scratch: store_to_disk(options.tree or server_tree().tar, scratch),
        "directories": one_directory,
    }
    if options.only in (None, "disk"):
        missing = [program for program in ("restic", "mke2fs", "tar") if find(program) is None]
        if missing or os.geteuid() != 0:
            print(
                f"the disk needs root and: restic mke2fs tar (missing: {' '.join(missing) or 'none'})", file=sys.stderr
            )
            return 2
    rows = []
    for name, case in cases.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="rehost-benchmark-", dir=options.scratch) as scratch:
                rows.append(case(Path(scratch)))
    print(f"{'':32} {'rehost':>9} {'peer':>9} {'ratio':>7} {'bar':>6}")
    for row in rows:
        verdict = "holds" if row.holds else "DOES NOT HOLD"
        print(f"{row.name:32} {row.rehost:7.2f} s {row.peer:7.2f} s {row.ratio:7.2f} {row.bar:6.2f}  {verdict}")
        print(f"{'':32} beside {row.peer_name}")
    print(json.dumps({"rows": [row.as_json() for row in rows]}))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

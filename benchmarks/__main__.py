"""Rehost beside its peers on the same work in one run.

`python -m benchmarks` prints a table, and as its last line the same as JSON; it ends with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.blocks import raw_disk, sparse_disk, tracked_disk
from benchmarks.directories import one_directory
from benchmarks.files import debian_tree, million_files
from benchmarks.measure import Row
from benchmarks.restore import store_to_disk
from demo.server import server_tree
from rehost.run import find

_PEERS = ("restic", "rsync", "mke2fs", "tar", "partclone.ext4", "mmdebstrap", "sshd")


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
    cases: dict[str, Callable[[Path], Iterable[Row]]] = {
        "disk": lambda scratch: [store_to_disk(options.tree or server_tree().tar, scratch)],
        "directories": lambda scratch: [one_directory(scratch)],
        "files": lambda scratch: debian_tree(options.tree or server_tree().tar, scratch),
        "million": million_files,
        "blocks": lambda scratch: raw_disk(options.tree or server_tree().tar, scratch),
        "sparse": sparse_disk,
        "tracking": tracked_disk,
    }
    parser.add_argument("--only", choices=cases, action="append", help="run this one; may be given again")
    options = parser.parse_args()
    missing = [program for program in _PEERS if find(program) is None]
    if missing or os.geteuid() != 0:
        print(f"this needs root and: {' '.join(_PEERS)} (missing: {' '.join(missing) or 'none'})", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name, case in cases.items():
        if options.only is None or name in options.only:
            with tempfile.TemporaryDirectory(prefix="rehost-benchmark-", dir=options.scratch) as scratch:
                rows += case(Path(scratch))
    print(f"{'':48} {'rehost':>12} {'peer':>12} {'ratio':>7} {'bar':>6}")
    for row in rows:
        verdict = "holds" if row.holds else "DOES NOT HOLD"
        figures = f"{row.rehost:9.2f} {row.unit:2} {row.peer:9.2f} {row.unit:2} {row.ratio:7.3f} {row.bar:6.2f}"
        print(f"{row.name:48} {figures}  {verdict}")
        print(f"{'':48} beside {row.peer_name}")
    print(json.dumps({"rows": [row.as_json() for row in rows]}))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

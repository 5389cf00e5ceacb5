"""The options of `rehost job create`, and the request that they make."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from rehost.cli.job_spec import add_spec, spec_of
from rehost.cli.parsing import UsageError


def spec(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_spec(parser)
    made: dict[str, Any] = spec_of(parser.parse_args(["s-1", *words]))
    return made


def test_blocks_are_asked_for_by_the_device() -> None:
    disks = spec("--block", "0_2", "--block", "1_1", "--block", "0_3", "--change-tracking")["disks"]
    assert disks == {
        "block_replication": True,
        "change_tracking": True,
        "system": {"partitions": [{"device": "0_2", "block": True}, {"device": "0_3", "block": True}]},
        "data": [{"index": 1, "partitions": [{"device": "1_1", "block": True}]}],
    }


def test_what_the_file_says_of_a_disk_stays(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    data = [{"index": 2, "include": False}, {"index": 1, "partitions": [{"device": "1_2", "size_bytes": 5}]}]
    file.write_text(json.dumps({"disks": {"data": data, "system": {"size_gib": 40}}}))
    disks = spec("--file", str(file), "--block", "1_2", "--block", "0_1")["disks"]
    assert disks["data"] == [
        {"index": 2, "include": False},
        {"index": 1, "partitions": [{"device": "1_2", "size_bytes": 5, "block": True}]},
    ]
    assert disks["system"] == {"size_gib": 40, "partitions": [{"device": "0_1", "block": True}]}


def test_a_size_alone_asks_for_no_blocks() -> None:
    assert spec("--system-size-gib", "40")["disks"] == {"system": {"size_gib": 40}}
    assert "disks" not in spec()


def test_a_device_is_one_of_the_inventory() -> None:
    with pytest.raises(UsageError, match="such as 0_1"):
        spec("--block", "/dev/sda1")

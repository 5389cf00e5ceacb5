"""What a job would do, for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from rehost.cli.client import Json
from rehost.cli.output import print_facts, print_table, size

_LEFT_OUT_SHOWN = 20


def print_plan(plan: Json) -> None:
    """Print it: facts, a table of what travels, one of the disks, what is left out, warnings."""
    firmware = {"both": "BIOS and UEFI", "bios": "BIOS", "uefi": "UEFI"}.get(plan["boot_mode"])
    print_facts(
        [
            ("source", f"{plan['source_id']} ({plan['hostname']}, {plan['os']})"),
            ("region", plan["region_id"]),
            ("disk image", f"{', '.join(plan['formats'])}, boots by {firmware}" if plan["formats"] else None),
            ("container", plan["container_reference"]),
            ("to read", f"at most {size(plan['bytes_to_read'])}"),
            ("takes", _duration(plan)),
            ("starts at", plan["starts_at"]),
        ]
    )
    survey = plan["survey"]
    print()
    if survey is None:
        rows: list[tuple[object, ...]] = [
            (v["mount_point"], v["filesystem"], v["mode"], size(v["used_bytes"])) for v in plan["volumes"]
        ]
        print_table(("WHAT TRAVELS", "FILESYSTEM", "AS", "USED"), rows)
    else:
        print_table(("WHAT TRAVELS", "FILESYSTEM", "AS", "FILES", "SIZE", "TO READ", "IN FILES"), list(_travels(plan)))
    print()
    print_table(("DISK", "PARTITION", "HOLDS", "NOW", "IN THE IMAGE"), list(_layout(plan)))
    if left_out := list(_left_out(plan)):
        print()
        print_table(("LEFT OUT", "NAMES", "SIZE", "WHY"), left_out)
    if plan["warnings"]:
        print()
        print_facts([("warning", warning) for warning in plan["warnings"]])


def _travels(plan: Json) -> Iterator[tuple[object, ...]]:
    found = {volume["mount_point"]: volume for volume in plan["survey"]["volumes"]}
    for volume in plan["volumes"]:
        counted = found[volume["mount_point"]]
        blocks = volume["mode"] == "blocks"
        yield (
            volume["mount_point"],
            volume["filesystem"],
            volume["mode"],
            counted["files"],
            size(counted["bytes"]),
            size(volume["used_bytes"] if blocks else counted["bytes_to_read"]),
            None if blocks else counted["files_to_read"],
        )


def _layout(plan: Json) -> Iterator[tuple[object, ...]]:
    for disk in plan["disks"]:
        target = size(disk["target_bytes"]) if disk["target_bytes"] else "as now"
        yield f"{disk['index']} ({disk['role']})", "", "", size(disk["source_bytes"]), _if(disk["include"], target)
        for partition in disk["partitions"]:
            holds = " ".join(filter(None, (partition["filesystem"], partition["mount_point"])))
            target = size(partition["target_bytes"]) if partition["target_bytes"] else "as now"
            now = size(partition["source_bytes"])
            yield "", partition["device"], holds, now, _if(disk["include"], target)


def _if(included: bool, target: str) -> str:
    return target if included else "in no image"


def _left_out(plan: Json) -> Iterator[tuple[object, ...]]:
    survey = plan["survey"]
    if survey is None:
        for pattern in plan["exclude"]:
            yield pattern, "", "", "asked for"
        return
    for item in survey["left_out"][:_LEFT_OUT_SHOWN]:
        yield item["what"], item["names"], size(item["bytes"]), item["reason"] or "asked for"
    if (more := len(survey["left_out"]) - _LEFT_OUT_SHOWN) > 0:
        yield f"… and {more} more", "", "", ""


def _duration(plan: Json) -> str:
    estimate = plan["estimate"]
    seconds = estimate["seconds"]
    told = "more than a year" if seconds is None else f"about {timedelta(seconds=seconds)}"
    rate = f"{estimate['bytes_per_second'] / 1e6:,.1f} MB/s, {estimate['rate']}"
    limit = f"; limit at the start {estimate['limit_kbps']:,} KB/s" if estimate["limit_kbps"] else ""
    return f"{told} (by {rate}{limit})"

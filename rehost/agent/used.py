"""Which blocks of an area are in use: by the records of what is in it, and where there are none, all of them.

A kind of content is one module `used_*` with a class that takes (read, size, state) and has `rule`, `ranges()` and
`used_bytes`. It raises ValueError for metadata that cannot be, which on a device that is written to is read once
more, and Refused where the map cannot be had.
"""

import importlib
import struct
import time
from array import array
from typing import Callable, Dict, NamedTuple, Optional, Tuple

from rehost.agent import superblocks
from rehost.agent.block_device import BLOCK_BYTES, Device, Window, block_runs, common
from rehost.agent.used_rules import Refused

# What blkid calls the content: where its map comes from.
MAPS: Dict[str, Tuple[str, str]] = {
    "ext2": ("used_ext", "Ext"),
    "ext3": ("used_ext", "Ext"),
    "ext4": ("used_ext", "Ext"),
    "xfs": ("used_xfs", "Xfs"),
    "btrfs": ("used_btrfs", "Btrfs"),
    "swap": ("used_swap", "Swap"),
    "LVM2_member": ("used_lvm", "Lvm"),
}
NONZERO = "nonzero"

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.2

Used = NamedTuple(
    "Used",
    [
        ("rule", str),  # whose records it is by; `nonzero`: nobody's, all blocks that are not zeros
        ("runs", "array[int]"),  # first block and number of blocks, one after the other
        ("used_bytes", int),
        ("filesystem", Optional[str]),
        ("reason", str),  # why it is `nonzero`, where records were there
    ],
)


def used_blocks(device: Device, state: str, settle: Callable[[], None]) -> Used:
    """The map of an area; `settle` has the system write what it holds in memory, before each reading.

    Raises OSError.
    """
    size = device.area.size
    filesystem, reason = None, ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        settle()
        window = Window(device)
        try:
            facts = superblocks.probe(window.clipped, size)
            filesystem = facts.get("filesystem")
            if filesystem not in MAPS:
                reason = ""
                break
            module, name = MAPS[str(filesystem)]
            found = getattr(importlib.import_module("rehost.agent." + module), name)(window.read, size, state)
            runs = block_runs(found.ranges(), size)
            return Used(found.rule, runs, found.used_bytes, str(filesystem), "")
        except Refused as error:
            reason = str(error)
            break
        except (ValueError, IndexError, KeyError, struct.error, RecursionError) as error:
            reason = "its metadata cannot be read: %s" % error
    runs = block_runs(device.data(), size)
    told = sum(runs[1::2]) * BLOCK_BYTES
    return Used(NONZERO, runs, min(told, size), str(filesystem) if filesystem else None, reason)


def copied_blocks(device: Device, state: str, settle: Callable[[], None]) -> Used:
    """The map of an area as it is copied: holes of the file that it lies in, which are zeros, need no reading.

    Raises OSError.
    """
    used = used_blocks(device, state, settle)
    if not device.is_file:
        return used
    ranges = (
        (first * BLOCK_BYTES, min((first + count) * BLOCK_BYTES, device.area.size))
        for first, count in zip(used.runs[0::2], used.runs[1::2])
    )
    return used._replace(runs=block_runs(common(ranges, device.data()), device.area.size))


def needs(read: Callable[[int, int], bytes], filesystem: str) -> str:
    """What else than this device the filesystem needs, as the end of a sentence; empty where nothing."""
    module = importlib.import_module("rehost.agent." + MAPS[filesystem][0])
    try:
        return " and ".join(sorted(module.devices(read))) if hasattr(module, "devices") else ""
    except struct.error:
        return ""

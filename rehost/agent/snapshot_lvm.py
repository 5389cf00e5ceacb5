"""Holds a volume on a logical volume still: an LVM snapshot, classic or thin.

lvcreate(8) suspends the device for the moment of the snapshot, which freezes the filesystem on it, so that its journal
is all that there is to replay; the mount does that on the snapshot's own copy-on-write space.
"""

import json
import os
import secrets
from typing import Any, Dict, List, Optional

from rehost.agent import children
from rehost.agent.programs import Refused, output_of
from rehost.agent.room import RDONLY, Room

NAME = "lvm"
_TAG = "rehost"  # on every snapshot of ours; a second tag names the process that answers for it
_OWNER = "rehost."
_GIB = 1 << 30
_POOL_PERCENT = 90.0
_FIELDS = "vg_name,lv_name,lv_size,lv_attr,pool_lv,lv_kernel_major,lv_kernel_minor,vg_free,vg_extent_size"
_FIELDS += ",data_percent,lv_tags"
_MOUNT_DATA = {"xfs": "nouuid"}  # the origin with the same UUID is mounted


class Snapshot:
    """A snapshot of one logical volume, from the plan to the removal."""

    def __init__(self, volume: Dict[str, Any], owner: str) -> None:
        """Plan it; nothing is made. Raises Refused with the reason why this volume can have none."""
        rows = _logical_volumes(str(volume["number"]))
        origin = next((row for row in rows if _number(row) == volume["number"]), None)
        if origin is None:
            raise Refused("it is on no logical volume")
        if volume["filesystem"] == "btrfs":
            raise Refused("two devices with one btrfs filesystem would be mixed up by the kernel")
        self.key = "%s/%s" % (origin["vg_name"], origin["lv_name"])
        self._group = str(origin["vg_name"])
        self._filesystem = str(volume["filesystem"])
        self._owner = owner
        self._name = "rehost_" + secrets.token_hex(8)
        self._thin = str(origin["lv_attr"]).startswith("V")
        self._bytes = 0
        if self._thin:
            pool = next((row for row in rows if row["lv_name"] == origin["pool_lv"]), {"data_percent": ""})
            if float(pool["data_percent"] or 0) > _POOL_PERCENT:
                raise Refused("its thin pool is filled to %s %%" % pool["data_percent"])
        else:
            self._bytes = snapshot_bytes(int(origin["lv_size"]), int(origin["vg_free"]), int(origin["vg_extent_size"]))
        self.device: Optional[str] = None
        self.detail = ""

    def take(self, room: Room) -> List[str]:
        """Make it. Raises Refused; there may be something to remove then too."""
        argv = ["lvcreate", "--yes", "--snapshot", "--name", self._name, "--addtag", _TAG]
        argv += ["--addtag", _OWNER + self._owner]
        if self._thin:
            argv += ["-K", "-kn", "-ay"]  # thin snapshots are skipped at activation unless told otherwise
        else:
            argv += ["--size", "%db" % self._bytes]
            self.detail = "%d MiB for what is written meanwhile" % (self._bytes >> 20)
        output_of(argv + [self.key])
        self.device = os.path.realpath("/dev/%s/%s" % (self._group, self._name))
        return []

    def mount(self, room: Room) -> str:
        """Mount it read-only; where its root is."""
        assert self.device is not None
        return room.mount(self.device, self._filesystem, RDONLY, _MOUNT_DATA.get(self._filesystem, ""))

    def broken(self) -> Optional[str]:
        """Why what was read from it is worth nothing, if it is."""
        if self._thin:
            return None
        row = self._row()
        if row is None:
            return "the snapshot of %s is gone" % self.key
        attributes = str(row["lv_attr"])
        if attributes[4:5] in ("I", "S") or float(row["data_percent"] or 0) >= 100.0:
            return "the snapshot of %s is full after %d MiB of writes" % (self.key, self._bytes >> 20)
        return None

    def remove(self, room: Optional[Room]) -> None:
        """Remove exactly this one; nothing happens where it is not there. Raises Refused where it stays."""
        if self._row() is not None:
            output_of(["lvremove", "--yes", "--force", "%s/%s" % (self._group, self._name)])

    def _row(self) -> Optional[Dict[str, Any]]:
        rows = _listed([])
        wanted = (self._group, self._name)
        return next((row for row in rows if (row["vg_name"], row["lv_name"]) == wanted), None)


def snapshot_bytes(origin: int, free: int, extent: int) -> int:
    """How much space a classic snapshot gets, of whole extents. Raises Refused where it would be too little."""
    if free < origin // 20:
        raise Refused("its volume group has %d MiB free, less than 5 %% of the volume" % (free >> 20))
    size = min(free, max(_GIB, origin // 5)) // extent * extent
    if not size:
        raise Refused("its volume group has no extent free")
    return size


def leftovers() -> List[str]:
    """Remove snapshots of ours whose process died with its machine; what was found, and what became of it."""
    try:
        rows = _listed(["@" + _TAG])
    except Refused:
        return []  # no LVM here
    found = []
    for row in rows:
        owners = [tag[len(_OWNER) :] for tag in str(row["lv_tags"]).split(",") if tag.startswith(_OWNER)]
        if not owners or not str(row["lv_name"]).startswith("rehost_") or children.alive(owners[0]):
            continue
        name = "%s/%s" % (row["vg_name"], row["lv_name"])
        try:
            output_of(["lvremove", "--yes", "--force", name])
            found.append("the LVM snapshot %s of an earlier run was removed" % name)
        except Refused as refusal:
            found.append("the LVM snapshot %s of an earlier run is still there: %s" % (name, refusal))
    return found


def _logical_volumes(number: str) -> List[Dict[str, Any]]:
    if not _on_lvm(number):
        raise Refused("it is on no logical volume")
    return _listed([])


def _on_lvm(number: str) -> bool:
    try:
        with open("/sys/dev/block/%s/dm/uuid" % number) as stream:
            return stream.read().startswith("LVM-")
    except OSError:
        return False


def _listed(which: List[str]) -> List[Dict[str, Any]]:
    argv = ["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", _FIELDS]
    try:
        return list(json.loads(output_of(argv + which).decode("utf-8", "replace"))["report"][0]["lv"])
    except (ValueError, LookupError) as error:
        raise Refused("`lvs` answers in a way that is not understood") from error


def _number(row: Dict[str, Any]) -> str:
    return "%s:%s" % (row["lv_kernel_major"], row["lv_kernel_minor"])

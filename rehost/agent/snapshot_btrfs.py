"""Holds a volume on btrfs still: a read-only snapshot of its subvolume, in the top level of the same filesystem.

It is made and removed through a mount of the top level that only the room has. A snapshot is of one subvolume: what
is below it in others is not in it. The numbers are those of <linux/btrfs.h>.
"""

import fcntl
import os
import platform
import re
import secrets
import struct
from typing import Any, Dict, List, Optional

from rehost.agent import children
from rehost.agent.programs import Refused, output_of
from rehost.agent.room import Room

NAME = "btrfs"
_WRITE = 0x80000000 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 0x40000000
_SNAP_DESTROY = _WRITE | 4096 << 16 | 0x94 << 8 | 15
_SNAP_CREATE_V2 = _WRITE | 4096 << 16 | 0x94 << 8 | 23
_READ_ONLY = 2
_ROOT_INODE = 256  # of every subvolume
_TOP = "subvolid=5"
_OURS = re.compile(r"\.rehost-[0-9a-f]{16}-(\d+\.\d+\.[0-9a-f-]{36})")
_NESTED_TOLD = 5


class Snapshot:
    """A snapshot of one subvolume, from the plan to the removal."""

    def __init__(self, volume: Dict[str, Any], owner: str) -> None:
        """Plan it; nothing is made. Raises Refused with the reason why this volume can have none."""
        if volume["filesystem"] != "btrfs":
            raise Refused("it is not btrfs")
        if not volume["files"]:
            raise Refused("a snapshot of btrfs is one of files, not of blocks")
        if not str(volume["source"]).startswith("/dev/"):
            raise Refused("its device is not known")
        self._point = str(volume["point"])
        if os.stat(self._point).st_ino != _ROOT_INODE:
            raise Refused("its mount is a part of a subvolume")
        self.key = "%s %s" % (volume["source"], volume["inside"])
        self._source = str(volume["source"])
        self._name = ".rehost-%s-%s" % (secrets.token_hex(8), owner)
        self._top: Optional[str] = None
        self.device: Optional[str] = None
        self.detail = ""

    def take(self, room: Room) -> List[str]:
        """Make it; what was found of earlier runs. Raises Refused."""
        self._top = room.mount(self._source, "btrfs", 0, _TOP)
        try:
            directory = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY)
            try:
                found = _leftovers(directory)
                _create(directory, self._point, self._name)
            finally:
                os.close(directory)
        except OSError as error:
            raise Refused("no snapshot: %s" % os.strerror(error.errno or 0)) from error
        self.detail = _nested(self._point)
        return found

    def mount(self, room: Room) -> str:
        """It is mounted with the top level; where its root is."""
        return "%s/%s" % (self._top, self._name)

    def broken(self) -> Optional[str]:
        """Why what was read from it is worth nothing: it never breaks."""
        return None

    def remove(self, room: Optional[Room]) -> None:
        """Remove exactly this one; nothing happens where it is not there. Raises Refused where it stays."""
        if self._top is None:
            return
        own: Optional[Room] = None
        try:
            if not os.path.isdir(self._top):  # the room is gone, by an accident
                own = Room()
                self._top = own.mount(self._source, "btrfs", 0, _TOP)
            directory = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _destroy(directory, self._name)
            finally:
                os.close(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Refused("%s: %s" % (self._name, os.strerror(error.errno or 0))) from error
        finally:
            if own is not None:
                own.close()


def leftovers() -> List[str]:
    """Those of btrfs are looked for when a filesystem's top level is at hand, in `take`."""
    return []


def _create(directory: int, subvolume: str, name: str) -> None:
    source = os.open(subvolume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        arguments = struct.pack("=qQQ32x4040s", source, 0, _READ_ONLY, name.encode("ascii"))
        fcntl.ioctl(directory, _SNAP_CREATE_V2, bytearray(arguments))
    finally:
        os.close(source)


def _destroy(directory: int, name: str) -> None:
    fcntl.ioctl(directory, _SNAP_DESTROY, bytearray(struct.pack("=q4088s", 0, name.encode("ascii"))))


def _leftovers(directory: int) -> List[str]:
    found = []
    for name in os.listdir(directory):
        ours = _OURS.fullmatch(name)
        if ours is None or children.alive(ours.group(1)):
            continue
        try:
            _destroy(directory, name)
            found.append("the btrfs snapshot %s of an earlier run was removed" % name)
        except OSError as error:
            found.append("%s of an earlier run is still there: %s" % (name, os.strerror(error.errno or 0)))
    return found


def _nested(point: str) -> str:
    try:
        lines = output_of(["btrfs", "subvolume", "list", "-o", point]).decode("utf-8", "replace").splitlines()
    except Refused:
        return "nested subvolumes are not in it, if there are any"
    paths = [line.partition(" path ")[2] for line in lines]
    paths = [path for path in paths if path and not _OURS.fullmatch(path.rpartition("/")[2])]
    if not paths:
        return ""
    more = " and %d more" % (len(paths) - _NESTED_TOLD) if len(paths) > _NESTED_TOLD else ""
    return "nested subvolumes are not in it: %s%s" % (", ".join(paths[:_NESTED_TOLD]), more)

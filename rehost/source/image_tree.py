"""The files of a server that is switched off: its filesystems, each at its mount point, looked into by path."""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Mapping

from rehost.source.ext4_inode import Inode
from rehost.source.ext4_reader import Ext4Image

_LINKS_FOLLOWED = 40
_DIRECTORIES = 32  # whose names are remembered
_ROOT_INODE = 2


class ImageTree:
    """Filesystems by mount point; b"" is the root's, others are paths without a slash at either end."""

    def __init__(self, images: Mapping[bytes, Ext4Image]) -> None:
        self._images = dict(images)
        self._names: OrderedDict[tuple[int, int], dict[bytes, int]] = OrderedDict()

    def find(self, path: bytes) -> tuple[Ext4Image, Inode] | None:
        """What exactly that path names; symbolic links are not followed. None where it names nothing."""
        mount = path
        while mount not in self._images:
            mount = mount.rpartition(b"/")[0]
        image = self._images[mount]
        inode = image.inode(_ROOT_INODE)
        for name in path[len(mount) :].split(b"/"):
            if not name:
                continue
            if not stat.S_ISDIR(inode.mode):
                return None
            number = self._listing(image, inode, path).get(name)
            if number is None:
                return None
            inode = image.inode(number)
        return image, inode

    def _listing(self, image: Ext4Image, directory: Inode, path: bytes) -> dict[bytes, int]:
        key = (id(image), directory.number)
        names = self._names.get(key)
        if names is None:
            names = self._names[key] = dict(image.names(directory, path))
            if len(self._names) > _DIRECTORIES:
                self._names.popitem(last=False)
        else:
            self._names.move_to_end(key)
        return names

    def resolve(self, path: bytes) -> tuple[Ext4Image, Inode] | None:
        """What a path leads to, symbolic links followed as in a chroot. None where it leads nowhere."""
        todo = [part for part in path.split(b"/") if part not in (b"", b".")]
        at: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part == b"..":
                at = at[:-1]
                continue
            found = self.find(b"/".join([*at, part]))
            if found is None:
                return None
            image, inode = found
            if stat.S_ISLNK(inode.mode):
                links += 1
                if links > _LINKS_FOLLOWED:
                    return None
                target = image.target(inode)
                if target.startswith(b"/"):
                    at = []
                todo = [p for p in target.split(b"/") if p not in (b"", b".")] + todo
            else:
                at.append(part)
        return self.find(b"/".join(at))

    def exists(self, path: bytes) -> bool:
        """Whether the path names anything; a link at its end counts, wherever it leads."""
        above, _, name = path.rpartition(b"/")
        found = self.resolve(above)
        if found is None or not stat.S_ISDIR(found[1].mode):
            return False
        return name in self._listing(*found, path)

    def read(self, path: bytes, limit: int = 65_536) -> bytes:
        """The first `limit` bytes of the regular file that the path leads to; b"" where there is none."""
        found = self.resolve(path)
        if found is None or not stat.S_ISREG(found[1].mode):
            return b""
        return found[0].content(found[1], limit)

    def text(self, path: bytes) -> str:
        """The start of a file as text."""
        return self.read(path).decode("utf-8", "replace")

    def listed(self, path: bytes) -> list[bytes]:
        """The names in a directory, sorted; empty where there is none."""
        found = self.resolve(path)
        return sorted(self._listing(*found, path)) if found is not None and stat.S_ISDIR(found[1].mode) else []

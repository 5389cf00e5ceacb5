"""/etc/fstab: every filesystem by its UUID, nothing that is not on the image's disk."""

from __future__ import annotations

import re
from dataclasses import dataclass

from image_builders.disk.fixups import Context, Fixup, Outcome
from image_builders.disk.selection import SwapArea
from rehost.replication.tree import Put, Tree, printable
from rehost.source.inventory import Partition

_PATH = b"etc/fstab"
_LIMIT = 1 << 18
_FIELDS = re.compile(r"(\s*)(\S+)(\s+)(\S+)(\s+)(\S+)(?:(\s+)(\S+))?(.*)", re.DOTALL)
_DEVICE = re.compile(r"/dev/|(UUID|LABEL|PARTUUID|PARTLABEL|ID)=", re.IGNORECASE)
_DISK_NAME = re.compile(r"/dev/(?:[a-z]+d[a-z]+[0-9]*|nvme[0-9]|mmcblk[0-9]|disk/by-(?:id|path)/)")
_NETWORK_TYPES = ("nfs", "nfs4", "cifs", "smb3", "glusterfs", "ceph", "fuse.sshfs", "fuse.s3fs", "9p")
# Swap files, as installers, clouds and people name them. A line of fstab for a file of another name stays as it is.
_SWAP_FILES = (b"*[Ss][Ww][Aa][Pp]*", b"*/*[Ss][Ww][Aa][Pp]*", b"*/*/*[Ss][Ww][Aa][Pp]*", b"*[Ss][Ww][Aa][Pp]*/*")
_SWAP_FILE = re.compile(r"[^/]*(?:/[^/]*){0,2}swap[^/]*|[^/]*swap[^/]*/[^/]*", re.IGNORECASE)
_NOTE = "# Rehost: not on this disk: "


@dataclass(frozen=True)
class _Line:
    """One entry, with its white space, so that what is not changed stays byte for byte."""

    lead: str
    spec: str
    mount_point: str
    kind: str
    options: str
    text: str
    match: re.Match[str]

    def with_device(self, spec: str, kind: str) -> str:
        m = self.match
        options = f"{m[7]}{m[8]}" if m[8] is not None else ""
        return f"{m[1]}{spec}{m[3]}{m[4]}{m[5]}{kind}{options}{m[9]}"


def _parse(text: str) -> _Line | None:
    if not text.strip() or text.lstrip().startswith("#"):
        return None
    match = _FIELDS.fullmatch(text)
    if match is None:
        return None
    mount_point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8) & 0xFF), match[4])
    if mount_point != "/":
        mount_point = mount_point.rstrip("/")
    return _Line(match[1], match[2], mount_point, match[6], match[8] or "defaults", text, match)


def _escape(text: str) -> str:
    return re.sub(r"[\s\\#]", lambda m: f"\\{ord(m[0]):03o}", text)


def _fix(tree: Tree, context: Context) -> Outcome:
    selection = context.selection
    before = tree.read(_PATH, _LIMIT)
    lines = (before or b"").decode("utf-8", "surrogateescape").splitlines()
    wanted = {f.mount_point: f for f in selection.filesystems}
    swaps = {str(s.uuid): s for s in selection.swaps}
    by_device = {p.path: p for disk in context.inventory.disks for p in disk.partitions}
    placed: set[str] = set()
    placed_swaps: set[str] = set()
    warnings: list[str] = []
    after: list[str] = []
    for text in lines:
        line = _parse(text)
        if line is None:
            after.append(text)
        elif line.kind == "swap":
            uuid = _swap_of(line.spec, by_device, swaps)
            if uuid is not None and uuid not in placed_swaps:
                placed_swaps.add(uuid)
                after.append(line.with_device(f"UUID={uuid}", "swap"))
            elif uuid is None and _is_file_of(tree, line.spec):
                after.append(text)
            else:
                after.append(_NOTE + text)
        elif line.mount_point in selection.copied.mounts and not _is_bind(line):
            uuid = selection.copied.mounts[line.mount_point]
            # Only names of disks differ on the target; a volume that was copied has all its own names still.
            by_disk = _DISK_NAME.match(line.spec) is not None and uuid is not None
            after.append(line.with_device(f"UUID={uuid}", line.kind) if by_disk else text)
        elif line.mount_point in wanted and line.mount_point not in placed and not _is_bind(line):
            placed.add(line.mount_point)
            after.append(line.with_device(f"UUID={wanted[line.mount_point].uuid}", "ext4"))
        elif line.mount_point == selection.esp_mount_point and selection.has_esp and line.mount_point not in placed:
            placed.add(line.mount_point)
            after.append(line.with_device(f"UUID={selection.esp_uuid}", "vfat"))
        elif _DEVICE.match(line.spec) and "noauto" not in line.options.split(","):
            warnings.append(
                f"/etc/fstab mounted {printable(line.mount_point.encode('utf-8', 'surrogateescape'))}, "
                "which is not on this disk: the line is commented out."
            )
            after.append(_NOTE + text)
        else:
            if line.kind in _NETWORK_TYPES:
                warnings.append(
                    f"/etc/fstab mounts {printable(line.mount_point.encode('utf-8', 'surrogateescape'))} "
                    f"({printable(line.kind.encode('utf-8', 'surrogateescape'))}) from the network: "
                    "it has to be reachable from the new place."
                )
            after.append(text)
    for filesystem in selection.filesystems:
        if filesystem.mount_point not in placed:
            order = 1 if filesystem.mount_point == "/" else 2
            after.append(f"UUID={filesystem.uuid} {_escape(filesystem.mount_point)} ext4 defaults 0 {order}")
    if selection.has_esp and selection.esp_mount_point and selection.esp_mount_point not in placed:
        after.append(f"UUID={selection.esp_uuid} {_escape(selection.esp_mount_point)} vfat umask=0077,nofail 0 1")
    for uuid in swaps:
        if uuid not in placed_swaps:
            after.append(f"UUID={uuid} none swap sw 0 0")
    content = ("\n".join(after) + "\n").encode("utf-8", "surrogateescape")
    return Outcome((Put(_PATH, content),) if content != before else (), tuple(warnings))


def _is_bind(line: _Line) -> bool:
    return bool({"bind", "rbind"} & set(line.options.split(",")))


def _is_file_of(tree: Tree, spec: str) -> bool:
    """A swap file that comes along."""
    if not spec.startswith("/") or spec.startswith("/dev/"):
        return False
    if not _SWAP_FILE.fullmatch(spec.strip("/")):
        return True
    entry = tree.get(spec.encode("utf-8", "surrogateescape").strip(b"/"))
    return entry is not None and entry.is_file


def _swap_of(spec: str, by_device: dict[str, Partition], swaps: dict[str, SwapArea]) -> str | None:
    """The UUID of the swap area that an entry means, if it is one that is made anew."""
    partition = by_device.get(spec)
    named = partition.uuid if partition is not None else None
    if named is None and spec.upper().startswith("UUID="):
        named = spec[5:].strip('"')
    if named is not None:
        return named.lower() if named.lower() in swaps else None
    if spec.upper().startswith("LABEL="):
        label = spec[6:].strip('"')
        return next((u for u, s in swaps.items() if label and s.label == label), None)
    # /dev/disk/by-…, a mapper name: with one swap area on the disk, it can only be that one.
    return next(iter(swaps)) if spec.startswith("/dev/") and len(swaps) == 1 else None


FIXUP = Fixup(
    name="fstab",
    order=10,
    about=(
        "Every filesystem of the image is mounted by its UUID, since device names differ on the target; entries of "
        "disks that do not come along are commented out, since systemd would wait for them and go into emergency mode."
    ),
    fix=_fix,
    reads=(_PATH,),
    sees=_SWAP_FILES,
)

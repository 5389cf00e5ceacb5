"""What goes wrong in the chunk store, and with what is read from it."""

from __future__ import annotations

from rehost.errors.base import RunError


class StoreError(RunError):
    """{detail}"""


class StoreNoSpace(StoreError):
    """No space is left in {path}; what had been stored is safe."""

    code = "Store.NoSpace"
    remedy = "Make room (old images, `rehost store gc`), then start the job again: it goes on from what arrived."


class StoreChunkCorrupt(StoreError):
    """Chunk {sha256} in pack {pack} does not match its name: {reason}."""

    code = "Store.ChunkCorrupt"
    remedy = "Check the disk under the store and run `rehost store check --read-data`; the next sync sends it again."


class StoreChunkMissing(StoreError):
    """Chunk {sha256} is not in the store."""

    code = "Store.ChunkMissing"
    remedy = "Start the job again: the next sync sends it."
    retryable = True


class StoreUnreadable(StoreError):
    """{path} is not a store that this version can read: {reason}."""

    code = "Store.Unreadable"
    remedy = "Point REHOST_STORE_URL at a store of Rehost, or at an empty folder."


class StoreIOFailed(StoreError):
    """{path} could not be read or written: {reason}."""

    code = "Store.IOFailed"
    remedy = "Check the disk and the rights on that folder, then start the job again: it goes on from what arrived."


class SnapshotNotFound(StoreError):
    """There is no snapshot {id} in the store."""

    code = "Snapshot.NotFound"
    remedy = "Start the job again: its next run takes a new snapshot."


class ManifestInvalid(StoreError):
    """The manifest breaks its rules at /{path}: {reason}."""

    code = "Manifest.Invalid"
    remedy = "Do not trust where it came from before you know why; then take a new snapshot."


class TarRefused(StoreError):
    """The tar cannot be taken in, at member {member}: {reason}."""

    code = "Tar.Refused"
    remedy = "Make the tar again with GNU tar from inside the tree (`tar -C TREE --xattrs -c .`)."


class ExportFailed(StoreError):
    """The tree cannot be restored into {path}: {reason}."""

    code = "Export.Failed"
    remedy = "Name an empty folder on a Linux filesystem with enough room."

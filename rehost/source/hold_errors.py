"""What goes wrong while a server is held still."""

from __future__ import annotations

from rehost.errors import SourceError


class HookFailed(SourceError):
    """{host}: the hook {name} {reason}. It said: {output}"""

    code = "Hook.Failed"
    remedy = "Run the command on the server as root by /bin/sh, correct it in a new job or raise `timeout_seconds`."


class SnapshotOverflow(SourceError):
    """{host}: {reason}, so what was read is not of one moment. The copy was not kept."""

    code = "Snapshot.Overflow"
    remedy = "Give the volume group more free space, or run when less is written, then start the job again."
    retryable = True


class SnapshotFreezeFailed(SourceError):
    """{host}: the filesystems could not be frozen: {reason}."""

    code = "Snapshot.FreezeFailed"
    remedy = "Copy this filesystem in file mode, or by an LVM snapshot, then start the job again."


class SnapshotFreezeLost(SourceError):
    """{host}: the filesystems were thawed after {seconds} seconds, before the last pass was over."""

    code = "Snapshot.FreezeLost"
    remedy = "Start the job again when less is written on the server; what arrived is kept."
    retryable = True

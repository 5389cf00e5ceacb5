"""Runs that ended early, and what goes wrong on the way to a source or on it."""

from __future__ import annotations

from rehost.errors.base import RunError


class RunIncomplete(RunError):
    """The run ended without all that was asked for: {missing}."""

    code = "Run.Incomplete"
    remedy = "Start the job again; if it stays so, keep the log of the run: this is a fault of Rehost."


class RunCancelled(RunError):
    """The run was stopped while {stage}; what had arrived is kept."""

    code = "Run.Cancelled"
    remedy = "Start the job again: it goes on from what arrived."
    exit_code = 130


class RunInterrupted(RunError):
    """Rehost was stopped on this machine during the run. What had arrived is kept; the source is untouched."""

    code = "Run.Interrupted"
    remedy = "Start Rehost again, then start the job again: it goes on from what arrived; a schedule goes on by itself."
    retryable = True


class RunCrashed(RunError):
    """The run ended without finishing: {reason}. What had arrived is kept; the source is untouched."""

    code = "Run.Crashed"
    remedy = "Look at the end of the run's log, then start the job again: it goes on from what arrived."
    retryable = True


class SourceError(RunError):
    """{detail}"""

    exit_code = 10
    http_status = 409


class SourceUnreachable(SourceError):
    """{host}: the connection failed or broke: {reason}. What had arrived is kept; the server is untouched."""

    code = "Source.Unreachable"
    remedy = "Check that sshd answers on that host and port, then start the job again: it goes on from what arrived."
    retryable = True


class SourceAuthenticationFailed(SourceError):
    """{host}: sshd refused the login of {user}."""

    code = "Source.AuthenticationFailed"
    remedy = "Check the user and the identity file (`ssh -i FILE USER@HOST true` must work without a question)."
    exit_code = 12


class SourceHostKeyChanged(SourceError):
    """{host}: the host key is not the one that is known. This may be another machine, or somebody in between."""

    code = "Source.HostKeyChanged"
    remedy = "If the server was reinstalled, remove the old key from {known_hosts} and add the new one by a safe way."


class SourceHostKeyUnknown(SourceError):
    """{host}: its host key is in no known_hosts file."""

    code = "Source.HostKeyUnknown"
    remedy = "Add the key by a safe way to the known_hosts file of the connection, then try again."


class SourceNotEnoughPrivileges(SourceError):
    """{host}: {user} may not read the whole server: {reason}."""

    code = "Source.NotEnoughPrivileges"
    remedy = "Connect as root, or allow password-free sudo and set `sudo: true` on the connection."


class SourceLacksPython(SourceError):
    """{host}: no Python 3.6 or later was found: {reason}."""

    code = "Source.NoPython"
    remedy = "Install python3 on the server (any version from 3.6 on, nothing else is needed)."


class SourceProtocol(SourceError):
    """{host}: the agent said something that it may not say: {reason}."""

    code = "Source.Protocol"
    remedy = "Do not trust this server before you know why; then start the job again."


class SourceAgentFailed(SourceError):
    """{host}: the agent ended by itself: {reason}."""

    code = "Source.AgentFailed"
    remedy = "Look at memory and disks of the server, then start the job again: it goes on from what arrived."
    retryable = True


class SourceUnsupported(SourceError):
    """{source}: {reason}."""

    code = "Source.Unsupported"
    remedy = "See the docs for the sources that Rehost reads, and move this part by hand or exclude it."


class SourceImageDamaged(SourceError):
    """{source}: the disk image is damaged, or not what it says: {reason}."""

    code = "Source.ImageDamaged"
    remedy = "Copy the image from the hypervisor again; on its own server, let `e2fsck` check the filesystem first."


class SnapshotFileChanged(SourceError):
    """{count} files differ from the source in the last comparison, first {path}."""

    code = "Snapshot.FileChanged"
    remedy = "Stop the service that writes them for the length of a sync, or exclude them, and start the job again."
    retryable = True

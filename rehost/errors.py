"""Every way in which Rehost fails, as one tree.

    RehostError
    ├── RequestError       a request that cannot be granted: HTTP 4xx, nothing was started
    │   ├── NotFound       404
    │   ├── Conflict       409
    │   └── Invalid        422
    └── RunError           something that went wrong while a run was under way
        ├── SourceError    on the way to the source, or on it
        ├── StoreError     in the chunk store
        ├── BuildError     while an image was built
        ├── VerificationError  the image was built and did not prove itself
        └── EnvironmentFault   this machine lacks something

A class carries all that is ever said of the failure: its stable ``code``, the sentence (the class's docstring is
its template), the ``remedy``, whether a retry can help, the HTTP status and the exit code of the command line.
Prefect's retries, the API's problem bodies, the exit codes and the table in the docs are made from these classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class RehostError(Exception):
    """{detail}"""

    code: ClassVar[str] = "Internal"
    remedy: ClassVar[str] = "Look at the log of the run; the cause is in its last lines."
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        template = type(self).__doc__ or type(self).__name__
        super().__init__(" ".join(template.format_map(_Facts(facts)).split()))

    @property
    def message(self) -> str:
        """The sentence, with the facts of this case in it."""
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.facts, str(self)))


class _Facts(dict[str, Any]):
    """A fact that was not given shows as its name, so that an error never fails while it is told."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def _rebuild(cls: type[RehostError], facts: dict[str, Any], message: str) -> RehostError:
    error = cls(**facts)
    error.args = (message,)
    return error


def error_of(code: str, message: str) -> RehostError:
    """The error that was told by this code and sentence, by a report or another process."""
    cls = next((c for c in error_classes() if c.code == code), RunError)
    return _rebuild(cls, {}, message)


def error_classes(root: type[RehostError] = RehostError) -> Iterator[type[RehostError]]:
    """Every error class that has a code of its own, for the docs and for the test that finds clashes."""
    for cls in root.__subclasses__():
        if "code" in vars(cls):
            yield cls
        yield from error_classes(cls)


# --- requests -------------------------------------------------------------------------------------------------


class RequestError(RehostError):
    """{detail}"""

    http_status = 400
    exit_code = 2


class NotFound(RequestError):
    """There is no {resource} {id}."""

    http_status = 404
    remedy = "List what exists and use one of its ids."


class SourceNotFound(NotFound):
    """There is no source {id}."""

    code = "Source.NotFound"


class RegionNotFound(NotFound):
    """There is no region {id}."""

    code = "Region.NotFound"
    remedy = "Use `local`, or configure the region in rehost.toml."


class JobNotFound(NotFound):
    """There is no job {id}."""

    code = "Job.NotFound"


class ImageNotFound(NotFound):
    """There is no image {id}."""

    code = "Image.NotFound"


class RunNotFound(NotFound):
    """There is no run {id}."""

    code = "Run.NotFound"


class RouteNotFound(NotFound):
    """There is no {method} {path}."""

    code = "Route.NotFound"
    remedy = "See /docs for what this API answers."


class MethodNotAllowed(RequestError):
    """{path} does not take {method}."""

    code = "Method.NotAllowed"
    remedy = "See /docs for what this API answers."
    http_status = 405


class RequestTooLarge(RequestError):
    """The request is larger than {limit_bytes} bytes."""

    code = "Request.TooLarge"
    remedy = "Send less in one request."
    http_status = 413


class Conflict(RequestError):
    """{detail}"""

    http_status = 409
    exit_code = 11


class SourceStateInvalid(Conflict):
    """Source {id} is {state}; this needs one that is {allowed}."""

    code = "SourceState.Invalid"
    remedy = "Make the source reachable again, then discover it once more."


class SourceHasUnfinishedJob(Conflict):
    """Source {id} has the unfinished job {job_id}."""

    code = "Source.HasUnfinishedJob"
    remedy = "Finish, or delete, that job first; a source has one unfinished job at a time."


class JobNameDuplicate(Conflict):
    """The region {region_id} has a job named {name} already."""

    code = "JobName.Duplicate"
    remedy = "Choose another name."


class ImageNameUsedByJob(Conflict):
    """The image name {name} belongs to the unfinished job {job_id}."""

    code = "ImageName.UsedByJob"
    remedy = "Choose another image name."


class JobInvalidStatus(Conflict):
    """Job {id} is {status}; {action} is allowed in {allowed}."""

    code = "Job.InvalidStatus"
    remedy = "Wait until the job has reached one of these states."


class JobInvalidBusinessStatus(Conflict):
    """Job {id} is {business_status}; {action} is allowed in {allowed}."""

    code = "Job.InvalidBusinessStatus"
    remedy = "Wait until the job has reached one of these stages."


class JobQuotaExceeded(Conflict):
    """There are {limit} jobs already; no more are kept."""

    code = "QuotaExceeded.Job"
    remedy = "Delete jobs that are no longer needed."


class IdempotencyKeyBusy(Conflict):
    """The request with the idempotency key {key} is still being answered."""

    code = "IdempotencyKey.Busy"
    remedy = "Wait a moment and send the same request again."
    retryable = True
    exit_code = 75


class Invalid(RequestError):
    """{detail}"""

    http_status = 422


class InvalidParameter(Invalid):
    """{detail}"""

    code = "InvalidParameter"
    remedy = "Correct the fields that `errors` points at and send the request again; nothing was started."

    def __init__(self, detail: str, errors: list[tuple[str, str]] | None = None) -> None:
        super().__init__(detail=detail, errors=errors or [])

    @property
    def pointers(self) -> list[tuple[str, str]]:
        """(JSON pointer, what is wrong there), one for each fault."""
        return list(self.facts["errors"])

    def __reduce__(self) -> tuple[Any, ...]:
        return (InvalidParameter, (self.facts["detail"], self.facts["errors"]))


class IdempotencyKeyReused(Invalid):
    """The idempotency key {key} was used for another request."""

    code = "IdempotencyKey.Reused"
    remedy = "Use a new key for a new request."


class DiskSizeTooSmall(Invalid):
    """{size_gib} GiB is too small for disk {index}: it needs {needed_gib} GiB."""

    code = "DiskSize.TooSmall"
    remedy = "Ask for a larger disk, or exclude what need not move."


class PartitionCannotBlock(Invalid):
    """Partition {device} cannot be replicated by blocks: {reason}"""

    code = "Partition.CannotBlock"
    remedy = "Choose file mode for this partition."


class DataDiskIndexInvalid(Invalid):
    """The data disk {index} cannot be chosen: {reason}."""

    code = "DataDiskIndex.Invalid"
    remedy = "Use the indexes that the source's inventory shows."


class DataDiskDuplicateIndex(Invalid):
    """The data disk {index} is named more than once."""

    code = "DataDisk.DuplicateIndex"
    remedy = "Name each data disk once."


class VSwitchRequired(Invalid):
    """A private network needs a vSwitch."""

    code = "VSwitch.Required"
    remedy = "Give `network.vswitch_id`, or use the public network."


class ScheduleOutOfRange(Invalid):
    """The schedule is out of range: {reason}."""

    code = "Schedule.OutOfRange"
    remedy = "Start 10 minutes to 30 days ahead; repeat every 1 to 168 hours, by cron at most once an hour."


class TagsNumberExceeded(Invalid):
    """{count} tags are more than {limit}."""

    code = "NumberExceed.Tags"
    remedy = "Use fewer tags."


class Unauthenticated(RequestError):
    """This API wants a key."""

    code = "Unauthenticated"
    remedy = "Send `Authorization: Bearer KEY` with a key of REHOST_API_KEYS."
    http_status = 401
    exit_code = 12


class Forbidden(RequestError):
    """This request is not allowed: {reason}."""

    code = "Forbidden"
    remedy = "Reach the API by 127.0.0.1 or localhost, or set REHOST_API_KEYS and send a key."
    http_status = 403


class OrchestrationAway(RehostError):
    """The Prefect server at {url} does not answer: {reason}"""

    code = "Prefect.Unavailable"
    remedy = "Start it (`rehost up`), then send the request again; nothing was started."
    retryable = True
    http_status = 503
    exit_code = 75


class CatalogAway(RehostError):
    """The catalog's database does not answer: {reason}"""

    code = "Catalog.Unavailable"
    remedy = "Bring the database back, then send the request again."
    retryable = True
    http_status = 503
    exit_code = 75


class CatalogVersionMismatch(RehostError):
    """The catalog's database has version {found}; this program writes version {wanted}."""

    code = "Catalog.VersionMismatch"
    remedy = "Use the version of Rehost that wrote it, or another REHOST_DATABASE_URL."
    http_status = 503
    exit_code = 75


class ApiUnreachable(RehostError):
    """No Rehost API answers at {url}: {reason}"""

    code = "Api.Unreachable"
    remedy = "Start the services with `make up`, or set REHOST_API_HOST and REHOST_API_PORT."
    retryable = True
    exit_code = 75


# --- runs -----------------------------------------------------------------------------------------------------


class RunError(RehostError):
    """{detail}"""


class RunIncomplete(RunError):
    """The run ended without all that was asked for: {missing}."""

    code = "Run.Incomplete"
    remedy = "Start the job again; if it stays so, keep the log of the run: this is a fault of Rehost."


class RunCancelled(RunError):
    """The run was stopped while {stage}; what had arrived is kept."""

    code = "Run.Cancelled"
    remedy = "Start the job again: it goes on from what arrived."
    exit_code = 130


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


class StoreError(RunError):
    """{detail}"""


class StoreNoSpace(StoreError):
    """No space is left in {path}; what had been stored is safe."""

    code = "Store.NoSpace"
    remedy = "Make room (old images, `rehost store gc`), then start the job again: it goes on from what arrived."


class StoreChunkCorrupt(StoreError):
    """Chunk {sha256} in pack {pack} does not match its name: {reason}."""

    code = "Store.ChunkCorrupt"
    remedy = "Check the disk under the store; the next sync sends the chunk again once its pack is removed."


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


class BuildError(RunError):
    """{detail}"""


class BuildDiskTooSmall(BuildError):
    """The target {what} has {size_bytes} bytes and needs {needed_bytes}."""

    code = "Build.DiskTooSmall"
    remedy = "Give the job a larger disk or partition, or exclude what need not move; nothing is copied again."


class BuildNoKernel(BuildError):
    """No Linux kernel was found under /boot of {source}."""

    code = "Build.NoKernel"
    remedy = "A disk image needs a kernel: install one on the source, or ask for a container image alone."


class BuildNoBootLoader(BuildError):
    """No boot loader could be made for {boot_mode}: {reason}."""

    code = "Build.NoBootLoader"
    remedy = "Run `rehost doctor` on the worker; it names the package that is missing."


class BuildInitramfsLacksDriver(BuildError):
    """The initramfs {initramfs} has no {drivers}: the image would not find its disk."""

    code = "Build.InitramfsLacksDriver"
    remedy = "On the source, add the modules to the initramfs (Debian: /etc/initramfs-tools/modules) and rebuild it."


class BuildUnsupported(BuildError):
    """{what} cannot be built: {reason}."""

    code = "Build.Unsupported"
    remedy = "See the docs for what the builders write."


class BuildTableUnreadable(BuildError):
    """The partition table on the image is not what was written: {reason}."""

    code = "Build.TableUnreadable"
    remedy = "Check the disk that images are written to, then start the job again: nothing is copied again."
    retryable = True


class BuildConversionDiffers(BuildError):
    """The {format} file is not equal to the disk that it was made from: {reason}."""

    code = "Build.ConversionDiffers"
    remedy = "Check the disk that images are written to, then start the job again: nothing is copied again."
    retryable = True


class ContainerEngineAway(BuildError):
    """No Docker engine answers: {reason}."""

    code = "Engine.Unavailable"
    remedy = "Start the engine (`rehost doctor` says how), then start the job again: nothing is copied again."
    retryable = True


class ContainerEngineFailed(BuildError):
    """The Docker engine could not {action}: {reason}."""

    code = "Engine.Failed"
    remedy = "The engine's own log says more; most often its disk is full. Then start the job again."
    retryable = True


class RegistryDenied(BuildError):
    """The registry refused {reference}: {reason}."""

    code = "Registry.Denied"
    remedy = "Check the credentials and the rights on this repository, then start the job again."


class RegistryUnreachable(BuildError):
    """The registry of {reference} does not answer: {reason}."""

    code = "Registry.Unreachable"
    remedy = "Check the registry's address and that it runs, then start the job again."
    retryable = True


class VerificationError(RunError):
    """{detail}"""

    exit_code = 20


class BootNoBootLoader(VerificationError):
    """The firmware or the boot loader found nothing to start: {evidence}"""

    code = "Boot.NoBootLoader"
    remedy = "Build the image again; if it stays so, ask for the other boot mode and keep the console log."


class BootKernelPanic(VerificationError):
    """The kernel panicked: {evidence}"""

    code = "Boot.KernelPanic"
    remedy = "Read the console log above that line; most often the root filesystem or a driver is missing."


class BootNoRoot(VerificationError):
    """The initramfs did not find the root filesystem: {evidence}"""

    code = "Boot.NoRoot"
    remedy = "Compare the root= of the kernel's command line with the image's layout; see the run's report."


class BootEmergencyMode(VerificationError):
    """The guest went into emergency mode: {evidence}"""

    code = "Boot.EmergencyMode"
    remedy = "Most often a mount of /etc/fstab is missing: exclude it there, or include its disk in the job."


class BootUnitsFailed(VerificationError):
    """The guest is up, but failed in: {evidence}"""

    code = "Boot.UnitsFailed"
    remedy = "Look at these units in the verification's report; compare with the source, where they may fail too."


class BootCheckFailed(VerificationError):
    """The guest is up, but did not pass: {evidence}"""

    code = "Boot.CheckFailed"
    remedy = "The verification's report shows source and copy side by side."


class BootTimeout(VerificationError):
    """The guest did not report within {seconds} seconds. Last line: {evidence}"""

    code = "Boot.Timeout"
    remedy = "Look at the screenshot and the console log; if it was only slow, raise boot_timeout_seconds and verify."
    retryable = True


class BootEndedEarly(VerificationError):
    """The guest switched itself off or restarted before it had reported. Last line: {evidence}"""

    code = "Boot.EndedEarly"
    remedy = "Read the end of the console log; a guest that restarts once on its first start must do so on the source."


class ContainerExitedEarly(VerificationError):
    """The container ended with status {status}: {evidence}"""

    code = "Container.ExitedEarly"
    remedy = "Look at its log in the verification's report; give the job another command if no service was found."


class ContainerCheckFailed(VerificationError):
    """The container runs, but did not pass: {evidence}"""

    code = "Container.CheckFailed"
    remedy = "The verification's report names each check; the console log beside it has the services' own words."


class EnvironmentFault(RunError):
    """{detail}"""


class NeedsUnmet(EnvironmentFault):
    """This machine lacks what the job needs: {lacking}. Nothing was started."""

    code = "Environment.Lacking"
    remedy = "Run `rehost doctor`; it says what to install or to start."


class ProgramNotFound(EnvironmentFault):
    """The program {program} is not installed on this machine."""

    code = "Program.NotFound"
    remedy = "Run `rehost doctor`; it names the package."


class ProgramFailed(EnvironmentFault):
    """{program} ended with status {status}: {stderr}"""

    code = "Program.Failed"
    remedy = "The log shows its command line; run it by hand to see more."


class ProgramTimeout(EnvironmentFault):
    """{program} did not end within {seconds} seconds and was stopped."""

    code = "Program.Timeout"
    remedy = "Look at the load of this machine, then start the job again."
    retryable = True

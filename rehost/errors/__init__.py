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

from rehost.errors.base import (
    RehostError as RehostError,
)
from rehost.errors.base import (
    RunError as RunError,
)
from rehost.errors.base import (
    error_classes as error_classes,
)
from rehost.errors.base import (
    error_of as error_of,
)
from rehost.errors.environment import (
    EnvironmentFault as EnvironmentFault,
)
from rehost.errors.environment import (
    NeedsUnmet as NeedsUnmet,
)
from rehost.errors.environment import (
    ProgramFailed as ProgramFailed,
)
from rehost.errors.environment import (
    ProgramNotFound as ProgramNotFound,
)
from rehost.errors.environment import (
    ProgramTimeout as ProgramTimeout,
)
from rehost.errors.images import (
    BootCheckFailed as BootCheckFailed,
)
from rehost.errors.images import (
    BootEmergencyMode as BootEmergencyMode,
)
from rehost.errors.images import (
    BootEndedEarly as BootEndedEarly,
)
from rehost.errors.images import (
    BootKernelPanic as BootKernelPanic,
)
from rehost.errors.images import (
    BootNoBootLoader as BootNoBootLoader,
)
from rehost.errors.images import (
    BootNoRoot as BootNoRoot,
)
from rehost.errors.images import (
    BootTimeout as BootTimeout,
)
from rehost.errors.images import (
    BootUnitsFailed as BootUnitsFailed,
)
from rehost.errors.images import (
    BuildConversionDiffers as BuildConversionDiffers,
)
from rehost.errors.images import (
    BuildDiskTooSmall as BuildDiskTooSmall,
)
from rehost.errors.images import (
    BuildError as BuildError,
)
from rehost.errors.images import (
    BuildInitramfsLacksDriver as BuildInitramfsLacksDriver,
)
from rehost.errors.images import (
    BuildNoBootLoader as BuildNoBootLoader,
)
from rehost.errors.images import (
    BuildNoKernel as BuildNoKernel,
)
from rehost.errors.images import (
    BuildTableUnreadable as BuildTableUnreadable,
)
from rehost.errors.images import (
    BuildUnsupported as BuildUnsupported,
)
from rehost.errors.images import (
    ContainerCheckFailed as ContainerCheckFailed,
)
from rehost.errors.images import (
    ContainerEngineAway as ContainerEngineAway,
)
from rehost.errors.images import (
    ContainerEngineFailed as ContainerEngineFailed,
)
from rehost.errors.images import (
    ContainerExitedEarly as ContainerExitedEarly,
)
from rehost.errors.images import (
    RegistryDenied as RegistryDenied,
)
from rehost.errors.images import (
    RegistryUnreachable as RegistryUnreachable,
)
from rehost.errors.images import (
    VerificationError as VerificationError,
)
from rehost.errors.requests import (
    ApiUnreachable as ApiUnreachable,
)
from rehost.errors.requests import (
    CatalogAway as CatalogAway,
)
from rehost.errors.requests import (
    CatalogVersionMismatch as CatalogVersionMismatch,
)
from rehost.errors.requests import (
    Conflict as Conflict,
)
from rehost.errors.requests import (
    DataDiskDuplicateIndex as DataDiskDuplicateIndex,
)
from rehost.errors.requests import (
    DataDiskIndexInvalid as DataDiskIndexInvalid,
)
from rehost.errors.requests import (
    DiskSizeTooSmall as DiskSizeTooSmall,
)
from rehost.errors.requests import (
    Forbidden as Forbidden,
)
from rehost.errors.requests import (
    IdempotencyKeyBusy as IdempotencyKeyBusy,
)
from rehost.errors.requests import (
    IdempotencyKeyReused as IdempotencyKeyReused,
)
from rehost.errors.requests import (
    ImageNameUsedByJob as ImageNameUsedByJob,
)
from rehost.errors.requests import (
    ImageNotFound as ImageNotFound,
)
from rehost.errors.requests import (
    Invalid as Invalid,
)
from rehost.errors.requests import (
    InvalidParameter as InvalidParameter,
)
from rehost.errors.requests import (
    JobInvalidBusinessStatus as JobInvalidBusinessStatus,
)
from rehost.errors.requests import (
    JobInvalidStatus as JobInvalidStatus,
)
from rehost.errors.requests import (
    JobNameDuplicate as JobNameDuplicate,
)
from rehost.errors.requests import (
    JobNotFound as JobNotFound,
)
from rehost.errors.requests import (
    JobQuotaExceeded as JobQuotaExceeded,
)
from rehost.errors.requests import (
    MethodNotAllowed as MethodNotAllowed,
)
from rehost.errors.requests import (
    NotFound as NotFound,
)
from rehost.errors.requests import (
    OrchestrationAway as OrchestrationAway,
)
from rehost.errors.requests import (
    PartitionCannotBlock as PartitionCannotBlock,
)
from rehost.errors.requests import (
    RegionNotFound as RegionNotFound,
)
from rehost.errors.requests import (
    RequestError as RequestError,
)
from rehost.errors.requests import (
    RequestTooLarge as RequestTooLarge,
)
from rehost.errors.requests import (
    RouteNotFound as RouteNotFound,
)
from rehost.errors.requests import (
    RunNotFound as RunNotFound,
)
from rehost.errors.requests import (
    ScheduleOutOfRange as ScheduleOutOfRange,
)
from rehost.errors.requests import (
    SourceHasUnfinishedJob as SourceHasUnfinishedJob,
)
from rehost.errors.requests import (
    SourceNotFound as SourceNotFound,
)
from rehost.errors.requests import (
    SourceStateInvalid as SourceStateInvalid,
)
from rehost.errors.requests import (
    TagsNumberExceeded as TagsNumberExceeded,
)
from rehost.errors.requests import (
    Unauthenticated as Unauthenticated,
)
from rehost.errors.requests import (
    VSwitchRequired as VSwitchRequired,
)
from rehost.errors.source import (
    RunCancelled as RunCancelled,
)
from rehost.errors.source import (
    RunCrashed as RunCrashed,
)
from rehost.errors.source import (
    RunIncomplete as RunIncomplete,
)
from rehost.errors.source import (
    SnapshotFileChanged as SnapshotFileChanged,
)
from rehost.errors.source import (
    SourceAgentFailed as SourceAgentFailed,
)
from rehost.errors.source import (
    SourceAuthenticationFailed as SourceAuthenticationFailed,
)
from rehost.errors.source import (
    SourceError as SourceError,
)
from rehost.errors.source import (
    SourceHostKeyChanged as SourceHostKeyChanged,
)
from rehost.errors.source import (
    SourceHostKeyUnknown as SourceHostKeyUnknown,
)
from rehost.errors.source import (
    SourceImageDamaged as SourceImageDamaged,
)
from rehost.errors.source import (
    SourceLacksPython as SourceLacksPython,
)
from rehost.errors.source import (
    SourceNotEnoughPrivileges as SourceNotEnoughPrivileges,
)
from rehost.errors.source import (
    SourceProtocol as SourceProtocol,
)
from rehost.errors.source import (
    SourceUnreachable as SourceUnreachable,
)
from rehost.errors.source import (
    SourceUnsupported as SourceUnsupported,
)
from rehost.errors.store import (
    ExportFailed as ExportFailed,
)
from rehost.errors.store import (
    ManifestInvalid as ManifestInvalid,
)
from rehost.errors.store import (
    SnapshotNotFound as SnapshotNotFound,
)
from rehost.errors.store import (
    StoreChunkCorrupt as StoreChunkCorrupt,
)
from rehost.errors.store import (
    StoreChunkMissing as StoreChunkMissing,
)
from rehost.errors.store import (
    StoreError as StoreError,
)
from rehost.errors.store import (
    StoreIOFailed as StoreIOFailed,
)
from rehost.errors.store import (
    StoreNoSpace as StoreNoSpace,
)
from rehost.errors.store import (
    StoreUnreadable as StoreUnreadable,
)
from rehost.errors.store import (
    TarRefused as TarRefused,
)

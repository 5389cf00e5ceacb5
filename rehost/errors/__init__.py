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

from rehost.errors.actions import (
    ImageNotVerified as ImageNotVerified,
    JobNoImage as JobNoImage,
    VerificationCrashed as VerificationCrashed,
    VerificationNotFound as VerificationNotFound,
    VerificationUnderWay as VerificationUnderWay,
)
from rehost.errors.base import (
    RehostError as RehostError,
    RunError as RunError,
    error_classes as error_classes,
    error_of as error_of,
)
from rehost.errors.deliveries import (
    DownloadDamaged as DownloadDamaged,
    DownloadNotWritten as DownloadNotWritten,
    EvidenceNotFound as EvidenceNotFound,
    ImageDiskNotFound as ImageDiskNotFound,
    ImageFileNotFound as ImageFileNotFound,
    ImageInUse as ImageInUse,
    RangeNotSatisfiable as RangeNotSatisfiable,
    SourceNeedsForce as SourceNeedsForce,
)
from rehost.errors.environment import (
    EnvironmentFault as EnvironmentFault,
    NeedsUnmet as NeedsUnmet,
    ProgramFailed as ProgramFailed,
    ProgramNotFound as ProgramNotFound,
    ProgramTimeout as ProgramTimeout,
)
from rehost.errors.http import (
    ApiKeyDuplicate as ApiKeyDuplicate,
    ApiKeyNotFound as ApiKeyNotFound,
    MediaTypeUnsupported as MediaTypeUnsupported,
    PreconditionFailed as PreconditionFailed,
    RequestTimeout as RequestTimeout,
    TooManyRequests as TooManyRequests,
    UnexpectedFault as UnexpectedFault,
    UriTooLong as UriTooLong,
)
from rehost.errors.images import (
    BootCheckFailed as BootCheckFailed,
    BootEmergencyMode as BootEmergencyMode,
    BootEndedEarly as BootEndedEarly,
    BootKernelPanic as BootKernelPanic,
    BootNoBootLoader as BootNoBootLoader,
    BootNoRoot as BootNoRoot,
    BootTimeout as BootTimeout,
    BootUnitsFailed as BootUnitsFailed,
    BuildConversionDiffers as BuildConversionDiffers,
    BuildDiskTooSmall as BuildDiskTooSmall,
    BuildError as BuildError,
    BuildInitramfsLacksDriver as BuildInitramfsLacksDriver,
    BuildNoBootLoader as BuildNoBootLoader,
    BuildNoKernel as BuildNoKernel,
    BuildTableUnreadable as BuildTableUnreadable,
    BuildUnsupported as BuildUnsupported,
    ContainerCheckFailed as ContainerCheckFailed,
    ContainerEngineAway as ContainerEngineAway,
    ContainerEngineFailed as ContainerEngineFailed,
    ContainerExitedEarly as ContainerExitedEarly,
    RegistryDenied as RegistryDenied,
    RegistryUnreachable as RegistryUnreachable,
    VerificationError as VerificationError,
)
from rehost.errors.requests import (
    ApiUnreachable as ApiUnreachable,
    CatalogAway as CatalogAway,
    CatalogUrlInvalid as CatalogUrlInvalid,
    CatalogVersionMismatch as CatalogVersionMismatch,
    Conflict as Conflict,
    DataDiskDuplicateIndex as DataDiskDuplicateIndex,
    DataDiskIndexInvalid as DataDiskIndexInvalid,
    DiskSizeTooSmall as DiskSizeTooSmall,
    Forbidden as Forbidden,
    FormRefused as FormRefused,
    IdempotencyKeyBusy as IdempotencyKeyBusy,
    IdempotencyKeyReused as IdempotencyKeyReused,
    ImageNameUsedByJob as ImageNameUsedByJob,
    ImageNotFound as ImageNotFound,
    Invalid as Invalid,
    InvalidParameter as InvalidParameter,
    JobInvalidBusinessStatus as JobInvalidBusinessStatus,
    JobInvalidStatus as JobInvalidStatus,
    JobNameDuplicate as JobNameDuplicate,
    JobNotFound as JobNotFound,
    JobQuotaExceeded as JobQuotaExceeded,
    MethodNotAllowed as MethodNotAllowed,
    NotFound as NotFound,
    OrchestrationAway as OrchestrationAway,
    PartitionCannotBlock as PartitionCannotBlock,
    RegionNotFound as RegionNotFound,
    RequestError as RequestError,
    RequestTooLarge as RequestTooLarge,
    RouteNotFound as RouteNotFound,
    RunNotFound as RunNotFound,
    ScheduleOutOfRange as ScheduleOutOfRange,
    SourceHasUnfinishedJob as SourceHasUnfinishedJob,
    SourceNotFound as SourceNotFound,
    SourceStateInvalid as SourceStateInvalid,
    StreamsTooMany as StreamsTooMany,
    TagsNumberExceeded as TagsNumberExceeded,
    Unauthenticated as Unauthenticated,
    VSwitchRequired as VSwitchRequired,
    VSwitchVpcMismatch as VSwitchVpcMismatch,
)
from rehost.errors.source import (
    RunCancelled as RunCancelled,
    RunCrashed as RunCrashed,
    RunIncomplete as RunIncomplete,
    RunInterrupted as RunInterrupted,
    SnapshotFileChanged as SnapshotFileChanged,
    SourceAgentFailed as SourceAgentFailed,
    SourceAuthenticationFailed as SourceAuthenticationFailed,
    SourceError as SourceError,
    SourceHostKeyChanged as SourceHostKeyChanged,
    SourceHostKeyUnknown as SourceHostKeyUnknown,
    SourceImageDamaged as SourceImageDamaged,
    SourceLacksPython as SourceLacksPython,
    SourceNotEnoughPrivileges as SourceNotEnoughPrivileges,
    SourceProtocol as SourceProtocol,
    SourceUnreachable as SourceUnreachable,
    SourceUnsupported as SourceUnsupported,
)
from rehost.errors.store import (
    ExportFailed as ExportFailed,
    ManifestInvalid as ManifestInvalid,
    SnapshotNotFound as SnapshotNotFound,
    StoreChunkCorrupt as StoreChunkCorrupt,
    StoreChunkMissing as StoreChunkMissing,
    StoreError as StoreError,
    StoreIOFailed as StoreIOFailed,
    StoreNoSpace as StoreNoSpace,
    StoreUnreadable as StoreUnreadable,
    TarRefused as TarRefused,
)

"""What a user asks for: the fields of a job with their limits and defaults, as frozen records.

What needs the clock, the catalog or the source's inventory to be judged is in rules.py.
"""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rehost.catalog import cron
from rehost.catalog.bandwidth import Bandwidth, Zone
from rehost.catalog.names import OCI_NAME, OCI_TAG, Description, Name, Tags, check_no_nul
from rehost.disk_formats import DiskFormat

Integer = Annotated[int, Field(strict=True)]  # "5" and true are no numbers
Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]  # told as UTC, with `Z`
Flag = Annotated[bool, Field(strict=True)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
BootMode = Literal["bios", "uefi", "both"]
_SECRET_FIELDS = ("password", "token", "auth", "identitytoken")


class SpecRecord(BaseModel):
    """A part of a job; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RegistryCredentials(SpecRecord):
    """Where the worker finds the user and the password of a registry; never the password itself.

    One of `username` and `username_env`, one of `password_env` and `password_file`.
    """

    username: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    username_env: Variable | None = Field(None, description="environment variable of the worker")
    password_env: Variable | None = Field(None, description="environment variable of the worker")
    password_file: Annotated[str, Field(pattern=r"^/[^\x00]{1,4095}$")] | None = Field(
        None, description="absolute path on the worker; its first line is the password"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, value: object) -> object:
        if isinstance(value, dict) and any(name in value for name in _SECRET_FIELDS):
            # The message does not repeat the input, and neither does anything that is made of it.
            raise ValueError(
                "a password is never stored: name a variable in `password_env` or a file in `password_file`"
            )
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.username is None) == (self.username_env is None):
            raise ValueError("give one of `username` and `username_env`")
        if (self.password_env is None) == (self.password_file is None):
            raise ValueError("give one of `password_env` and `password_file`")
        return self


class ImageTarget(SpecRecord):
    """A bootable disk image."""

    name: Name | None = Field(None, description="unique in the region; on a clash `_<job id>` is appended")
    formats: tuple[DiskFormat, ...] = ("qcow2",)
    boot_mode: BootMode | None = Field(None, description="default: one image for both firmwares")

    @field_validator("formats")
    @classmethod
    def _no_repeats(cls, formats: tuple[DiskFormat, ...]) -> tuple[DiskFormat, ...]:
        if not formats:  # not by min_length: that counts what is left after each format was judged
            raise ValueError("names at least one format")
        if len(set(formats)) != len(formats):
            raise ValueError("names a format twice")
        return formats


class ContainerTarget(SpecRecord):
    """A container image, in the region's registry where it has one."""

    namespace: Annotated[str, Field(max_length=120, pattern=OCI_NAME)]
    repository: Annotated[str, Field(max_length=120, pattern=OCI_NAME)]
    tag: Annotated[str, Field(pattern=OCI_TAG)] = "latest"
    credentials: RegistryCredentials | None = None


class Targets(SpecRecord):
    """What is made; one transfer serves both."""

    image: ImageTarget | None = None
    container_image: ContainerTarget | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if self.image is None and self.container_image is None:
            raise ValueError("ask for `image`, `container_image` or both")
        return self


class PartitionSpec(SpecRecord):
    """What is asked for one partition."""

    device: Annotated[str, Field(pattern=r"^[0-9]{1,2}_[0-9]{1,3}$")] = Field(description="as in the inventory: 0_1")
    size_bytes: Annotated[Integer, Field(gt=0)] | None = None
    block: Flag = False


def _no_device_twice(partitions: tuple[PartitionSpec, ...]) -> tuple[PartitionSpec, ...]:
    devices = [partition.device for partition in partitions]
    if len(set(devices)) != len(devices):
        raise ValueError("names a device twice")
    return partitions


Partitions = Annotated[tuple[PartitionSpec, ...], Field(max_length=128), AfterValidator(_no_device_twice)]


class SystemDisk(SpecRecord):
    """The disk that the image boots from."""

    size_gib: Annotated[Integer, Field(ge=20, le=2048)] | None = None
    partitions: Partitions = ()


def _check_index(index: int) -> int:
    if not 1 <= index <= 16:
        raise PydanticCustomError(
            "DataDiskIndex.Invalid", "is from 1 to 16", {"index": index, "reason": "data disks are numbered 1 to 16"}
        )
    return index


class DataDisk(SpecRecord):
    """Another disk of the source."""

    index: Annotated[Integer, AfterValidator(_check_index)]
    include: Flag = True
    size_gib: Annotated[Integer, Field(ge=20, le=32768)] | None = None
    partitions: Partitions = ()


class Disks(SpecRecord):
    """What is asked for the source's disks; what is not said stays as the source has it."""

    block_replication: Flag = False
    change_tracking: Flag = False
    system: SystemDisk = SystemDisk()
    data: tuple[DataDisk, ...] = ()

    @field_validator("data")
    @classmethod
    def _no_index_twice(cls, data: tuple[DataDisk, ...]) -> tuple[DataDisk, ...]:
        seen: set[int] = set()
        for disk in data:
            if disk.index in seen:
                raise PydanticCustomError(
                    "DataDisk.DuplicateIndex", "disk {index} is named more than once", {"index": disk.index}
                )
            seen.add(disk.index)
        return data


class ExecuteNow(SpecRecord):
    """The first run starts at once."""

    mode: Literal["now"] = "now"


class ExecuteAt(SpecRecord):
    """The first run starts at that time, 10 minutes to 30 days ahead."""

    mode: Literal["at"]
    start_at: Moment


class CreateOnly(SpecRecord):
    """The job waits for a start."""

    mode: Literal["create_only"]


Execution = Annotated[ExecuteNow | ExecuteAt | CreateOnly, Field(discriminator="mode")]


def _out_of_range(reason: str) -> PydanticCustomError:
    return PydanticCustomError("Schedule.OutOfRange", "{reason}", {"reason": reason})


class Incremental(SpecRecord):
    """The job runs again and again: every so many hours, or by a cron expression of five fields."""

    interval_hours: Integer | None = None
    cron: Annotated[str, Field(max_length=200)] | None = None
    timezone: Zone | None = Field(None, description="with `cron`; default UTC")
    max_images: Annotated[Integer, Field(ge=1, le=10)] = Field(3, description="older images that are not in use go")

    @field_validator("interval_hours")
    @classmethod
    def _hours(cls, hours: int | None) -> int | None:
        if hours is not None and not 1 <= hours <= 168:
            raise _out_of_range("the interval is from 1 to 168 hours")
        return hours

    @field_validator("cron")
    @classmethod
    def _cron(cls, expression: str | None) -> str | None:
        if expression is not None:
            try:
                cron.parse(expression)
            except ValueError as error:
                raise _out_of_range(f"the cron expression {error}") from error
        return expression

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.interval_hours is None) == (self.cron is None):
            raise ValueError("give one of `interval_hours` and `cron`")
        if self.timezone is not None and self.cron is None:
            raise ValueError("`timezone` goes with `cron`")
        return self


class Network(SpecRecord):
    """Over which network the worker reaches the source."""

    mode: Literal["public", "private"] = "public"
    vpc_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    vswitch_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _private_needs_vswitch(self) -> Self:
        if self.mode == "private" and self.vswitch_id is None:
            raise PydanticCustomError("VSwitch.Required", "a private network needs `vswitch_id`", {})
        return self


class Replication(Bandwidth):
    """How the transfer goes."""

    compress_level: Annotated[Integer, Field(ge=0, le=9)] = Field(0, description="on the wire; 0: none")
    checksum: Flag = Field(False, description="compare what arrived with the source once more")


class Verification(SpecRecord):
    """How an image proves itself after each build."""

    enabled: Flag = True
    boot_timeout_seconds: Annotated[Integer, Field(ge=30, le=7200)] | None = Field(
        None, description="default: 300 with KVM, 900 where the boot is emulated"
    )
    script: Annotated[str, Field(min_length=1, max_length=65_536), AfterValidator(check_no_nul)] | None = Field(
        None, description="run as root in the guest; its exit status decides"
    )
    script_timeout_seconds: Annotated[Integer, Field(ge=1, le=7200)] = 600


Pattern = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(check_no_nul)]


class Consistency(SpecRecord):
    """How the server is held still while it is copied."""

    method: Literal["auto", "live"] = Field("auto", description="auto: snapshots where they can be had; live: none")


Command = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(check_no_nul)]


class HookCommands(SpecRecord):
    """Commands that are run on the source by /bin/sh, as the user of the agent. They are stored as they are written."""

    pre_snapshot: Command | None = Field(None, description="before the server is held still; its failure ends the run")
    post_snapshot: Command | None = Field(None, description="afterwards, in every case")
    timeout_seconds: Annotated[Integer, Field(ge=1, le=3600)] = Field(60, description="for each")


class JobSpec(SpecRecord):
    """The request that makes a job."""

    source_id: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(check_no_nul)]
    region_id: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(check_no_nul)]
    name: Name | None = Field(None, description="unique in the region; default: made of the hostname")
    description: Description | None = None
    targets: Targets = Targets(image=ImageTarget())
    disks: Disks = Disks()
    exclude: tuple[Pattern, ...] = Field((), max_length=1000, description="path patterns left out in file mode")
    execution: Execution = ExecuteNow()
    incremental: Incremental | None = None
    network: Network = Network()
    replication: Replication = Replication()
    verification: Verification = Verification()
    consistency: Consistency = Consistency()
    hooks: HookCommands = HookCommands()
    tags: Tags = Field(default_factory=dict)
    valid_until: Moment | None = Field(None, description="7 to 90 days ahead; default 30 days")

"""What can be set, from the environment (`REHOST_*`) and from `rehost.toml`; see docs/configuration.md."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rehost.replication.backends.location import location

DEFAULT_QUEUE = "default"  # the work queue of jobs without a vSwitch; the worker of `rehost up` serves it


WorkQueue = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
NetworkId = Annotated[str, Field(min_length=1, max_length=128)]


class Vpc(BaseModel):
    """A network of a region: the workers of a vSwitch's queue sit in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vswitches: dict[NetworkId, WorkQueue] = Field(description="vSwitch id → the Prefect work queue of its workers")


class Region(BaseModel):
    """A named destination: where images go, which registry containers go to, and which networks it has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path | None = Field(None, description="directory of disk images; default: `images` under REHOST_HOME")
    registry: str | None = Field(None, description="host:port of the container registry; none: the engine alone")
    registry_insecure: bool = Field(False, description="speak HTTP to the registry instead of HTTPS")
    max_running_jobs: int = Field(50, ge=1)
    networks: dict[NetworkId, Vpc] = Field(default_factory=dict, description="VPC id → its vSwitches")

    @field_validator("networks")
    @classmethod
    def _no_vswitch_twice(cls, networks: dict[str, Vpc]) -> dict[str, Vpc]:
        """A vSwitch lies in one VPC, so that its id alone tells where a job's workers sit."""
        seen: set[str] = set()
        for vpc in networks.values():
            if twice := seen & vpc.vswitches.keys():
                raise ValueError(f"names the vSwitch {min(twice)} in two VPCs")
            seen |= vpc.vswitches.keys()
        return networks

    def vpc_of(self, vswitch_id: str) -> str | None:
        """The VPC in which the vSwitch lies; None: this region has no such vSwitch."""
        return next((id for id, vpc in self.networks.items() if vswitch_id in vpc.vswitches), None)

    def work_queue(self, vswitch_id: str | None) -> str:
        """The Prefect work queue whose workers sit at that vSwitch; without one, or with one unknown, the default's."""
        queues = {id: queue for vpc in self.networks.values() for id, queue in vpc.vswitches.items()}
        return queues.get(vswitch_id or "", DEFAULT_QUEUE)

    @field_validator("images")
    @classmethod
    def _whole_path(cls, images: Path | None) -> Path | None:
        """The same folder for every process, wherever it works."""
        return None if images is None else images.expanduser().absolute()


_HASHED = "sha256:"
_HASH = re.compile(r"sha256:[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class _FromFile:
    """A value that stands in rehost.toml, where no secret belongs."""

    value: object


class _File(TomlConfigSettingsSource):
    """rehost.toml."""

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        return {**values, **{name: _FromFile(values[name]) for name in ("api_key", "api_keys") if name in values}}


class Settings(BaseSettings):
    """All settings, checked once. Environment first, then rehost.toml, then the defaults."""

    model_config = SettingsConfigDict(env_prefix="REHOST_", extra="forbid", frozen=True, hide_input_in_errors=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".local/share/rehost")
    database_url: str | None = None
    store_url: str | None = None
    api_host: str = "127.0.0.1"
    api_port: int = Field(8420, ge=1, le=65535)
    prefect_port: int = Field(4200, ge=1, le=65535)
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    api_key: str | None = None  # what the command line sends; default: the first plain one of api_keys
    hour_seconds: float = Field(3600.0, gt=0)
    regions: dict[str, Region] = Field(default_factory=dict)

    @field_validator("home")
    @classmethod
    def _whole_path(cls, home: Path) -> Path:
        """The same folder for every process, wherever it works."""
        return home.expanduser().absolute()

    @field_validator("store_url")
    @classmethod
    def _place_of_store(cls, url: str | None) -> str | None:
        if url is not None:
            location(url)
        return url

    @field_validator("api_key", mode="before")
    @classmethod
    def _no_key_in_file(cls, value: object) -> object:
        if isinstance(value, _FromFile):
            raise ValueError("a key in plain does not belong into the file; set REHOST_API_KEY")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        """REHOST_API_KEYS is a list by commas; in rehost.toml it is an array, or such a string, of hashes alone."""
        in_file = isinstance(value, _FromFile)
        if isinstance(value, _FromFile):
            value = value.value
        keys = value.split(",") if isinstance(value, str) else value
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
            return keys
        told = tuple(key for part in keys if (key := part.strip()))
        for key in told:
            if key.startswith(_HASHED) and _HASH.fullmatch(key) is None:
                raise ValueError(f"a key that begins with {_HASHED} goes on with 64 hexadecimal digits")
            if in_file and not key.startswith(_HASHED):
                raise ValueError(
                    f"a key in the file is written as {_HASHED}HEX; a plain one is taken from REHOST_API_KEYS"
                )
        return told

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = Path(os.environ.get("REHOST_CONFIG", "rehost.toml"))
        return init_settings, env_settings, _File(settings_cls, toml)

    @property
    def api_key_hashes(self) -> tuple[str, ...]:
        """SHA-256 in hex of each key of `api_keys`."""
        return tuple(
            key.removeprefix(_HASHED).lower() if key.startswith(_HASHED) else hashlib.sha256(key.encode()).hexdigest()
            for key in self.api_keys
        )

    @property
    def key_to_send(self) -> str | None:
        """The key that the command line shows the API."""
        return self.api_key or next((key for key in self.api_keys if not key.startswith(_HASHED)), None)

    @property
    def catalog_url(self) -> str:
        """The catalog's database as an SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.home / 'catalog.db'}"

    @property
    def prefect_ui_url(self) -> str:
        """Where people look at flow runs: the server of PREFECT_API_URL, else the one that is started here."""
        api = os.environ.get("PREFECT_API_URL", f"http://127.0.0.1:{self.prefect_port}/api")
        return api.rstrip("/").removesuffix("/api")

    @property
    def wheels_path(self) -> Path:
        """Where libraries for the Pythons of sources are kept."""
        return self.home / "wheels"

    @property
    def evidence_path(self) -> Path:
        """Where the console logs, screenshots and reports of verifications are kept."""
        return self.home / "evidence"

    @property
    def scratch_path(self) -> Path:
        """Where what is thrown away is made; emptied of leftovers by the next run."""
        return self.home / "scratch"

    def region(self, name: str) -> Region | None:
        """The region of that name; `local` exists without configuration."""
        if name in self.regions:
            return self.regions[name]
        return Region() if name == "local" else None

    @property
    def work_queues(self) -> tuple[str, ...]:
        """Every work queue that a vSwitch of a region names, but the default one, by name."""
        named = {
            queue
            for region in self.regions.values()
            for vpc in region.networks.values()
            for queue in vpc.vswitches.values()
        }
        return tuple(sorted(named - {DEFAULT_QUEUE}))

    def images_path(self, region: str) -> Path:
        """The folder of a region's disk images."""
        configured = self.region(region)
        return (configured.images if configured else None) or self.home / "images" / region


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()

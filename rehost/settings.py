"""What can be set, from the environment (`REHOST_*`) and from `rehost.toml`; see docs/configuration.md."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rehost.replication.backends.location import location


class Region(BaseModel):
    """A named destination: where images go, and which registry containers go to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path | None = Field(None, description="directory of disk images; default: `images` under REHOST_HOME")
    registry: str | None = Field(None, description="host:port of the container registry; none: the engine alone")
    registry_insecure: bool = Field(False, description="speak HTTP to the registry instead of HTTPS")
    max_running_jobs: int = Field(50, ge=1)

    @field_validator("images")
    @classmethod
    def _whole_path(cls, images: Path | None) -> Path | None:
        """The same folder for every process, wherever it works."""
        return None if images is None else images.expanduser().absolute()


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

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        """REHOST_API_KEYS is a list by commas; in rehost.toml it is an array, or such a string."""
        if isinstance(value, str):
            return tuple(key for part in value.split(",") if (key := part.strip()))
        return value

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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml)

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

    def images_path(self, region: str) -> Path:
        """The folder of a region's disk images."""
        configured = self.region(region)
        return (configured.images if configured else None) or self.home / "images" / region


@functools.cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()

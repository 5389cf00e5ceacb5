"""Request and answer bodies that are no record of the catalog."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rehost.catalog.names import Name, SourceDescription, Tags
from rehost.catalog.records import Image
from rehost.source.connect import Connection


class SourceSpec(BaseModel):
    """The request that registers a source."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"name": "web1", "connection": {"kind": "ssh", "host": "web1.example.org", "user": "root"}},
                {"connection": {"kind": "path", "root": "/srv/trees/web1"}},
            ]
        },
    )

    name: Name | None = Field(None, description="default: made of the hostname")
    description: SourceDescription | None = None
    connection: Annotated[Connection, Field(description="how the server is reached")]
    tags: Tags = Field(default_factory=dict)


class SourceChange(BaseModel):
    """What may be changed of a source; what is not named stays."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "web1", "description": None, "tags": {"team": "web"}}]},
    )

    name: Name | None = Field(None, description="not null")
    description: SourceDescription | None = Field(None, description="null takes it away")
    connection: Annotated[Connection, Field(description="not null; the source is discovered anew by it")] | None = None
    tags: Tags | None = Field(None, description="all tags, in place of those that it has; not null")

    @model_validator(mode="after")
    def _not_null(self) -> Self:
        for name in ("name", "connection", "tags"):
            if name in self.model_fields_set and getattr(self, name) is None:
                raise PydanticCustomError("null", "{name} is not null", {"name": name})
        return self


class ImageChange(BaseModel):
    """What may be changed of an image."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"in_use": True}]})

    in_use: bool = Field(description="true: it is kept, whatever `max_images` says, and cannot be deleted")


class ImageAnswer(BaseModel):
    """An image: these fields, and beside them all that its image.json says."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    kind: str
    name: str
    region_id: str
    source_id: str
    job_id: str
    run_id: str
    snapshot_id: str | None
    in_use: bool
    created_at: datetime


def image_answer(image: Image) -> ImageAnswer:
    """The image as the API shows it; what the catalog knows comes before what image.json says."""
    return ImageAnswer.model_validate({**image.facts, **image.model_dump(exclude={"facts"})})


class CutOver(BaseModel):
    """How a job is cut over."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"sync": True}]})

    sync: bool = Field(False, description="one last run first; the job is Finished when that has succeeded")


class Health(BaseModel):
    """The API runs and its catalog answers."""

    status: str = "ok"
    version: str

"""What a flow run is asked to do: ids and names only, because Prefect keeps parameters in the clear."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class JobOrder(BaseModel):
    """Something that is to be done for a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str = Field(description="the job that this is about (j-…)")
    job_name: str = Field(description="for the name and the tags of the run")
    source_name: str = Field(description="the server that is migrated, for the name and the tags of the run")

    @property
    def tags(self) -> list[str]:
        """The tags of the run in the Prefect UI."""
        return [f"source:{self.source_name}", f"job:{self.job_name}"]

    def name(self, what: str) -> str:
        """How a run is called in the Prefect UI that does this."""
        return f"{self.source_name} · {self.job_name} · {what}"


class Order(JobOrder):
    """One pass of a job."""

    kind: Literal["manual", "schedule", "cut_over"] = Field("manual", description="what set the pass off")

    @property
    def run_name(self) -> str:
        """How the run is called in the Prefect UI."""
        return self.name(self.kind.replace("_", "-"))


class VerifyOrder(JobOrder):
    """Images of a job that are to be tested again."""

    verification_ids: tuple[str, ...] = Field(description="the tests, as the catalog has them (v-…)")

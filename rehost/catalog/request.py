"""A request for a job, and everything that is wrong with it: its form, the rules, and what other jobs hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from rehost.catalog import rules
from rehost.catalog.catalog import Catalog
from rehost.catalog.faults import Fault, fault_of, faults_of, raise_faults
from rehost.catalog.job import JobSpec
from rehost.catalog.plan import Plan, plan
from rehost.catalog.records import Source
from rehost.errors import RegionNotFound, SourceNotFound
from rehost.regions.regions import RegionRecord, region
from rehost.settings import Settings
from rehost.source.inventory import Inventory

_NO_SERVER = Inventory(hostname="", os_id="", architecture="")  # the rules that look at one are left out then
_UNKNOWN = "unknown"  # stands for an id that is missing or malformed; nothing that hangs on it is judged


@dataclass(frozen=True)
class JobRequest:
    """A job as it was asked for, with what is wrong with its form.

    As the body of a route it has the schema of JobSpec, and takes what does not fit too: so the route can tell that
    together with whatever else is wrong.
    """

    spec: JobSpec | None  # what holds of it, defaults for the rest; None where it is no object
    faults: tuple[Fault, ...] = ()
    faulty: frozenset[str] = frozenset()  # the fields that these faults are about

    @classmethod
    def of(cls, body: object) -> Self:
        """The request that a decoded JSON document makes."""
        try:
            return cls(JobSpec.model_validate(body))
        except ValidationError as error:
            return cls._of_faults(error, body)

    @classmethod
    def _of_faults(cls, error: ValidationError, body: object) -> Self:
        found = error.errors()
        faults = tuple(faults_of(found, body))
        if not isinstance(body, Mapping):
            return cls(None, faults)
        faulty = frozenset(str(one["loc"][0]) for one in found if one["loc"] and one["loc"][0] in JobSpec.model_fields)
        holds = {name: value for name, value in body.items() if name in JobSpec.model_fields and name not in faulty}
        ids = {"source_id": _UNKNOWN, "region_id": _UNKNOWN}
        return cls(JobSpec.model_validate({**ids, **holds}), faults, faulty)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(lambda body, _inner: cls.of(body), handler(JobSpec))


def judge(
    request: JobRequest, catalog: Catalog, settings: Settings, moment: datetime, *, dry_run: bool = False
) -> Plan:
    """The plan of a job that may be made. A dry run is answered for a source in use too.

    Raises the one error that tells everything that is wrong with the request (faults.raise_faults), CatalogAway.
    """
    spec = request.spec
    if spec is None:
        raise_faults(request.faults)
        raise AssertionError("a request without a job has faults")
    faults, faulty = list(request.faults), set(request.faulty)
    source = _source(spec, catalog, faulty)
    destination = _destination(spec, settings, faults, faulty)
    inventory = source.inventory if source is not None else _NO_SERVER
    asked = rules.Asked(spec, inventory, destination or region(settings, "local"), moment)
    faults += rules.check(asked, faulty=faulty)
    faults += catalog.job_conflicts(spec, in_use=not dry_run, faulty=request.faulty)
    raise_faults(faults)
    assert source is not None and destination is not None
    return plan(spec, source, destination)


def _source(spec: JobSpec, catalog: Catalog, faulty: set[str]) -> Source | None:
    if "source_id" not in faulty:
        try:
            return catalog.source(spec.source_id)
        except SourceNotFound:  # told by the conflicts
            faulty.add("source_id")
    return None


def _destination(spec: JobSpec, settings: Settings, faults: list[Fault], faulty: set[str]) -> RegionRecord | None:
    if "region_id" not in faulty:
        try:
            return region(settings, spec.region_id)
        except RegionNotFound as error:
            faults.append(fault_of(error, "/region_id"))
            faulty.add("region_id")
    return None

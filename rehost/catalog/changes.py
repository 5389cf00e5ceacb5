"""What a change of a job comes to: the job as it would be, and everything that is wrong with the change.

A change is a JSON merge patch (RFC 7386): what it names is set, null puts the default back, lists are replaced whole.
Two places are kinder than that: another `execution.mode` replaces the whole of `execution`, and of `interval_hours` and
`cron` the one that is given takes the place of the other. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ValidationError, WithJsonSchema

from rehost.catalog.bandwidth import Bandwidth
from rehost.catalog.faults import Fault, faults_of, json_pointer
from rehost.catalog.job import JobSpec
from rehost.catalog.states import ENDED, JobStatus

_DEEP = 8  # no field of a job lies deeper; what a patch nests further is no field, and is refused as it stands
_OPEN = ("tags", "execution")  # a tag may be taken away that is not there; a mode has fields of its own
_LASTING = ("source_id", "region_id")
_ANY_TIME = ("name", "description")
_UNFINISHED = tuple(status for status in JobStatus if status not in ENDED)
_BEFORE_THE_FIRST_RUN = (JobStatus.READY,)
_BETWEEN_RUNS = (JobStatus.READY, JobStatus.WAITING)


@dataclass(frozen=True)
class Decision:
    """A change that was judged by its form and by the state of the job; the rules come after it."""

    spec: JobSpec  # as the job would be, with fields that are wrong as they were
    changed: frozenset[str]  # the fields that would be other than they are, or are wrong
    faults: tuple[Fault, ...]
    faulty: frozenset[str]


def decide(id: str, present: JobSpec, patch: object, status: JobStatus, *, ordered: bool) -> Decision:
    """What the patch makes of the job. `ordered`: its first run was asked for and waits for its turn."""
    before = present.model_dump(mode="json")
    if not isinstance(patch, Mapping):
        return Decision(present, frozenset(), (Fault("", "is an object with the fields to change"),), frozenset())
    after = _merged(before, patch)
    faults = list(_unknown_nulls(before, patch))
    faulty: set[str] = set()
    try:
        spec = JobSpec.model_validate(after)
    except ValidationError as error:
        found = error.errors()
        faults += faults_of(found, after)
        faulty = {str(one["loc"][0]) for one in found if one["loc"] and one["loc"][0] in JobSpec.model_fields}
        holds = {name: value for name, value in after.items() if name in JobSpec.model_fields and name not in faulty}
        spec = JobSpec.model_validate({**{name: before[name] for name in faulty}, **holds})
    changed = {name for name in JobSpec.model_fields if getattr(spec, name) != getattr(present, name)} | faulty
    for name in _LASTING:
        if name in changed:
            faults = [fault for fault in faults if fault.pointer != f"/{name}"]
            faults.append(Fault(f"/{name}", "cannot change: make another job"))
    faults += _lasting_repetition(present, spec, patch)
    changed -= set(_LASTING)
    faulty -= set(_LASTING)
    faults += _states(id, present, spec, changed, status, ordered)
    # What is refused at any rate does not keep the rules from looking at the rest.
    spec = spec.model_copy(update={name: getattr(present, name) for name in _LASTING})
    return Decision(spec, frozenset(changed), tuple(faults), frozenset(faulty))


def _lasting_repetition(present: JobSpec, spec: JobSpec, patch: Mapping[str, Any]) -> Iterator[Fault]:
    wanted = patch.get("incremental", spec.incremental) is not None
    if wanted != (present.incremental is not None):
        how = "runs once" if present.incremental is None else "runs again and again"
        yield Fault("/incremental", f"cannot be set or taken away later: this job {how}")


def _states(
    id: str, present: JobSpec, spec: JobSpec, changed: set[str], status: JobStatus, ordered: bool
) -> Iterator[Fault]:
    """The fields that cannot change in the state of the job, each with the states in which they can."""
    for name in JobSpec.model_fields:
        if name not in changed or name in _ANY_TIME:
            continue
        allowed = _allowed(name, present, spec)
        if status not in allowed:
            facts = {"id": id, "status": status, "action": f"a change of {name}", "allowed": ", ".join(allowed)}
            yield Fault(f"/{name}", f"can change in {facts['allowed']}", "Job.InvalidStatus", facts)
        elif name == "execution" and ordered:
            facts = {"id": id, "status": "queued", "action": f"a change of {name}", "allowed": JobStatus.READY}
            reason = "can change while no run waits for its turn: stop the job first"
            yield Fault(f"/{name}", reason, "Job.InvalidStatus", facts)


def _allowed(name: str, present: JobSpec, spec: JobSpec) -> tuple[JobStatus, ...]:
    if name == "valid_until":
        return _UNFINISHED
    if name == "incremental":
        return _BETWEEN_RUNS
    if name == "replication":
        bandwidth = {field: getattr(spec.replication, field) for field in Bandwidth.model_fields}
        if present.replication.model_copy(update=bandwidth) == spec.replication:
            return _UNFINISHED
    return _BEFORE_THE_FIRST_RUN


def _merged(before: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    execution, incremental = before.get("execution"), before.get("incremental")
    asked = patch.get("execution")
    if isinstance(asked, Mapping) and isinstance(execution, Mapping) and "mode" in asked:
        execution = execution if asked["mode"] == execution.get("mode") else {}
    asked = patch.get("incremental")
    if isinstance(asked, Mapping) and isinstance(incremental, Mapping):
        gone = {"cron", "timezone"} if asked.get("interval_hours") is not None else set()
        gone |= {"interval_hours"} if asked.get("cron") is not None else set()
        incremental = {name: value for name, value in incremental.items() if name not in gone}
    merged = merge({**before, "execution": execution, "incremental": incremental}, patch)
    return dict(merged)


def _unknown_nulls(before: Mapping[str, Any], patch: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[Fault]:
    """What is set to null and is no field: the merged job, which is judged, does not show it."""
    for name, value in patch.items():
        if value is None and name not in before:
            yield Fault(json_pointer(*at, name), "is no field of this resource")
        elif isinstance(value, Mapping) and isinstance(before.get(name), Mapping) and name not in _OPEN:
            yield from _unknown_nulls(before[name], value, (*at, name))


def merge(target: Any, patch: Any, *, depth: int = 0) -> Any:
    """RFC 7386, section 2; objects that are nested deeper than a job's fields are taken as they are."""
    if not isinstance(patch, Mapping) or depth > _DEEP:
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value, depth=depth + 1)
    return merged


def _patch_schema() -> dict[str, Any]:
    """The JSON schema of JobSpec with nothing required, no defaults, null everywhere and no references."""
    whole = JobSpec.model_json_schema()
    definitions = whole.pop("$defs")

    def loose(schema: Any) -> Any:
        if isinstance(schema, list):
            return [loose(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return loose({**definitions[schema["$ref"].rpartition("/")[2]]})
        kept = {key: value for key, value in schema.items() if key not in ("required", "default", "discriminator")}
        fields = kept.pop("properties", None)
        made = {key: loose(value) for key, value in kept.items()}
        if fields is not None:
            made["properties"] = {name: {"anyOf": [loose(field), {"type": "null"}]} for name, field in fields.items()}
        return made

    schema: dict[str, Any] = loose(whole)
    for name in _LASTING:
        del schema["properties"][name]
    return {**schema, "title": "JobPatch", "description": "What is to be other: a JSON merge patch (RFC 7386)."}


JobPatch = Annotated[Any, WithJsonSchema(_patch_schema())]
"""The body of PATCH /v1/jobs/{id}, for the document of the API; `decide` judges it."""

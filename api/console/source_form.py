"""The form that registers a source, as the request that it stands for."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from api.console.forms import Field, Filled, body_of
from api.models import SourceSpec
from rehost.catalog.faults import faults_of, raise_faults

_ALWAYS = (Field("/name"), Field("/description"), Field("/tags", "pairs"), Field("/connection/kind"))
_OF_KIND = {
    "ssh": (
        Field("/connection/host"),
        Field("/connection/port", "integer"),
        Field("/connection/user"),
        Field("/connection/identity_file"),
        Field("/connection/known_hosts"),
        Field("/connection/proxy_jump"),
        Field("/connection/sudo", "flag"),
    ),
    "path": (Field("/connection/root"),),
    "disk": (Field("/connection/disks", "lines"),),
}


def source_body(form: Filled) -> tuple[dict[str, Any], dict[str, str]]:
    """The body of the request, and the field of each pointer in it that can be wrong."""
    fields = (*_ALWAYS, *_OF_KIND.get(form.text("/connection/kind"), ()))
    pointers = {each.pointer: each.pointer for each in fields}
    return {"connection": {}, **body_of(form, fields)}, {**pointers, "/connection": "/connection/kind"}


def source_spec(body: dict[str, Any]) -> SourceSpec:
    """The request as a record. Raises what tells every fault in it."""
    try:
        return SourceSpec.model_validate(body)
    except ValidationError as error:
        raise_faults(faults_of(error.errors(include_url=False), body))
        raise

"""The reference of the API at `/docs`, made of its OpenAPI document: what people look up, with nothing from elsewhere.

No page of a viewer that loads its script from another site: here, beside the console, such a script could do all that
whoever is logged in may do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.console.pages import ConsoleRoute, page

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)

Json = Mapping[str, Any]
_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True)
class Value:
    """A parameter, a field, or a body: what it is called, what it takes, and what is said of it."""

    name: str
    kind: str
    refers: tuple[str, ...]  # to these schemas
    required: bool
    text: str


@dataclass(frozen=True)
class Operation:
    """One request that the API answers."""

    id: str
    method: str
    path: str
    summary: str
    text: str
    parameters: tuple[Value, ...]
    body: Value | None
    example: str  # of a body; empty where there is none
    answers: tuple[Value, ...]


@dataclass(frozen=True)
class Schema:
    """A record that goes over the wire."""

    name: str
    text: str
    fields: tuple[Value, ...]


@router.get("/docs")
def show_reference(request: Request) -> Response:
    """Every operation and every record of the API."""
    document = request.app.openapi()
    return page(
        request,
        None,
        "reference.html",
        about=document["info"],
        groups=operations(document),
        schemas=schemas(document),
    )


def operations(document: Json) -> dict[str, list[Operation]]:
    """The operations by their tag, in the order of the document."""
    groups: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            groups.setdefault(next(iter(told.get("tags", [])), "other"), []).append(
                _operation(path, method, told, document)
            )
    return groups


def _operation(path: str, method: str, told: Json, document: Json) -> Operation:
    content = told.get("requestBody", {}).get("content", {})
    body = next((_value(media, of.get("schema", {})) for media, of in content.items()), None)
    return Operation(
        id=f"{method}-{told['operationId']}",
        method=method.upper(),
        path=path,
        summary=told.get("summary", ""),
        text=told.get("description", ""),
        parameters=tuple(
            _value(
                f"?{one['name']}" if one["in"] == "query" else one["name"],
                one.get("schema", {}),
                required=one.get("required", False),
                text=one.get("description", ""),
            )
            for one in told.get("parameters", [])
        ),
        body=body,
        example=next(iter(_examples(content, document)), ""),
        answers=tuple(_answer(status, one) for status, one in told["responses"].items()),
    )


def _answer(status: str, told: Json) -> Value:
    schema: Json = next((of.get("schema", {}) for of in told.get("content", {}).values()), {})
    return _value(status, schema, text=told.get("description", ""))


def _examples(content: Json, document: Json) -> Iterator[str]:
    for of in content.values():
        schema = of.get("schema", {})
        records = [document["components"]["schemas"].get(name, {}) for name in _refers(schema)]
        for told in (of, schema, *records):
            examples = told.get("examples", [])
            for example in [one["value"] for one in examples.values()] if isinstance(examples, Mapping) else examples:
                yield example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)


def schemas(document: Json) -> tuple[Schema, ...]:
    """Every record, by name."""
    return tuple(
        Schema(
            name,
            told.get("description", ""),
            tuple(
                _value(field, schema, required=field in told.get("required", ()), text=schema.get("description", ""))
                for field, schema in told.get("properties", {}).items()
            ),
        )
        for name, told in sorted(document["components"]["schemas"].items())
    )


def _value(name: str, schema: Json, *, required: bool = False, text: str = "") -> Value:
    return Value(name, _kind(schema), tuple(dict.fromkeys(_refers(schema))), required, text)


def _kind(schema: Json) -> str:
    """What a schema takes, in words."""
    for joined in ("anyOf", "oneOf", "allOf"):
        if joined in schema:
            return " or ".join(dict.fromkeys(filter(None, map(_kind, schema[joined]))))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema.get("type", ""))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}".removesuffix(" of ")
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: Json) -> str:
    words = {"minimum": "at least", "maximum": "at most", "minLength": "length from", "maxLength": "length to"}
    told = [f"{word} {schema[name]}" for name, word in words.items() if name in schema]
    if "default" in schema:
        told.append(f"default {schema['default']}")
    return f" ({', '.join(told)})" if told else ""


def _refers(schema: object) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference.removeprefix(_SCHEMAS)
        for inner in schema.values():
            yield from _refers(inner)
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for inner in schema:
            yield from _refers(inner)

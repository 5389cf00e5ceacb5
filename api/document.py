"""The OpenAPI document: what FastAPI makes of the routes, and what holds for all of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.examples import examples
from api.problems import MEDIA_TYPE, Problem, responses
from api.request_ids import HEADER
from api.security import scope_needed
from rehost.errors import (
    CatalogAway,
    CatalogVersionMismatch,
    Forbidden,
    InvalidParameter,
    MediaTypeUnsupported,
    PreconditionFailed,
    RehostError,
    RequestTimeout,
    RequestTooLarge,
    TooManyRequests,
    Unauthenticated,
    UnexpectedFault,
    UriTooLong,
)

Json = dict[str, Any]

_TAGS = [
    {"name": "sources", "description": "Servers that can be moved, and what was discovered of them."},
    {"name": "jobs", "description": "What is asked for: a source, a region, images; once, at a time or on a schedule."},
    {"name": "images", "description": "What was made."},
    {"name": "verifications", "description": "How images proved themselves, and what was seen."},
    {"name": "regions", "description": "The named destinations of images."},
    {"name": "health", "description": "Whether the services run, and figures of them."},
]
# What any request can be answered, whatever it asks for.
_EVERYWHERE: tuple[type[RehostError], ...] = (
    Forbidden,
    RequestTimeout,
    RequestTooLarge,
    UriTooLong,
    InvalidParameter,
    UnexpectedFault,
    CatalogAway,
    CatalogVersionMismatch,
)
_WITH_KEYS: tuple[type[RehostError], ...] = (Unauthenticated, TooManyRequests)
_KEY = "key"  # the name of the security scheme
_RETRY_LATER = {"429", "503"}


def install(app: FastAPI) -> None:
    """Serve this document as /openapi.json."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way


def document(app: FastAPI) -> Json:
    """The document of all routes: each operation with its scope, its errors by code, and the headers of its answers."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS)
    components: Json = made.setdefault("components", {})
    components.setdefault("schemas", {}).update(_problem_schemas())
    components["schemas"].pop("HTTPValidationError", None)
    components["schemas"].pop("ValidationError", None)
    components["headers"] = _HEADERS
    shown = examples()
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation, shown)
    return made


def _complete(path: str, method: str, operation: Json, shown: Json) -> None:
    everywhere = [*_EVERYWHERE]
    if "security" in operation:
        everywhere += _WITH_KEYS
        scope = scope_needed(method.upper(), path)
        operation["security"] = [{_KEY: [scope.value]}]
        operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope}`.".strip()
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        everywhere.append(MediaTypeUnsupported)
    if any(parameter["name"] == "If-Match" for parameter in operation.get("parameters", [])):
        everywhere.append(PreconditionFailed)
    answers: Json = operation["responses"]
    if MEDIA_TYPE not in answers.get("422", {}).get("content", {}):
        answers.pop("422", None)  # FastAPI's own, which is never sent
    for number, told in responses(*everywhere).items():
        content = answers.setdefault(str(number), {"description": ""}).setdefault("content", {})
        examples = content.setdefault(MEDIA_TYPE, {}).setdefault("examples", {})
        examples.update(told["content"][MEDIA_TYPE]["examples"])
    for status, answer in answers.items():
        _complete_answer(status, answer, shown)
    operation["responses"] = dict(sorted(answers.items()))


def _complete_answer(status: str, answer: Json, shown: Json) -> None:
    headers: Json = answer.setdefault("headers", {})
    headers[HEADER] = {"$ref": f"#/components/headers/{HEADER}"}
    if (told := answer.get("content", {}).get(MEDIA_TYPE)) is not None:
        told["schema"] = {"$ref": f"#/components/schemas/{Problem.__name__}"}
        answer["description"] = " or ".join(f"`{code}`" for code in told["examples"])
    if status in _RETRY_LATER:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if status == "401":
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
    content = answer.get("content", {}).get("application/json", {})
    schema = content.get("schema", {})
    if (name := schema.get("$ref", "").rpartition("/")[2]) in shown:
        content["example"] = shown[name]
    if schema.get("$ref", "").endswith("/Job") or status == "304":
        headers.setdefault("ETag", {"$ref": "#/components/headers/ETag"})
    if status == "201":
        headers["Location"] = {"$ref": "#/components/headers/Location"}
        headers["Idempotency-Replayed"] = {"$ref": "#/components/headers/Idempotency-Replayed"}


def _problem_schemas() -> Json:
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), Problem.__name__: schema}


_HEADERS: Json = {
    HEADER: {
        "description": "the id of the request: the caller's own where it sent a plain one, else a new one; "
        "it is in the log and in problems",
        "schema": {"type": "string"},
    },
    "Location": {"description": "the path of what was made", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true`: this is the first answer to that Idempotency-Key once more, and nothing new was made",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "seconds until a request can be granted", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "`Bearer`", "schema": {"type": "string"}},
    "ETag": {
        "description": "the version of the job, for If-Match and If-None-Match; it moves with all but progress",
        "schema": {"type": "string"},
    },
}

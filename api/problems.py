"""Every error as application/problem+json (RFC 9457), made from its class alone."""

from __future__ import annotations

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from api.request_ids import request_id
from rehost.catalog.faults import Fault, faults_of, raise_faults
from rehost.errors import (
    Invalid,
    InvalidParameter,
    MediaTypeUnsupported,
    MethodNotAllowed,
    RangeNotSatisfiable,
    RehostError,
    RouteNotFound,
    Unauthenticated,
    UnexpectedFault,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_RETRY_SECONDS = 5


class FieldFault(BaseModel):
    """One fault: a JSON pointer into the body, `?name` for a query parameter, or a header's name; and its code."""

    pointer: str
    message: str
    code: str


class Problem(BaseModel):
    """What every error answers, all members always there."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    remedy: str
    retryable: bool
    request_id: str
    errors: list[FieldFault]


def problem_of(error: RehostError, path: str) -> Problem:
    """What a request at that path answers that failed with this error."""
    return Problem(
        type=f"urn:rehost:error:{error.code}",
        title=_title(type(error)),
        status=error.http_status,
        detail=error.message,
        instance=path,
        code=error.code,
        remedy=error.remedy,
        retryable=error.retryable,
        request_id=request_id(),
        errors=[
            FieldFault(pointer=pointer, message=message, code=next(iter(code), error.code))
            for pointer, message, *code in error.facts.get("errors", [])
        ],
    )


def problem(error: RehostError, path: str) -> Response:
    """The answer to a request that failed with this error."""
    body = problem_of(error, path)
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.facts['size']}"
    headers |= retry_after(error)
    return JSONResponse(body.model_dump(), error.http_status, headers, MEDIA_TYPE)


def retry_after(error: RehostError) -> dict[str, str]:
    """When the same request can be granted, as a header; empty where time alone changes nothing."""
    if error.http_status not in (429, 503):
        return {}
    return {"Retry-After": str(error.facts.get("retry_after", _RETRY_SECONDS))}


def install(app: FastAPI) -> None:
    """Make every error of the app answer a problem."""

    async def on_rehost_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RehostError)
        if error.http_status >= 500:
            log.error("%s %r: %s: %s", request.method, request.url.path, error.code, error.message)
        return problem(error, request.url.path)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(_wrong_type(request, error) or _invalid(error), request.url.path)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != 405:
            return problem(_of_status(error.status_code, request), request.url.path)
        methods = _allowed(app, request.scope)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": methods})
        answer = problem(MethodNotAllowed(method=request.method, path=request.url.path), request.url.path)
        answer.headers["Allow"] = methods
        return answer

    app.add_exception_handler(RehostError, on_rehost_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _wrong_type(request: Request, error: RequestValidationError) -> RehostError | None:
    """The body was not taken for JSON, because it was not said to be; None where that is not what is wrong."""
    given = request.headers.get("content-type", "").partition(";")[0].strip()
    is_json = re.fullmatch(r"application/([\w.+-]+\+)?json", given, re.IGNORECASE | re.ASCII) is not None
    if is_json or not isinstance(error.body, bytes):
        return None
    return MediaTypeUnsupported(path=request.url.path, wanted="application/json", given=given or "no type")


def _invalid(error: RequestValidationError) -> RehostError:
    faults: list[Fault] = []
    for found in error.errors():
        where, *location = found["loc"]
        if found["type"] == "json_invalid":
            faults.append(Fault("", "is no valid JSON"))
        elif where == "body":
            faults += faults_of([{**found, "loc": location}], error.body)
        else:
            prefix = {"query": "?", "path": "", "header": ""}.get(str(where), "")
            named = f"{prefix}{location[0]}" if location else str(where)
            faults += [Fault(named, fault.message, fault.code) for fault in faults_of([found], None)]
    try:
        raise_faults(faults)
    except RehostError as told:
        return told
    return InvalidParameter("The request is not valid.")


def methods_of(app: FastAPI, scope: Scope) -> set[str]:
    """The methods that routes of this path are made for. Starlette's own answer names those of the first one alone."""
    return {
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    }


def _allowed(app: FastAPI, scope: Scope) -> str:
    found = methods_of(app, scope)
    return ", ".join(sorted({*found, "OPTIONS"} | ({"HEAD"} if "GET" in found else set())))


def _of_status(status: int, request: Request) -> RehostError:
    if status == 404:
        return RouteNotFound(method=request.method, path=request.url.path)
    if 400 <= status < 500:
        return InvalidParameter("The body cannot be read.", [("", "is no valid JSON")])
    return UnexpectedFault()


def responses(*errors: type[RehostError] | int) -> dict[int | str, dict[str, Any]]:
    """For the document of the API: a request of this kind can end with these errors."""
    told: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        if isinstance(error, int):
            told.setdefault(error, {"description": "", "content": {MEDIA_TYPE: {"examples": {}}}})
            continue
        answer = told.setdefault(error.http_status, {"description": "", "content": {MEDIA_TYPE: {"examples": {}}}})
        answer["content"][MEDIA_TYPE]["examples"][error.code] = {"value": _example(error)}
    return told


def _example(error: type[RehostError]) -> dict[str, Any]:
    """The problem of an error class, with the names of its facts where a real one has the facts."""
    faults = (
        [{"pointer": "/name", "message": "starts with a letter", "code": error.code}]
        if issubclass(error, Invalid)
        else []
    )
    return {
        "type": f"urn:rehost:error:{error.code}",
        "title": _title(error),
        "status": error.http_status,
        "detail": " ".join((error.__doc__ or "").split()),
        "instance": "/v1/jobs",
        "code": error.code,
        "remedy": error.remedy,
        "retryable": error.retryable,
        "request_id": "5f2d1c0e9b8a7766",
        "errors": faults,
    }


def _title(error: type[RehostError]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", error.__name__).capitalize()

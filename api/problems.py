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
from starlette.routing import compile_path

from rehost.catalog.faults import Fault, faults_of, raise_faults
from rehost.errors import (
    InvalidParameter,
    MethodNotAllowed,
    RangeNotSatisfiable,
    RehostError,
    RouteNotFound,
    Unauthenticated,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


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
    errors: list[FieldFault]


class UnexpectedFault(RehostError):
    """The API failed in an unexpected way."""

    code = "Internal"
    remedy = "Look at the log of the API; the cause is in its last lines."


def problem_of(error: RehostError, path: str) -> Problem:
    """What a request at that path answers that failed with this error."""
    return Problem(
        type=f"urn:rehost:error:{error.code}",
        title=re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).capitalize(),
        status=error.http_status,
        detail=error.message,
        instance=path,
        code=error.code,
        remedy=error.remedy,
        retryable=error.retryable,
        errors=[
            FieldFault(pointer=pointer, message=message, code=next(iter(code), error.code))
            for pointer, message, *code in error.facts.get("errors", [])
        ],
    )


def problem(error: RehostError, path: str) -> Response:
    """The answer to a request that failed with this error."""
    body = problem_of(error, path)
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.facts['size']}"
    if error.http_status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse(body.model_dump(), error.http_status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of the app answer a problem."""

    async def on_rehost_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RehostError)
        if error.http_status >= 500:
            log.error("%s %s: %s: %s", request.method, request.url.path, error.code, error.message)
        return problem(error, request.url.path)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(_invalid(error), request.url.path)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = problem(_of_status(error.status_code, request), request.url.path)
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(_allowed(app, request.url.path))
        return answer

    async def on_unexpected(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(UnexpectedFault(), request.url.path)

    app.add_exception_handler(RehostError, on_rehost_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unexpected)


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


def _allowed(app: FastAPI, path: str) -> list[str]:
    """The methods of a path. Starlette's own answer names those of the first route alone."""
    templates = app.openapi()["paths"]
    return sorted(
        method.upper()
        for template, operations in templates.items()
        if compile_path(template)[0].match(path)
        for method in operations
    )


def _of_status(status: int, request: Request) -> RehostError:
    if status == 404:
        return RouteNotFound(method=request.method, path=request.url.path)
    if status == 405:
        return MethodNotAllowed(method=request.method, path=request.url.path)
    if 400 <= status < 500:
        return InvalidParameter("The body cannot be read.", [("", "is no valid JSON")])
    return UnexpectedFault()


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: these statuses answer a problem."""
    return {status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in statuses}

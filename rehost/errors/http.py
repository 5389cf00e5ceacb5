"""Requests that are refused for how they were sent, whatever they ask for."""

from __future__ import annotations

from rehost.errors.base import RehostError
from rehost.errors.requests import Conflict, NotFound, RequestError


class PreconditionFailed(RequestError):
    """{what} has the version {version} now; the request is for {wanted}."""

    code = "Precondition.Failed"
    remedy = "Read it again, look whether the change is still wanted, and send it with the new ETag in If-Match."
    http_status = 412
    exit_code = 11


class TooManyRequests(RequestError):
    """Too many wrong keys came from {client}; the next one is looked at in {retry_after} seconds."""

    code = "TooManyRequests"
    remedy = "Wait as long as Retry-After says, then send the request with a key that is valid."
    retryable = True
    http_status = 429
    exit_code = 75


class MediaTypeUnsupported(RequestError):
    """{path} takes a body of {wanted}, not of {given}."""

    code = "MediaType.Unsupported"
    remedy = "Send the body as that type, and say so in Content-Type."
    http_status = 415


class UriTooLong(RequestError):
    """The path and the query of the request have more than {limit_bytes} bytes."""

    code = "Uri.TooLong"
    remedy = "Ask for less in one request."
    http_status = 414


class RequestTimeout(RequestError):
    """The body of the request did not arrive within {seconds} seconds."""

    code = "Request.Timeout"
    remedy = "Send the request again, on a connection that is fast enough for it."
    retryable = True
    http_status = 408
    exit_code = 75


class ApiKeyNotFound(NotFound):
    """There is no key named {name}."""

    code = "ApiKey.NotFound"
    remedy = "`rehost key list` shows the keys."


class ApiKeyDuplicate(Conflict):
    """There is a key named {name} already."""

    code = "ApiKey.Duplicate"
    remedy = "Choose another name, or remove that key first."


class UnexpectedFault(RehostError):
    """The API failed in an unexpected way."""

    code = "Internal"
    remedy = "Look in the log of the API for the line with this request's id; the cause is below it."

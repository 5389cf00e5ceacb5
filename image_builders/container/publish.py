"""Pushes a container image to a registry and makes sure that the registry has what was pushed."""

from __future__ import annotations

import re
from typing import Any

from docker.errors import APIError

from image_builders.container.record import ContainerImage, write_record
from image_builders.container.registry import manifest_digest
from image_builders.container.request import ContainerRequest, Credentials
from rehost.engine import engine, reason_of
from rehost.errors import InvalidParameter, RegistryDenied, RegistryUnreachable
from rehost.progress import Progress

# What engine and registry say where nobody answers; all else that they say is a refusal.
_UNREACHABLE = re.compile(
    r"connection refused|no such host|i/o timeout|timeout|timed out|no route to host|network is unreachable"
    r"|connection reset|broken pipe|\bEOF\b|server misbehaving|HTTP response to HTTPS client|x509|TLS handshake"
    r"|50[0234]\b|service unavailable|bad gateway|toomanyrequests",
    re.IGNORECASE,
)
_SHOWN_CHARACTERS = 300


def publish_container(
    image: ContainerImage, request: ContainerRequest, credentials: Credentials | None, progress: Progress
) -> ContainerImage:
    """Push the image under the request's reference; the record with the registry's digest, written to image.json too.

    The digest is what the registry answers when it is asked for the tag, and equals what the push told. Credentials
    go to the engine with this one call and are kept nowhere. Raises RegistryDenied, RegistryUnreachable,
    ContainerEngineAway, ContainerEngineFailed.
    """
    if request.registry is None:
        raise InvalidParameter("There is no registry to publish to.")
    with engine("push the image") as client:
        if not client.images.get(image.engine_id).tag(request.name, request.tag):
            raise RegistryDenied(reference=request.reference, reason="the engine could not tag the image")
        # An empty login keeps the SDK from looking for one in the worker's own files.
        auth = {"username": credentials.username, "password": credentials.password} if credentials else {}
        pushed = _push(client.api, request, auth, progress)
    digest = manifest_digest(request, credentials)
    if pushed is None or digest != pushed:
        raise RegistryDenied(
            reference=request.reference, reason=f"it has {digest} under this tag, where {pushed} was pushed"
        )
    published = image.model_copy(
        update={
            "reference": request.reference,
            "digest": digest,
            "published": True,
            "run_arguments": (*image.run_arguments[:-1], f"{request.name}@{digest}"),
        }
    )
    write_record(published)
    return published


def _push(api: Any, request: ContainerRequest, auth: dict[str, str], progress: Progress) -> str | None:
    """Push; the digest that the engine tells. Several layers go at once: progress is the sum of what each has sent."""
    digest: str | None = None
    sent: dict[str, int] = {}
    totals: dict[str, int] = {}
    furthest = 0
    try:
        for line in api.push(request.name, tag=request.tag, stream=True, decode=True, auth_config=auth):
            if "error" in line or "errorDetail" in line:
                _fail(request, str(line.get("error") or line["errorDetail"].get("message")))
            detail, layer_id = line.get("progressDetail") or {}, line.get("id")
            if layer_id and detail.get("current"):
                sent[layer_id] = int(detail["current"])
                totals[layer_id] = max(int(detail.get("total") or 0), sent[layer_id])
                furthest = max(furthest, sum(sent.values()))
                progress(furthest, max(furthest, sum(totals.values())), "pushing")
            aux = line.get("aux") or {}
            if aux.get("Digest"):
                digest = str(aux["Digest"])
    except APIError as error:
        _fail(request, reason_of(error))
    return digest


def _fail(request: ContainerRequest, reason: str) -> None:
    shown = " ".join(reason.split())[:_SHOWN_CHARACTERS].rstrip(".")
    cls = RegistryUnreachable if _UNREACHABLE.search(reason) else RegistryDenied
    raise cls(reference=request.reference, reason=shown)

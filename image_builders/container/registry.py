"""What a registry says of a manifest: the HEAD request of the OCI distribution specification, with its logins."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import httpx

from image_builders.container.request import ContainerRequest, Credentials
from rehost.errors import RegistryDenied, RegistryUnreachable

_SECONDS = 30.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TOKEN_BYTES = 65_536
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_ACCEPTED = ", ".join(
    [
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)


def manifest_digest(request: ContainerRequest, credentials: Credentials | None) -> str:
    """The digest under which the registry has the request's tag now.

    The registry is spoken to by HTTPS; by HTTP where it is on the loopback interface, or `registry_insecure` says so.
    Raises RegistryDenied, RegistryUnreachable.
    """
    assert request.registry is not None
    plain = request.registry_insecure or is_loopback(request.registry)
    base = f"{'http' if plain else 'https'}://{request.registry}"
    url = f"{base}/v2/{request.path}/manifests/{request.tag}"
    try:
        # A proxy has no business with a registry on this machine.
        with httpx.Client(timeout=_SECONDS, trust_env=not is_loopback(request.registry)) as client:
            response = client.head(url, headers={"Accept": _ACCEPTED})
            if response.status_code == 401:
                login = _login(client, response, credentials, plain, request)
                response = client.head(url, headers={"Accept": _ACCEPTED, **login})
    except httpx.HTTPError as error:
        raise RegistryUnreachable(reference=request.reference, reason=str(error) or type(error).__name__) from error
    if response.status_code >= 500:
        raise RegistryUnreachable(reference=request.reference, reason=f"it answered {response.status_code}")
    digest = response.headers.get("Docker-Content-Digest", "")
    if response.status_code != 200 or not _DIGEST.fullmatch(digest):
        raise RegistryDenied(reference=request.reference, reason=f"it answered {response.status_code} without a digest")
    return str(digest)


def is_loopback(registry: str) -> bool:
    """Whether host:port is on this machine."""
    host = urlsplit(f"//{registry}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _login(
    client: httpx.Client,
    response: httpx.Response,
    credentials: Credentials | None,
    plain: bool,
    request: ContainerRequest,
) -> dict[str, str]:
    """The Authorization header that answers the registry's challenge (RFC 7617; distribution token specification)."""
    challenge = response.headers.get("WWW-Authenticate", "")
    scheme, _, rest = challenge.partition(" ")
    auth = httpx.BasicAuth(credentials.username, credentials.password) if credentials else None
    if scheme.lower() == "basic" and auth is not None:
        signed = next(auth.auth_flow(httpx.Request("HEAD", response.request.url)))
        return {"Authorization": signed.headers["Authorization"]}
    parameters = dict(_PARAMETER.findall(rest))
    realm = parameters.get("realm", "")
    if scheme.lower() != "bearer" or not (realm.startswith("https://") or (plain and realm.startswith("http://"))):
        raise RegistryDenied(reference=request.reference, reason="it wants a login")
    query = {"service": parameters.get("service", ""), "scope": f"repository:{request.path}:pull"}
    answer = client.get(realm, params=query, auth=auth)
    if answer.status_code != 200 or len(answer.content) > _TOKEN_BYTES:
        raise RegistryDenied(reference=request.reference, reason=f"its token service answered {answer.status_code}")
    try:
        told = answer.json()
        token = told.get("token") or told["access_token"]
    except (ValueError, KeyError, AttributeError) as error:
        raise RegistryDenied(reference=request.reference, reason="its token service gave no token") from error
    return {"Authorization": f"Bearer {token}"}

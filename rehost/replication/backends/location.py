"""What REHOST_STORE_URL says: a folder, or a bucket of an object store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")


@dataclass(frozen=True)
class Bucket:
    """A part of a bucket."""

    name: str
    prefix: str = ""
    endpoint: str | None = None  # http://HOST:PORT or https://HOST:PORT; None: the one of AWS
    region: str | None = None


def location(url: str) -> Path | Bucket:
    """The folder or bucket of a store's URL.

    Of the forms FOLDER, file:///FOLDER and s3://BUCKET/PREFIX?endpoint=http://HOST:PORT&region=REGION. Raises
    ValueError, which never repeats the URL: it may hold a password that does not belong there.
    """
    if url.startswith("s3://"):
        return _bucket(url)
    if "://" in url and not url.startswith("file:///"):
        raise ValueError("is a folder, file:///FOLDER, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME")
    return Path(url.removeprefix("file://"))


def _bucket(url: str) -> Bucket:
    parts = urlsplit(url)
    if "@" in unquote(url):
        raise ValueError("names a user: credentials are taken from the AWS environment variables and files alone")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    if parts.fragment or len(options) < len(pairs) or options.keys() - {"endpoint", "region"}:
        raise ValueError("takes endpoint and region after the question mark, once each, and nothing else")
    prefix = parts.path.strip("/")
    if not _BUCKET.fullmatch(parts.netloc) or (prefix and not _PREFIX.fullmatch(prefix)):
        raise ValueError("has a bucket or a prefix with characters that object stores differ about")
    endpoint = options.get("endpoint")
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise ValueError("has an endpoint that is not http://HOST:PORT or https://HOST:PORT")
    return Bucket(parts.netloc, prefix, endpoint, options.get("region"))

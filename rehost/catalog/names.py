"""What names, descriptions, tags and OCI references look like, as types that pydantic checks."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

MAX_TAGS = 20
_FORBIDDEN_STARTS = ("http://", "https://")
_RESERVED_TAGS = ("acs:", "aliyun", *_FORBIDDEN_STARTS)
# The OCI distribution specification, "Pulling manifests": <name> and <reference> as a tag.
_OCI_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
OCI_NAME = rf"^{_OCI_COMPONENT}(?:/{_OCI_COMPONENT})*$"
OCI_TAG = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"


def check_name(value: str) -> str:
    """2 to 128 letters (of any script), digits, `:`, `_`, `-`; the first one is a letter."""
    if not value[:1].isalpha():
        raise ValueError("starts with a letter")
    if value.lower().startswith(_FORBIDDEN_STARTS):
        raise ValueError("does not start with http:// or https://")
    if not all(c.isalpha() or c.isdecimal() or c in ":_-" for c in value):
        raise ValueError("has letters, digits, `:`, `_` and `-` only")
    return value


def check_description(value: str) -> str:
    """As a name, with spaces and punctuation."""
    if not value[:1].isalpha():
        raise ValueError("starts with a letter")
    return check_text(value)


def check_text(value: str) -> str:
    """One line of text that can be shown anywhere."""
    if value.lower().startswith(_FORBIDDEN_STARTS):
        raise ValueError("does not start with http:// or https://")
    if not value.isprintable():
        raise ValueError("has no control characters")
    return value


def check_no_nul(value: str) -> str:
    """Text of several lines."""
    if "\0" in value:
        raise ValueError("has no NUL character")
    return value


def _check_tag_text(text: str) -> str:
    if text.lower().startswith(_RESERVED_TAGS):
        raise ValueError("no key or value starts with acs:, aliyun, http:// or https://")
    if not text.isprintable():
        raise ValueError("no key or value has control characters")
    return text


def _check_tag_key(key: str) -> str:
    if not 1 <= len(key) <= 128:
        raise ValueError("each key has 1 to 128 characters")
    return _check_tag_text(key)


def _check_tag_value(value: str) -> str:
    if len(value) > 128:
        raise ValueError("each value has at most 128 characters")
    return _check_tag_text(value)


def _check_tag_count(tags: dict[str, str]) -> dict[str, str]:
    if len(tags) > MAX_TAGS:
        raise PydanticCustomError("NumberExceed.Tags", "at most {limit} tags", {"count": len(tags), "limit": MAX_TAGS})
    return tags


Name = Annotated[str, Field(min_length=2, max_length=128), AfterValidator(check_name)]
Description = Annotated[str, Field(min_length=2, max_length=128), AfterValidator(check_description)]
SourceDescription = Annotated[str, Field(max_length=256), AfterValidator(check_text)]
_TagKey = Annotated[str, AfterValidator(_check_tag_key)]
_TagValue = Annotated[str, AfterValidator(_check_tag_value)]
Tags = Annotated[dict[_TagKey, _TagValue], AfterValidator(_check_tag_count)]
"""At most 20; keys of 1 to 128 characters, values of 0 to 128, no reserved beginning."""


def name_from(text: str) -> str:
    """A valid name that is as near to the text as can be: for defaults made of a hostname."""
    kept = re.sub(r"[^A-Za-z0-9:_-]", "-", text)[:100].strip("-")
    if not kept[:1].isalpha():
        kept = f"server-{kept}".rstrip("-")
    return kept if len(kept) >= 2 else "server"

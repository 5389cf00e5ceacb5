"""What is asked of the container builder, checked before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime

from rehost.errors import InvalidParameter

# Names as the distribution project defines them (reference/reference.go): a path of lower-case components, a tag.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_HOST}(?:\.{_HOST})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")
_NAME_CHARACTERS = 255  # of registry and path together


@dataclass(frozen=True)
class Credentials:
    """A login at a registry. The password shows in no representation."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class ContainerRequest:
    """One container image to build.

    `command` replaces the command that the builder finds. Raises InvalidParameter, which names every field at fault.
    """

    image_id: str
    namespace: str
    repository: str
    tag: str
    registry: str | None  # host:port; None: the image stays in the engine
    registry_insecure: bool  # speak HTTP to the registry
    title: str
    source_id: str
    snapshot_id: str
    snapshot_at: datetime  # the creation time of the image, so that one snapshot always gives one digest
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = []
        for name, value in (("namespace", self.namespace), ("repository", self.repository)):
            if not _PATH.fullmatch(value):
                faults.append((name, f"{value!r}: lower-case letters and digits, parted by . _ - or /"))
        if not _TAG.fullmatch(self.tag):
            faults.append(("tag", f"{self.tag!r}: at most 128 letters, digits, . _ -, not first . or -"))
        if self.registry is not None and not _REGISTRY.fullmatch(self.registry):
            faults.append(("registry", f"{self.registry!r}: host or host:port"))
        if len(self.name) > _NAME_CHARACTERS:
            faults.append(("repository", f"the whole name has more than {_NAME_CHARACTERS} characters"))
        if faults:
            pointed = [(f"/targets/container_image/{name}", told) for name, told in faults]
            raise InvalidParameter("The container image cannot have this name.", pointed)
        if self.snapshot_at.tzinfo is None:
            raise ValueError("snapshot_at needs a time zone")

    @property
    def path(self) -> str:
        """The repository's path in a registry: namespace/repository."""
        return f"{self.namespace}/{self.repository}"

    @property
    def name(self) -> str:
        """What the engine calls the repository: registry/namespace/repository."""
        return f"{self.registry}/{self.path}" if self.registry else self.path

    @property
    def reference(self) -> str:
        """The whole name with its tag."""
        return f"{self.name}:{self.tag}"

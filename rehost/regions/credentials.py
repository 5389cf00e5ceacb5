"""The login at a registry, read on the worker at the moment of use from where the job says it lies."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from rehost.catalog.job import RegistryCredentials
from rehost.errors import RegistryCredentialsMissing

_MAX_BYTES = 65_536


@dataclass(frozen=True)
class Login:
    """A user and a password; the password shows in no representation."""

    username: str
    password: str = field(repr=False)


def resolve(credentials: RegistryCredentials) -> Login:
    """Raises RegistryCredentialsMissing, which names the variable or the file and nothing that is in it."""
    username = credentials.username or _variable(credentials.username_env)
    if credentials.password_file is not None:
        return Login(username, _first_line(Path(credentials.password_file)))
    return Login(username, _variable(credentials.password_env))


def _variable(name: str | None) -> str:
    value = os.environ.get(name or "")
    if not value:
        raise RegistryCredentialsMissing(reason=f"the variable {name} is not set on the worker")
    return value


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            line = file.read(_MAX_BYTES).partition(b"\n")[0].rstrip(b"\r").decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryCredentialsMissing(reason=f"the file {path} cannot be read: {type(error).__name__}") from error
    if not line:
        raise RegistryCredentialsMissing(reason=f"the first line of {path} is empty")
    return line

"""How a source is reached: the connections of the public contract, and the one way to open a session on each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rehost.source.session import Session

# What ends up in ssh's argv or options must not be taken for an option, nor for two words.
_HOST = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9_.:%\[\]-]*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\$+-]*")
_JUMP = re.compile(
    r"(?:[A-Za-z0-9_.][A-Za-z0-9_.+-]*@)?(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)(?::\d{1,5})?"
)


class _Connection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _plain_path(value: str) -> str:
    if value.startswith("-") or '"' in value or any(not c.isprintable() for c in value):
        raise ValueError("must be a path without quotes or control characters that does not begin with -")
    return value


class SshConnection(_Connection):
    """A running server, reached by the system's `ssh` and the user's own configuration of it."""

    kind: Literal["ssh"] = "ssh"
    host: str = Field(min_length=1, max_length=255, description="name or address, or a Host of ~/.ssh/config")
    port: int = Field(22, ge=1, le=65535)
    user: str = Field("root", min_length=1, max_length=128)
    identity_file: str | None = Field(None, min_length=1, max_length=4096)
    known_hosts: str | None = Field(None, min_length=1, max_length=4096)
    proxy_jump: str | None = Field(None, min_length=1, max_length=1024, description="[USER@]HOST[:PORT], by commas")
    sudo: bool = False

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not _HOST.fullmatch(value):
            raise ValueError("must be a host name or an address")
        return value

    @field_validator("user")
    @classmethod
    def _user(cls, value: str) -> str:
        if not _USER.fullmatch(value):
            raise ValueError("must be a user name")
        return value

    @field_validator("identity_file", "known_hosts")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        return None if value is None else _plain_path(value)

    @field_validator("proxy_jump")
    @classmethod
    def _jump(cls, value: str | None) -> str | None:
        if value is not None and not all(_JUMP.fullmatch(hop) for hop in value.split(",")):
            raise ValueError("must be [USER@]HOST[:PORT], several by commas")
        return value


class PathConnection(_Connection):
    """A server's tree, mounted or unpacked on this machine."""

    kind: Literal["path"] = "path"
    root: str = Field(min_length=1, max_length=4096)

    @field_validator("root")
    @classmethod
    def _root(cls, value: str) -> str:
        if not value.startswith("/") or "\0" in value:
            raise ValueError("must be an absolute path")
        return value


class DiskConnection(_Connection):
    """Disk images of a server that is switched off, the system disk first."""

    kind: Literal["disk"] = "disk"
    disks: tuple[str, ...] = Field(min_length=1, max_length=17)

    @field_validator("disks")
    @classmethod
    def _disks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not disk or "\0" in disk or len(disk) > 4096 for disk in value):
            raise ValueError("must be paths of disk images")
        return value


Connection = Annotated[SshConnection | PathConnection | DiskConnection, Field(discriminator="kind")]
"""Any of them, told apart by `kind`."""


@contextmanager
def open_session(
    connection: SshConnection | PathConnection | DiskConnection,
    *,
    compress_level: int = 0,
    bandwidth_limit_kbps: int = 0,
    wheels: Path | None = None,
    channels: int = 1,
) -> Iterator[Session]:
    """Connect, and close whatever way the block is left; nothing stays on the source.

    `compress_level` is 0 (none) to 9, for what travels; `bandwidth_limit_kbps` is in KB/s, 0 for none. `wheels`
    is the folder of libraries that are kept for the source's Python; without it none are handed over. `channels`
    is the number of connections over which files are read: more than one gains where the link carries more than one
    core of either end can encrypt, and there are cores to spare. Raises the SourceError that tells what is wrong.
    """
    if isinstance(connection, DiskConnection):
        from rehost.source.disk_session import DiskSession

        with DiskSession(connection) as session:
            session.set_bandwidth_limit(bandwidth_limit_kbps)
            yield session
        return
    from rehost.source.agent_session import AgentSession, open_agent

    def opened(kbps: int) -> AbstractContextManager[AgentSession]:
        return open_agent(connection, compress_level=compress_level, bandwidth_limit_kbps=kbps, wheels=wheels)

    if channels == 1:
        with opened(bandwidth_limit_kbps) as agent:
            yield agent
        return
    from rehost.source.spread import SpreadSession

    with ExitStack() as stack:
        first, *others = [stack.enter_context(opened(bandwidth_limit_kbps)) for _ in range(channels)]
        spread = SpreadSession(first, others)
        spread.set_bandwidth_limit(bandwidth_limit_kbps)
        yield spread

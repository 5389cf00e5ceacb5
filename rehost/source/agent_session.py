"""A session with the agent: over ssh, or as a child process for a tree on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rehost.agent import protocol
from rehost.errors import SourceError, SourceNotEnoughPrivileges, SourceProtocol, SourceUnreachable
from rehost.replication.bundles import Bundle
from rehost.replication.tree import printable
from rehost.run import PIPE, spawn
from rehost.source.agent_program import PYTHON_OPTIONS, bootstrap, program
from rehost.source.agent_reading import AgentReading
from rehost.source.channel import Channel, Explain, new_token
from rehost.source.connect import PathConnection, SshConnection
from rehost.source.exclude import exclude_expression
from rehost.source.hand_over import Equipment, looked_ahead
from rehost.source.interpreters import Interpreter, target_of
from rehost.source.inventory import Inventory, Volume
from rehost.source.scan_rows import ScanRows
from rehost.source.session import FileContent, FileRequest, Skipped
from rehost.source.ssh import ssh_argv, ssh_error

_NICENESS = 5  # the server's own work goes first
_SKIPPED_PATH = protocol.PATH_BYTES
_SKIPPED_REASON = 300


class Hello(BaseModel):
    """What an agent says of itself first; fields that are not known are ignored, newer agents may have more."""

    model_config = ConfigDict(frozen=True, strict=True)

    protocol: int
    python: str = Field(max_length=100)
    machine: str = Field(max_length=100)
    hostname: str = Field(max_length=300)
    uid: int
    hashes: list[Annotated[str, Field(max_length=50)]] = Field(max_length=20)
    codecs: list[Annotated[str, Field(max_length=50)]] = Field(max_length=20)
    interpreter: Interpreter | None = None


class AgentSession:
    """A Session whose other end is the agent."""

    def __init__(self, channel: Channel, hello: Hello, equipment: Equipment) -> None:
        self.host = channel.host
        self.hello = hello
        self.equipment = equipment
        self._channel = channel
        self._busy = False
        self._skipped: tuple[Skipped, ...] = ()
        self._scan_began_ns: int | None = None

    @property
    def channel(self) -> Channel:
        """The frames' way to the agent and back, for what is asked inside `exclusive`."""
        return self._channel

    @contextmanager
    def exclusive(self) -> Iterator[Channel]:
        """The channel for one request and its answers. A session that is left in the middle takes no further one."""
        self._begin()
        yield self._channel
        self._busy = False

    def bytes_on_wire(self) -> int:
        """All bytes received from the source so far."""
        return self._channel.received

    def inventory(self) -> Inventory:
        """What the server is."""
        from rehost.source.discover import inventory_of

        self._begin()
        self._channel.send(protocol.INVENTORY)
        packed = self._channel.expect(protocol.RESULT)
        facts = self._channel.json_object(self._channel.unpack(packed, protocol.FRAME_BYTES))
        self._busy = False
        return inventory_of(facts)

    def scan(self, volumes: Sequence[Volume], exclude: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Every name on these volumes; see Session."""
        self._begin()
        request = {
            "volumes": [os.fsencode(volume.mount_point).strip(b"/").decode("latin-1") for volume in volumes],
            "exclude": exclude_expression(exclude),
        }
        self._channel.send_json(protocol.SCAN, request)
        rows = 0
        frames = ScanRows(len(volumes), self._channel.violation)
        while True:
            kind, body = self._channel.receive()
            if kind == protocol.SCANNED:
                break
            if kind != protocol.ROWS:
                raise self._channel.violation(f"a frame of kind {kind} inside a scan")
            raw = self._channel.unpack(body, protocol.FRAME_BYTES)
            batch = frames.batch(raw)
            rows += batch.num_rows
            yield batch
        told = self._channel.json_object(body)
        if told.get("rows") != rows:
            raise self._channel.violation("a scan of another number of rows than it says")
        self._skipped = tuple(self._skips(told.get("skipped")))
        self._scan_began_ns = self._time(told.get("now_ns"))
        self._busy = False

    @property
    def codec(self) -> str:
        """What the agent packs with."""
        return self.equipment.codec

    def notes(self) -> Sequence[str]:
        """What people should know of how this session went."""
        return tuple(self.equipment.notes)

    def skipped(self) -> Sequence[Skipped]:
        """What the last scan could not take; the first thousand."""
        return self._skipped

    def scan_began_ns(self) -> int | None:
        """When the last scan began, by the source's clock, in ns since 1970."""
        return self._scan_began_ns

    def read(
        self,
        requests: Iterable[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[FileContent]:
        """The content of these files; see Session."""
        self._begin()
        expected, requests = looked_ahead(requests)
        self.equipment.complete(expected, blocks=False)
        yield from AgentReading(self._channel, requests, wanted, deliver).run()
        self._busy = False

    def ask(self, kind: int, value: Any, answer: int) -> dict[str, Any]:
        """Send a request that is one frame of JSON, and return its answer, which is one too."""
        self._begin()
        self._channel.send_json(kind, value)
        told = self._channel.json_object(self._channel.expect(answer))
        self._busy = False
        return told

    def violation(self, reason: str) -> SourceProtocol:
        """The error for something that the agent may not say."""
        return self._channel.violation(reason)

    def set_bandwidth_limit(self, kbps: int) -> None:
        """Bound what the source sends, in KB/s (1 KB = 1,000 bytes); 0 for no bound."""
        self._channel.send_json(protocol.LIMIT, {"bytes_per_second": kbps * 1000})

    def _begin(self) -> None:
        if self._busy:
            raise RuntimeError("the session is in the middle of something, or was left there; open another")
        self._busy = True

    def _time(self, told: Any) -> int | None:
        match told:
            case None:
                return None
            case int() if not isinstance(told, bool) and 0 <= told < 1 << 63:
                return told
            case _:
                raise self._channel.violation("a time that no clock shows")

    def _skips(self, told: Any) -> Iterator[Skipped]:
        if not isinstance(told, list) or len(told) > protocol.SKIPPED_TOLD:
            raise self._channel.violation("a wrong list of skipped names")
        for item in told:
            match item:
                case [str(path), str(reason)] if len(path) <= _SKIPPED_PATH and len(reason) <= _SKIPPED_REASON:
                    yield Skipped(path.encode("latin-1", "replace"), printable(reason.encode("utf-8", "replace")))
                case _:
                    raise self._channel.violation("a wrong list of skipped names")


@contextmanager
def open_agent(
    connection: SshConnection | PathConnection,
    *,
    compress_level: int = 0,
    bandwidth_limit_kbps: int = 0,
    wheels: Path | None = None,
) -> Iterator[AgentSession]:
    """Run the agent on that source, or on this machine for a tree, and end it on the way out.

    `wheels`: see open_session.
    """
    if isinstance(connection, SshConnection):
        ssh = connection
        with open_program(
            lambda length: ssh_argv(ssh, length),
            host=ssh.host,
            root=b"/",
            explain=lambda status, stderr, greeted: ssh_error(ssh, status, stderr, greeted),
            compress_level=compress_level,
            bandwidth_limit_kbps=bandwidth_limit_kbps,
            wheels=wheels,
        ) as session:
            if session.hello.uid != 0:
                reason = f"its user id is {session.hello.uid}"
                raise SourceNotEnoughPrivileges(host=ssh.host, user=ssh.user, reason=reason)
            yield session
        return
    root = os.fsencode(connection.root)
    if not os.path.isdir(root):  # noqa: PTH112  raw bytes
        raise SourceUnreachable(host=printable(root), reason="there is no such directory")
    with open_program(
        lambda length: [sys.executable, *PYTHON_OPTIONS, bootstrap(length)],
        host=printable(root),
        root=root,
        explain=lambda status, stderr, greeted: _local_error(printable(root), status, stderr),
        compress_level=compress_level,
        bandwidth_limit_kbps=bandwidth_limit_kbps,
        wheels=wheels,
    ) as session:
        yield session


@contextmanager
def open_program(
    argv: Callable[[int], Sequence[str]],
    *,
    host: str,
    root: bytes,
    explain: Explain,
    compress_level: int,
    bandwidth_limit_kbps: int,
    wheels: Path | None = None,
) -> Iterator[AgentSession]:
    """Start a program that becomes the agent once it was sent; `argv` is made for the number of bytes sent."""
    token = new_token()
    text = program(token, root)
    with spawn(argv(len(text)), stdin=PIPE) as process:
        channel = Channel(process, host, explain)
        try:
            hello = _hello(channel, channel.greet(text, token))
            codec = next((c for c in hello.codecs if c in protocol.CODECS), "none")
            channel.send_json(
                protocol.START,
                {
                    "codec": codec,
                    "hash": "sha256",
                    "level": compress_level,
                    "bytes_per_second": bandwidth_limit_kbps * 1000,
                    "nice": _NICENESS,
                },
            )
            equipment = Equipment(
                channel,
                python=hello.python,
                target=target_of(hello.python, hello.machine, hello.interpreter),
                hashes=hello.hashes,
                codecs=hello.codecs,
                codec=codec,
                compress_level=compress_level,
                folder=wheels,
            )
            yield AgentSession(channel, hello, equipment)
        finally:
            channel.close()


def _hello(channel: Channel, body: bytes | bytearray) -> Hello:
    try:
        hello = Hello.model_validate_json(body)
    except ValidationError as error:
        raise channel.violation("a hello without the facts that belong to it") from error
    if hello.protocol != protocol.PROTOCOL or "sha256" not in hello.hashes:
        raise channel.violation(f"it speaks version {hello.protocol} of the protocol")
    return hello


def _local_error(host: str, status: int | None, stderr: str) -> SourceError:
    lines = stderr.strip().splitlines()
    told = printable(lines[-1].encode("utf-8", "replace"))[:300] if lines else "nothing was said"
    return SourceUnreachable(host=host, reason=f"the agent ended (status {status}): {told}")

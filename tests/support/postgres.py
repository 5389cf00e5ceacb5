"""A PostgreSQL server of the tests' own: started, stopped, paused and killed; and a line to it that can be cut."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from rehost.catalog.catalog import Catalog
from rehost.run import Process, find, run, spawn
from rehost.settings import Settings

_USER = "rehost"
_PASSWORD = "not:a\\secret"  # the characters that a password file has to escape
_START_SECONDS = 60.0
_SETTINGS = {
    "fsync": "off",  # nothing here outlives the test
    "full_page_writes": "off",
    "max_connections": "150",
    "shared_buffers": "32MB",
    "unix_socket_permissions": "0777",
}


class PostgreSQL:
    """A cluster in a temporary folder, owned by an ordinary user; it listens on 127.0.0.1 and on a socket in `folder`.

    The password is asked for (SCRAM). After `close` nothing is left of it.
    """

    user, password = _USER, _PASSWORD

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rehost-pg-"))  # a user who is not root has to reach it
        self.port = _free_port()
        self._stack = contextlib.ExitStack()
        self._parent = ThreadPoolExecutor(1)  # the server ends with the thread that started it: not a test's own
        self._process: Process | None = None
        self._numbers = itertools.count(1)
        self._template: str | None = None  # the name of the database with the catalog's tables
        administrator = self.url("postgres").replace("postgresql:", "postgresql+pg8000:")
        self._administrator = create_engine(administrator, isolation_level="AUTOCOMMIT")
        self._as_user = _ordinary_user(self.folder)
        secret = self.folder / "password"
        secret.write_text(_PASSWORD)
        secret.chmod(0o644)
        initdb = ["initdb", "-D", str(self._data), "-U", _USER, "--auth=scram-sha-256", f"--pwfile={secret}"]
        run([*self._as_user, *initdb, "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"], timeout=120, cwd=self.folder)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.popen.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        argv = ["postgres", "-D", str(self._data), "-p", str(self.port), "-k", str(self.folder), *options]
        log = self._stack.enter_context((self.folder / "log").open("ab"))
        made = spawn([*self._as_user, *argv], stdout=log, stderr=log, cwd=self.folder)
        self._process = self._parent.submit(self._stack.enter_context, made).result()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except DBAPIError:
                if time.monotonic() > deadline or not self.running:
                    raise AssertionError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop as `pg_ctl stop` does: every connection is ended, what was begun is undone."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once; the next start recovers."""
        self._end(signal.SIGQUIT)

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._administrator.dispose()
        self._process.popen.send_signal(number)
        self._process.wait(60)

    def pause(self) -> None:
        """All of its processes stand still; connections stay, and nobody answers."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """After `pause`."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        assert self._process is not None
        first = self._process.popen.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def url(self, database: str, *, port: int | None = None, password: bool = True) -> str:
        """As REHOST_DATABASE_URL takes it; through another port where something lies between."""
        login = f"{_USER}:not%3Aa%5Csecret" if password else _USER
        return f"postgresql://{login}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """One statement of the administrator's, in no transaction; its rows."""
        with self._administrator.connect() as connection:
            result = connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []

    @contextlib.contextmanager
    def database(self, *, tables: bool = False) -> Iterator[str]:
        """The name of a new database, which is dropped afterwards; empty, or with the catalog's tables."""
        if tables and self._template is None:
            self._template = "catalog_tables"
            self.execute(f"CREATE DATABASE {self._template}")
            Catalog.open(Settings(home=self.folder, database_url=self.url(self._template))).close()
        name = f"catalog_{next(self._numbers)}_{secrets.token_hex(3)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {self._template if tables else 'template1'}")
        try:
            yield name
        finally:
            if self.running:
                self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        if self.running:
            self.kill()
        self._stack.close()
        self._parent.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server that runs, for the length of a block."""
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.close()


def installed() -> bool:
    """Whether this machine has PostgreSQL's server."""
    return find("initdb") is not None and find("postgres") is not None


def _ordinary_user(folder: Path) -> list[str]:
    """What stands before a command so that it is not root's; PostgreSQL refuses to be."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "nobody")
    # The death signal once more: a change of the user takes it away.
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL", "--"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class CutLine:
    """A line to a server on 127.0.0.1 that breaks at a commit, once per arming, and is whole again afterwards.

    `cut("after")`: the server gets the commit, the client no answer. `cut("before")`: the server does not get it.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._armed: str | None = None
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, when: str) -> None:
        self._armed = when

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                if self._armed and b"commit\x00" in data.lower():
                    when, self._armed = self._armed, None
                    self.cuts += 1
                    client.shutdown(socket.SHUT_RDWR)  # before the answer can come back
                    if when == "after":
                        # All that makes it a commit: the driver would send the rest once this part was answered.
                        server.sendall(b"Q" + (11).to_bytes(4, "big") + b"COMMIT\x00")
                    break
                server.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                with contextlib.suppress(OSError):
                    client.sendall(data)
        for end in (client, server):
            end.close()

    def close(self) -> None:
        self._listener.close()

"""Real services for tests: an sshd and a PostgreSQL server of our own on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from demo.sshd import Sshd
from tests.support.postgres import PostgreSQL, installed, postgresql

__all__ = ["Sshd"]


@pytest.fixture(scope="session")
def _sshd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("needs an OpenSSH server and client")
    server = Sshd(tmp_path_factory.mktemp("sshd"), program)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def sshd(_sshd_server: Sshd) -> Sshd:
    """A running sshd: host, port, identity_file, known_hosts, connection(); kill(), restart(), kill_sessions()."""
    if not _sshd_server.running:
        _sshd_server.start()
    return _sshd_server


@pytest.fixture(scope="session")
def _postgresql_server() -> Iterator[PostgreSQL]:
    if not installed():
        pytest.skip("needs PostgreSQL's server (Debian: postgresql)")
    with postgresql() as server:
        yield server


@pytest.fixture
def postgresql_server(_postgresql_server: PostgreSQL) -> PostgreSQL:
    """A running PostgreSQL of the session's: stop(), kill(), start(), pause(), resume(), url(database), database()."""
    if not _postgresql_server.running:
        _postgresql_server.start()
    return _postgresql_server


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL) -> Iterator[str]:
    """REHOST_DATABASE_URL of an empty database, this test's own."""
    with postgresql_server.database() as name:
        yield postgresql_server.url(name)

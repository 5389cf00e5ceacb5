"""Real services for tests: an sshd of our own on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from demo.sshd import Sshd

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

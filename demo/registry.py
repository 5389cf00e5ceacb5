"""A real container registry on loopback, for as long as a block lasts: Debian's docker-registry."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from rehost.run import spawn

_START_SECONDS = 60.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def registry(folder: Path, htpasswd: Path | None = None) -> Iterator[str]:
    """The registry's `host:port`; its content lies in `folder`. With `htpasswd` it asks for a login.

    Raises TimeoutError where it does not answer, ProgramNotFound where it is not installed.
    """
    port = free_port()
    configuration = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "content")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "on loopback, for one run"},
        "log": {"level": "warn", "accesslog": {"disabled": True}},  # nobody reads its standard output
    }
    if htpasswd is not None:
        configuration["auth"] = {"htpasswd": {"realm": "registry", "path": str(htpasswd)}}
    file = folder / "registry.yml"
    file.write_text(json.dumps(configuration))  # JSON is YAML
    with spawn(["docker-registry", "serve", str(file)]) as process:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False).status_code in (200, 401):
                    break
            if process.popen.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the registry did not answer: {process.stderr()[-500:]}")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"

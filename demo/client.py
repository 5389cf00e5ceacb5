"""`rehost up` for the length of a block, and the few requests that a user of its API makes."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from rehost.run import spawn

log = logging.getLogger(__name__)

_UP_SECONDS = 600.0
_DOWN_SECONDS = 120.0
_POLL_SECONDS = 1.0


class Client:
    """Speaks to the API; an answer that is no success is an exception that shows the problem."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=address, timeout=300, trust_env=False)

    def get(self, path: str) -> Any:
        """What the API answers."""
        return self._answer(self._http.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the API answers."""
        return self._answer(self._http.post(path, json=body))

    @staticmethod
    def _answer(response: httpx.Response) -> Any:
        if not response.is_success:
            raise RuntimeError(f"{response.request.method} {response.request.url}: {response.text}")
        return response.json()

    def newest_run(self, job_id: str) -> dict[str, Any]:
        """The run of the job that was begun last."""
        run: dict[str, Any] = self.get(f"/v1/jobs/{job_id}/runs?limit=1")["items"][0]
        return run

    def wait_for_job(self, job_id: str, status: str, seconds: float) -> dict[str, Any]:
        """The job once it has that status.

        Raises RuntimeError where it came to rest in another one, TimeoutError after `seconds`.
        """
        deadline = time.monotonic() + seconds
        told = ""
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.get(f"/v1/jobs/{job_id}")
            now = f"{job['status']} {job['business_status'] or ''} {job['progress'] // 5 * 5} %"
            if now != told:
                log.info("%s", now)
                told = now
            if job["status"] == status:
                return job
            if job["status"] not in ("Running", "Ready"):
                raise RuntimeError(f"job {job_id} is {job['status']}: {json.dumps(job['error'])}")
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"job {job_id} did not become {status} within {seconds} s")


@contextlib.contextmanager
def rehost_services(environment: Mapping[str, str]) -> Iterator[Client]:
    """Run `rehost up` with these REHOST_* variables, and end it after the block. Its log is in REHOST_HOME/up.log."""
    home = Path(environment["REHOST_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    address = f"http://127.0.0.1:{environment['REHOST_API_PORT']}"
    up_log = home / "up.log"
    # The command that lies beside this interpreter, as a user has it in the virtual environment.
    program = str(Path(sys.executable).with_name("rehost"))
    with up_log.open("wb") as out, spawn([program, "up"], stdout=out, stderr=out, env=environment) as process:
        deadline = time.monotonic() + _UP_SECONDS
        while "rehost up: ready" not in up_log.read_text(encoding="utf-8", errors="replace"):
            if process.popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"`rehost up` did not come up:\n{up_log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        try:
            yield Client(address)
        finally:
            process.end(grace=_DOWN_SECONDS)

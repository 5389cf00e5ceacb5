"""The sources of the benchmarks: an sshd on loopback, passes from it in processes of their own, and Debian trees."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.one_pass import Taken, Work
from demo.server import PACKAGES, cache_folder
from demo.sshd import Sshd
from rehost.run import find, run
from rehost.source.tracked_pass import remove_tracker

HOUR = 3600.0
_LOOK_SECONDS = 0.2


class Source:
    """An sshd on loopback that passes come from."""

    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd
        self.agent_resident = 0  # bytes: the most that any process of an agent held during the passes so far

    def take(self, root: Path, store: Path, **options: object) -> Taken:
        """One pass in a process of its own."""
        fields: dict[str, object] = {
            "mode": "files",
            "connection": self._sshd.connection(),
            "root": str(root),
            "store": str(store),
            "wheels": str(cache_folder() / "wheels"),
        }
        work = Work.model_validate(fields | options)
        with self._watched():
            argv = [sys.executable, "-m", "benchmarks.one_pass", work.model_dump_json()]
            done = run(argv, timeout=HOUR, cwd=Path.cwd())
        return Taken.model_validate_json(done.stdout)

    def rsync(self, source: Path, target: Path) -> None:
        """The same tree by rsync over the same sshd."""
        shell = (
            f"ssh -p {self._sshd.port} -i {self._sshd.identity_file} -o BatchMode=yes "
            f"-o UserKnownHostsFile={self._sshd.known_hosts}"
        )
        here = self._sshd.connection()
        remote = f"{here.user}@{here.host}:{source}/"
        run(["rsync", "-aHAX", "--delete", "-e", shell, remote, f"{target}/"], timeout=HOUR)

    def remove_tracker(self, job: str) -> None:
        """Take the tracker of a job away."""
        told = remove_tracker(self._sshd.connection(), job)
        if told is not None:
            print(told, file=sys.stderr)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Look at the memory of what runs below the sshd, as long as the block lasts."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_LOOK_SECONDS):
                for process in self._sshd.descendants():
                    with contextlib.suppress(OSError):
                        status = Path(f"/proc/{process}/status").read_text()
                        found = re.search(r"^Name:\s*python.*?^VmHWM:\s*(\d+) kB", status, re.MULTILINE | re.DOTALL)
                        if found:
                            self.agent_resident = max(self.agent_resident, int(found[1]) * 1024)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@contextlib.contextmanager
def source(folder: Path) -> Iterator[Source]:
    """An sshd whose files are in that folder, for the length of the block."""
    program = find("sshd")
    assert program is not None
    folder.mkdir(mode=0o700)
    sshd = Sshd(folder, program)
    sshd.start()
    try:
        yield Source(sshd)
    finally:
        sshd.kill()


class Restic:
    """A restic repository in a folder."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "restic"
        # restic asks for a password; there is nothing to keep secret.
        self._environment = {"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": str(folder / "restic-cache")}

    def run(self, *arguments: str, cwd: Path | None = None) -> None:
        """restic with these arguments."""
        argv = ["restic", "--quiet", "--repo", str(self.repository), *arguments]
        run(argv, timeout=HOUR, env=self._environment, cwd=cwd)


def unpacked(tar: Path, folder: Path) -> Path:
    """The tree of a tar, with all its attributes."""
    folder.mkdir()
    run(
        ["tar", "-C", str(folder), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", str(tar)],
        timeout=HOUR,
    )
    return folder


def second_server() -> Path:
    """The tar of another Debian 12 server with the same packages, installed on its own, and other data."""
    tar = cache_folder() / "second-server" / "tree.tar"
    if not tar.exists():
        tar.parent.mkdir(parents=True, exist_ok=True)
        customize = (
            'echo ledger > "$1/etc/hostname"; chroot "$1" useradd --create-home carol; '
            'chroot "$1" ssh-keygen -A; rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*'
        )
        partial = tar.with_name("partial.tar")
        argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        argv += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
        proxies = {name: os.environ[name] for name in ("http_proxy", "https_proxy") if name in os.environ}
        run([*argv, f"--customize-hook={customize}", "bookworm", str(partial)], timeout=HOUR, env=proxies)
        partial.rename(tar)
    return tar

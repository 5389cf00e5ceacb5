"""The system's ssh: its argv, and what its failures mean."""

from __future__ import annotations

import re
from pathlib import Path

from rehost.errors import (
    SourceAuthenticationFailed,
    SourceError,
    SourceHostKeyChanged,
    SourceHostKeyUnknown,
    SourceLacksPython,
    SourceNotEnoughPrivileges,
    SourceProtocol,
    SourceUnreachable,
)
from rehost.source.agent_program import PYTHON_OPTIONS, TOO_OLD, bootstrap
from rehost.source.connect import SshConnection

CONNECT_SECONDS = 15
_NO_PYTHON = "rehost: no python"
# The system's own first: what a user's PATH has before it may be a script that takes longer to start than the agent.
_PYTHONS = (
    "/usr/bin/python3 python3 /usr/local/bin/python3 /usr/libexec/platform-python "
    "python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 python3.7 python3.6"
)

# Rehost's own needs; all else (ciphers, hosts' aliases, keys) is the user's configuration.
_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ConnectTimeout": str(CONNECT_SECONDS),
    # A peer that is gone without a word is noticed after 45 seconds.
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    # A connection of its own, so that ending it ends all.
    "ControlMaster": "no",
    "ControlPath": "none",
    "LogLevel": "INFO",
}


def ssh_argv(connection: SshConnection, program_bytes: int) -> list[str]:
    """The command that runs the agent, whose text of that many bytes is then read from standard input."""
    argv = ["ssh", "-T", "-p", str(connection.port), "-l", connection.user]
    for name, value in _OPTIONS.items():
        argv += ["-o", f"{name}={value}"]
    if connection.identity_file is not None:
        argv += ["-o", f'IdentityFile="{_literal(connection.identity_file)}"', "-o", "IdentitiesOnly=yes"]
    if connection.known_hosts is not None:
        argv += [
            "-o",
            f'UserKnownHostsFile="{_literal(connection.known_hosts)}"',
            "-o",
            "GlobalKnownHostsFile=/dev/null",
        ]
    if connection.proxy_jump is not None:
        argv += ["-J", connection.proxy_jump]
    return [*argv, "--", connection.host, _remote_command(program_bytes, connection.sudo)]


def _literal(path: str) -> str:
    """A path in an option of ssh: % would be a token; ~ is the user's home."""
    return str(Path(path).expanduser()).replace("%", "%%")


def _remote_command(program_bytes: int, sudo: bool) -> str:
    """For whatever login shell there is: no single quote inside the single quotes, nothing that csh or fish expand."""
    options = " ".join(PYTHON_OPTIONS)
    sudo_words = "sudo -n " if sudo else ""
    return (
        "exec sh -c '"
        "LC_ALL=C; export LC_ALL; "
        f"for p in {_PYTHONS}; do "
        'if q=$(command -v "$p" 2>/dev/null); then '
        f'{sudo_words}"$q" {options} "{bootstrap(program_bytes)}"; s=$?; '
        # One that is too old, is no program, or went away since: then the next.
        f"case $s in {TOO_OLD}|126|127) ;; *) exit $s;; esac; fi; done; "
        f'echo "{_NO_PYTHON}" >&2; exit 96'
        "'"
    )


def ssh_error(connection: SshConnection, status: int | None, stderr: str, greeted: bool) -> SourceError:
    """What the end of ssh means: `status` is its exit status, `greeted` whether the agent had spoken before."""
    host = connection.host
    last = _last_line(stderr)
    if greeted:
        return SourceUnreachable(host=host, reason=last or "the connection was closed")
    if re.search(r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed", stderr):
        return SourceHostKeyChanged(host=host, known_hosts=connection.known_hosts or "known_hosts")
    if re.search(r"host key is known for|Host key verification failed|REVOKED HOST KEY", stderr):
        return SourceHostKeyUnknown(host=host)
    if status == 255:
        if re.search(r"Permission denied \(|Too many authentication failures", stderr):
            return SourceAuthenticationFailed(host=host, user=connection.user)
        return SourceUnreachable(host=host, reason=last or "ssh ended without a word")
    if re.search(r"^sudo:|\bsudo: .*not found|sudoers|sudo: not found", stderr, re.MULTILINE):
        return SourceNotEnoughPrivileges(host=host, user=connection.user, reason=last)
    if _NO_PYTHON in stderr:
        return SourceLacksPython(host=host, reason="none of the usual names is there")
    if re.search(r"account is currently not available|nologin", stderr):
        return SourceAuthenticationFailed(host=host, user=connection.user)
    if status == 127:
        return SourceLacksPython(host=host, reason=last or "the shell found nothing to run")
    return SourceProtocol(host=host, reason=f"no agent answered (status {status}): {last or 'nothing was said'}")


def _last_line(stderr: str) -> str:
    """The last line that says something; escaped, it comes from the other side."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    text = lines[-1][:300] if lines else ""
    return "".join(c if c.isprintable() else "?" for c in text).rstrip(".")

"""The Docker engine, reached through its SDK, with its failures told as ours.

Whoever may talk to the engine's socket may use this; DOCKER_HOST and its companions are heeded as by `docker`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import docker
import requests
import urllib3
from docker.client import DockerClient
from docker.errors import APIError, DockerException

from rehost.errors import ContainerEngineAway, ContainerEngineFailed

_ANSWER_SECONDS = 600  # the engine says nothing while it unpacks a layer
_REASON_CHARACTERS = 500


@contextlib.contextmanager
def engine(action: str) -> Iterator[DockerClient]:
    """The engine, for one action that the errors name: "load the image".

    Inside the block the SDK's own exceptions become ContainerEngineAway (no engine, or it went away) and
    ContainerEngineFailed (it answered with an error).
    """
    with _told(action):
        client = docker.from_env(timeout=_ANSWER_SECONDS)
        try:
            yield client
        finally:
            client.close()


@contextlib.contextmanager
def _told(action: str) -> Iterator[None]:
    try:
        yield
    except APIError as error:
        raise ContainerEngineFailed(action=action, reason=reason_of(error)) from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise ContainerEngineAway(reason=reason_of(error)) from error
    except DockerException as error:
        # The SDK wraps a dead socket in its base class alone: "Error while fetching server API version".
        away = "server API version" in str(error)
        cls = ContainerEngineAway if away else ContainerEngineFailed
        raise cls(action=action, reason=reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """What the engine said, on one line and bounded."""
    text = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return " ".join(str(text).split())[:_REASON_CHARACTERS].rstrip(".")


# What systemd needs to be process 1 of a container without privileges: a /run that can be written, and control groups
# that it can see. With version 1 reading them is enough. With version 2 it wants a part of their tree to write to:
# it gets one slice, where nothing of the host runs. Options as `docker run --tmpfs` takes them.
SYSTEMD_TMPFS = {"/run": "", "/run/lock": "", "/tmp": "exec,mode=1777"}
SYSTEMD_SLICE = "rehost.slice"


def systemd_volumes(cgroup_version: str) -> tuple[str, ...]:
    """What is mounted for systemd, as `docker run --volume` takes it, for an engine with that version of cgroups."""
    if cgroup_version == "2":
        return (f"/sys/fs/cgroup/{SYSTEMD_SLICE}:/sys/fs/cgroup/{SYSTEMD_SLICE}:rw",)
    return ("/sys/fs/cgroup:/sys/fs/cgroup:ro",)


def systemd_arguments(cgroup_version: str) -> tuple[str, ...]:
    """The arguments of `docker run` for an image whose command is systemd."""
    tmpfs = [f"{path}:{options}" if options else path for path, options in SYSTEMD_TMPFS.items()]
    arguments = [argument for path in tmpfs for argument in ("--tmpfs", path)]
    if cgroup_version == "2":
        arguments += ["--cgroupns", "host", "--cgroup-parent", SYSTEMD_SLICE]
    arguments += [argument for volume in systemd_volumes(cgroup_version) for argument in ("-v", volume)]
    return tuple(arguments)

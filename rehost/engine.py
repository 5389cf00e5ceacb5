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

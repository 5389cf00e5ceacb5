"""What leaves the container engine with an image: its name and content, unless something else needs them."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator

import docker
import pytest
from docker.client import DockerClient
from docker.errors import DockerException, ImageNotFound

from rehost.ids import new_id
from rehost.images.engine import remove_from_engine, remove_untagged

_NAMESPACE = "rehost-engine-images"

try:
    with contextlib.closing(docker.from_env()) as _client:
        _client.ping()
    _NO_ENGINE = ""
except DockerException as error:
    _NO_ENGINE = str(error)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(_NO_ENGINE), reason=f"no Docker engine answers: {_NO_ENGINE}"),
]


class Engine:
    """The engine, with images of one source of this test."""

    def __init__(self, client: DockerClient) -> None:
        self.client = client
        self.source_id = new_id("s")
        self.made: list[str] = []

    def image(self, tag: str, *, source_id: str | None = None) -> str:
        """A new image of that name, made as Rehost labels them; its id."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as layer:
            layer.addfile(tarfile.TarInfo(new_id("n")))
        told = self.client.api.import_image_from_data(
            content.getvalue(),
            repository=f"{_NAMESPACE}/server",
            tag=tag,
            changes=[f"LABEL org.rehost.source.id={source_id or self.source_id}", 'CMD ["/none"]'],
        )
        assert "sha256:" in told, told
        id = str(self.client.images.get(name(tag)).id)
        self.made.append(id)
        return id

    def has(self, id: str) -> bool:
        try:
            self.client.images.get(id)
        except ImageNotFound:
            return False
        return True

    def tags(self, id: str) -> list[str]:
        return sorted(self.client.images.get(id).tags)


def name(tag: str) -> str:
    return f"{_NAMESPACE}/server:{tag}"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with contextlib.closing(docker.from_env()) as client:
        made = Engine(client)
        yield made
        for id in made.made:
            with contextlib.suppress(DockerException):
                client.images.remove(id, force=True)


def test_name_and_content_go_and_again_is_no_fault(engine: Engine) -> None:
    id = engine.image("one")
    assert remove_from_engine(id, name("one"), {})
    assert not engine.has(id)
    assert remove_from_engine(id, name("one"), {})


def test_a_name_that_went_on_to_a_newer_image_stays_there(engine: Engine) -> None:
    old, new = engine.image("moves"), engine.image("moves")
    assert remove_from_engine(old, name("moves"), {new: {name("moves")}})
    assert not engine.has(old)
    assert engine.tags(new) == [name("moves")]


def test_what_another_image_of_the_catalog_names_stays(engine: Engine) -> None:
    id = engine.image("same")
    engine.client.images.get(id).tag(f"{_NAMESPACE}/server", "other")
    assert remove_from_engine(id, name("same"), {id: {name("same")}})
    assert name("same") in engine.tags(id)
    assert remove_from_engine(id, name("same"), {id: {name("other")}})
    assert engine.tags(id) == [name("other")]


def test_a_name_that_somebody_else_gave_it_keeps_it(engine: Engine) -> None:
    id = engine.image("mine")
    engine.client.images.get(id).tag(f"{_NAMESPACE}/server", "theirs")
    assert remove_from_engine(id, name("mine"), {})
    assert engine.tags(id) == [name("theirs")]


def test_an_image_of_a_container_stays_until_the_container_is_gone(engine: Engine) -> None:
    id = engine.image("used")
    container = engine.client.containers.create(name("used"))
    try:
        assert not remove_from_engine(id, name("used"), {})
        assert engine.has(id)
        engine.image("used")  # its name goes on; the container still needs it
        assert remove_untagged([engine.source_id], []) == []
    finally:
        container.remove()
    assert remove_from_engine(id, name("used"), {})
    assert not engine.has(id)


def test_nameless_images_go_where_they_are_ours_and_no_record_names_them(engine: Engine) -> None:
    lost, recorded, foreign = engine.image("a"), engine.image("b"), engine.image("c", source_id=new_id("s"))
    named = [engine.image(tag) for tag in ("a", "b", "c")]  # the three before have no name any more
    assert remove_untagged([engine.source_id], [recorded]) == [lost]
    assert [engine.has(id) for id in (lost, recorded, foreign, *named)] == [False] + [True] * 5
    assert remove_untagged([engine.source_id], [recorded]) == []

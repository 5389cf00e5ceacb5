"""What an agent says of a hold is not believed either."""

from __future__ import annotations

import json

import pytest

from rehost.errors import SourceError, SourceProtocol
from rehost.source.hold import Hooks, freeze, hold
from rehost.source.hold_errors import HookFailed, SnapshotFreezeFailed, SnapshotFreezeLost, SnapshotOverflow
from tests.support.wire import lying_agent, volume

_HELLO = "frame(HELLO, json.dumps(HELLO_BODY).encode())\n"
_VOLUME = {"method": "lvm", "detail": "", "device": "/dev/dm-3"}
_HELD = {"volumes": [_VOLUME], "hooks": [], "told": []}
_RELEASED: dict[str, list[str]] = {"hooks": [], "broken": [], "left": []}


def _frames(*frames: tuple[int, int, object]) -> str:
    """Lines that wait for a request and answer it, for each (request, answer, body)."""
    return _HELLO + "".join(
        f"hear_until({request})\nframe({answer}, {json.dumps(body).encode()!r})\n" for request, answer, body in frames
    )


def _hold(held: object, released: object = _RELEASED) -> None:
    with lying_agent(_frames((90, 30, held), (91, 31, released))) as session:
        with hold(session, [volume()], hooks=Hooks("true", "true")) as answer:
            assert answer.volumes[0].device == "/dev/dm-3"


def test_the_truth_is_taken() -> None:
    _hold(_HELD)


@pytest.mark.parametrize(
    ("held", "released", "error"),
    [
        ({**_HELD, "volumes": []}, _RELEASED, SourceProtocol),
        ({**_HELD, "volumes": [{**_VOLUME, "method": "magic"}]}, _RELEASED, SourceProtocol),
        ({**_HELD, "volumes": [{**_VOLUME, "device": "/etc/passwd"}]}, _RELEASED, SourceProtocol),
        ({**_HELD, "volumes": [{**_VOLUME, "device": 3}]}, _RELEASED, SourceProtocol),
        ({**_HELD, "hooks": [{"name": "other", "status": 0, "output": ""}]}, _RELEASED, SourceProtocol),
        ({**_HELD, "hooks": [{"name": "pre_snapshot", "status": 1, "output": ""}]}, _RELEASED, HookFailed),
        ({**_HELD, "told": "x"}, _RELEASED, SourceProtocol),
        (_HELD, {**_RELEASED, "broken": ["full"]}, SnapshotOverflow),
        (_HELD, {"hooks": [], "broken": [1], "left": []}, SourceProtocol),
        (_HELD, {}, SourceProtocol),
    ],
)
def test_a_lie_is_seen(held: object, released: object, error: type[SourceError]) -> None:
    with pytest.raises(error):
        _hold(held, released)


@pytest.mark.parametrize(
    ("frozen", "thawed", "error"),
    [
        ({"refused": "busy", "hooks": []}, {}, SnapshotFreezeFailed),
        ({"refused": None, "hooks": []}, {"held": False, "seconds": 10.0, "hooks": []}, SnapshotFreezeLost),
        ({"refused": None, "hooks": []}, {"held": "yes", "seconds": 10.0, "hooks": []}, SourceProtocol),
        ({"refused": None, "hooks": {}}, {}, SourceProtocol),
    ],
)
def test_a_freeze_that_did_not_hold_is_an_error(frozen: object, thawed: object, error: type[SourceError]) -> None:
    with lying_agent(_frames((92, 32, frozen), (93, 33, thawed))) as session, pytest.raises(error):
        with freeze(session, ["/"]):
            pass

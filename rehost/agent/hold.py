"""HOLD and RELEASE: each volume by the best snapshot that it can have, and all of them gone again.

The work is the guardian's (see guardian.py); here is what the agent says and where it reads. docs/consistency.md
tells what happens on the source.
"""

import json
import os
from typing import Any, Dict, List, Optional

from rehost.agent import inventory_disks
from rehost.agent.guardian import LIVE, Guardian
from rehost.agent.protocol import HELD, RELEASED

HOOKS = ("pre_snapshot", "post_snapshot")

_guardian: Optional[Guardian] = None
_holds = False


def hold(context: Any, body: bytes) -> None:
    """Answer HOLD {volumes: [[path, files, blocks], …], method, hooks} with HELD."""
    global _holds
    request = json.loads(body.decode("ascii"))
    paths = [path.encode("latin-1") for path, _, _ in request["volumes"]]
    if context.root != b"/":
        reason = "the source is a tree of files and no running server"
        live = {"method": LIVE, "detail": reason, "device": None}
        asked = any(request["hooks"].get(name) for name in HOOKS)
        told = ["the hooks were not run: %s" % reason] if asked else []
        _tell(context, HELD, {"volumes": [live for _ in paths], "hooks": [], "told": told})
        return
    if _holds:
        raise ValueError("a hold inside a hold")
    _holds = True
    mounts = {os.fsencode(mount["mount_point"]): mount for mount in inventory_disks.mounts(b"/")}
    volumes = []
    for path, (_, files, blocks) in zip(paths, request["volumes"]):
        mount = mounts.get(b"/" + path)
        volume: Dict[str, Any] = {"point": os.fsdecode(b"/" + path), "files": files, "blocks": blocks}
        if mount is None:
            volume["reason"] = "it is not mounted now"
        else:
            volume.update(
                filesystem=mount["filesystem"], number=mount["number"], inside=mount["root"], source=mount["source"]
            )
        volumes.append(volume)
    order = {"do": "hold", "volumes": volumes, "method": request["method"], "hooks": request["hooks"]}
    answer = guardian().ask(order)
    held_volumes: List[Dict[str, Any]] = []
    somewhere = any(held["root"] is not None for held in answer["volumes"])
    for path, held in zip(paths, answer["volumes"]):
        if somewhere:
            # A volume that stays live is told of too: in a snapshot of the one above there is nothing in its place.
            _read_below(context.walker, path, os.fsencode(held["root"] or b"/" + path))
        held_volumes.append({name: held[name] for name in ("method", "detail", "device")})
    _tell(context, HELD, dict(answer, volumes=held_volumes))


def release(context: Any, body: bytes) -> None:
    """Answer RELEASE with RELEASED {hooks, broken, left}."""
    global _guardian, _holds
    _holds = False
    answer: Dict[str, Any] = {"hooks": [], "broken": [], "left": []}
    if _guardian is not None:
        context.walker.forget()
        answer = _guardian.ask({"do": "release"})
        _guardian.let_go()
        _guardian = None
    _tell(context, RELEASED, answer)


def guardian() -> Guardian:
    """The guardian of this session, started when it is first needed."""
    global _guardian
    if _guardian is None:
        _guardian = Guardian()
    return _guardian


def run_hook(name: str, hooks: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Run `pre_snapshot` of these hooks, or the `post_snapshot` that is still due; what was run."""
    if _guardian is None and not any(hooks.get(hook) for hook in HOOKS):
        return []
    return list(guardian().ask({"do": "hook", "name": name, "hooks": hooks})["hooks"])


def _read_below(walker: Any, path: bytes, root: bytes) -> None:
    """Have the walker read a volume's files below another directory, and tell of the volume's own device with them."""
    try:
        walker.devices[os.stat(root).st_dev] = os.stat(b"/" + path).st_dev
        walker.elsewhere[path] = root
    except OSError:
        pass  # it is gone: the scan will say so


def _tell(context: Any, kind: int, answer: Dict[str, Any]) -> None:
    context.output.send(kind, json.dumps(answer, separators=(",", ":")).encode("ascii"))

"""What the buttons of a job do, one by one and for those that are ticked."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import launch
from api.console import views
from api.console.access import TheForm, TheVisitor, needs
from api.console.pages import ConsoleRoute, failed, gone_to, local_path, page
from api.console.sessions import Flash
from api.dependencies import Orchestration, TheCatalog, TheOrchestration
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Job
from rehost.errors import RehostError, RouteNotFound

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)

_MOST_AT_ONCE = 50

_DONE: dict[str, Callable[[Catalog, Orchestration, str], Job]] = {"start": launch.start_job, "stop": launch.stop_job}
_SAID = {"start": "is started", "stop": "is being stopped"}


@router.post("/jobs/{action}/batch", dependencies=[needs("run")])
def act_on_many(
    action: str, visitor: TheVisitor, form: TheForm, catalog: TheCatalog, flows: TheOrchestration
) -> Response:
    """Start or stop the jobs that are ticked; each is answered for itself."""
    act = _DONE.get(action)
    if act is None:
        raise RouteNotFound(method="POST", path=f"/jobs/{action}/batch")
    back = form.get("back")
    address = local_path(back) if isinstance(back, str) else "/"
    ids = [id for id in form.getlist("job") if isinstance(id, str)]
    if not ids:
        return gone_to(address, visitor, Flash("warn", "No job is ticked.", "Tick the boxes of the jobs first."))
    if len(ids) > _MOST_AT_ONCE:
        return gone_to(address, visitor, Flash("warn", f"At most {_MOST_AT_ONCE} jobs at once."))
    told, done = [], 0
    for id in dict.fromkeys(ids):
        try:
            act(catalog, flows, id)
            done += 1
        except RehostError as error:
            told.append(failed(error))
    if done:
        word = "started" if action == "start" else "told to stop"
        told.insert(0, Flash("good", f"{done} {'job is' if done == 1 else 'jobs are'} {word}."))
    return gone_to(address, visitor, *told)


@router.get("/jobs/{id}/{action}")
def confirm(id: str, action: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """Ask before something is done that cannot be taken back."""
    job = catalog.job(id)
    asked = next((one for one in views.actions(job) if one.name == action), None)
    if asked is None:
        raise RouteNotFound(method="GET", path=request.url.path)
    return page(request, visitor, "confirm.html", subject=job.name, address=f"/jobs/{id}", action=asked)


@router.post("/jobs/{id}/{action}", dependencies=[needs("run")])
def act_on_one(
    id: str,
    action: str,
    request: Request,
    visitor: TheVisitor,
    form: TheForm,
    catalog: TheCatalog,
    flows: TheOrchestration,
) -> Response:
    """Start or stop one job."""
    act = _DONE.get(action)
    if act is None:
        raise RouteNotFound(method="POST", path=request.url.path)
    job = catalog.job(id)
    try:
        act(catalog, flows, id)
    except RehostError as error:
        return gone_to(f"/jobs/{id}", visitor, failed(error))
    return gone_to(f"/jobs/{id}", visitor, Flash("good", f"{job.name} {_SAID[action]}."))

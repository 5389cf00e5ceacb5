"""What the buttons of a job do, one by one and for those that are ticked."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import actions, launch
from api.console import views
from api.console.access import TheForm, TheVisitor, check_scope, needs
from api.console.pages import ConsoleRoute, failed, gone_to, local_path, page
from api.console.sessions import Flash
from api.dependencies import TheCatalog, TheOrchestration, TheSettings
from api.routers.batch import MAX_BATCH, Batch, start_jobs, stop_jobs
from rehost.catalog.states import USER_ACTIONS, Action
from rehost.errors import JobNotFound, RehostError, RouteNotFound

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)

_MAX_ID = 64

_SAID: Mapping[Action, str] = {
    Action.START: "is started.",
    Action.STOP: "is being stopped.",
    Action.VERIFY: "is being verified: its newest images are tested again.",
    Action.CUT_OVER: "is cut over.",
    Action.DELETE: "is deleted.",
}


@router.post("/jobs/{action}/batch", dependencies=[needs("run")])
def act_on_many(
    action: str, visitor: TheVisitor, form: TheForm, catalog: TheCatalog, flows: TheOrchestration
) -> Response:
    """Start or stop the jobs that are ticked; each is answered for itself."""
    act = {"start": start_jobs, "stop": stop_jobs}.get(action)
    if act is None:
        raise RouteNotFound(method="POST", path=f"/jobs/{action}/batch")
    back = form.get("back")
    address = local_path(back) if isinstance(back, str) else "/"
    ids = dict.fromkeys(id for id in form.getlist("job") if isinstance(id, str))
    if not ids:
        return gone_to(address, visitor, Flash("warn", "No job is ticked.", "Tick the boxes of the jobs first."))
    if len(ids) > MAX_BATCH or any(len(id) > _MAX_ID for id in ids):
        return gone_to(address, visitor, Flash("warn", f"At most {MAX_BATCH} jobs at once."))
    items = act(Batch(job_ids=tuple(ids)), catalog, flows).items
    told = []
    if done := sum(item.ok for item in items):
        word = "started" if action == "start" else "told to stop"
        told.append(Flash("good", f"{done} {'job is' if done == 1 else 'jobs are'} {word}."))
    told += [Flash("bad", f"{item.error.code}: {item.error.detail}", item.error.remedy) for item in items if item.error]
    return gone_to(address, visitor, *told)


@router.get("/jobs/{id}/{action}")
def confirm(id: str, action: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """Ask before something is done that is not taken back by pressing another button."""
    job = catalog.job(id)
    asked = next((one for one in views.actions(job) if one.name == action), None)
    if asked is None:
        raise RouteNotFound(method="GET", path=request.url.path)
    check_scope(visitor, asked.scope)
    return page(request, visitor, "confirm.html", subject=job.name, address=f"/jobs/{id}", action=asked)


@router.post("/jobs/{id}/{action}")
def act_on_one(
    id: str,
    action: str,
    request: Request,
    visitor: TheVisitor,
    form: TheForm,
    catalog: TheCatalog,
    flows: TheOrchestration,
    settings: TheSettings,
) -> Response:
    """Do to one job what the button says. A refusal is told on the page of the job."""
    if action not in set(USER_ACTIONS):
        raise RouteNotFound(method="POST", path=request.url.path)
    wanted = Action(action)
    check_scope(visitor, views.scope_of(wanted))
    job = catalog.job(id)
    try:
        if wanted is Action.START:
            launch.start_job(catalog, flows, id)
        elif wanted is Action.STOP:
            launch.stop_job(catalog, flows, id)
        elif wanted is Action.VERIFY:
            actions.verify_job(catalog, flows, id)
        elif wanted is Action.CUT_OVER:
            actions.cut_over_job(catalog, flows, id, sync=form.get("sync") == "true")
        else:
            actions.delete_job(catalog, flows, settings, id, images=form.get("images") == "true")
    except RehostError as error:
        return gone_to(f"/jobs/{id}", visitor, failed(error))
    try:
        catalog.job(id)
        address = f"/jobs/{id}"
    except JobNotFound:
        address = "/"
    return gone_to(address, visitor, Flash("good", f"{job.name} {_SAID[wanted]}"))

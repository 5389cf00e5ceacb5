"""/v1/jobs/{id}/events"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response, StreamingResponse

from api.events import Hub
from api.problems import responses
from rehost.errors import JobNotFound, StreamsTooMany

router = APIRouter(prefix="/jobs", tags=["jobs"])

MEDIA_TYPE = "text/event-stream"


def get_hub(request: Request) -> Hub:
    return cast(Hub, request.app.state.hub)


@router.get(
    "/{id}/events",
    response_class=Response,
    responses={
        **responses(JobNotFound, StreamsTooMany),
        200: {"description": "events, until the job rests", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        204: {"description": "the job rests, and `Last-Event-ID` says that its result has arrived: do not come back"},
    },
)
async def follow_job(
    id: str,
    hub: Annotated[Hub, Depends(get_hub)],
    last_event_id: Annotated[str | None, Header(max_length=100, description="the id of the last event seen")] = None,
) -> Response:
    """Server-sent events while there is something to wait for.

    `progress` when anything shown changes, `result` at the end. A comment every 15 seconds keeps the line open.
    """
    events = await hub.stream(id, last_event_id)
    if events is None:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second is for nginx
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers=headers)

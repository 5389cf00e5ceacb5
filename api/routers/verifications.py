"""/v1/verifications"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api.dependencies import TheCatalog, TheSettings
from api.problems import responses
from rehost.catalog.records import VerificationRecord
from rehost.errors import EvidenceNotFound, VerificationNotFound
from rehost.images.files import EvidenceKind, evidence

router = APIRouter(prefix="/verifications", tags=["verifications"])

_HEADERS = {
    "Cache-Control": "private, no-cache",
    # What a source or its copy said is shown, and never done: not even by a browser that is sent here.
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/{id}", responses=responses(VerificationNotFound))
def show_verification(id: str, catalog: TheCatalog) -> VerificationRecord:
    """One verification: its checks, and what it kept as evidence."""
    return catalog.verification(id)


@router.get(
    "/{id}/evidence/{kind}",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}, "image/png": {}, "application/json": {}}},
        **responses(VerificationNotFound, EvidenceNotFound),
    },
)
def show_evidence(id: str, kind: EvidenceKind, catalog: TheCatalog, settings: TheSettings) -> Response:
    """What the verification saw: the console as text without control characters, the screen as PNG, the report."""
    content, media_type = evidence(catalog.verification(id), kind, settings)
    return Response(content, headers=_HEADERS, media_type=media_type)

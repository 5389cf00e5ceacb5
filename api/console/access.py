"""Who may look and who may press a button: the API's keys, by a cookie; forms only from our own pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import FormData

from api.console.sessions import Session, Sessions
from api.security import caller_of
from rehost.catalog.scopes import Scope
from rehost.errors import Forbidden, FormRefused

COOKIE = "rehost_console"
TOKEN_FIELD = "_token"


@dataclass(frozen=True)
class Visitor:
    """Who asks for a page, and what the key allows."""

    session: Session
    scope: Scope

    def may(self, scope: str) -> bool:
        """Whether the scope of the key has that one in it."""
        return self.scope.covers(Scope(scope))

    @property
    def logged_in(self) -> bool:
        """Whether there is anything to log out of."""
        return self.session.key_hash is not None


def key_scope(request: Request, key_hash: str | None) -> Scope:
    """What a key opens, by its SHA-256; None is no key. The one place where the console asks the API's access rules.

    Raises Unauthenticated where a key is needed and this is none, Forbidden for a host name that is not ours.
    """
    caller = caller_of(request, key_hash)
    request.scope["state"]["key_name"] = caller.name
    return caller.scope


def sessions_of(request: Request) -> Sessions:
    """The sessions of the application."""
    sessions: Sessions = request.app.state.console_sessions
    return sessions


def get_visitor(request: Request) -> Visitor:
    """Raises Unauthenticated where a key is needed: the page is then the one that asks for it; and Forbidden."""
    sessions = sessions_of(request)
    session = sessions.find(request.cookies.get(COOKIE))
    scope = key_scope(request, session.key_hash if session else None)
    if session is None:
        session = sessions.begin(None)
    request.state.console_session = session
    return Visitor(session, scope)


def check_origin(request: Request) -> None:
    """Raises FormRefused for a form that another site's page sent. Every browser tells the origin of a POST."""
    origin = request.headers.get("origin", "")
    if not origin or urlsplit(origin).netloc != request.headers.get("host"):
        raise FormRefused(reason="it does not come from a page of this console")


async def get_form(request: Request, visitor: Annotated[Visitor, Depends(get_visitor)]) -> FormData:
    """The fields of a form that one of our pages sent. Raises FormRefused."""
    check_origin(request)
    form = await request.form()
    token = form.get(TOKEN_FIELD)
    if not isinstance(token, str) or not visitor.session.has_token(token):
        raise FormRefused(reason="it is out of date")
    return form


def check_scope(visitor: Visitor, scope: str) -> None:
    """Raises Forbidden where the visitor's key does not have that scope."""
    if not visitor.may(scope):
        raise Forbidden(reason=f"the key that you logged in with has the scope {visitor.scope}, not {scope}")


def needs(scope: str) -> Any:
    """A dependency that raises Forbidden where the visitor's key does not have that scope."""

    def check(visitor: Annotated[Visitor, Depends(get_visitor)]) -> None:
        check_scope(visitor, scope)

    return Depends(check)


TheVisitor = Annotated[Visitor, Depends(get_visitor)]
TheForm = Annotated[FormData, Depends(get_form)]

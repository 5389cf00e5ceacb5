"""Who looks at the console: sessions of browsers, kept in memory, bounded in number and time.

The cookie has a random id alone. Of a key that was used to log in the session has the SHA-256, and at each request the
key is looked up anew: one that was removed opens nothing any more.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

MAX_SESSIONS = 1000
LIFE_SECONDS = 12 * 3600
_MAX_FLASHES = 60


@dataclass(frozen=True)
class Flash:
    """One sentence that the next page shows; `tone` is good, bad or warn."""

    tone: str
    text: str
    remedy: str = ""


@dataclass
class Session:
    """One browser."""

    id: str
    ends: float  # of time.monotonic()
    key_hash: str | None  # None: where no key is asked for
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    flashes: list[Flash] = field(default_factory=list)

    def flash(self, told: Flash) -> None:
        """Show it on the next page."""
        if len(self.flashes) < _MAX_FLASHES:
            self.flashes.append(told)

    def take_flashes(self) -> list[Flash]:
        """What is to be shown, once."""
        taken, self.flashes = self.flashes, []
        return taken

    def has_token(self, given: str) -> bool:
        """Whether the form that was sent is one of this session's."""
        return hmac.compare_digest(given.encode(), self.token.encode())


class Sessions:
    """All sessions of this process; where there are too many the one that was used longest ago ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Session] = OrderedDict()

    def begin(self, key_hash: str | None) -> Session:
        """A new session."""
        session = Session(secrets.token_urlsafe(32), time.monotonic() + LIFE_SECONDS, key_hash)
        with self._lock:
            self._held[session.id] = session
            while len(self._held) > MAX_SESSIONS:
                self._held.popitem(last=False)
        return session

    def find(self, id: str | None) -> Session | None:
        """The session of that cookie, if it has not ended."""
        with self._lock:
            session = self._held.get(id or "")
            if session is None:
                return None
            if session.ends < time.monotonic():
                del self._held[session.id]
                return None
            self._held.move_to_end(session.id)
            return session

    def end(self, session: Session) -> None:
        """The cookie opens nothing from now on."""
        with self._lock:
            self._held.pop(session.id, None)

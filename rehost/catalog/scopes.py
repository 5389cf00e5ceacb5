"""What a key of the API may do."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """Each holds what stands before it: read looks, run sets jobs going, admin does everything."""

    READ = "read"
    RUN = "run"
    ADMIN = "admin"

    def covers(self, needed: Scope) -> bool:
        """Whether a key of this scope may do what needs that one."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)

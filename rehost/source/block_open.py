"""The one way from an open session to its blocks."""

from __future__ import annotations

import time

from rehost.errors import SourceUnsupported
from rehost.source.agent_session import AgentSession
from rehost.source.block_agent import AgentBlocks
from rehost.source.block_images import ImageBlocks
from rehost.source.block_session import BlockSession
from rehost.source.disk_session import DiskSession
from rehost.source.session import Session


def open_blocks(session: Session) -> BlockSession:
    """The blocks of the same source. Raises SourceUnsupported where it has none."""
    if isinstance(session, AgentSession):
        return AgentBlocks(session)
    if isinstance(session, DiskSession):
        raw = session.raw_images()
        return ImageBlocks(session.host, raw.__getitem__, lambda count: session.hold_back(time.monotonic(), count))
    raise SourceUnsupported(source=session.host, reason="it has no disks to copy block by block")

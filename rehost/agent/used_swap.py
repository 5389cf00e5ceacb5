"""Which bytes of a swap area are to be kept: its header page, with the UUID and the label. What was swapped out is gone
with the machine that did it. An image of a suspended machine has another signature and is not taken for swap.
"""

from typing import Callable, Iterator

from rehost.agent.block_device import Range
from rehost.agent.used_rules import Refused

_PAGES = (4096, 8192, 16384, 65536)


class Swap(object):
    """One reading of the map."""

    rule = "swap"

    def __init__(self, read: Callable[[int, int], bytes], size: int, state: str) -> None:
        self.used_bytes = 0
        head = read(0, min(size, _PAGES[-1]))
        for page in _PAGES:
            if head[page - 10 : page] == b"SWAPSPACE2":
                self.used_bytes = page
                return
        raise Refused("it has not the signature of swap space")

    def ranges(self) -> Iterator[Range]:
        """What is in use."""
        yield 0, self.used_bytes

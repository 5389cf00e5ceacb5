"""Names of network cards that udev remembers of the old machine."""

from __future__ import annotations

from image_builders.disk.fixups import Context, Fixup, Outcome
from rehost.replication.tree import Remove, Tree

_RULES = (b"etc/udev/rules.d/70-persistent-net.rules", b"etc/udev/rules.d/75-persistent-net-generator.rules")


def _fix(tree: Tree, context: Context) -> Outcome:
    return Outcome(tuple(Remove(path) for path in _RULES if tree.get(path) is not None))


FIXUP = Fixup(
    name="network: names",
    order=45,
    about="Rules that tie names to the old cards' addresses go, since the new cards would get other names by them.",
    fix=_fix,
    reads=_RULES,
)

"""What the modules `used_*` share: how still a device is, and why a map cannot be had."""

LIVE = "live"  # mounted and written to: the map is a hint, the last pass decides
STILL = "still"  # frozen, or a snapshot: what the filesystem had in memory is on the device
OFF = "off"  # not mounted, as far as is known

STATES = (LIVE, STILL, OFF)


class Refused(Exception):
    """The map cannot be had from this filesystem; says why. Reading again does not help."""


class NotSettled(Refused):
    """What the filesystem says of its free space is not the last word: a log waits to be replayed."""

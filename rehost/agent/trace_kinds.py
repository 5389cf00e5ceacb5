"""Kinds of frames by which a tracker is asked. docs/wire.md tells their bodies."""

VERSION = 1  # of what a tracker is asked and answers; one of another version is not spoken with, but replaced

# From the source
TRACED = 40
TRACED_BITS = 41
# To the source
TRACE = 100

UNIT = "rehost-track-"  # and the job: the unit of systemd under which its tracker runs

"""What kind of Python this is, for the choice of libraries that it could load."""

import importlib.machinery
import os
import struct
import sys
from typing import Any, Dict


def interpreter() -> Dict[str, Any]:
    """Facts from which the control side makes a wheel's tags; cheap, told in HELLO."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""  # "glibc 2.36"; musl does not know the name
    except (ValueError, OSError):
        libc = ""
    return {
        "implementation": sys.implementation.name,
        "suffix": importlib.machinery.EXTENSION_SUFFIXES[0],  # ".cpython-311-x86_64-linux-gnu.so"
        "bits": struct.calcsize("P") * 8,
        "libc": libc,
    }

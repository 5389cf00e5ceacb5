"""Which wheels the Python of a source can load, judged from what its agent says of itself.

What is said is hostile: nothing of it goes into a program's arguments or a path but what was recognised here.
Tags: the PyPA's platform compatibility tags; manylinux after PEP 600, musllinux after PEP 656.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from packaging.tags import Tag, cpython_tags
from pydantic import BaseModel, ConfigDict, Field

_PYTHON = re.compile(r"3\.([0-9]{1,2})\.[0-9]{1,3}(?:[abc+][ -~]*|rc[0-9]+)?")
_SUFFIX = re.compile(r"\.cpython-3([0-9]{1,2})([mt]?)-([a-z0-9_]{1,20})-linux-(gnu|musl)\.so")
_GLIBC = re.compile(r"glibc 2\.([0-9]{1,2})(?:\.[0-9]{1,2})?")
_MINORS = range(6, 31)
_ARCHITECTURES = {
    ("x86_64", 64): "x86_64",
    ("x86_64", 32): "i686",
    ("i686", 32): "i686",
    ("i586", 32): "i686",
    ("aarch64", 64): "aarch64",
    ("ppc64le", 64): "ppc64le",
    ("s390x", 64): "s390x",
    ("riscv64", 64): "riscv64",
}
# The levels of glibc that wheels are made for; in between there are none, and few levels mean few wheels to keep.
_LEVELS = (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
_OLDEST = {"x86_64": 5, "i686": 5}  # elsewhere manylinux begins with 2.17
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_MUSL = ("musllinux_1_2", "musllinux_1_1")


class Interpreter(BaseModel):
    """What an agent says of the Python that it runs in."""

    model_config = ConfigDict(frozen=True, strict=True)

    implementation: str = Field(max_length=50)
    suffix: str = Field(max_length=100, description="of compiled modules: .cpython-311-x86_64-linux-gnu.so")
    bits: int
    libc: str = Field(max_length=50, description="`glibc 2.36`, or nothing")


@dataclass(frozen=True)
class Target:
    """A kind of Python that wheels are looked for."""

    minor: int  # of Python 3
    abi: str  # cp311
    platforms: tuple[str, ...]  # the best first
    suffix: str  # of compiled modules

    @property
    def key(self) -> str:
        """A short name of lower-case letters, digits, `-` and `_`, one for each kind."""
        return f"{self.abi}-{self.platforms[0]}"

    @cached_property
    def tags(self) -> frozenset[Tag]:
        """What a wheel may be tagged with."""
        return frozenset(cpython_tags((3, self.minor), [self.abi], self.platforms))


def target_of(python: str, machine: str, told: Interpreter | None) -> Target | None:
    """The kind of Python that these facts describe; None for one that no wheel is looked for, or that cannot be."""
    if told is None or told.implementation != "cpython":
        return None
    version, suffix = _PYTHON.fullmatch(python), _SUFFIX.fullmatch(told.suffix)
    architecture = _ARCHITECTURES.get((machine, told.bits))
    if version is None or suffix is None or architecture is None:
        return None
    minor = int(version[1])
    flags = ("m",) if minor < 8 else ("", "t")  # t: without the global lock
    if minor not in _MINORS or suffix[1] != str(minor) or suffix[2] not in flags:
        return None
    if suffix[4] == "musl":
        platforms: tuple[str, ...] = tuple(f"{level}_{architecture}" for level in _MUSL)
    else:
        glibc = _GLIBC.fullmatch(told.libc)
        platforms = tuple(_glibc_platforms(int(glibc[1]), architecture)) if glibc else ()
    if not platforms:
        return None
    return Target(minor, f"cp3{minor}{suffix[2]}", platforms, told.suffix)


def _glibc_platforms(minor: int, architecture: str) -> list[str]:
    found = []
    for level in _LEVELS:
        if _OLDEST.get(architecture, 17) <= level <= minor:
            found.append(f"manylinux_2_{level}_{architecture}")
            if level in _LEGACY:
                found.append(f"{_LEGACY[level]}_{architecture}")
    return found

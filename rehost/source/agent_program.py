"""The agent as it travels: its modules' text in one program that loads them from memory."""

from __future__ import annotations

import functools
import importlib.resources
import zlib

# Loads the modules by a finder of its own: the source may have other packages of these names, or none.
_LOADER = """\
import sys
from importlib.machinery import ModuleSpec  # importlib.abc would bring half of the library with it

class Memory:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            return ModuleSpec(name, self, is_package=name in ("rehost", "rehost.agent"))
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(MODULES[module.__name__], "<%s>" % module.__name__, "exec"), module.__dict__)

sys.meta_path.insert(0, Memory())
from rehost.agent.main import serve
serve(TOKEN, ROOT)
"""


@functools.cache
def modules() -> dict[str, str]:
    """Every module of the agent by its full name, and its text."""
    found = {"rehost": ""}
    for item in importlib.resources.files("rehost.agent").iterdir():
        if item.name.endswith(".py"):
            name = item.name.removesuffix(".py")
            found["rehost.agent" if name == "__init__" else f"rehost.agent.{name}"] = item.read_text("utf-8")
    return found


def program(token: str, root: bytes) -> bytes:
    """What is sent first: Python text, compressed, that serves on standard input and output, announced by `token`."""
    return zlib.compress(f"MODULES = {modules()!a}\nTOKEN = {token!a}\nROOT = {root!a}\n{_LOADER}".encode("ascii"))


def bootstrap(length: int) -> str:
    """What goes into argv: reads that many bytes and runs them. Holds no quote, dollar, backtick or backslash.

    A Python that is too old ends with TOO_OLD before it reads anything.
    """
    return (
        f"import sys,zlib;sys.version_info<(3,6)and sys.exit({TOO_OLD});"
        f"exec(zlib.decompress(sys.stdin.buffer.read({length})))"
    )


TOO_OLD = 95
"""The exit status of a Python that cannot run the agent."""
PYTHON_OPTIONS = ("-I", "-B", "-X", "utf8", "-c")
"""Isolated from the user's files and variables, writing no bytecode, names round-tripping as UTF-8 (3.7 on)."""

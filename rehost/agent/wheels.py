"""Libraries for the agent's own Python, handed over by the control side: loaded from memory, left nowhere.

A library of compiled code that does not belong here can do worse than fail: it can end the process. So each is first
tried in a child of the agent, which makes a little use of it; only what passes there is loaded.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import zlib
from typing import Any, Dict, List, Optional

from rehost.agent import protocol

_HEAD = struct.Struct(">I")  # length of the JSON that stands before the content
_TRIAL_SECONDS = 20
_REASON_BYTES = 200
_CLOSED_AT_EXEC = 1  # MFD_CLOEXEC of memfd_create(2)
_FOLDERS = (None, "/dev/shm", "/run", "/var/tmp")  # None: where temporary files go on this machine
_EMPTY_XXH3 = "99aa06d3014798d86001c324468d497f"  # XXH3-128 of nothing


def serve(context: Any, body: bytes) -> None:
    """Load what can be loaded of the packages in the frame, and tell what this agent can do from now on."""
    (length,) = _HEAD.unpack_from(body)
    told = json.loads(body[_HEAD.size : _HEAD.size + length].decode("ascii"))
    content = zlib.decompress(body[_HEAD.size + length :])
    refused: Dict[str, str] = {}
    at = 0
    for package, listed in told["packages"]:
        files: Dict[str, bytes] = {}
        for name, size in listed:
            files[name] = content[at : at + size]
            at += size
        problem = _tried(package, files)
        if problem is None:
            try:
                _load(package, files)
            except Exception as error:
                problem = _reason(error)
        if problem is not None:
            refused[package] = problem
    protocol.look_again()
    codecs = protocol.codecs()
    context.start["codec"] = next((codec for codec in told["codecs"] if codec in codecs), "none")
    answer = {"hashes": protocol.hashes(), "codecs": codecs, "codec": context.start["codec"], "refused": refused}
    context.output.send(protocol.LOADED, json.dumps(answer).encode("ascii"))


def _tried(package: str, files: Dict[str, bytes]) -> Optional[str]:
    """Load and use the package in a child; what is wrong with it, or None."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_TRIAL_SECONDS)  # whatever becomes of the agent, its child does not stay
            _load(package, files)
            status = 0
        except BaseException as error:
            os.write(writer, _reason(error).encode("utf-8", "replace"))
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        problem = told.read(_REASON_BYTES).decode("utf-8", "replace")
    status = os.waitpid(child, 0)[1]
    if status == 0:
        return None
    return problem or "it ends the process (status %d)" % status


def _load(package: str, files: Dict[str, bytes]) -> None:
    """Import the package from these files and see that it does its work; whatever fails, no part of it stays."""
    memory = _Memory(package, files)
    sys.meta_path.insert(0, memory)
    try:
        module = importlib.import_module(package)  # type: Any
        if package == "zstandard":
            sample = bytes(range(256)) * 64
            packed = module.ZstdCompressor(level=3).compress(sample)
            if module.ZstdDecompressor().decompress(packed) != sample:
                raise ValueError("what it packs does not unpack")
        elif package == "xxhash" and module.xxh3_128(b"").hexdigest() != _EMPTY_XXH3:
            raise ValueError("it hashes wrongly")
    except BaseException:
        for name in list(sys.modules):
            if name == package or name.startswith(package + "."):
                del sys.modules[name]
        raise
    finally:
        sys.meta_path.remove(memory)
        memory.clear()


class _Memory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of one package: text in memory, compiled code by a name that the loader of the system takes."""

    def __init__(self, package: str, files: Dict[str, bytes]) -> None:
        self._package = package
        self._files = files
        self._folders: List[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        stem = self._stem(name)
        if stem is None:
            return None
        if stem + ".py" in self._files:
            return importlib.util.spec_from_loader(name, self, is_package=name == self._package)
        for file in sorted(self._files):
            if file.startswith(stem + ".") and file.endswith(".so"):
                place = self._place(self._files[file])
                loader = importlib.machinery.ExtensionFileLoader(name, place)
                return importlib.util.spec_from_file_location(name, place, loader=loader)
        return None

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        stem = self._stem(module.__name__)
        text = self._files["%s.py" % stem]
        exec(compile(text, "<%s>" % module.__name__, "exec"), module.__dict__)

    def clear(self) -> None:
        """Remove what had to be a file; what is loaded stays loaded."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _stem(self, name: str) -> Optional[str]:
        if name == self._package:
            return "__init__"
        head, _, stem = name.rpartition(".")
        return stem if head == self._package else None

    def _place(self, content: bytes) -> str:
        """A path of that content, in memory where that can be, else in a private folder until `clear`."""
        try:
            descriptor = _memory_file()
        except (OSError, AttributeError, ImportError):
            return self._file(content)
        _write(descriptor, content)
        # Never closed: a later library under the same number would be taken for this one by the system's loader,
        # which knows what it has loaded by path. The memory goes with the process.
        return "/proc/self/fd/%d" % descriptor

    def _file(self, content: bytes) -> str:
        problem: Optional[OSError] = None
        for place in _FOLDERS:
            try:
                folder = tempfile.mkdtemp(prefix="rehost-", dir=place)  # 0700
                self._folders.append(folder)
                if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 8):
                    raise OSError("programs may not be loaded from %s" % folder)
                path = os.path.join(folder, "library.so")
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
                try:
                    _write(descriptor, content)
                finally:
                    os.close(descriptor)
                return path
            except OSError as error:
                problem = error
        raise OSError("no place for a library: %s" % problem)


def _memory_file() -> int:
    """A descriptor of a file that is in memory alone. Raises OSError, AttributeError, ImportError."""
    if not os.path.isdir("/proc/self/fd"):
        raise OSError("/proc is not there")
    if hasattr(os, "memfd_create"):  # Python 3.8
        return os.memfd_create("rehost", _CLOSED_AT_EXEC)
    import ctypes  # not every Python was built with it

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.memfd_create(b"rehost", _CLOSED_AT_EXEC))  # glibc 2.27
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "memfd_create")
    return descriptor


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _reason(error: BaseException) -> str:
    return ("%s: %s" % (type(error).__name__, error))[:_REASON_BYTES]

"""What both ends of the wire agree upon: kinds of frames, bounds, and how content is packed."""

import struct
import sys
import zlib
from typing import Any, Callable, List, Tuple

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment,unused-ignore]  # until it is handed over

PROTOCOL = 2
MARKER = b"\0rehost-agent\0"  # then the token of this session (32 hex digits), then the first frame

HEADER = struct.Struct(">BI")  # kind, length of the body in bytes
FRAME_BYTES = 8 << 20  # no body is longer

# From the source
HELLO = 1
RESULT = 2
FAILED = 3
ROWS = 4
SCANNED = 5
ASK = 6
DATA = 7
DONE = 8
ALIVE = 9
HELD = 30
RELEASED = 31
FROZEN = 32
THAWED = 33
LOADED = 50
# To the source
START = 65
INVENTORY = 66
SCAN = 67
READ = 68
REQUEST = 69
REQUESTED = 70
WANT = 71
LIMIT = 72
PING = 73
HOLD = 90
RELEASE = 91
FREEZE = 92
THAW = 93
WHEELS = 110

PACK = struct.Struct(">BI")  # codec, length of what was packed
RAW, ZLIB, ZSTD = 0, 1, 2
CODECS = {"none": RAW, "zlib": ZLIB, "zstd": ZSTD}

ASK_HEAD = struct.Struct(">Q")  # number of the batch
ASK_ROW = struct.Struct(">QBQI32s")  # request, attempt, offset, length, SHA-256
BATCH_NAMES = 4096  # a batch of questions is closed at so many names or files,
BATCH_BYTES = 8 << 20  # or at so many bytes of content
BATCHES_AHEAD = 6  # batches that are not answered and sent yet
REQUESTS_AHEAD = 16_384  # files that may be asked for and not yet answered

DATA_HEAD = struct.Struct(">BII")  # codec, number of chunks, length of their joined content
BUNDLE_BYTES = 1 << 20  # chunks are joined while they fit into this; one alone may be as long as a chunk is
DONE_HEAD = struct.Struct(">QI")  # number of the batch, number of files; then that many rows, then JSON of the errors
DONE_ROW = struct.Struct(">QQqqBBI")  # request, size, mtime, ctime, unstable, attempt, number of chunks

ROWS_BATCH = 4096  # rows of a scan in one frame, at most
ROWS_BYTES = 1 << 20  # a frame of rows is closed once it holds this much of paths and attributes
PATH_BYTES = 4096  # every path is shorter: PATH_MAX, as the manifest has it
XATTRS_BYTES = 1 << 20  # nor are the extended attributes of one file together
STATUS_BYTES = 144  # of each row: the beginning of struct statx
# The columns of a frame of rows, in order: name and type as the module `array` names it; None: bytes.
ROW_COLUMNS = (
    ("paths", None),  # joined by NUL
    ("volume", "H"),
    ("status", None),  # STATUS_BYTES each
    ("targets", None),  # of the symbolic links, joined by NUL
    ("xattr_row", "I"),  # one an attribute, as are the two lengths
    ("xattr_name_length", "I"),
    ("xattr_value_length", "I"),
    ("xattr_bytes", None),
)

SKIPPED_TOLD = 1000  # how many of the skipped names a scan tells
ALIVE_SECONDS = 10.0  # the agent speaks at least this often
SILENCE_SECONDS = 300.0  # an agent that hears nothing for so long ends; the control side pings

_GAIN = 0.97  # packed content must be smaller than this part of it, else it travels as it is
_SAMPLED_BYTES = 65_536  # content longer than this is tried by a sample first
_SAMPLES, _SAMPLE_BYTES = 8, 2048


class Codec:
    """Packs content for the wire. Not for two threads at once."""

    def __init__(self, name: str, level: int) -> None:
        self._code = CODECS[name] if level else RAW
        self._level = level
        self._zstd: Any = zstandard.ZstdCompressor(level=level) if self._code == ZSTD else None
        self._zstd_quick: Any = zstandard.ZstdCompressor(level=1) if self._code == ZSTD else None

    def compress(self, raw: bytes) -> Tuple[int, bytes]:
        """The codec's number and the content, compressed where that gains."""
        if self._code != RAW and (len(raw) <= _SAMPLED_BYTES or self._gains(raw)):
            packed = self._compressed(raw)
            if len(packed) < _GAIN * len(raw):
                return self._code, packed
        return RAW, raw

    def pack(self, raw: bytes) -> List[bytes]:
        """The pieces to send: a head, then the content, compressed where that gains."""
        code, packed = self.compress(raw)
        return [PACK.pack(code, len(raw)), packed]

    def _compressed(self, raw: bytes) -> bytes:
        return bytes(self._zstd.compress(raw)) if self._code == ZSTD else zlib.compress(raw, self._level)

    def _gains(self, raw: bytes) -> bool:
        """Whether a few pieces of it, spread over the whole, shrink: what is compressed already costs no time then."""
        step = len(raw) // _SAMPLES
        sample = b"".join([raw[at : at + _SAMPLE_BYTES] for at in range(0, step * _SAMPLES, step)])
        packed = zlib.compress(sample, 1) if self._zstd_quick is None else self._zstd_quick.compress(sample)
        return len(packed) < _GAIN * len(sample)


def look_again() -> None:
    """Use zstandard where it was loaded after this module."""
    global zstandard
    zstandard = sys.modules.get("zstandard", zstandard)  # type: ignore[assignment,unused-ignore]


def codecs() -> List[str]:
    """What this Python can pack with, best first."""
    return (["zstd"] if zstandard is not None else []) + ["zlib", "none"]


def hashes() -> List[str]:
    """What this Python can hash with. SHA-256 names content; XXH3 is only told of, where it is there."""
    try:
        import xxhash
    except ImportError:
        return ["sha256"]
    return ["sha256", "xxh3_128"] if hasattr(xxhash, "xxh3_128") else ["sha256"]


def xxh3_128() -> Callable[[Any], bytes]:
    """XXH3 of 128 bits, as bytes. Raises ImportError where it is not there, nor was handed over."""
    import xxhash

    return xxhash.xxh3_128_digest  # type: ignore[no-any-return,unused-ignore]

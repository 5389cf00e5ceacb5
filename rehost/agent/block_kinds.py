"""What both ends agree upon of blocks: kinds of frames, their bodies, and bounds. docs/wire.md tells it in words."""

import struct

# From the source
RUNS = 20
USED = 21
FOUND = 22
CONTENT = 23
BLOCKS_READ = 24
# To the source
USED_BLOCKS = 80
READ_BLOCKS = 81
PIECE = 82
PIECES_END = 83

HASH_BYTES = 16
XXH3, BLAKE2 = "xxh3_128", "blake2b_128"

RUNS_IN_FRAME = 65536
PIECE_HEAD = struct.Struct(">II")  # number of runs, number of blocks; then the runs, then the hash of each block
RUN = struct.Struct("<QQ")  # first block, number of blocks
PIECE_BLOCKS = 4096  # blocks asked for in one frame, at most
BLOCKS_AHEAD = 16384  # blocks that are asked for and not told of yet, at most
FOUND_HEAD = struct.Struct(">QII")  # number of the batch, blocks, new blocks; then states, hashes, SHA-256
FOUND_BLOCKS = 4096  # a batch is told of at so many blocks,
FOUND_BYTES = 8 << 20  # or at so many bytes of new content
BATCHES_AHEAD = 3  # batches that may wait for their answer
CONTENT_HEAD = struct.Struct(">I")  # number of chunks; then their joined content, packed
CONTENT_BYTES = 1 << 20  # of the chunks that are joined

SAME, ZERO, NEW = 0, 1, 2  # the state of a block: as its hash said; nothing but zeros; something else
UNKNOWN = b"\0" * HASH_BYTES  # instead of a hash: the block is not known

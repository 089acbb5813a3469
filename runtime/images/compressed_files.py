"""The start of what a compressed file holds, to tell whether it is an image. At most a few megabytes are read and unpacked.

gzip, bzip2, xz, lzma and zlib unpack step by step. The decoders of zstd and lz4 take whole files only, whose size has no bound:
they are given the first blocks.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

__all__ = ["HEAD_BYTES", "compressed_content"]

HEAD_BYTES = 4096
"""Bytes of the content that are returned at most."""
_READ = 2 << 20
"""Bytes of the file that are read: more than a block of bzip2."""
_BLOCKS = 8
"""Blocks of zstd, of up to 128 KiB each, and of lz4 that are unpacked at most."""
_LZ4_BLOCK = 8 << 20
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A part that decoders of zstd and lz4 pass over; its length follows."""
_ZSTD, _LZ4, _OLD_LZ4 = b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"
_ZSTD_HEADER = _ZSTD + b"\x00\x50"
"""Of a frame without size and checksum, with a window of 1 MiB, in which `_BLOCKS` blocks fit."""
_RAW_BLOCK = 0x80000000
_MARKS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (_ZSTD, "zstd"),
    (_LZ4, "lz4"),
    (_OLD_LZ4, "lz4"),
    (b"LZIP\0", "lzip"),
    (b"LZIP\1", "lzip"),
    (b"\x1f\x9d", "compress"),
    (b"\x1f\xa0", "compress"),
)


def compressed_content(stream: BinaryIO) -> tuple[str, bytes | None] | None:
    """Return what a compressed file is called, and how its content begins.

    Args:
        stream: the file, seekable.

    Returns:
        The name of the compression and up to `HEAD_BYTES` of the content: empty where it has none, None where it cannot be
        unpacked. None where the file is not compressed.
    """
    stream.seek(0)
    data = stream.read(16)
    while _SKIPPABLE.match(data) and len(data) >= 8:
        stream.seek(int.from_bytes(data[4:8], "little") - len(data) + 8, 1)
        data = stream.read(16)
    name = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if name is None and data.startswith(b"BZh") and data[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        name = "bzip2"
    if name is None and data[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        name = "zlib"
    if name is None:
        return None
    stream.seek(-len(data), 1)
    try:
        content = _UNPACKERS[name](stream)
    except (MemoryError, RuntimeError, ValueError):  # of the decoders of zstd and lz4
        content = None
    if name == "zlib" and not content:
        return None  # two bytes are too little to tell it
    return name, content


def _stepwise(unpacker: Callable[[], Any]) -> Callable[[BinaryIO], bytes | None]:
    def unpack(stream: BinaryIO) -> bytes | None:
        stepwise, content, left = unpacker(), b"", _READ
        while len(content) < HEAD_BYTES and left > 0 and not stepwise.eof and (part := stream.read(HEAD_BYTES)):
            left -= len(part)
            try:
                content += stepwise.decompress(part, HEAD_BYTES - len(content))
            except (zlib.error, lzma.LZMAError, OSError):
                break  # what came before tells enough
        return content if content or stepwise.eof else None

    return unpack


def _lzip(stream: BinaryIO) -> bytes | None:
    stream.read(6)
    # Up to HEAD_BYTES nothing refers further back than that, whatever the dictionary.
    options = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}
    return _stepwise(lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[options]))(stream)


def _zstd(stream: BinaryIO) -> bytes | None:
    """The first blocks of a frame, unpacked as a frame of their own."""
    import imagecodecs

    data = stream.read(_READ)
    if len(data) < 6:
        return None
    descriptor = data[4]
    single = descriptor >> 5 & 1
    if descriptor & 3:
        return None  # it needs a dictionary
    position = 5 + (1 - single) + (single, 2, 4, 8)[descriptor >> 6]
    blocks, ended = b"", False
    for _ in range(_BLOCKS):
        header = int.from_bytes(data[position : position + 3], "little")
        end = position + 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
        if ended or end > len(data):
            break
        blocks += (header & ~1).to_bytes(3, "little") + data[position + 3 : end]
        position, ended = end, bool(header & 1)
    if not blocks:
        return None
    return bytes(imagecodecs.zstd_decode(_ZSTD_HEADER + blocks + b"\1\0\0")[:HEAD_BYTES])


def _lz4(stream: BinaryIO) -> bytes | None:
    """The first block that holds anything: it refers to none before."""
    import imagecodecs

    data = stream.read(7)
    if len(data) < 7:
        return None
    if data.startswith(_LZ4):
        flags = data[4]
        if flags & 1:
            return None  # it needs a dictionary
        stream.read(8 if flags & 8 else 0)
    else:
        stream.seek(-3, 1)
        flags = 0
    length = stream.read(4)
    size = int.from_bytes(length, "little")
    if not size:  # the mark of the end, or nothing at all
        return b"" if length else None
    block = stream.read(min(size & ~_RAW_BLOCK, _LZ4_BLOCK))
    if data.startswith(_LZ4) and size & _RAW_BLOCK:
        return block[:HEAD_BYTES]
    return bytes(imagecodecs.lz4_decode(block, out=_LZ4_BLOCK)[:HEAD_BYTES])


_UNPACKERS: dict[str, Callable[[BinaryIO], bytes | None]] = {
    "gzip": _stepwise(lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)),
    "bzip2": _stepwise(bz2.BZ2Decompressor),
    "xz": _stepwise(lambda: lzma.LZMADecompressor(memlimit=1 << 27)),
    "lzma": _stepwise(lambda: lzma.LZMADecompressor(memlimit=1 << 27)),
    "zlib": _stepwise(zlib.decompressobj),
    "zstd": _zstd,
    "lz4": _lz4,
    "lzip": _lzip,
    "compress": lambda stream: None,  # no decoder at hand
}

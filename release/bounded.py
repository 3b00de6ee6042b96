"""Reading what others packed, and no more of it than any honest file holds.

A few bytes can unpack to more than a machine has, and the head of an archive can ask for a buffer
of any size. What goes beyond a limit here is refused like what is corrupt.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from backports import tarfile as guarded

MOST_FILE = 256 << 20
"""Bytes of one file: a kernel that is unpacked has some 100 MB, a ``Module.symvers`` a few."""
MOST_TAR = 4 << 30
"""Bytes of a tar, unpacked: all modules of a distribution's kernel have some 500 MB."""

_MOST_MEMORY = 256 << 20
"""Of xz's dictionary: that of kernels and their modules has at most 128 MiB."""
_HEAD = 1 << 16

CORRUPT = (
    tarfile.TarError,
    guarded.TarError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    # tarfile leaves some of these to its caller, for links to nowhere and numbers too large.
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
)
"""What reading something corrupt can raise."""


class TooMuchError(ValueError):
    """It is, or unpacks to, more than any honest one."""


def read(file: IO[bytes], most: int = MOST_FILE) -> bytes:
    """The rest of a file.

    Raises:
        TooMuchError: it has more than ``most`` bytes.
    """
    return _checked(file.read(most + 1), most)


def gunzip(content: bytes, most: int = MOST_FILE) -> bytes:
    """Unpacks the first gzip member; what is behind it, or missing of it, is passed over."""
    return _checked(zlib.decompressobj(wbits=31).decompress(content, most + 1), most)


def unlzma(content: bytes, most: int = MOST_FILE) -> bytes:
    """Unpacks xz, or what came before it."""
    decompressor = lzma.LZMADecompressor(memlimit=_MOST_MEMORY)
    return _checked(decompressor.decompress(content, most + 1), most)


def unbzip2(content: bytes, most: int = MOST_FILE) -> bytes:
    """Unpacks bzip2."""
    return _checked(bz2.BZ2Decompressor().decompress(content, most + 1), most)


def unzstd(content: bytes, most: int = MOST_FILE) -> bytes:
    """Unpacks the first frame of zstd."""
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            return read(reader, most)
    except zstandard.ZstdError as error:
        raise ValueError("not zstd") from error


def unlz4(content: bytes, most: int = MOST_FILE) -> bytes:
    """Unpacks lz4's legacy frame (lz4, ``doc/lz4_Frame_format.md``): blocks of at most 8 MiB."""
    import lz4.block

    unpacked = io.BytesIO()
    position = 4
    while position + 4 <= len(content):
        (size,) = struct.unpack_from("<I", content, position)
        position += 4
        if size == 0 or position + size > len(content):
            break
        block = content[position : position + size]
        try:
            unpacked.write(lz4.block.decompress(block, uncompressed_size=8 << 20))
        except lz4.block.LZ4BlockError as error:
            raise ValueError("not lz4") from error
        _check_size(unpacked.tell(), most)
        position += size
    return unpacked.getvalue()


def _checked(content: bytes, most: int) -> bytes:
    _check_size(len(content), most)
    return content


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise TooMuchError(f"has more than {most >> 20} MiB")


def unpack(tar: Path, to: Path, *, how: str = "data") -> None:
    """Unpacks a tar below a directory, which nothing in it leaves.

    Args:
        how: a filter of the standard library ("Extraction filters"), ``tar`` or ``data``, which
            also refuses devices and links that lead out. Python has them from 3.11.4 on only, and
            Debian 12 has 3.11.2.

    Raises:
        OSError: it cannot be written.

    Some of :data:`CORRUPT` are raised where it is no tar, or tries to leave.
    """
    with guarded.open(tar) as archive:
        archive.extractall(to, filter=how)  # noqa: S202 (a filter that is not seen)


@contextmanager
def opened_tar(tar: Path | IO[bytes], *, most: int = MOST_TAR) -> Iterator[tarfile.TarFile]:
    """A tar to read, compressed by gzip, xz or bzip2, or not at all.

    Reading it raises some of :data:`CORRUPT` where it is no tar, or more than ``most`` bytes.
    """
    with (
        _opened(tar) as file,
        _unpacking(file) as unpacked,
        tarfile.open(fileobj=_Limited(unpacked, most), mode="r:") as archive,
    ):
        yield archive


@contextmanager
def _opened(file: Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            yield opened
    else:
        yield file


def _unpacking(file: IO[bytes]) -> IO[bytes] | gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File:
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        # Refuses a dictionary that is too large, which a file object takes whatever it is.
        lzma.LZMADecompressor(memlimit=_MOST_MEMORY).decompress(head, 1)
        return lzma.LZMAFile(file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return file


class _Limited(io.RawIOBase):
    """A file that can be read and sought in up to a place, in pieces that fit in memory."""

    def __init__(
        self, file: IO[bytes] | gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File, most: int
    ) -> None:
        self._file = file
        self._most = most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_FILE:
            raise TooMuchError(f"asks for {size} bytes at once")
        content = self._file.read(size)
        self._check(self._file.tell())
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise TooMuchError(f"is a tar of more than {self._most >> 20} MiB")

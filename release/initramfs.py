"""Writes initramfs archives: cpio in the "newc" format, without external programs.

The format is the kernel's own (Documentation/driver-api/early-userspace/buffer-format.rst): a
header of hexadecimal fields, the name, the data, each padded to four bytes. The same entries
give the same bytes: entries are sorted, times and owners are zero.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from release import bounded
from release.errors import SmokeError

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4
_MAX_FILE_BYTES = 0xFFFF_FFFF
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True)
class Entry:
    """One file system object of an archive.

    Attributes:
        path: relative path without leading or trailing slash.
        mode: file type and permission bits, as in ``st_mode``.
        data: the content of a regular file or the target of a symbolic link.
        device: major and minor number of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def regular_file(path: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def directory(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def write(entries: Iterable[Entry], output: IO[bytes]) -> None:
    """Writes the archive; parent directories are added, of two entries with one path the last wins.

    Raises:
        ValueError: a path is absolute, leaves the archive, or a file is too large for the format.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        _check(entry)
        for parent in list(PurePosixPath(entry.path).parents)[:-1]:
            by_path.setdefault(str(parent), directory(str(parent)))
        by_path[entry.path] = entry
    for inode, path in enumerate(sorted(by_path), start=1):
        _write_entry(by_path[path], inode, output)
    _write_entry(Entry(_TRAILER, 0), 0, output)


def from_layers(layers: Iterable[Path], *, under: str) -> list[Entry]:
    """The root file system that an image's layers make, one on top of the other, below ``under``.

    Args:
        layers: layer blobs (tar, compressed or not), the lowest first. Whiteouts are honoured.
        under: the directory of the archive that becomes the image's root.

    Raises:
        SmokeError: a layer is not a tar archive, or leads out of the root file system.
    """
    tree: dict[str, Entry] = {}
    for layer in layers:
        try:
            with bounded.opened_tar(layer) as tar:
                _apply(tar, tree)
        except bounded.CORRUPT as error:
            raise SmokeError(
                "the layer is not a tar archive", on=str(layer), detail=str(error)
            ) from error
    placed = (Entry(f"{under}/{e.path}", e.mode, e.data, e.device) for e in tree.values())
    return [directory(under), *placed]


def _apply(tar: tarfile.TarFile, tree: dict[str, Entry]) -> None:
    for member in tar:
        path = PurePosixPath(member.name.lstrip("/"))
        if ".." in path.parts:
            raise ValueError(f"leads out of it: {member.name!r}")
        if path.name == _OPAQUE:
            _remove(tree, str(path.parent), keep_itself=True)
        elif path.name.startswith(_WHITEOUT):
            _remove(tree, str(path.with_name(path.name.removeprefix(_WHITEOUT))))
        elif path.parts:
            tree[str(path)] = _from_member(tar, member, str(path))


def _remove(tree: dict[str, Entry], path: str, *, keep_itself: bool = False) -> None:
    below = "" if path == "." else f"{path}/"
    for other in [other for other in tree if other.startswith(below)]:
        del tree[other]
    if not keep_itself:
        tree.pop(path, None)


def _from_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> Entry:
    permissions = stat.S_IMODE(member.mode)
    if member.isdir():
        return Entry(path, stat.S_IFDIR | permissions)
    if member.issym():
        return Entry(path, stat.S_IFLNK | 0o777, os.fsencode(member.linkname))
    if member.ischr() or member.isblk():
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        return Entry(path, kind | permissions, device=(member.devmajor, member.devminor))
    if member.isfifo():
        return Entry(path, stat.S_IFIFO | permissions)
    content = tar.extractfile(member)  # follows a hard link to what it links to
    return Entry(path, stat.S_IFREG | permissions, bounded.read(content) if content else b"")


def _check(entry: Entry) -> None:
    path = PurePosixPath(entry.path)
    if str(path) != entry.path or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"not a plain relative path: {entry.path!r}")
    if len(entry.data) > _MAX_FILE_BYTES:
        raise ValueError(f"too large for a newc archive: {entry.path!r}")


def _write_entry(entry: Entry, inode: int, output: IO[bytes]) -> None:
    name = os.fsencode(entry.path) + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # owner
        0,  # group
        1,  # links
        0,  # modification time
        len(entry.data),
        0,  # major and minor number of the device that holds the file
        0,
        *entry.device,
        len(name),
        0,  # checksum, unused in this variant
    )
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    output.write(b"".join(_padded((header, entry.data))))


def _padded(parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield part
        yield b"\0" * (-len(part) % _ALIGNMENT)

"""The archive format, and how an image's layers become a tree."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release import initramfs
from release.errors import SmokeError
from release.initramfs import Entry, character_device, directory, regular_file, symlink

Member = tuple[tarfile.TarInfo, bytes]


def _packed(*entries: Entry) -> bytes:
    output = io.BytesIO()
    initramfs.write(entries, output)
    return output.getvalue()


def _unpacked(archive: bytes) -> list[Entry]:
    """Reads a newc archive as the kernel's init/initramfs.c does."""
    stream = io.BytesIO(archive)
    entries: list[Entry] = []
    while True:
        assert stream.read(6) == b"070701"
        fields = [int(stream.read(8), 16) for _ in range(13)]
        mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = stream.read(name_size)
        stream.seek(-stream.tell() % 4, io.SEEK_CUR)
        data = stream.read(size)
        stream.seek(-stream.tell() % 4, io.SEEK_CUR)
        assert name.endswith(b"\0")
        path = name[:-1].decode()
        if path == "TRAILER!!!":
            assert stream.read() == b""
            return entries
        entries.append(Entry(path, mode, data, device))


_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1).filter(
    lambda name: name not in {".", ".."}
)


@given(st.dictionaries(_names, st.binary(max_size=40)))
def test_files_read_back_as_written(files: dict[str, bytes]) -> None:
    files.pop("TRAILER!!!", None)
    entries = [regular_file(name, data) for name, data in files.items()]
    assert _unpacked(_packed(*entries)) == sorted(entries, key=lambda entry: entry.path)


def test_every_kind_of_entry_reads_back() -> None:
    entries = [
        directory("dev"),
        character_device("dev/console", 5, 1),
        regular_file("init", b"#!/bin/sh\n", executable=True),
        symlink("link", "init"),
    ]
    assert _unpacked(_packed(*entries)) == entries
    assert stat.filemode(entries[1].mode) == "crw-------"


def test_the_same_entries_give_the_same_bytes_in_any_order() -> None:
    one, two = regular_file("a/one", b"1"), regular_file("a/two", b"2")
    assert _packed(one, two) == _packed(two, one)


def test_parents_are_added_before_their_children() -> None:
    assert [entry.path for entry in _unpacked(_packed(regular_file("a/b/c", b"")))] == [
        "a",
        "a/b",
        "a/b/c",
    ]


@pytest.mark.parametrize("path", ["/etc", "../etc", "a//b", "a/", "", ".", "a/../b"])
def test_only_plain_relative_paths_are_written(path: str) -> None:
    with pytest.raises(ValueError, match="not a plain relative path"):
        _packed(regular_file(path, b""))


def _file(name: str, data: bytes = b"", mode: int = 0o644) -> Member:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    return member, data


def _link(name: str, target: str, kind: bytes) -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def _layer(path: Path, *members: Member, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def layer(tmp_path: Path) -> Callable[..., Path]:
    counter = iter(range(100))
    return lambda *members: _layer(tmp_path / f"{next(counter)}.tar.gz", *members)


def _contents(*layers: Path) -> dict[str, bytes]:
    return {
        entry.path: entry.data
        for entry in initramfs.from_layers(layers, under="image")
        if stat.S_ISREG(entry.mode)
    }


def test_an_upper_layer_replaces_and_removes(layer: Callable[..., Path]) -> None:
    lower = layer(
        _file("same", b"1"), _file("gone", b"1"), _file("dir/a", b"1"), _file("opaque/a", b"1")
    )
    upper = layer(
        _file("same", b"2"),
        _file(".wh.gone"),
        _file(".wh.dir"),
        _file("opaque/.wh..wh..opq"),
        _file("opaque/b", b"2"),
    )
    assert _contents(lower, upper) == {"image/same": b"2", "image/opaque/b": b"2"}


def test_links_and_modes_survive(layer: Callable[..., Path]) -> None:
    entries = initramfs.from_layers(
        [
            layer(
                _file("./bin/busybox", b"ELF", 0o755),
                _link("bin/sh", "busybox", tarfile.SYMTYPE),
                _link("bin/ash", "./bin/busybox", tarfile.LNKTYPE),
            )
        ],
        under="image",
    )
    assert entries[1:] == [
        Entry("image/bin/busybox", stat.S_IFREG | 0o755, b"ELF"),
        symlink("image/bin/sh", "busybox"),
        Entry("image/bin/ash", stat.S_IFREG | 0o644, b"ELF"),
    ]


def test_a_layer_that_is_no_tar_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "layer"
    broken.write_bytes(b"not a tar")
    with pytest.raises(SmokeError, match="not a tar archive"):
        initramfs.from_layers([broken], under="image")

"""Image tags, and the files of a kernel image, in every shape that they come in."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import lz4.block
import pytest
import zstandard

from release.errors import ResolveError
from release.kernel import (
    KernelFiles,
    banner_release,
    build_id_in,
    expected_vermagic,
    read_banner,
    read_build_id,
    read_headers,
    vermagic,
)

# The kernel itself

BANNER = "Linux version 5.15.49-linuxkit (root@buildkitsandbox) (gcc (Alpine 10.2.1) 10.2.1) #1 SMP"
UNPACKED = (
    b"Linux version %s (%s)\n\0" + bytes(1000) + BANNER.encode() + b"\n\0" + bytes(range(256)) * 999
)


def lz4_legacy(content: bytes) -> bytes:
    """What ``lz4 -l`` writes: a magic number, then blocks of 8 MiB with their sizes."""
    packed = b"\x02\x21\x4c\x18"
    for start in range(0, len(content), 8 << 20):
        block = lz4.block.compress(content[start : start + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda content: lzma.compress(content, check=lzma.CHECK_CRC32),
    "lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(level=1).compress,
    "lz4": lz4_legacy,
}


def bzimage(payload: bytes, *, setup_sectors: int = 3) -> bytes:
    """A bzImage of nothing but what its setup header says of the payload.

    Linux, Documentation/arch/x86/boot.rst: setup_sects at 0x1f1 (0 means 4), "HdrS" at 0x202,
    payload_offset and payload_length at 0x248, from the start of the protected-mode code. The
    kernel's build puts the unpacked size behind the payload (scripts/Makefile.lib, size_append).
    """
    head = bytearray(((setup_sectors or 4) + 1) * 512)
    payload += struct.pack("<I", len(UNPACKED))
    start = 0x300
    head[0x1F1] = setup_sectors
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    head[0x248:0x250] = struct.pack("<II", start, len(payload))
    return bytes(head) + b"\x90" * start + payload + bytes(512)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return tmp_path / "kernel"


@pytest.mark.parametrize("setup_sectors", [0, 3, 27])
@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_the_banner_of_a_bzimage(
    kernel: Path, packer: Callable[[bytes], bytes], setup_sectors: int
) -> None:
    kernel.write_bytes(bzimage(packer(UNPACKED), setup_sectors=setup_sectors))
    assert read_banner(kernel) == BANNER
    assert banner_release(BANNER) == "5.15.49-linuxkit"


def test_the_banner_beyond_the_first_block_of_lz4(kernel: Path) -> None:
    kernel.write_bytes(bzimage(lz4_legacy(bytes(9 << 20) + UNPACKED)))
    assert read_banner(kernel) == BANNER


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_banner_of_an_arm64_image(kernel: Path, pack: Callable[[bytes], bytes]) -> None:
    image = b"MZ\x40\xfa".ljust(56, b"\0") + b"ARM\x64" + UNPACKED
    kernel.write_bytes(pack(image))
    assert read_banner(kernel) == BANNER


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a kernel",
        b"\x1f\x8b is no gzip",
        b"Linux version %s (%s)\n",
        bzimage(b"an unknown compression"),
        bzimage(b"")[:0x210],
        *(bzimage(packer(UNPACKED)[:-100]) for packer in (bz2.compress, PACKERS["zstd"])),
        *(bzimage(packer(UNPACKED)[:16] + b"\xff" * 4096) for packer in PACKERS.values()),
    ],
)
def test_what_has_no_banner_is_refused_by_name(kernel: Path, content: bytes) -> None:
    kernel.write_bytes(content)
    with pytest.raises(ResolveError, match="no kernel banner") as caught:
        read_banner(kernel)
    assert caught.value.on == str(kernel)


def note(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<III", len(name), len(value), kind) + b"".join(
        part + b"\0" * (-len(part) % 4) for part in (name, value)
    )


def elf(*segments: tuple[int, bytes]) -> bytes:
    """An ELF file (elf(5)) of nothing but segments of these types and contents."""
    header, size = 64, 56
    table, contents = b"", b""
    for kind, content in segments:
        offset = header + size * len(segments) + len(contents)
        table += struct.pack("<IIQQQQQQ", kind, 4, offset, 0, 0, len(content), len(content), 4)
        contents += content
    start = b"\x7fELF\x02\x01\x01".ljust(0x20, b"\0") + struct.pack("<Q", header)
    start = start.ljust(0x36, b"\0") + struct.pack("<HH", size, len(segments))
    return start.ljust(header, b"\0") + table + contents


BUILD_ID = bytes(range(20))
VDSO = note(b"GNU\0", 3, b"\xff" * 20)


@pytest.mark.parametrize(
    ("content", "build_id"),
    [
        (
            elf(
                (1, UNPACKED + VDSO),
                (4, note(b"Xen\0", 6, b"odd") + note(b"GNU\0", 3, BUILD_ID)),
            ),
            BUILD_ID.hex(),
        ),
        (elf((1, UNPACKED + VDSO)), ""),
        (elf((4, note(b"GNU\0", 1, bytes(16)))), ""),
        (elf((4, note(b"GNU\0", 3, BUILD_ID)))[:100], ""),
        (UNPACKED + VDSO, ""),
    ],
)
def test_the_build_id_is_the_kernels_own(kernel: Path, content: bytes, build_id: str) -> None:
    kernel.write_bytes(bzimage(gzip.compress(content)))
    assert read_build_id(kernel) == build_id


def test_the_files_of_a_kernel_image(tmp_path: Path) -> None:
    assert KernelFiles.inside(tmp_path) == KernelFiles(None, None, None, None)
    names = ("kernel", "kernel.tar", "kernel-dev.tar")
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "kernel-builder").write_text("linuxkit/alpine:1\n")
    kernel, modules, headers = (tmp_path / name for name in names)
    found = KernelFiles.inside(tmp_path)
    assert found == KernelFiles(kernel, modules, headers, "linuxkit/alpine:1")


# Headers and modules

VERMAGIC = "5.15.49-linuxkit SMP mod_unload "
SEEDED = f"{VERMAGIC}RANDSTRUCT_PLUGIN_{'0123456789abcdef' * 4}"


def tar_of(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def module(magic: str) -> bytes:
    info = f"license=GPL\0srcversion=ABC\0vermagic={magic}\0name=dummy\0"
    return b"\x7fELF" + bytes(60) + info.encode() + bytes(100)


def test_the_release_that_headers_are_for(tmp_path: Path) -> None:
    root = "usr/src/linux-headers-5.15.49-linuxkit"
    headers = tar_of(
        tmp_path / "kernel-dev.tar",
        {
            f"{root}/include/config/kernel.release": b"another\n",
            f"{root}/include/generated/utsrelease.h": b'#define UTS_RELEASE "5.15.49-linuxkit"\n',
        },
    )
    assert read_headers(headers, "amd64").release == "5.15.49-linuxkit"


@pytest.mark.parametrize(
    "members",
    [{}, {"include/generated/utsrelease.h": b""}, {"a/xinclude/generated/utsrelease.h": b"x"}],
)
def test_headers_that_name_no_release(tmp_path: Path, members: Mapping[str, bytes]) -> None:
    with pytest.raises(ResolveError, match="names no kernel release"):
        read_headers(tar_of(tmp_path / "kernel-dev.tar", members), "amd64")


RELEASE = b'#define UTS_RELEASE "6.1.5-linuxkit"\n'
PLAIN = b"CONFIG_SMP=y\nCONFIG_MODULE_UNLOAD=y\n"
OLD_SEED = b'#define RANDSTRUCT_HASHED_SEED "aa11"\n'


@pytest.mark.parametrize(
    ("config", "seeds", "architecture", "expected"),
    [
        (PLAIN, {}, "amd64", "6.1.5-linuxkit SMP mod_unload"),
        (PLAIN, {}, "arm64", "6.1.5-linuxkit SMP mod_unload aarch64"),
        (
            PLAIN + b"CONFIG_PREEMPT_BUILD=y\nCONFIG_MODVERSIONS=y\n",
            {},
            "amd64",
            "6.1.5-linuxkit SMP preempt mod_unload modversions",
        ),
        (b"CONFIG_PREEMPT_RT=y\n", {}, "amd64", "6.1.5-linuxkit preempt_rt"),
        (
            PLAIN + b"CONFIG_RANDSTRUCT=y\nCONFIG_RANDSTRUCT_FULL=y\n",
            {"randstruct_hash.h": OLD_SEED},
            "arm64",
            "6.1.5-linuxkit SMP mod_unload aarch64RANDSTRUCT_aa11",
        ),
        (
            PLAIN + b"CONFIG_GCC_PLUGIN_RANDSTRUCT=y\n",
            {"randomize_layout_hash.h": OLD_SEED},
            "amd64",
            "6.1.5-linuxkit SMP mod_unload RANDSTRUCT_PLUGIN_aa11",
        ),
        # A hash that an earlier configuration left behind counts for nothing.
        (PLAIN, {"randstruct_hash.h": OLD_SEED}, "amd64", "6.1.5-linuxkit SMP mod_unload"),
    ],
)
def test_the_vermagic_that_headers_give(
    tmp_path: Path, config: bytes, seeds: Mapping[str, bytes], architecture: str, expected: str
) -> None:
    root = "usr/src/linux-headers-6.1.5-linuxkit/include"
    members = {
        f"{root}/generated/utsrelease.h": RELEASE,
        f"{root}/config/auto.conf": config,
        **{f"{root}/generated/{name}": content for name, content in seeds.items()},
    }
    headers = tar_of(tmp_path / "kernel-dev.tar", members)
    assert read_headers(headers, architecture).vermagic == expected


@pytest.mark.parametrize("magic", [VERMAGIC, SEEDED])
def test_vermagic(magic: str) -> None:
    assert vermagic(module(magic)) == magic.strip()
    assert vermagic(b"vermagic=1\0") == "1"
    assert vermagic(b"novermagic=1\0") is None


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_the_vermagic_that_the_kernel_wants(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    directory = "lib/modules/5.15.49-linuxkit"
    modules = tar_of(
        tmp_path / "kernel.tar",
        {
            f"{directory}/modules.dep": b"",
            f"{directory}/kernel/net/dummy.v1.ko{suffix}": pack(module(SEEDED)),
        },
    )
    assert expected_vermagic(modules) == SEEDED.strip()


def test_a_kernel_without_modules_wants_no_vermagic(tmp_path: Path) -> None:
    assert expected_vermagic(tar_of(tmp_path / "kernel.tar", {"lib/modules/x/y": b""})) is None


@pytest.mark.parametrize("read", [lambda tar: read_headers(tar, "amd64"), expected_vermagic])
@pytest.mark.parametrize("content", [b"", b"not a tar" * 100])
def test_a_corrupt_tar(tmp_path: Path, read: Callable[[Path], object], content: bytes) -> None:
    tar = tmp_path / "kernel.tar"
    tar.write_bytes(content)
    with pytest.raises(ResolveError, match="is corrupt"):
        read(tar)


def test_a_corrupt_module(tmp_path: Path) -> None:
    modules = tar_of(tmp_path / "kernel.tar", {"a/dummy.ko.gz": b"not gzip"})
    with pytest.raises(ResolveError, match="is corrupt"):
        expected_vermagic(modules)


def test_the_build_id_among_notes() -> None:
    other = struct.pack("<III", 6, 3, 0x101) + b"Linux\0\0\0" + b"abc\0"
    own = struct.pack("<III", 4, 4, 3) + b"GNU\0" + bytes.fromhex("deadbeef")
    assert build_id_in(other + own) == "deadbeef"
    assert build_id_in(other) == build_id_in(b"") == build_id_in(own[:-2]) == ""

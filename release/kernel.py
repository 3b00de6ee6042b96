"""Kernels: what the files of a kernel image say.

They are those that LinuxKit's kernel build leaves in it (linuxkit, ``kernel/common/Dockerfile``).
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from release import bounded
from release.errors import ResolveError


@dataclass(frozen=True)
class KernelFiles:
    """The files of a kernel image, unpacked to a directory; None where the image has none."""

    kernel: Path | None
    modules: Path | None
    headers: Path | None
    builder: str | None
    stated_banner: str | None = None
    """What ``/kernel-banner`` says, in an image captured from a running machine."""
    stated_build_id: str | None = None
    """What ``/kernel-build-id`` says, likewise."""

    @property
    def banner(self) -> str | None:
        """The kernel's banner: its own word counts; None where there is neither.

        Raises:
            ResolveError: no banner can be found in the kernel, or what is stated is none.
        """
        if self.kernel:
            return read_banner(self.kernel)
        if self.stated_banner and not _BANNER.fullmatch(f"{self.stated_banner}\n".encode()):
            raise ResolveError("is no kernel's banner", on="/kernel-banner in the kernel image")
        return self.stated_banner

    @property
    def build_id(self) -> str:
        """The kernel's GNU build-id in hexadecimal; empty where it cannot be told.

        Raises:
            ResolveError: what is stated is none.
        """
        if self.kernel:
            return read_build_id(self.kernel)
        if self.stated_build_id and not _BUILD_ID.fullmatch(self.stated_build_id):
            raise ResolveError("is no build-id", on="/kernel-build-id in the kernel image")
        return self.stated_build_id or ""

    @classmethod
    def inside(cls, directory: Path) -> KernelFiles:
        def present(name: str) -> Path | None:
            path = directory / name
            # A link would lead to a file of this machine.
            return path if path.is_file() and not path.is_symlink() else None

        def line(name: str) -> str | None:
            path = present(name)
            if not path:
                return None
            with path.open("rb") as file:
                return file.read(_MOST_LINE).decode(errors="replace").strip()

        return cls(
            present("kernel"),
            present("kernel.tar"),
            present("kernel-dev.tar"),
            line("kernel-builder"),
            line("kernel-banner"),
            line("kernel-build-id"),
        )


_MOST_LINE = 4096
_BUILD_ID = re.compile(r"(?:[0-9a-f]{2}){4,64}")
# As much as /proc/version ever has, and more. A second copy, without the build's number behind the
# #, is in some kernels (since Linux 6.1).
_LINE = re.compile(rb"Linux version [^\0-\x1f\x7f]{1,1000}\n")
_BANNER = re.compile(rb"Linux version \d\S* \([^\0-\x1f\x7f]*#\d[^\0-\x1f\x7f]*\n")


def read_banner(kernel: Path) -> str:
    """The "Linux version ..." line of a bootable kernel, as ``/proc/version`` shows it.

    An x86 bzImage holds its kernel compressed, at the place that its setup header names
    (Linux, ``Documentation/arch/x86/boot.rst``: ``payload_offset``, ``payload_length``);
    an arm64 ``Image`` is plain or gzip'ed (``Documentation/arch/arm64/booting.rst``).

    Raises:
        ResolveError: no banner can be found in it.
    """
    with suppress(*bounded.CORRUPT), kernel.open("rb") as file:
        for part in _unpacked(bounded.read(file)):
            for match in _LINE.finditer(part):
                if _BANNER.fullmatch(match.group(0)):
                    return match.group(0).decode(errors="replace").strip()
    raise ResolveError(
        "no kernel banner can be found in it",
        on=str(kernel),
        hint="is it a bzImage or an arm64 Image? look at it with: file",
    )


_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3


def read_build_id(kernel: Path) -> str:
    """The GNU build-id of a bootable kernel in hexadecimal, as ``/sys/kernel/notes`` has it.

    Empty where it cannot be told: an arm64 ``Image`` has no ELF header that says where its notes
    are, and it holds those of the vDSO, too.
    """
    with suppress(*bounded.CORRUPT), kernel.open("rb") as file:
        for part in _unpacked(bounded.read(file)):
            if build_id := _elf_build_id(part):
                return build_id
    return ""


def _elf_build_id(elf: bytes) -> str:
    """From the notes that the program headers of a 64-bit little-endian ELF file name (elf(5))."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return ""
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    for number in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, table + number * size)
        if kind == _PT_NOTE and (build_id := build_id_in(elf[offset : offset + length])):
            return build_id
    return ""


def build_id_in(notes: bytes) -> str:
    """The GNU build-id in a series of ELF notes (elf(5), "Notes"), as they are in
    ``/sys/kernel/notes``; empty where there is none.
    """
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name = position + 12
        value = name + (name_size + 3) // 4 * 4
        position = value + (size + 3) // 4 * 4
        content = notes[value : value + size]
        if notes[name : name + name_size] == b"GNU\0" and kind == _NT_GNU_BUILD_ID:
            return content.hex() if len(content) == size else ""
    return ""


def _unpacked(content: bytes) -> Iterator[bytes]:
    if content[:2] == b"\x1f\x8b":
        content = bounded.gunzip(content)
    if content[0x202:0x206] == b"HdrS":
        (setup_sectors,) = struct.unpack_from("<B", content, 0x1F1)
        offset, length = struct.unpack_from("<II", content, 0x248)
        start = ((setup_sectors or 4) + 1) * 512 + offset
        payload = content[start : start + length]
        for magic, unpack in _COMPRESSIONS.items():
            if payload.startswith(magic):
                yield unpack(payload)
    yield content


_COMPRESSIONS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": bounded.gunzip,
    b"\xfd7zXZ\x00": bounded.unlzma,
    b"\x5d\x00\x00": bounded.unlzma,
    b"BZh": bounded.unbzip2,
    b"\x28\xb5\x2f\xfd": bounded.unzstd,
    b"\x02\x21\x4c\x18": bounded.unlz4,
}


def banner_release(banner: str) -> str:
    """The kernel release (``uname -r``) that a banner names."""
    return banner.split(" ")[2]


@dataclass(frozen=True)
class Headers:
    """What a ``kernel-dev.tar`` says of the kernel that modules compiled against it are for.

    Attributes:
        release: ``uname -r``, from ``include/generated/utsrelease.h``, which every module is
            compiled with; ``include/config/kernel.release`` differs from it in distributions'
            kernels.
        vermagic: put together as Linux' ``include/linux/vermagic.h`` does it.
    """

    release: str
    vermagic: str


SYMVERS = "Module.symvers"
"""The symbols that the kernel and its modules export, in a ``kernel-dev.tar``."""
UTS_RELEASE = "include/generated/utsrelease.h"
_AUTO_CONF = "include/config/auto.conf"
_SEED_HASHES = {
    # Linux before 5.19, and since.
    "include/generated/randomize_layout_hash.h": "RANDSTRUCT_PLUGIN_",
    "include/generated/randstruct_hash.h": "RANDSTRUCT_",
}


def read_headers(headers: Path, architecture: str) -> Headers:
    """Reads the generated headers of a ``kernel-dev.tar``, in place.

    Args:
        architecture: as in a platform: ``amd64``, ``arm64``.

    Raises:
        ResolveError: it does not say which kernel it is for.
    """
    found = read_members(headers, (UTS_RELEASE, _AUTO_CONF, *_SEED_HASHES))
    release = re.search(r'#define UTS_RELEASE "([^"]+)"', found.get(UTS_RELEASE, ""))
    if not release:
        raise ResolveError(
            f"kernel-dev.tar names no kernel release in {UTS_RELEASE}", on=str(headers)
        )
    config = set(re.findall(r"^(CONFIG_\w+)=y$", found.get(_AUTO_CONF, ""), re.MULTILINE))
    seed = ""
    if {"CONFIG_RANDSTRUCT", "CONFIG_GCC_PLUGIN_RANDSTRUCT"} & config:
        for path, prefix in _SEED_HASHES.items():
            if match := re.search(r'"([0-9a-f]+)"', found.get(path, "")):
                seed = prefix + match[1]
    words = [
        release[1] + " ",
        "SMP " if "CONFIG_SMP" in config else "",
        _preemption(config),
        "mod_unload " if "CONFIG_MODULE_UNLOAD" in config else "",
        "modversions " if "CONFIG_MODVERSIONS" in config else "",
        "aarch64" if architecture == "arm64" else "",
        seed,
    ]
    return Headers(release[1], "".join(words).strip())


def configured_compiler(headers: Path) -> str:
    """The compiler's version line in the configuration of a ``kernel-dev.tar`` (since Linux 5.8);
    empty where it is not there.
    """
    config = read_members(headers, (_AUTO_CONF,)).get(_AUTO_CONF, "")
    match = re.search(r'^CONFIG_CC_VERSION_TEXT="([^"]*)"$', config, re.MULTILINE)
    return match[1] if match else ""


def _preemption(config: Collection[str]) -> str:
    if "CONFIG_PREEMPT_RT" in config:
        return "preempt_rt "
    # CONFIG_PREEMPT_BUILD came with 5.15, where CONFIG_PREEMPT is a default of the boot only.
    return "preempt " if {"CONFIG_PREEMPT_BUILD", "CONFIG_PREEMPT"} & set(config) else ""


@contextmanager
def _opened(tar: Path) -> Iterator[tarfile.TarFile]:
    try:
        with bounded.opened_tar(tar) as archive:
            yield archive
    except bounded.CORRUPT as error:
        raise ResolveError("is corrupt", on=str(tar), detail=str(error)) from error


def read_members(tar: Path, suffixes: Collection[str]) -> dict[str, str]:
    """The first file in ``tar`` whose path ends with each of ``suffixes``, read in place."""
    found: dict[str, str] = {}
    with _opened(tar) as archive:
        for member in archive:
            for suffix in suffixes:
                if suffix not in found and member.isfile() and member.name.endswith(f"/{suffix}"):
                    file = archive.extractfile(member)
                    assert file
                    found[suffix] = bounded.read(file).decode(errors="replace")
    return found


def vermagic(module: bytes) -> str | None:
    """The ``vermagic=`` string of a module's ``.modinfo`` section (Linux, ``kernel/module``)."""
    match = re.search(rb"(?:^|\0)vermagic=([^\0]*)\0", module)
    return match.group(1).decode(errors="replace").strip() if match else None


def expected_vermagic(modules: Path) -> str | None:
    """The vermagic of the kernel's own modules in ``kernel.tar``; None where it has none."""
    unpack: Mapping[str, Callable[[bytes], bytes]] = {
        ".ko": bytes,
        ".ko.gz": bounded.gunzip,
        ".ko.xz": bounded.unlzma,
        ".ko.zst": bounded.unzstd,
    }
    with _opened(modules) as archive:
        for member in archive:
            kind = "".join(PurePosixPath(member.name).suffixes[-2:])
            kind = kind if kind in unpack else PurePosixPath(member.name).suffix
            if member.isfile() and kind in unpack and (file := archive.extractfile(member)):
                return vermagic(unpack[kind](bounded.read(file)))
    return None

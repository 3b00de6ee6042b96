"""``capture``: what a machine has is packed whole, and the same facts give the same image."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from release import bounded
from release.capture import (
    Captured,
    Trees,
    built_at,
    capture,
    check_name,
    differing_config,
    entry_lines,
    pack,
    push,
    show,
)
from release.errors import ConfigurationError, PreflightError, ReleaseError, ResolveError
from release.http import Http
from release.kernel import KernelFiles, expected_vermagic
from release.probe import Inside, Machine
from release.reference import Digest, Platform, Reference
from release.registry import Registry
from tests.lab.session import LocalSession
from tests.lab.small_registry import SmallRegistry

GOLDEN = Path(__file__).parent / "golden" / "capture"
AMD64 = Platform("linux/amd64")
RELEASE = "6.10.14-linuxkit"
BANNER = (
    f"Linux version {RELEASE} (root@buildkitsandbox) (gcc (Alpine 13.2.1_git20240309) 13.2.1"
    " 20240309, GNU ld (GNU Binutils) 2.42) #1 SMP PREEMPT_DYNAMIC Thu Oct 24 19:28:55 UTC 2024"
)
IMAGE = Reference.parse("registry.example/me/kernel:6.10.14")
MACHINE = Machine(
    RELEASE, BANNER, "x86_64", "Docker Desktop", "Docker Desktop 4.37.1 (178610)", linuxkit=""
)
UTS = f'#define UTS_RELEASE "{RELEASE}"\n'
CONFIG = "CONFIG_SMP=y\nCONFIG_MODULES=y\nCONFIG_GCC_VERSION=130201\n"
BUILD_ID = struct.pack("<III", 4, 4, 3) + b"GNU\0" + b"\xde\xad\xbe\xef"
HEADERS = {
    "Makefile": "VERSION = 6\n",
    "Module.symvers": "0x0\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n",
    "vmlinux": "x" * 1000,
    "include/generated/utsrelease.h": UTS,
    "include/generated/autoconf.h": "#define CONFIG_SMP 1\n",
    "include/config/auto.conf": CONFIG,
    "include/linux/module.h": "/* */\n",
    "scripts/mod/modpost": "#!/bin/sh\n",
}
MODULE = b"\0vermagic=6.10.14-linuxkit SMP mod_unload \0"

Files = dict[str, str | bytes]


def write(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's root, with modules and without headers."""
    root = tmp_path / "root"
    modules = f"/lib/modules/{RELEASE}"
    write(
        root,
        {
            f"{modules}/kernel/fs/fuse.ko": MODULE,
            f"{modules}/modules.dep": "kernel/fs/fuse.ko:\n",
            "/etc/os-release": "ID=linuxkit\n",
        },
    )
    write(
        tmp_path / "proc",
        {"/proc/config.gz": gzip.compress(CONFIG.encode()), "/sys/kernel/notes": BUILD_ID},
    )
    return root


@pytest.fixture
def captured(root: Path, tmp_path: Path) -> Callable[[], Captured]:
    def run() -> Captured:
        here = Inside(LocalSession(tmp_path / "proc"), (str(root),))
        directory = tmp_path / f"captured-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        return capture(MACHINE, here, AMD64, directory)

    return run


@pytest.fixture
def headers(root: Path) -> Path:
    """The headers that Docker Desktop brings: one tree."""
    directory = root / f"usr/src/linux-headers-{RELEASE}"
    write(directory, dict(HEADERS))
    (directory / "scripts/mod/modpost").chmod(0o755)
    (root / f"lib/modules/{RELEASE}/build").symlink_to(f"/usr/src/linux-headers-{RELEASE}")
    return directory


def names(tar: Path) -> set[str]:
    with tarfile.open(tar) as archive:
        return {member.name for member in archive if not member.isdir()}


TREE = {f"usr/src/linux-headers-{RELEASE}/{name}" for name in HEADERS if name != "vmlinux"}


def test_headers_of_one_tree(headers: Path, captured: Callable[[], Captured]) -> None:
    found = captured()
    assert names(found.headers) == TREE
    assert found.places["headers"] == f"/usr/src/{headers.name}"
    assert found.modules
    assert names(found.modules) == {
        f"lib/modules/{RELEASE}/kernel/fs/fuse.ko",
        f"lib/modules/{RELEASE}/modules.dep",
    }
    assert expected_vermagic(found.modules) == "6.10.14-linuxkit SMP mod_unload"
    assert (found.kernel, found.build_id, found.notes) == (None, "deadbeef", ())
    with tarfile.open(found.headers) as archive:
        modes = {Path(member.name).name: member.mode for member in archive if member.isreg()}
        assert {member.mtime for member in archive} == {0}
    assert modes["modpost"] == 0o755


def test_headers_without_a_link_to_them(headers: Path, captured: Callable[[], Captured]) -> None:
    (headers.parents[2] / f"lib/modules/{RELEASE}/build").unlink()
    assert names(captured().headers) == TREE
    headers.rename(headers.with_name("linux-headers-6.10.14-other"))
    assert names(captured().headers) == TREE


def test_debians_three_parts_become_one_tree(root: Path, captured: Callable[[], Captured]) -> None:
    """Debian's linux-headers-FLAVOUR, linux-headers-COMMON and linux-kbuild-VERSION."""
    write(
        root / "usr/src/linux-headers-common",
        {"Makefile": HEADERS["Makefile"], "include/linux/module.h": "/* */\n"},
    )
    write(root / "usr/lib/linux-kbuild-6.10/scripts", {"mod/modpost": "#!/bin/sh\n"})
    (root / "usr/src/linux-headers-common/scripts").symlink_to(
        "../../lib/linux-kbuild-6.10/scripts"
    )
    flavour = root / "usr/src/linux-headers-flavour"
    generated = {
        name: text
        for name, text in HEADERS.items()
        if "generated" in name or "config" in name or name == "Module.symvers"
    }
    write(
        flavour,
        {
            **generated,
            "Makefile": "include /usr/src/linux-headers-common/Makefile\n",
            ".kernelvariables": "CC = gcc-13\n",
        },
    )
    (flavour / "scripts").symlink_to("/usr/lib/linux-kbuild-6.10/scripts")
    modules = root / f"lib/modules/{RELEASE}"
    (modules / "build").symlink_to("/usr/src/linux-headers-flavour")
    (modules / "source").symlink_to("/usr/src/linux-headers-common")
    found = captured()
    assert names(found.headers) == TREE
    with tarfile.open(found.headers) as archive:
        makefile = archive.extractfile(f"usr/src/linux-headers-{RELEASE}/Makefile")
        assert makefile
        assert makefile.read().decode() == HEADERS["Makefile"]


def test_a_machine_without_headers(root: Path, captured: Callable[[], Captured]) -> None:
    write(
        root, {"/usr/src/linux-headers-6.9/include/generated/utsrelease.h": UTS.replace("10", "9")}
    )
    with pytest.raises(PreflightError, match="has no headers of its kernel") as caught:
        captured()
    assert "/usr/src/linux-headers-6.9: of 6.9.14-linuxkit" in caught.value.detail
    assert "since 4.31.0" in caught.value.hint


@pytest.mark.parametrize(
    ("machine", "hint"),
    [
        (
            dataclasses.replace(MACHINE, release="5.15.1-microsoft-standard-WSL2"),
            "the kernel is Microsoft's",
        ),
        (
            dataclasses.replace(
                MACHINE, release="6.1.0-49-amd64", platform="", operating_system="Debian"
            ),
            "apt-get install linux-headers-6.1.0-49-amd64",
        ),
    ],
)
def test_what_to_do_without_headers(
    root: Path, tmp_path: Path, machine: Machine, hint: str
) -> None:
    with pytest.raises(PreflightError) as caught:
        capture(machine, Inside(LocalSession(tmp_path / "proc"), (str(root),)), AMD64, tmp_path)
    assert hint in caught.value.hint


def test_a_machine_that_cannot_be_seen(tmp_path: Path) -> None:
    unseen = dataclasses.replace(MACHINE, unseen="the root cannot be read")
    with pytest.raises(PreflightError, match="cannot be read from a container") as caught:
        capture(unseen, Inside(LocalSession(tmp_path), ()), AMD64, tmp_path)
    assert "Enhanced Container Isolation" in caught.value.hint


@pytest.mark.parametrize(
    "missing", ["Module.symvers", "scripts/mod/modpost", "include/generated/autoconf.h"]
)
def test_headers_that_are_not_whole(
    headers: Path, captured: Callable[[], Captured], missing: str
) -> None:
    (headers / missing).unlink()
    with pytest.raises(ResolveError, match="not whole") as caught:
        captured()
    assert missing in caught.value.detail


def test_only_the_running_kernel_is_taken(
    root: Path, headers: Path, captured: Callable[[], Captured]
) -> None:
    assert headers
    write(root, {f"/boot/vmlinuz-{RELEASE}": f"\0{BANNER.replace('#1', '#2')}\n"})
    found = captured()
    assert found.kernel is None
    assert "is another kernel" in found.notes[0]
    write(root, {"/boot/vmlinuz": b"?", "/kernel": f"\0{BANNER}\n"})
    found = captured()
    assert found.kernel
    assert found.places["kernel"] == "/kernel"
    assert "/boot/vmlinuz is not taken as the kernel" in found.notes[1]


def test_another_configuration_is_told(
    headers: Path, tmp_path: Path, captured: Callable[[], Captured]
) -> None:
    assert headers
    config = CONFIG.replace("SMP=y", "SMP=y\nCONFIG_NUMA=y").replace("130201", "140000")
    write(tmp_path / "proc", {"/proc/config.gz": gzip.compress(config.encode())})
    assert captured().notes == ("/proc/config.gz differs from the headers in: CONFIG_NUMA",)
    write(tmp_path / "proc", {"/proc/config.gz": b"\x1f\x8b broken"})
    assert captured().notes == ()
    assert differing_config("CONFIG_A=y\n", "CONFIG_A=m\nCONFIG_CC_VERSION_TEXT=x\n") == [
        "CONFIG_A"
    ]


def test_the_same_facts_give_the_same_image(
    headers: Path, tmp_path: Path, captured: Callable[[], Captured]
) -> None:
    first = pack(captured(), tmp_path / "first")
    os.utime(headers / "Makefile", (1, 1))
    os.rename(headers / "Makefile", headers / "new")
    os.rename(headers / "new", headers / "Makefile")
    second = pack(captured(), tmp_path / "second")
    assert first.manifest.digest == second.manifest.digest
    write(headers, {"Makefile": "VERSION = 7\n"})
    assert pack(captured(), tmp_path / "third").manifest.digest != first.manifest.digest


def test_the_image_is_in_upstreams_shape(
    headers: Path, tmp_path: Path, captured: Callable[[], Captured]
) -> None:
    assert headers
    found = captured()
    builder = Reference.parse("linuxkit/alpine:abc")
    layout = pack(found, tmp_path / "image", builder)
    (layer,) = layout.layers
    bounded.unpack(layer, tmp_path / "files")
    files = KernelFiles.inside(tmp_path / "files")
    assert (files.kernel, files.banner, files.builder) == (None, BANNER, str(builder))
    assert files.build_id == "deadbeef"
    assert files.headers
    assert files.headers.read_bytes() == found.headers.read_bytes()
    assert layout.labels() == {
        "org.opencontainers.image.title": f"Linux {RELEASE}, captured while it ran",
        "org.mobyproject.linuxkit.kernel.buildimage": str(builder),
        "install-zfs.kernel-release": RELEASE,
        "install-zfs.kernel-banner": BANNER,
        "install-zfs.kernel-build-id": "deadbeef",
    }
    assert layout.config["created"] == "2024-10-24T19:28:55+00:00"
    layout.save(tmp_path / "image.tar", (IMAGE,))


def test_a_stated_banner_is_one(tmp_path: Path) -> None:
    (tmp_path / "kernel-banner").write_text("nothing of the kind\n")
    with pytest.raises(ResolveError, match="no kernel's banner"):
        assert KernelFiles.inside(tmp_path).banner
    (tmp_path / "kernel-build-id").write_text("../../x\n")
    with pytest.raises(ResolveError, match="no build-id"):
        assert KernelFiles.inside(tmp_path).build_id


def test_pushing(
    headers: Path,
    tmp_path: Path,
    captured: Callable[[], Captured],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert headers
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    layout = pack(captured(), tmp_path / "image")
    with SmallRegistry() as server:
        image = Reference.parse(f"{server.host}/me/kernel:6.10.14")
        registry = Registry(Http(), {})
        push(registry, image, layout)
        document = registry.get(image)
        assert document.digest == layout.manifest.digest
        assert registry.platforms(image, document) == {AMD64: document.digest}


@pytest.mark.parametrize("pushed", [True, False])
@pytest.mark.parametrize("bootable", [True, False])
def test_what_is_told(tmp_path: Path, pushed: bool, bootable: bool) -> None:
    told = Captured(
        RELEASE,
        BANNER,
        AMD64,
        "",
        tmp_path,
        None,
        tmp_path if bootable else None,
        {"headers": "/usr/src/h", **({"kernel": "/boot/vmlinuz"} if bootable else {})},
        () if bootable else ("/kernel is another kernel: Linux version 6.9",),
    )

    digest = Digest("sha256:" + "a" * 64)
    text = show(told, IMAGE, digest, pushed=pushed)
    golden = GOLDEN / f"{'pushed' if pushed else 'local'}-{'bootable' if bootable else 'not'}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_tag_without_a_version_needs_the_zfs_version(tmp_path: Path) -> None:
    told = Captured(RELEASE, BANNER, AMD64, "", tmp_path, None, None, {}, ())
    assert "  zfs: VERSION" in "\n".join(entry_lines(told, Reference.parse("me/kernel:mine")))


@pytest.mark.parametrize("name", ["me/kernel", f"me/kernel:1@sha256:{'a' * 64}"])
def test_an_image_needs_a_tag(name: str) -> None:
    with pytest.raises(ConfigurationError, match="needs a tag"):
        check_name(Reference.parse(name))


def test_paths_that_leave_the_tree_are_not_taken(tmp_path: Path) -> None:
    tar = tmp_path / "evil.tar"
    with tarfile.open(tar, "w") as archive:
        for name in ("../out", "a/../../out", "kept"):
            archive.addfile(tarfile.TarInfo(name))
        device = tarfile.TarInfo("device")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    with Trees() as trees:
        trees.add(tar)
        trees.write(tmp_path / "good.tar", "usr/src/x")
    assert names(tmp_path / "good.tar") == {"usr/src/x/kept"}


@pytest.mark.parametrize(
    ("end", "when"),
    [
        ("#1 SMP PREEMPT_DYNAMIC Thu Oct 24 19:28:55 UTC 2024", datetime(2024, 10, 24, 19, 28, 55)),
        ("#1 SMP Debian 6.1.192-1 (2026-01-02)", datetime(2026, 1, 2)),
        ("#1 SMP Thu Oct 44 19:28:55 UTC 2024", datetime(1970, 1, 1)),
        ("#1 SMP @0", datetime(1970, 1, 1)),
    ],
)
def test_when_a_kernel_was_built(end: str, when: datetime) -> None:
    assert built_at(f"Linux version 6 (me@here) (gcc) {end}") == when.replace(tzinfo=UTC)


def test_a_loop_of_links_is_no_place(root: Path, captured: Callable[[], Captured]) -> None:
    (root / f"lib/modules/{RELEASE}/build").symlink_to(f"/lib/modules/{RELEASE}/build")
    with pytest.raises(ReleaseError, match="has no headers"):
        captured()

"""Whether the headers of another build can be taken with a kernel's own seed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from release.seed import PLUGIN, misfits

NEW_SEED, NEW_HASH = "scripts/basic/randstruct.seed", "include/generated/randstruct_hash.h"
OLD_SEED = "scripts/gcc-plugins/randomize_layout_seed.h"
OLD_HASH = "include/generated/randomize_layout_hash.h"
SYMVERS = (
    "0x00000001\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n0x00000002\tkmalloc\tvmlinux\tEXPORT_SYMBOL\t\n"
)
HEADERS: dict[str, str] = {
    ".config": "CONFIG_SMP=y\nCONFIG_RANDSTRUCT=y\nCONFIG_RANDSTRUCT_FULL=y\n"
    "CONFIG_GCC_PLUGIN_RANDSTRUCT=y\n",
    "Module.symvers": SYMVERS,
    "include/generated/utsrelease.h": '#define UTS_RELEASE "5.15.49-linuxkit"\n',
    "include/generated/compile.h": '#define LINUX_COMPILE_HOST "a"\n'
    '#define LINUX_COMPILER "gcc (Alpine 10.2.1) 10.2.1"\n',
    NEW_SEED: "1d1d",
    NEW_HASH: '#define RANDSTRUCT_HASHED_SEED "aa"',
    PLUGIN: "1d1d",
}


def tar(path: Path, files: Mapping[str, str | None]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            if text is not None:
                member = tarfile.TarInfo(f"usr/src/linux-headers-5.15.49-linuxkit/{name}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    return path


def _misfits(
    tmp_path: Path, own: Mapping[str, str | None], other: Mapping[str, str | None]
) -> list[tuple[str, str]]:
    left = tar(tmp_path / "a.tar", {**HEADERS, **own})
    right = tar(tmp_path / "b.tar", {**HEADERS, **other})
    return [(misfit.what, misfit.detail) for misfit in misfits(left, right)]


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ({}, {}),
        ({}, {NEW_SEED: "2e2e", NEW_HASH: "bb", PLUGIN: "2e2e"}),
        ({NEW_SEED: None, NEW_HASH: None, OLD_SEED: "1d1d", OLD_HASH: "aa"}, {}),
        (
            {},
            {"include/generated/compile.h": '#define LINUX_COMPILER "gcc (Alpine 10.2.1) 10.2.1"'},
        ),
    ],
    ids=["the same", "another seed", "before Linux 5.19", "another host"],
)
def test_the_seed_may_differ(
    tmp_path: Path, own: Mapping[str, str | None], other: Mapping[str, str | None]
) -> None:
    assert _misfits(tmp_path, own, other) == []


@pytest.mark.parametrize(
    ("file", "text", "what", "detail"),
    [
        (
            "include/generated/utsrelease.h",
            '#define UTS_RELEASE "5.15.50-linuxkit"',
            "differ in the kernel release",
            'this kernel    #define UTS_RELEASE "5.15.49-linuxkit"\n'
            'other headers  #define UTS_RELEASE "5.15.50-linuxkit"',
        ),
        (
            ".config",
            f"{HEADERS['.config']}CONFIG_NUMA=y\n",
            "differ in .config",
            "other headers  CONFIG_NUMA=y",
        ),
        (
            "Module.symvers",
            SYMVERS.replace("0x00000002", "0x00000003"),
            "differ in Module.symvers",
            "this kernel    0x00000002\tkmalloc\tvmlinux\tEXPORT_SYMBOL\t\n"
            "other headers  0x00000003\tkmalloc\tvmlinux\tEXPORT_SYMBOL\t",
        ),
        (
            "include/generated/compile.h",
            '#define LINUX_COMPILER "gcc (Alpine 11.2.1) 11.2.1"',
            "differ in the compiler",
            'this kernel    #define LINUX_COMPILER "gcc (Alpine 10.2.1) 10.2.1"\n'
            'other headers  #define LINUX_COMPILER "gcc (Alpine 11.2.1) 11.2.1"',
        ),
    ],
)
def test_nothing_else_may_differ(
    tmp_path: Path, file: str, text: str, what: str, detail: str
) -> None:
    assert _misfits(tmp_path, {}, {file: text}) == [(what, detail)]


def test_of_many_differences_the_first_are_shown(tmp_path: Path) -> None:
    config = HEADERS[".config"] + "".join(f"CONFIG_X{n}=y\n" for n in range(10))
    ((_, detail),) = _misfits(tmp_path, {}, {".config": config})
    assert detail.splitlines()[0] == "other headers  CONFIG_X0=y"
    assert detail.splitlines()[-1] == "and 7 lines more"


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ((NEW_SEED,), "have no seed to be put in"),
        ((NEW_HASH,), "have no seed to be put in"),
        ((PLUGIN,), "have no plugin to be put in"),
    ],
)
def test_without_the_kernels_own_seed_nothing_can_be_put_in(
    tmp_path: Path, missing: tuple[str, ...], what: str
) -> None:
    assert [found for found, _ in _misfits(tmp_path, dict.fromkeys(missing), {})] == [what]


def test_a_kernel_without_random_layouts_needs_no_seed(tmp_path: Path) -> None:
    plain = {".config": "CONFIG_SMP=y\n", NEW_SEED: None, NEW_HASH: None, PLUGIN: None}
    assert _misfits(tmp_path, plain, plain) == []


@pytest.mark.parametrize("file", [".config", "Module.symvers"])
def test_what_neither_says_cannot_be_compared(tmp_path: Path, file: str) -> None:
    ((what, detail),) = _misfits(tmp_path, {file: None}, {file: None})
    assert what == f"do not say {file}"
    assert detail == f"{file} is missing or empty"

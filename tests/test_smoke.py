"""The gate: what passes, and what is told about an image that does not."""

from __future__ import annotations

import dataclasses
import io
import re
import tarfile
from pathlib import Path

import pytest

from release.boot import Boot, Emulator
from release.errors import SmokeError
from release.guest import MEMORY_MIB, Outcome, Transcript
from release.smoke import SmokeResult, problems, smoke
from tests.lab.built import Built

NOTHING = "taint 0"
LOADED = "taint 12289\nfilesystem zfs\ndevice /dev/zfs\nmodule zfs\nmodule spl"
UNLOADED = "taint 12289"

POOL = "\n".join(
    f"step {step} 12 400000"
    for step in [
        "create",
        "write",
        "snapshot",
        "overwrite",
        "export",
        "import",
        "scrub",
        "compare",
        "destroy",
    ]
)

GOOD = {
    "banner": "Linux version 6.1.0 (me@here) #1 SMP",
    "state-after-boot": NOTHING,
    "check": "",
    "state-after-check": NOTHING,
    "load": "",
    "state-after-load": LOADED,
    "load-again": "",
    "state-after-load-again": LOADED,
    "pool": POOL,
    "state-after-pool": LOADED,
    "unload": "",
    "state-after-unload": UNLOADED,
    "reload": "",
    "state-after-reload": LOADED,
}


@dataclasses.dataclass(frozen=True)
class Facts:
    kernel_release: str = "6.1.0"
    kernel_banner: str = GOOD["banner"]
    zfs_version: str = "2.1.11"


def _verdict(outputs: dict[str, str], **changes: int | str) -> list[str]:
    """What is wrong with a boot that printed this; ``load`` differs from a good one in changes."""
    outcomes = {name: Outcome(name, 0, output, "") for name, output in outputs.items()}
    outcomes["load"] = dataclasses.replace(outcomes["load"], **changes)  # type: ignore[arg-type]
    transcript = Transcript(outcomes, Boot("", "tcg", 1.0))
    return [problem for _, problem in problems(transcript, Facts(), ["spl", "zfs"])]


def test_nothing_is_wrong_with_a_good_boot() -> None:
    assert _verdict(GOOD) == []
    assert _verdict(GOOD, kernel_log="[ 3.1] zfs: module license 'CDDL' taints kernel.") == []


@pytest.mark.parametrize(
    ("name", "output", "problem"),
    [
        ("banner", "Linux version 6.1.0 (me@there) #2 SMP", "another kernel was expected"),
        ("state-after-check", "taint 0\nmodule spl", "check changed something"),
        ("state-after-load", LOADED.replace("module spl", ""), "not loaded after load: spl"),
        ("state-after-load", LOADED.replace("device /dev/zfs", ""), "no zfs in .* after load"),
        ("state-after-load", LOADED.replace("filesystem zfs", ""), "no zfs in .* after load"),
        ("state-after-load", LOADED.replace("12289", "12417"), "load tainted the kernel: D"),
        ("state-after-load-again", f"{LOADED}\nmodule loop", "the second load changed something"),
        ("pool", POOL.replace("step scrub 12 400000\n", ""), "the pool's life was create write"),
        ("pool", "", "the pool's life was nothing"),
        ("state-after-pool", LOADED.replace("12289", "12801"), "pool tainted the kernel: W"),
        ("state-after-unload", LOADED, "zfs is still there after unload"),
        ("state-after-reload", UNLOADED, "not loaded after reload: spl zfs"),
    ],
)
def test_what_is_wrong_is_found(name: str, output: str, problem: str) -> None:
    assert re.match(problem, _verdict(GOOD | {name: output})[0])


def test_exit_codes_and_the_kernel_log_count() -> None:
    assert _verdict(GOOD, exit_code=3) == ["load ended with 3"]
    assert _verdict(GOOD, kernel_log="[ 3.1] BUG: unable to handle page fault") == [
        "the kernel complained during load: BUG: unable to handle page fault"
    ]


def test_a_kernel_that_was_tainted_from_boot_is_not_the_images_fault() -> None:
    tainted = {
        name: output.replace("taint 0", "taint 131072").replace("taint 12289", "taint 143361")
        for name, output in GOOD.items()
    }
    assert _verdict(tainted) == []


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator()


def _smoke(built: Built, tmp_path: Path, emulator: Emulator) -> SmokeResult:
    return smoke(
        kernel=built.kernel,
        layers=built.layers,
        expected=built.facts,
        architecture="amd64",
        log=tmp_path / "serial.log",
        emulator=emulator,
    )


def _with_entrypoint(built: Built, script: str, tmp_path: Path, name: str = "install-zfs") -> Built:
    """The image with another entrypoint on top, or another of its commands."""
    layer = tmp_path / "entrypoint.tar.gz"
    content = f"#!/bin/busybox sh\n{script}\n".encode()
    with tarfile.open(layer, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o755
        tar.addfile(member, io.BytesIO(content))
    return dataclasses.replace(built, layers=(*built.layers, layer))


@pytest.mark.lab
def test_a_good_image_passes(built: Built, tmp_path: Path, emulator: Emulator) -> None:
    result = _smoke(built, tmp_path, emulator)
    assert result.modules[0] == "spl"
    assert result.modules[-1] == "zfs"
    assert "Linux version" in (tmp_path / "serial.log").read_text()
    assert list(result.pool_seconds)[:3] == ["create", "write", "snapshot"]
    assert sum(result.pool_seconds.values()) < result.seconds
    assert 0 < result.peak_memory_mib < MEMORY_MIB


@pytest.mark.lab
def test_another_kernel_fails(
    built: Built, other_kernel: Path, tmp_path: Path, emulator: Emulator
) -> None:
    with pytest.raises(SmokeError, match="another kernel was expected"):
        _smoke(dataclasses.replace(built, kernel=other_kernel), tmp_path, emulator)


@pytest.mark.lab
def test_an_image_that_fakes_success_fails(
    built: Built, tmp_path: Path, emulator: Emulator
) -> None:
    image = _with_entrypoint(built, "/bin/busybox echo ZFS is loaded.", tmp_path)
    with pytest.raises(SmokeError, match=r"not loaded after load: spl .*zfs"):
        _smoke(image, tmp_path, emulator)


@pytest.mark.lab
def test_a_complaint_of_the_kernel_fails(built: Built, tmp_path: Path, emulator: Emulator) -> None:
    image = _with_entrypoint(
        built, "/bin/busybox echo '<4>WARNING: CPU: 0 PID: 1 at spl.c:1' >/dev/kmsg", tmp_path
    )
    with pytest.raises(SmokeError, match="the kernel complained during check: WARNING: CPU"):
        _smoke(image, tmp_path, emulator)


@pytest.mark.lab
def test_a_kernel_that_panics_fails_with_its_last_words(
    built: Built, tmp_path: Path, emulator: Emulator
) -> None:
    image = _with_entrypoint(built, "/bin/busybox echo c >/proc/sysrq-trigger", tmp_path)
    with pytest.raises(SmokeError, match="did not get to the end of the command check") as caught:
        _smoke(image, tmp_path, emulator)
    assert "Kernel panic" in caught.value.detail
    assert str(tmp_path / "serial.log") in caught.value.hint


@pytest.mark.lab
@pytest.mark.parametrize(
    ("command", "script", "step"),
    [
        ("zpool", "exit 0", "create"),
        # Whoever takes back nothing has the wrong content.
        ("zfs", 'case $1 in rollback) exit 0 ;; esac; exec "${0%/*}/other-zfs" "$@"', "compare"),
    ],
)
def test_a_pool_that_fails_fails(
    built: Built, tmp_path: Path, emulator: Emulator, command: str, script: str, step: str
) -> None:
    place = f"userland/{built.facts.zfs_version}"
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        for layer in built.layers:
            with tarfile.open(layer) as source:
                for member in source:
                    if member.name.removeprefix("./") == f"{place}/zfs":
                        content = source.extractfile(member)
                        member.name = f"{place}/other-zfs"
                        tar.addfile(member, content)
    image = _with_entrypoint(built, script, tmp_path, f"{place}/{command}")
    layers = (*image.layers, tmp_path / "other.tar.gz")
    with pytest.raises(SmokeError, match="pool ended with 1") as caught:
        _smoke(dataclasses.replace(image, layers=layers), tmp_path, emulator)
    assert f"step {step} failed" in caught.value.detail


@pytest.mark.lab
def test_an_image_without_the_kernel_fails_before_any_boot(
    built: Built, tmp_path: Path, emulator: Emulator
) -> None:
    with pytest.raises(SmokeError, match="no modules of ZFS"):
        _smoke(dataclasses.replace(built, layers=built.layers[:1]), tmp_path, emulator)
    assert not (tmp_path / "serial.log").exists()

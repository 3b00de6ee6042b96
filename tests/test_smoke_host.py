"""Captured kernels that cannot be booted: when they are tested, and what counts as passed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from release.build import Builder
from release.engine import Engine, Ran, Volume
from release.errors import LackingError, SmokeError, UnbuildableError
from release.kernel import KernelFiles
from release.reference import Digest, Platform, Reference
from release.resolve import EPOCH, Kernel
from release.smoke import STATE, SmokeResult
from release.smoke_host import check_machine, smoke_host
from tests.test_capture import AMD64, BANNER, RELEASE
from tests.test_smoke import POOL, Facts

MANIFEST = Digest("sha256:" + "c" * 64)
KERNEL = Kernel(
    Reference.parse("me/kernel:6.10.14"), MANIFEST, MappingProxyType({AMD64: MANIFEST}), EPOCH, {}
)
EXPECTED = Facts(kernel_release=RELEASE, kernel_banner=BANNER)


class Host(Engine):
    """Stands in for the engine of a machine: what a module image does there, without a kernel.

    Args:
        broken: the command that fails, after it did its work.
    """

    def __init__(self, *, broken: str = "", banner: str = BANNER, loaded: bool = False) -> None:
        self.broken = broken
        self.banner = banner
        self.loaded = loaded
        self.tainted = False
        self.log: list[str] = ["[1.0] boot"]
        self.commands: list[str] = []
        self.volumes: dict[str, str] = {}

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"KernelVersion": self.banner.split()[2]}, {}

    def run(self, image: str, *command: str, **options: Any) -> Ran:
        assert options["privileged"]
        assert image == "install-zfs:x"
        if "volumes" in options:
            assert options["volumes"] == {
                name: {"bind": path} for name, path in self.volumes.items()
            }
            assert list(self.volumes.values()) == [command[-1]]
            return self._run("pool", POOL)
        if "entrypoint" in options:
            return Ran(0, f"{self._shell(command[-1])}\n")
        name = command[0] if command else "load"
        return self._run(name, f"{name} was done")

    @contextmanager
    def volume(self) -> Iterator[Volume]:
        self.volumes["v"] = "/volumes/v"
        yield Volume("v", "/volumes/v")
        del self.volumes["v"]

    def _run(self, name: str, output: str) -> Ran:
        self.commands.append(name)
        if name in ("load", "unload"):
            self.loaded = name == "load"
            self.tainted = True
            self.log.append(f"[{len(self.log)}.0] {name}")
        if self.broken == f"complains during {name}":
            self.log.append("[2.1] BUG: unable to handle page fault")
        if self.broken == "last unload" and self.commands.count("unload") == 2:
            return Ran(5, "in use")
        return Ran(int(self.broken == name), f"{output}\n")

    def _shell(self, script: str) -> str:
        if script.endswith(STATE):
            lines = [f"taint {12289 if self.tainted else 0}", f"available {400000 + 100 * 1024}"]
            if self.loaded:
                lines += ["filesystem zfs", "device /dev/zfs", "module zfs", "module spl"]
            return "\n".join(lines)
        return self.banner if script.endswith("cat /proc/version") else "\n".join(self.log)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    facts = f"kernel_release={RELEASE}\nkernel_banner={BANNER}\nzfs_version=2.1.11\n"
    files = {"kernel.env": facts, "modules.load": "spl.ko\nzfs.ko\n"}
    with tarfile.open(tmp_path / "layer.tar", "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"kernels/x/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return tmp_path / "layer.tar"


def _smoke(host: Host, layer: Path) -> SmokeResult:
    return smoke_host(
        engine=host,
        image="install-zfs:x",
        layers=[layer],
        expected=EXPECTED,
        log=layer.with_name("smoke.log"),
    )


def test_a_good_image_passes_and_the_machine_is_left_as_it_was(layer: Path) -> None:
    host = Host()
    result = _smoke(host, layer)
    assert (result.modules, result.accelerator) == (("spl", "zfs"), "host")
    assert result.pool_seconds["scrub"] == 0.12
    assert result.peak_memory_mib == 100
    assert host.commands == ["check", "load", "load", "pool", "unload", "load", "unload"]
    assert host.volumes == {}
    assert not host.loaded
    assert (
        "# load-again: 0\nload was done\n[2.0] load\n# state"
        in layer.with_name("smoke.log").read_text()
    )


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("load", "load ended with 1"),
        ("check", "check ended with 1"),
        ("pool", "pool ended with 1"),
        ("complains during pool", "the kernel complained during pool: BUG"),
        ("complains during unload", "the kernel complained during unload: BUG"),
    ],
)
def test_what_is_wrong_fails_and_zfs_is_unloaded(layer: Path, broken: str, says: str) -> None:
    host = Host(broken=broken)
    with pytest.raises(SmokeError, match=says):
        _smoke(host, layer)
    assert not host.loaded


def test_zfs_that_stays_loaded_is_told(layer: Path) -> None:
    host = Host(broken="last unload")
    with pytest.raises(SmokeError, match="cannot be unloaded from this machine again"):
        _smoke(host, layer)


def test_a_machine_that_uses_zfs_is_left_alone(layer: Path) -> None:
    host = Host(loaded=True)
    with pytest.raises(SmokeError, match="loaded on this machine already"):
        _smoke(host, layer)
    assert (host.loaded, host.commands) == (True, [])


def test_another_machine_does_not_test(layer: Path) -> None:
    host = Host(banner=BANNER.replace("2024", "2025"))
    with pytest.raises(UnbuildableError, match="tested on the machine that runs"):
        _smoke(host, layer)
    assert host.commands == []
    check_machine(host, BANNER, "me/kernel:1")
    other = Host(banner=BANNER.replace("6.10.14", "6.10.15"))
    with pytest.raises(UnbuildableError, match=r"this one runs 6\.10\.15-linuxkit"):
        check_machine(other, BANNER, "me/kernel:1")


def _usable(tmp_path: Path, smoke: str, **files: str) -> KernelFiles:
    directory = tmp_path / "kernels" / MANIFEST.replace(":", "-")
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name.replace("_", "-")).write_text(text)
    return Builder(tmp_path, {}).usable_files(KERNEL, Platform("linux/amd64"), smoke=smoke)


def test_a_captured_kernel_is_built_for_where_its_entry_says_how_it_is_tested(
    tmp_path: Path,
) -> None:
    files = {"kernel_banner": f"{BANNER}\n", "kernel-dev.tar": ""}
    assert _usable(tmp_path / "host", "host", **files).banner == BANNER
    with pytest.raises(UnbuildableError, match="write smoke: host in its entry") as caught:
        _usable(tmp_path / "boot", "", **files)
    assert not isinstance(caught.value, LackingError)


@pytest.mark.parametrize("smoke", ["", "host"])
def test_an_image_with_neither_kernel_nor_banner_lacks_for_good(tmp_path: Path, smoke: str) -> None:
    with pytest.raises(LackingError, match="no /kernel"):
        _usable(tmp_path, smoke, **{"kernel-dev.tar": ""})

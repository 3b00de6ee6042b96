"""One kernel release, two builds whose structs are laid out by different seeds."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from release import guest, initramfs
from release.boot import Emulator
from release.guest import Command, Transcript
from release.kernel import KernelFiles, expected_vermagic, read_banner, read_build_id
from release.layout import Layout
from tests.lab.buildx import IMAGES
from tests.lab.setup import Run, Setup
from tests.lab.world import SEEDED_DESKTOP, SEEDED_LINUXKIT, LabKernel, World

pytestmark = pytest.mark.lab


@dataclass(frozen=True)
class Smoked:
    """What ``smoke`` left of one kernel."""

    kernel: LabKernel
    files: KernelFiles
    layout: Layout
    run: Run

    @property
    def modules(self) -> dict[str, bytes]:
        """The modules in the image, by name."""
        with tarfile.open(self.layout.layers[-1]) as layer:
            return {
                Path(member.name).name: file.read()
                for member in layer
                if member.name.endswith(".ko") and (file := layer.extractfile(member))
            }


@pytest.fixture(scope="module")
def kernels(world: World) -> tuple[LabKernel, LabKernel]:
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(world.kernel, (SEEDED_DESKTOP, SEEDED_LINUXKIT))
    return first, second


def _entry(kernel: LabKernel, headers_from: str = "") -> str:
    more = f"    headers_from: {headers_from}\n" if headers_from else ""
    return f"  - image: {kernel.reference}\n{more}"


def _smoke(setup: Setup, kernel: LabKernel, headers_from: str = "") -> Smoked:
    setup.push(kernel)
    setup.write_versions(_entry(kernel, headers_from))
    run = setup.run("smoke", "all")
    assert run.exit_code == 0, run
    (entry,) = setup.load().kernels
    layout = Layout(setup.directory / "cache" / "images" / f"{entry.slug}-amd64")
    files = setup.directory / "cache" / "kernels" / kernel.manifest.replace(":", "-")
    return Smoked(kernel, KernelFiles.inside(files), layout, run)


@pytest.fixture(scope="module")
def own(
    world: World,
    kernels: tuple[LabKernel, LabKernel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Smoked]:
    """The second kernel, its modules compiled against its own headers."""
    with Setup(world, tmp_path_factory.mktemp("own"), namespace="seed-own") as setup:
        yield _smoke(setup, kernels[1])


@pytest.fixture(scope="module")
def overridden(
    world: World,
    kernels: tuple[LabKernel, LabKernel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Smoked]:
    """The second kernel, its modules compiled against the headers of the first."""
    with Setup(world, tmp_path_factory.mktemp("other"), namespace="seed-other") as setup:
        yield _smoke(setup, kernels[1], kernels[0].reference)


@pytest.fixture(scope="module")
def first_files(overridden: Smoked, kernels: tuple[LabKernel, LabKernel]) -> KernelFiles:
    """The first kernel, which was fetched for its headers."""
    assert overridden.files.kernel
    directory = overridden.files.kernel.parent.parent
    return KernelFiles.inside(directory / kernels[0].manifest.replace(":", "-"))


def _vermagic(files: KernelFiles) -> str:
    assert files.modules
    magic = expected_vermagic(files.modules)
    assert magic
    return magic


def test_two_builds_of_one_release(
    kernels: tuple[LabKernel, LabKernel], own: Smoked, first_files: KernelFiles
) -> None:
    assert kernels[0].release == kernels[1].release
    assert first_files.kernel
    assert own.files.kernel
    assert read_banner(first_files.kernel) != read_banner(own.files.kernel)
    first, second = _vermagic(first_files).split(), _vermagic(own.files).split()
    assert first[:-1] == second[:-1]
    assert first[-1].startswith("RANDSTRUCT_")
    assert second[-1].startswith("RANDSTRUCT_")
    assert first[-1] != second[-1]


def test_the_right_seed_loads(own: Smoked) -> None:
    assert [outcome["status"] for outcome in own.run.outcomes] == ["unchanged"]
    assert own.layout.labels()["install-zfs.vermagic"] == _vermagic(own.files)


def test_the_other_builds_headers_with_this_ones_seed_give_the_same_modules(
    own: Smoked, overridden: Smoked, kernels: tuple[LabKernel, LabKernel]
) -> None:
    assert [outcome["status"] for outcome in overridden.run.outcomes] == ["unchanged"]
    labels = overridden.layout.labels()
    repository, _, _ = kernels[0].reference.rpartition(":")
    headers_image = labels.pop("install-zfs.headers-image")
    assert headers_image.startswith(repository)
    assert headers_image.endswith(f"@{kernels[0].manifest}")
    assert labels["install-zfs.vermagic"] == _vermagic(own.files)
    assert labels["install-zfs.kernel-banner"] == own.layout.labels()["install-zfs.kernel-banner"]
    assert sorted(overridden.modules) == sorted(own.modules)
    differing = [
        name for name, content in own.modules.items() if overridden.modules[name] != content
    ]
    assert differing == []


@pytest.fixture(scope="module")
def transcript(
    own: Smoked, first_files: KernelFiles, tmp_path_factory: pytest.TempPathFactory
) -> Transcript:
    """The second kernel's image on the first kernel."""
    modules = Command("modules", "cut -d' ' -f1 /proc/modules")
    facts = "/image/kernels/*/kernel.env"
    commands = [
        Command("load", "container /install-zfs"),
        Command("insmod", "insmod /image/kernels/*/spl.ko"),
        # From here on both builds have the same banner, as those of one minute on one host do.
        Command(
            "same-banner",
            f'sed -i "s|^kernel_banner=.*|kernel_banner=$(cat /proc/version)|" {facts};'
            " container /install-zfs",
        ),
        # And from here on no build-id tells them apart: not every kernel is linked with one.
        Command("no-build-id", f'sed -i "/^build_id=/d" {facts}; container /install-zfs'),
        Command(
            "modules-seen",
            "directory=/image/lib/modules/$(uname -r)/kernel/drivers/block;"
            " mkdir -p $directory; cp /loop.ko $directory; container /install-zfs",
        ),
        modules,
    ]
    assert first_files.kernel
    return guest.run(
        commands,
        kernel=first_files.kernel,
        layers=own.layout.layers,
        architecture="amd64",
        log=tmp_path_factory.mktemp("guest") / "serial.log",
        emulator=Emulator(),
        files=[initramfs.regular_file("loop.ko", _loop(first_files))],
    )


def _loop(files: KernelFiles) -> bytes:
    """One of the kernel's own modules."""
    assert files.modules
    with tarfile.open(files.modules) as tar:
        member = next(member for member in tar if member.name.endswith("/loop.ko"))
        file = tar.extractfile(member)
        assert file
        return file.read()


def test_the_loader_refuses_the_other_seed_before_anything_is_touched(
    transcript: Transcript,
) -> None:
    outcome = transcript["load"]
    assert outcome.exit_code == 3, outcome
    assert "not for the running kernel; nothing was touched" in outcome.output
    assert "version magic" not in outcome.kernel_log


def test_the_kernel_itself_refuses_the_other_seed(
    transcript: Transcript, own: Smoked, first_files: KernelFiles
) -> None:
    outcome = transcript["insmod"]
    assert outcome.exit_code != 0
    magic = f"'{_vermagic(own.files)}' should be '{_vermagic(first_files)}'"
    assert f"spl: version magic {magic}" in outcome.kernel_log


def test_with_the_same_banner_the_build_id_tells_the_kernel(
    transcript: Transcript, own: Smoked, first_files: KernelFiles
) -> None:
    outcome = transcript["same-banner"]
    assert outcome.exit_code == 3, outcome
    assert own.files.kernel
    assert first_files.kernel
    assert f"build-id {read_build_id(own.files.kernel)}" in outcome.output
    assert f"build-id {read_build_id(first_files.kernel)}" in outcome.output
    assert "version magic" not in outcome.kernel_log


def test_without_a_build_id_the_kernel_is_the_one_to_refuse(transcript: Transcript) -> None:
    outcome = transcript["no-build-id"]
    assert outcome.exit_code == 1, outcome
    assert "version magic" in outcome.output


def test_without_a_build_id_a_module_of_the_kernel_tells_the_seed(
    transcript: Transcript, own: Smoked, first_files: KernelFiles
) -> None:
    outcome = transcript["modules-seen"]
    assert outcome.exit_code == 3, outcome
    assert _vermagic(own.files) in outcome.output
    assert _vermagic(first_files) in outcome.output
    assert "version magic" not in outcome.kernel_log


def test_after_all_refusals_nothing_is_loaded(transcript: Transcript) -> None:
    assert transcript["modules"].output == ""


def test_headers_of_another_configuration_are_refused_before_the_build(
    world: World, kernels: tuple[LabKernel, LabKernel], setup: Setup
) -> None:
    reference = f"{world.registry().host}/test-seed/kernel:reconfigured"
    world.buildx.build(
        "reconfigured kernel",
        IMAGES / "reconfigured.Dockerfile",
        output=f"type=image,name={reference},push=true,unpack=false,compression-level=1",
        args={"KERNEL": kernels[0].reference, "BUILDER": kernels[0].builder},
    )
    world.client.images.remove(reference)
    setup.push(kernels[1])
    setup.write_versions(_entry(kernels[1], reference))
    run = setup.run("build", "all")
    assert run.exit_code == 1, run
    assert "cannot be taken: they differ in .config" in run.outcomes[0]["reason"]
    assert "other headers  CONFIG_LOG_BUF_SHIFT=21" in run.stderr
    assert not list((setup.directory / "cache" / "logs").glob("*.build.log"))

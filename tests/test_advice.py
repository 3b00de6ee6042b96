"""What people are told to type. Golden files are in ``golden/advice``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import docker
import pytest

from release.advice import after_build, after_linuxkit, after_on_the_spot
from release.layout import saved_labels
from release.reference import Reference
from tests.lab.setup import PROJECT, Setup
from tests.lab.world import LabKernel

GOLDEN = Path(__file__).parent / "golden" / "advice"
SLUG = "docker-for-desktop-kernel-5.15.49-13422a825f833d125942948cf8a8688cef721ead"
TAR = f"cache/zfs-{SLUG}.tar"
IMAGE = Reference.parse("docker.io/myname/install-zfs")


def compare(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(f"{text}\n")
    assert f"{text}\n" == golden.read_text()


def test_after_the_image_that_builds_on_the_spot() -> None:
    compare("on-the-spot.txt", after_on_the_spot(["2.3.4"], "cache/zfs-build.tar", IMAGE))


@pytest.mark.parametrize(("name", "tested"), [("build", False), ("smoke", True)])
def test_after_a_build(name: str, tested: bool) -> None:
    compare(f"{name}.txt", after_build(SLUG, TAR, IMAGE, tested=tested))


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("built", [True, False], ids=["built", "written"])
def test_after_the_files_for_linuxkit(system: str, built: bool) -> None:
    boot, docker = (f"cache/linuxkit-{variant}-{SLUG}" for variant in ("boot", "docker"))
    told = after_linuxkit(SLUG, TAR, boot, docker, built=built, system=system)
    compare(f"linuxkit-{system}-{'built' if built else 'written'}.txt", told)


@pytest.mark.lab
def test_what_is_told_after_a_build_is_there(built_in: Setup) -> None:
    run = built_in.run("build", "all")
    assert run.exit_code == 0, run
    (entry,) = built_in.load().kernels
    tar = f"cache/zfs-{entry.slug}.tar"
    image = Reference.parse(built_in.image)
    assert run.stdout.endswith(f"\n\n{after_build(entry.slug, tar, image, tested=False)}\n")
    local = docker.from_env().images.get(f"install-zfs:{entry.slug}")
    assert local.labels == saved_labels(built_in.directory / tar)


@pytest.mark.lab
def test_a_plain_docker_build_gives_a_working_image(
    built_in: Setup, desktop_kernel: LabKernel
) -> None:
    """As the README has it; only OpenZFS is the lab's."""
    (sources,) = (built_in.directory / "cache" / "sources").glob("zfs-*")
    arguments = {
        "ZFS_VERSION": sources.name.removeprefix("zfs-"),
        "KERNEL_IMAGE": desktop_kernel.reference,
        "BUILDER_IMAGE": desktop_kernel.builder,
    }
    given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    image = "install-zfs:by-hand"
    command = [
        "docker",
        "build",
        "-t",
        image,
        *given,
        f"--build-context=openzfs={sources}",
        str(PROJECT),
    ]
    subprocess.run(command, check=True, timeout=30 * 60)
    client = docker.from_env()
    try:
        info = client.containers.run(image, "info", remove=True).decode()
    finally:
        client.images.remove(image)
    assert f"ZFS {arguments['ZFS_VERSION']} for {desktop_kernel.release}" in info
    assert f"built for {desktop_kernel.reference}" in info

"""What people are told to type. Golden files are in ``golden/advice``."""

from __future__ import annotations

import os
from pathlib import Path

import docker
import pytest

from release.advice import after_build, after_linuxkit
from release.layout import saved_labels
from release.reference import Reference
from tests.lab.setup import Setup

GOLDEN = Path(__file__).parent / "golden" / "advice"
SLUG = "docker-for-desktop-kernel-5.15.49-13422a825f833d125942948cf8a8688cef721ead"
TAR = f"cache/zfs-{SLUG}.tar"
IMAGE = Reference.parse("docker.io/myname/install-zfs")


def compare(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(f"{text}\n")
    assert f"{text}\n" == golden.read_text()


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

"""Both platforms of a kernel on one machine, from the poll to the pull; the other one is emulated.

Compilers are slow under emulation, so this is a target of its own: ``make test-arm64``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import requests

from release.plan import asset_name, git_tag
from release.reference import Platform, Reference
from release.versions import slug
from tests.lab.debian import AMD64, ARM64
from tests.lab.emulation import emulated
from tests.lab.setup import ACCEPT, Run, Setup
from tests.lab.world import KERNELS, LINUXKIT, LabKernel, World

pytestmark = [pytest.mark.lab, pytest.mark.arm64]

BOTH = ("--platform", AMD64, "--platform", ARM64)
DESKTOP_TAG = "desktop-4.13.0"
TIMEOUT_SECONDS = 4 * 60 * 60


@dataclass(frozen=True)
class Published:
    """What one run made of a kernel for both platforms, and of one that is for arm64 alone."""

    setup: Setup
    both: LabKernel
    alone: LabKernel
    run: Run

    def outcomes(self, kernel: LabKernel) -> dict[str, str]:
        return {
            one["platform"]: one["status"]
            for one in self.run.outcomes
            if one["kernel"] == kernel.reference
        }

    def index(self, image_tag: str) -> dict[str, str]:
        """The digests of the manifests behind a tag, by platform."""
        url = f"http://{self.setup.registry_host}/v2/{self.setup.repository}/manifests/{image_tag}"
        listed = requests.get(url, headers=ACCEPT, timeout=30).json()["manifests"]
        platforms = ((one["platform"], one["digest"]) for one in listed)
        return {f"{one['os']}/{one['architecture']}": digest for one, digest in platforms}


@pytest.fixture(scope="module")
def published(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    directory = tmp_path_factory.mktemp("arm64")
    with emulated(world), Setup(world, directory, namespace="arm64") as setup:
        both = world.kernel_for_both()
        image_tag = both.reference.rpartition(":")[2]
        name = f"{setup.registry_host}/{LINUXKIT.repository}:{image_tag}"
        digest = world.registry().copy(
            KERNELS, both.arm64, LINUXKIT.repository, image_tag, index=False
        )
        alone = replace(both, reference=name, digest=digest, manifest="", arm64=digest)
        for kernel in (both, alone):
            setup.push(kernel)
        setup.write_versions(f"  - image: {both.reference}\n    desktop: [4.13.0]\n")
        run = setup.run("sync", *BOTH, timeout_seconds=TIMEOUT_SECONDS)
        print(run)
        yield Published(setup, both, alone, run)
        for server in (setup.hub, setup.github, setup.gateway):
            assert server.violations == []


def test_each_platform_is_built_and_booted_and_published(published: Published) -> None:
    assert published.run.exit_code == 0, published.run
    assert published.outcomes(published.both) == {AMD64: "published", ARM64: "published"}
    for one in published.run.outcomes:
        assert "loaded and tried with a pool on its own kernel" in one["reason"]
        print(one["platform"], one["seconds"], one["reason"])


def test_a_kernel_for_one_platform_has_an_image_for_that_one(published: Published) -> None:
    assert published.outcomes(published.alone) == {ARM64: "published"}
    tag = slug(Reference.parse(published.alone.reference))
    assert [one for one in published.index(tag) if one != "unknown/unknown"] == [ARM64]


def test_one_index_and_one_release_have_both(published: Published) -> None:
    tag = slug(Reference.parse(published.both.reference))
    (kernel,) = (one for one in published.setup.load().kernels if one.slug == tag)
    assert dict(kernel.platforms) == {AMD64: published.both.manifest, ARM64: published.both.arm64}
    found = published.index(tag)
    assert {AMD64, ARM64} <= found.keys()
    assert published.setup.tags()[DESKTOP_TAG] == published.setup.tags()[tag]
    digests = {
        one["platform"]: one["digest"]
        for one in published.run.outcomes
        if one["kernel"] == published.both.reference
    }
    assert digests == {platform: found[platform] for platform in (AMD64, ARM64)}
    assert kernel.zfs
    name = git_tag(tag, kernel.zfs)
    (release,) = (one for one in published.setup.releases.releases if one.tag_name == name)
    names = {one.name for one in release.assets}
    assert {asset_name(tag, Platform(platform)) for platform in (AMD64, ARM64)} <= names


@pytest.mark.parametrize(
    ("platform", "machine"), [(AMD64, "x86_64"), (ARM64, "aarch64")], ids=["amd64", "arm64"]
)
def test_each_platform_gets_its_own_from_the_same_tag(
    published: Published, platform: str, machine: str
) -> None:
    image = f"{published.setup.image}:{DESKTOP_TAG}"
    docker("pull", "--quiet", "--platform", platform, image)
    try:
        run = ("run", "--rm", "--platform", platform)
        assert docker(*run, "--entrypoint", "/bin/busybox", image, "uname", "-m") == machine
        (about,) = json.loads(docker(*run, image, "info", "--json"))["kernels"]
        assert about["architecture"] == machine
        assert about["kernel_release"].endswith(platform.partition("/")[2])
    finally:
        docker("rmi", "--force", image)


def test_the_next_run_has_nothing_to_do(published: Published) -> None:
    run = published.setup.run("sync", *BOTH)
    assert run.exit_code == 0, run
    assert [one["status"] for one in run.outcomes] == ["unchanged"] * 3


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

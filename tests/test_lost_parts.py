"""What indexes hold and the registry lost: images of one platform, and what attests them."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import pytest

from tests.lab.module_images import AMD64, ARM64
from tests.recorded import IMAGES, Kernel, Recorded

VERSION = "5.4.39"
SLUG = f"linuxkit-kernel-{VERSION}"
MODULES = f"{SLUG}-modules"
ATTESTATION = "unknown"
"""What an index has in place of an attestation's architecture (buildkit, "attestation-storage.md").
"""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def images(setup: Recorded) -> MutableMapping[str, tuple[str, bytes]]:
    return setup.registry.manifests[IMAGES]


def children(setup: Recorded, tag: str) -> list[tuple[str, str]]:
    """The digests in an index, each with the architecture that it says."""
    _, content = images(setup)[tag]
    held = json.loads(content)["manifests"]
    return [(one["digest"], one["platform"]["architecture"]) for one in held]


def of(setup: Recorded, tag: str, architecture: str) -> str:
    """The attestation of an architecture's image."""
    image = next(digest for digest, arch in children(setup, tag) if arch == architecture)
    for one in json.loads(images(setup)[tag][1])["manifests"]:
        if one.get("annotations", {}).get("vnd.docker.reference.digest") == image:
            return str(one["digest"])
    raise AssertionError(f"{tag} has none for {architecture}")


def run_on(setup: Recorded, architecture: str, *arguments: str) -> None:
    """A run on another machine, which knows nothing of those before."""
    setup.forget()
    setup.machine = MACHINES[architecture]
    run = setup.run("sync", *arguments)
    assert run.exit_code == 0, run


def write(setup: Recorded, kernel: Kernel) -> None:
    entry = f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n"
    setup.write_versions(entry, on_the_spot=True)


def upgrade(setup: Recorded) -> None:
    setup.release_openzfs("2.1.17", "3.10", "6.7")
    setup.follow_newest_zfs()


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Recorded]:
    with Recorded(tmp_path) as setup:
        write(setup, setup.push_kernel(VERSION))
        assert setup.run("sync").exit_code == 0
        yield setup
        assert setup.violations == []


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Recorded]:
    """Two machines have published, one after the other."""
    with Recorded(tmp_path) as setup:
        write(setup, setup.push_kernel(VERSION, [AMD64, ARM64]))
        for architecture in MACHINES:
            run_on(setup, architecture)
        yield setup
        assert setup.violations == []


@pytest.mark.parametrize("tag", [SLUG, MODULES, "latest", "build"])
@pytest.mark.parametrize("what", ["images", "attestations", "both"])
def test_what_an_index_leads_to_is_brought_back(setup: Recorded, tag: str, what: str) -> None:
    before, tags, builds = set(images(setup)), setup.tags(), setup.builds
    for digest, architecture in children(setup, tag):
        if what == "both" or (architecture == ATTESTATION) == (what == "attestations"):
            del images(setup)[digest]
    assert set(images(setup)) < before
    plan = setup.run("plan", "--verify")
    assert "was missing" in plan.stdout or f"{tag} is behind" in plan.stdout, plan
    run = setup.run("sync", "--verify")
    assert run.exit_code == 0, run
    assert "repaired: " in run.stdout + run.stderr
    assert (set(images(setup)), setup.tags(), setup.builds) == (before, tags, builds)
    again = setup.run("sync", "--verify")
    assert again.exit_code == 0, again
    assert "repaired: " not in again.stdout + again.stderr


@pytest.mark.parametrize("what", ["image", "attestation"])
def test_build_is_not_stuck_with_what_it_lost_of_another_platform(
    both: Recorded, what: str
) -> None:
    found = {arch: digest for digest, arch in children(both, "build")}
    del images(both)[found["arm64"] if what == "image" else of(both, "build", "arm64")]
    both.release_openzfs("2.1.17", "3.10", "6.7")
    before = both.tags()["build"]
    for architecture in MACHINES:
        run_on(both, architecture)
    assert both.tags()["build"] != before
    assert {arch for _, arch in children(both, "build")} == {"amd64", "arm64", ATTESTATION}
    assert all(digest in images(both) for digest, _ in children(both, "build"))


@pytest.mark.parametrize("tag", [SLUG, MODULES])
def test_an_attestation_that_one_platform_lost_keeps_no_newer_zfs_from_the_other(
    both: Recorded, tag: str
) -> None:
    del images(both)[of(both, tag, "arm64")]
    upgrade(both)
    before = both.tags()
    run_on(both, "amd64")
    assert both.tags()[tag] != before[tag]
    # It is there again: what it says follows from the image.
    assert all(digest in images(both) for digest, _ in children(both, tag))
    run_on(both, "arm64")
    tags = both.tags()
    assert tags["desktop-4.13.0"] == tags[SLUG] != before["desktop-4.13.0"]


def test_latest_does_without_a_kernel_whose_image_is_gone(setup: Recorded) -> None:
    other = setup.push_kernel("5.4.40")
    setup.path.write_text(f"{setup.path.read_text()}  - image: {other.reference}\n")
    assert setup.run("sync").exit_code == 0
    for digest, architecture in children(setup, other.slug):
        if architecture != ATTESTATION:
            del images(setup)[digest]
    del images(setup)["latest"]
    setup.forget()
    # It was not looked at behind the kernel's tag in this run.
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert "latest lacks what is published" in run.stderr
    assert "latest" in setup.tags()

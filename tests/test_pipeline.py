"""The whole pipeline on real parts: a new kernel tag becomes a published, loadable ZFS module."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
import requests
from semver import Version

from release.http import Http
from release.reference import Reference, parse_digest
from release.registry import Registry
from release.versions import modules_tag
from tests.lab.hub import Image
from tests.lab.leaks import leaks
from tests.lab.setup import TOKEN, Run, Setup, requests_by_host
from tests.lab.world import NEWER, LabKernel, World

pytestmark = pytest.mark.lab


def _push_two(setup: Setup, desktop_kernel: LabKernel, linuxkit_kernel: LabKernel) -> None:
    setup.push(desktop_kernel)
    setup.push(linuxkit_kernel)
    setup.write_versions(f"  - image: {desktop_kernel.reference}\n    desktop: [4.13.0]\n")


@pytest.fixture
def two_kernels(setup: Setup, desktop_kernel: LabKernel, linuxkit_kernel: LabKernel) -> Setup:
    """One kernel written by hand with its Desktop version, one that only Docker Hub knows."""
    _push_two(setup, desktop_kernel, linuxkit_kernel)
    return setup


@dataclass(frozen=True)
class Published:
    """What one ``sync`` made of one of two kernels, for tests that change nothing of it."""

    setup: Setup
    run: Run


@pytest.fixture(scope="module")
def published(
    world: World,
    desktop_kernel: LabKernel,
    linuxkit_kernel: LabKernel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Published]:
    with Setup(world, tmp_path_factory.mktemp("published"), namespace="published") as setup:
        _push_two(setup, desktop_kernel, linuxkit_kernel)
        run = setup.run("sync", "--only", "desktop-4.13.0")
        assert run.exit_code == 0, run
        yield Published(setup, run)
        for server in (setup.hub, setup.github, setup.gateway):
            assert server.violations == []


def test_new_tags_are_published_and_a_second_run_does_nothing(
    two_kernels: Setup, desktop_kernel: LabKernel, linuxkit_kernel: LabKernel
) -> None:
    setup = two_kernels
    top = setup.path.read_text()

    first = setup.run("sync")

    assert first.exit_code == 0, first
    assert {(one["kernel"], one["platform"], one["status"]) for one in first.outcomes} == {
        (desktop_kernel.reference, "linux/amd64", "published"),
        (linuxkit_kernel.reference, "linux/amd64", "published"),
    }
    entries = {str(entry.image): entry for entry in setup.load().kernels}
    assert set(entries) == {desktop_kernel.reference, linuxkit_kernel.reference}
    tags = setup.tags()
    slugs = {entry.slug for entry in entries.values()}
    assert set(tags) == {"desktop-4.13.0", "latest", *slugs, *map(modules_tag, slugs)}
    for kernel in (desktop_kernel, linuxkit_kernel):
        entry = entries[kernel.reference]
        assert (entry.digest, str(entry.builder), entry.zfs) == (
            kernel.digest,
            kernel.builder,
            "2.1.11",
        )
        outcome = next(one for one in first.outcomes if one["kernel"] == kernel.reference)
        assert outcome["digest"] == setup.manifest(entry.slug)
        assert outcome["image"] == f"{setup.image}:{entry.slug}"
        (release,) = [
            one for one in setup.releases.releases if one.tag_name == outcome["github_release"]
        ]
        assert not release.draft
        asset = f"zfs-{entry.slug}-amd64.tar.xz"
        beside = {f"zfs-{entry.slug}-amd64.{kind}" for kind in ("spdx.json", "intoto.jsonl")}
        assert {one.name for one in release.assets} == {asset, *beside, "SHA256SUMS"}
    assert tags["desktop-4.13.0"] == tags[entries[desktop_kernel.reference].slug]
    # What people wrote is as it was; facts were added behind it.
    assert setup.path.read_text().startswith(top)
    assert "  - image: " + linuxkit_kernel.reference in setup.path.read_text()

    said = {"stdout": first.stdout, "stderr": first.stderr}
    texts = said | {one.tag_name: one.body or "" for one in setup.releases.releases}
    assert leaks({"the token": TOKEN}, texts, [setup.directory]) == []

    written = setup.path.read_bytes()
    for server in (setup.hub, setup.github, setup.gateway):
        server.requests.clear()
    second = setup.run("sync")

    assert second.exit_code == 0, second
    assert {one["status"] for one in second.outcomes} == {"unchanged"}
    assert setup.path.read_bytes() == written
    seen = [one for server in (setup.hub, setup.github, setup.gateway) for one in server.requests]
    # Nothing is pulled: manifests are asked for by HEAD alone, `latest` and its record, and the
    # kernel's tag whose turn it is.
    manifests = [one for one in seen if "/manifests/" in one.path]
    assert [one.method for one in manifests] == ["HEAD"] * 3
    assert {one.method for one in seen if one not in manifests} == {"GET"}
    assert not [one for one in seen if "/blobs/" in one.path]
    assert len(seen) == requests_by_host(second.stderr) <= 10


def test_what_is_damaged_in_the_registry_is_brought_back_from_the_release(
    two_kernels: Setup, desktop_kernel: LabKernel
) -> None:
    """The other damages are in test_repair.py, with a registry of a few lines."""
    setup = two_kernels
    choice = ("sync", "--only", desktop_kernel.reference, "--verify")
    assert setup.run(*choice).exit_code == 0
    tags, releases = setup.tags(), setup.releases.releases
    (release,) = releases
    assets = {one.name: one.digest for one in release.assets}
    entry = setup.load().kernels[0]
    registry = Registry(Http(), {})

    def somebody_pushes() -> None:
        for image_tag in (entry.slug, "desktop-4.13.0"):
            strange = registry.get(Reference.parse(f"{setup.image}:latest"))
            registry.put(Reference.parse(f"{setup.image}:{image_tag}"), strange)

    for damage, said in (
        (setup.empty, "the image was missing"),
        (somebody_pushes, f"{entry.slug} pointed to sha256:"),
    ):
        shutil.rmtree(setup.directory / "cache")
        damage()
        run = setup.run(*choice)
        assert run.exit_code == 0, run
        (outcome,) = [one for one in run.outcomes if one["kernel"] == desktop_kernel.reference]
        assert outcome["status"] == "published"
        assert outcome["reason"].startswith("repaired: ")
        assert said in outcome["reason"]
        assert setup.tags() == tags
        assert {one.name: one.digest for one in release.assets} == assets
        assert not list((setup.directory / "cache" / "logs").glob("docker-*.build.log"))


def test_labels_say_what_is_in_the_image(published: Published, desktop_kernel: LabKernel) -> None:
    setup = published.setup
    registry = Registry(Http(), {})
    reference = Reference.parse(f"{setup.image}:desktop-4.13.0")
    document = registry.get(reference.at(parse_digest(setup.manifest("desktop-4.13.0"))))
    labels = registry.labels(reference, document.digest)
    assert labels["install-zfs.kernel-image"] == desktop_kernel.reference
    assert labels["install-zfs.kernel-digest"] == desktop_kernel.manifest
    assert labels["install-zfs.kernel-release"] == desktop_kernel.release
    assert labels["install-zfs.kernel-banner"].startswith(
        f"Linux version {desktop_kernel.release} "
    )
    assert labels["install-zfs.vermagic"].startswith(f"{desktop_kernel.release} SMP ")
    assert labels["install-zfs.zfs-version"] == "2.1.11"
    assert labels["install-zfs.builder-image"] == desktop_kernel.builder
    builder = Reference.parse(desktop_kernel.builder)
    assert labels["install-zfs.builder-digest"] == registry.head(builder)
    assert f"builder {builder} (label), gcc (Debian " in published.run.stderr
    size = sum(layer["size"] for layer in document.content["layers"])
    assert size < 10_000_000
    for field, digests in (
        ("SBOM", (desktop_kernel.manifest, document.digest)),
        ("Provenance", (desktop_kernel.manifest, labels["install-zfs.builder-digest"])),
    ):
        command = [
            "docker",
            "buildx",
            "imagetools",
            "inspect",
            "--format",
            f"{{{{json .{field}}}}}",
        ]
        shown = subprocess.run(
            [*command, f"{setup.image}:desktop-4.13.0"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        assert all(digest.removeprefix("sha256:") in shown for digest in digests)


def test_a_second_tag_is_published_beside_the_first_and_not_built_again(
    setup: Setup, desktop_kernel: LabKernel
) -> None:
    setup.push(desktop_kernel)
    images: list[Image] = [("linux", "amd64", None, desktop_kernel.manifest, 1)]
    setup.hub.repository("docker", "for-desktop-kernel").push(
        "desktop-4.13.0", desktop_kernel.digest, images
    )
    setup.write_versions()
    run = setup.run("sync")
    assert run.exit_code == 0, run
    (outcome,) = run.outcomes
    assert outcome["status"] == "published"
    assert "is another tag of" in run.stderr
    (entry,) = setup.load().kernels
    assert [alias.tag for alias in entry.aliases] == ["desktop-4.13.0"]
    second = "docker-for-desktop-kernel-desktop-4.13.0"
    tags = setup.tags()
    assert tags.keys() == {entry.slug, modules_tag(entry.slug), second, "latest"}
    assert tags[entry.slug] == tags[second]
    assert setup.manifest(second) == outcome["digest"]
    assert [one["status"] for one in setup.run("sync").outcomes] == ["unchanged"]


def test_choosing_leaves_out_but_loses_nothing(
    published: Published, desktop_kernel: LabKernel, linuxkit_kernel: LabKernel
) -> None:
    setup = published.setup
    assert {one["kernel"]: one["status"] for one in published.run.outcomes} == {
        desktop_kernel.reference: "published",
        linuxkit_kernel.reference: "skipped",
    }
    assert len(setup.load().kernels) == 2
    assert setup.run("sync", "--limit", "0").exit_code == 0
    slug = setup.load().kernels[0].slug
    assert set(setup.tags()) == {"desktop-4.13.0", "latest", slug, modules_tag(slug)}


def test_a_failed_kernel_does_not_hold_back_a_good_one(
    setup: Setup, world: World, desktop_kernel: LabKernel
) -> None:
    """ZFS 2.1.11 refuses Linux 6.12, which its configure says itself."""
    world.up([NEWER])
    newer = world.kernel(NEWER)
    setup.push(desktop_kernel)
    setup.push(newer)
    setup.write_versions(f"  - image: {newer.reference}\n    zfs: 2.1.11\n")

    run = setup.run("sync")

    assert run.exit_code == 1, run
    assert {one["kernel"]: one["status"] for one in run.outcomes} == {
        newer.reference: "failed",
        desktop_kernel.reference: "published",
    }
    (log,) = (setup.directory / "cache" / "logs").glob("docker-for-desktop-kernel-6.12*.build.log")
    assert str(log.relative_to(setup.directory)) in run.stderr
    assert "configure: error" in log.read_text()
    assert "ZFS Version: zfs-2.1.11" in run.stderr
    assert len(setup.releases.releases) == 1


def test_a_newer_zfs_for_a_newer_kernel(setup: Setup, world: World) -> None:
    """From 2.3 on there are two modules, spl and zfs."""
    world.up([NEWER])
    newer = world.kernel(NEWER)
    setup.push(newer)
    known = {release.tag_name for release in setup.openzfs.releases}
    for version in world.openzfs:
        if f"zfs-{version}" not in known:
            setup.release_openzfs(version)
    setup.write_versions()
    setup.run("poll")
    run = setup.run("smoke", newer.reference)
    assert run.exit_code == 0, run
    (entry,) = setup.load().kernels
    (passed,) = (setup.directory / "cache" / "smoke").glob("*.json")
    assert json.loads(passed.read_text())["modules"] == ["spl", "zfs"]
    assert entry.zfs is None, "only publishing records"


def test_a_newer_zfs_replaces_a_published_one_where_the_policy_says_so(
    setup: Setup, world: World, desktop_kernel: LabKernel
) -> None:
    world.up([NEWER])
    setup.push(desktop_kernel)
    setup.write_versions(f"  - image: {desktop_kernel.reference}\n    desktop: [4.13.0]\n")
    assert setup.run("sync").exit_code == 0
    old, before = setup.tags(), setup.path.read_text()
    newest = max(world.openzfs, key=Version.parse)
    setup.release_openzfs(newest)
    (unchanged,) = setup.run("sync").outcomes
    assert unchanged["status"] == "unchanged", "a newer release alone changes nothing"

    switched_on = before.replace("openzfs:\n", "openzfs:\n  policy: latest\n")
    setup.path.write_text(switched_on)
    run = setup.run("sync")

    assert run.exit_code == 0, run
    assert [one["status"] for one in run.outcomes] == ["published"]
    assert setup.path.read_text() == switched_on.replace("zfs: 2.1.11", f"zfs: {newest}")
    assert setup.tags().keys() == old.keys()
    assert not set(setup.tags().values()) & set(old.values())
    (entry,) = setup.load().kernels
    assert [release.tag_name for release in setup.releases.releases] == [
        f"{entry.slug}-zfs-2.1.11",
        f"{entry.slug}-zfs-{newest}",
    ]
    assert [one["status"] for one in setup.run("sync").outcomes] == ["unchanged"]


def test_the_sideload_tar_loads(published: Published, desktop_kernel: LabKernel) -> None:
    setup = published.setup
    (release,) = setup.releases.releases
    assets = {asset.name: _bytes(asset.content) for asset in release.assets}
    sums = assets.pop("SHA256SUMS").decode()
    assert sums == "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in sorted(assets.items())
    )
    (content,) = (content for name, content in assets.items() if name.endswith(".tar.xz"))

    client = docker.from_env()
    entry = setup.load().kernels[0]
    local = f"install-zfs:{entry.slug}"
    client.images.load(content)
    info = client.containers.run(local, "info", remove=True).decode()
    assert desktop_kernel.release in info
    assert "2.1.11" in info
    # What the image says to type next goes by the published name.
    assert client.images.get(f"{setup.image}:{entry.slug}") == client.images.get(local)
    with pytest.raises(docker.errors.ContainerError) as refused:
        client.containers.run(local, remove=True)
    assert refused.value.exit_status == 4
    assert b"--privileged" in (refused.value.stderr or b"")


def test_a_kernel_image_without_headers_is_skipped(
    setup: Setup, world: World, desktop_kernel: LabKernel, tmp_path: Path
) -> None:
    image_tag = f"6.9.1-{'b' * 40}"
    reference = f"{setup.registry_host}/docker/for-desktop-kernel:{image_tag}"
    (tmp_path / "Dockerfile").write_text(
        f"FROM {desktop_kernel.reference} AS whole\nFROM scratch\nCOPY --from=whole /kernel /\n"
        f"LABEL org.mobyproject.linuxkit.kernel.buildimage={desktop_kernel.builder}\n"
    )
    world.buildx.build(
        "kernel without headers",
        tmp_path / "Dockerfile",
        output=f"type=image,name={reference},push=true,unpack=false",
    )
    world.client.images.remove(reference)
    setup.write_versions(f"  - image: {reference}\n    zfs: 2.1.11\n")
    run = setup.run("publish", "all")
    assert run.exit_code == 0, run
    assert [(one["status"], one["reason"]) for one in run.outcomes] == [
        ("skipped", "the kernel image has no kernel-dev.tar to compile against")
    ]
    # It takes no place from a kernel that can be worked on, though it is the newer one.
    setup.push(desktop_kernel)
    digest = world.registry().digest("docker/for-desktop-kernel", image_tag)
    setup.hub.repository("docker", "for-desktop-kernel").push(image_tag, digest)
    setup.write_versions(f"  - image: {reference}\n    zfs: 2.1.11\n")
    run = setup.run("sync", "--limit", "1")
    assert [one["status"] for one in run.outcomes] == ["skipped", "published"], run
    # What the image lacks it lacks for good: the next run neither pulls nor needs an engine.
    assert 'skip: "the kernel image has no kernel-dev.tar' in setup.path.read_text()
    again = setup.run("sync", environment={"DOCKER_HOST": "unix:///nowhere"})
    assert again.exit_code == 0, again
    assert [one["status"] for one in again.outcomes] == ["skipped", "unchanged"], again


def test_a_full_disk_fails_cleanly_and_the_next_run_goes_on(
    setup: Setup, desktop_kernel: LabKernel
) -> None:
    setup.push(desktop_kernel)
    setup.write_versions(f"  - image: {desktop_kernel.reference}\n")
    cache = setup.directory / "cache"
    cache.mkdir()
    before = setup.path.read_bytes()
    command = f"mount -t tmpfs -o size=8m tmpfs {cache} && exec python -m release publish all"
    full = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command],
        cwd=setup.directory,
        env={**setup.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert full.returncode == 1, full
    assert "No space left on device" in full.stderr
    assert setup.path.read_bytes() == before
    assert setup.tags() == {}
    assert setup.run("publish", "all").exit_code == 0


def test_an_interrupted_run_leaves_a_clean_state(setup: Setup, desktop_kernel: LabKernel) -> None:
    setup.push(desktop_kernel)
    setup.write_versions(f"  - image: {desktop_kernel.reference}\n")
    logs = setup.directory / "cache" / "logs"
    with setup.start("sync", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not list(logs.glob("*.build.log")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False)
    assert left.stdout == b"", "children outlived the run"
    assert setup.run("sync").exit_code == 0
    assert len(setup.releases.releases) == 1


def _bytes(content: bytes | Path | None) -> bytes:
    assert content is not None
    return content if isinstance(content, bytes) else content.read_bytes()


def test_downloads_need_no_account(published: Published) -> None:
    """What the README tells a sideload user to download is public."""
    setup = published.setup
    (release,) = setup.releases.releases
    url = f"{setup.github.url}/{setup.releases.full_name}/releases/download/{release.tag_name}"
    assert requests.get(f"{url}/SHA256SUMS", timeout=30).status_code == 200

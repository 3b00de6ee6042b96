"""Whatever is damaged out there, the next ``sync`` repairs, says so, and builds nothing anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.github import Release
from tests.published import Published
from tests.recorded import IMAGES, Recorded

VERSION = "5.4.39"
SLUG = f"linuxkit-kernel-{VERSION}"
ZFS = "2.1.16"
GIT_TAG = f"{SLUG}-zfs-{ZFS}"


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Recorded]:
    """A kernel is published, and the machine that did it is gone."""
    with Recorded(tmp_path) as setup:
        kernel = setup.push_kernel(VERSION)
        setup.write_versions(f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n")
        run = setup.run("sync")
        assert run.exit_code == 0, run
        assert "repaired" not in run.stdout
        forget(setup)
        yield setup
        assert setup.violations == []


def forget(setup: Recorded) -> None:
    shutil.rmtree(setup.path.parent / "cache")


def release(setup: Recorded) -> Release:
    (release,) = setup.releases.releases
    return release


def asset(setup: Recorded) -> str:
    return next(one.name for one in release(setup).assets if one.name.endswith(".tar.xz"))


def content(setup: Recorded) -> bytes:
    found = release(setup).asset(asset(setup))
    assert found
    assert isinstance(found.content, bytes)
    return found.content


def images(setup: Recorded) -> dict[str, tuple[str, bytes]]:
    return setup.registry.manifests[IMAGES]


def lose_all_images(setup: Recorded) -> None:
    """The whole repository is deleted from the registry."""
    del setup.registry.manifests[IMAGES]
    upstream = setup.upstream
    setup.registry.blobs = {
        digest: blob for digest, blob in setup.registry.blobs.items() if digest in upstream
    }


def lose_the_tag(setup: Recorded) -> None:
    del images(setup)[SLUG]


def lose_the_modules(setup: Recorded) -> None:
    del images(setup)[f"{SLUG}-modules"]


def replace_image(setup: Recorded) -> None:
    setup.registry.put_image(IMAGES, SLUG, {"Labels": {"whose": "somebody else's"}})


def move_desktop(setup: Recorded) -> None:
    images(setup)["desktop-4.13.0"] = images(setup)[f"{SLUG}-modules"]


def move_modules(setup: Recorded) -> None:
    images(setup)[f"{SLUG}-modules"] = images(setup)[SLUG]


def lose_desktop(setup: Recorded) -> None:
    del images(setup)["desktop-4.13.0"]


def delete_release(setup: Recorded) -> None:
    """The git tag stays, as it does on GitHub."""
    setup.releases.releases.clear()


def unpublish(setup: Recorded) -> None:
    release(setup).draft = True


def lose_asset(setup: Recorded) -> None:
    release(setup).assets = [one for one in release(setup).assets if one.name != asset(setup)]


def truncate_asset(setup: Recorded) -> None:
    release(setup).put_asset(asset(setup), content(setup)[:-1])


def change_asset(setup: Recorded) -> None:
    release(setup).put_asset(asset(setup), content(setup)[:-1] + b"?")


def break_asset(setup: Recorded) -> None:
    release(setup).put_asset(asset(setup), None)


def change_sums(setup: Recorded) -> None:
    release(setup).put_asset("SHA256SUMS", b"0" * 64 + b"  nothing\n")


DAMAGES: dict[str, tuple[Callable[[Recorded], None], str]] = {
    "all images deleted": (lose_all_images, "the image was missing"),
    "the image's tag deleted": (lose_the_tag, "the image was missing"),
    "the modules' tag deleted": (lose_the_modules, f"{SLUG}-modules was missing"),
    "the image replaced": (replace_image, f"{SLUG} pointed to sha256:"),
    "the Desktop's tag elsewhere": (move_desktop, "desktop-4.13.0 pointed to sha256:"),
    "the modules' tag elsewhere": (move_modules, f"{SLUG}-modules pointed to sha256:"),
    "the Desktop's tag deleted": (lose_desktop, "desktop-4.13.0 was missing"),
    "the release deleted, its git tag not": (delete_release, "the release was missing"),
    "the release a draft": (unpublish, "the release was a draft"),
    "an asset missing": (lose_asset, "amd64.tar.xz was missing"),
    "an asset truncated": (truncate_asset, " bytes in place of "),
    "an asset with another digest": (change_asset, "amd64.tar.xz had another digest"),
    "an asset never finished": (break_asset, "amd64.tar.xz was never uploaded to its end"),
    "the sums changed": (change_sums, "SHA256SUMS had "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_repaired_and_reported(setup: Recorded, damage: str) -> None:
    before = Published.by(setup)
    break_it, said = DAMAGES[damage]
    break_it(setup)
    assert Published.by(setup) != before
    builds = setup.builds

    run = setup.run("sync", "--verify", GITHUB_STEP_SUMMARY=str(setup.directory / "summary"))

    assert run.exit_code == 0, run
    assert Published.by(setup) == before
    assert setup.builds == builds, "what is still there somewhere is not built again"
    (outcome,) = run.outcomes
    assert outcome["status"] == "published"
    assert outcome["reason"].startswith("repaired: ")
    assert said in outcome["reason"]
    assert said in (setup.directory / "summary").read_text()
    assert "repaired: " in run.stdout
    assert_idle(setup)


def assert_idle(setup: Recorded) -> None:
    again = setup.run("sync", "--verify")
    assert again.exit_code == 0, again
    assert {one["status"] for one in again.outcomes} == {"unchanged"}, again

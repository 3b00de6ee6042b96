"""Whatever is damaged out there, the next ``sync`` repairs, says so, and builds nothing anew."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path

import pytest

from release import handover
from release.drift import LOOKS, share
from release.github import GitHub
from release.http import Http
from release.publish import asset_names
from release.receipt import Receipt
from release.reference import Reference
from release.registry import Registry
from release.restore import Restorer
from release.state import MOST_ATTEMPTS
from release.world import native_platform
from tests.lab.github import Release
from tests.lab.module_images import AMD64, ARM64
from tests.lab.real_registry import RealRegistry
from tests.lab.server import Response
from tests.lab.small_registry import SmallRegistry
from tests.published import Published
from tests.recorded import IMAGES, KERNELS, Recorded

VERSION = "5.4.39"
SLUG = f"linuxkit-kernel-{VERSION}"
ZFS = "2.1.16"
GIT_TAG = f"{SLUG}-zfs-{ZFS}"


@pytest.fixture(params=["small", pytest.param("real", marks=pytest.mark.lab)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> SmallRegistry | RealRegistry:
    """Distribution itself, and a few lines that do the same."""
    if request.param == "small":
        return SmallRegistry()
    return RealRegistry(request.getfixturevalue("world"), tmp_path)


@pytest.fixture
def setup(tmp_path: Path, registry: SmallRegistry | RealRegistry) -> Iterator[Recorded]:
    """A kernel is published, and the machine that did it is gone."""
    with Recorded(tmp_path, registry=registry) as setup:
        kernel = setup.push_kernel(VERSION)
        setup.write_versions(f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n")
        run = setup.run("sync")
        assert run.exit_code == 0, run
        assert [one["status"] for one in run.outcomes] == ["published"], run
        assert "repaired" not in run.stdout
        setup.forget()
        yield setup
        assert setup.violations == []


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


def images(setup: Recorded) -> MutableMapping[str, tuple[str, bytes]]:
    return setup.registry.manifests[IMAGES]


def lose_all_images(setup: Recorded) -> None:
    """The whole repository is deleted from the registry."""
    setup.registry.delete(IMAGES)


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


def rewrite_notes(setup: Recorded) -> None:
    release(setup).body = "ZFS, by hand."


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
    "the receipt taken out": (rewrite_notes, "the release's notes had no receipt"),
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


# What no single damage is


def test_what_is_nowhere_any_more_is_built_again_and_is_a_new_image(setup: Recorded) -> None:
    before = setup.tags()
    receipt = Receipt.find(release(setup).body or "")
    assert receipt
    ((_, part),) = receipt.platforms.items()
    lose_all_images(setup)
    lose_asset(setup)
    setup.change_builds("another engine")
    run = setup.run("sync")
    assert run.exit_code == 0, run
    (outcome,) = run.outcomes
    assert outcome["status"] == "published"
    assert outcome["reason"].startswith("repaired: the image was missing")
    assert f"{outcome['digest']} in place of {part.manifest}" in outcome["reason"]
    after = setup.tags()
    assert after.keys() == before.keys()
    assert after[SLUG] == after["desktop-4.13.0"] != before[SLUG]
    tags = [one.path.rpartition("/")[2] for one in setup.registry.requests if one.method == "PUT"]
    names = [name for name in tags if name in after and name != "latest"]
    assert names[-1] == "desktop-4.13.0"
    assert_idle(setup)


def test_the_same_inputs_give_the_same_image_once_they_are_recorded(setup: Recorded) -> None:
    before, builds = Published.by(setup), setup.builds
    lose_all_images(setup)
    lose_asset(setup)
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert "in place of" not in run.stdout
    assert len(setup.builds) == len(builds) + 1
    assert Published.by(setup).tags == before.tags
    assert_idle(setup)


@pytest.mark.parametrize("lost", [lose_the_tag, replace_image])
@pytest.mark.parametrize("where", [delete_release, rewrite_notes])
def test_what_a_desktop_tag_leads_to_still_is_not_built_again(
    setup: Recorded,
    lost: Callable[[Recorded], None],
    where: Callable[[Recorded], None],
) -> None:
    before, builds = setup.tags(), setup.builds
    lost(setup)
    where(setup)
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert "loaded and tried" in run.outcomes[0]["reason"]
    assert (setup.tags(), setup.builds) == (before, builds)
    assert_idle(setup)


def test_an_image_deleted_from_behind_its_index_is_repaired(setup: Recorded) -> None:
    receipt = Receipt.find(release(setup).body or "")
    assert receipt
    ((platform, part),) = receipt.platforms.items()
    del images(setup)[part.manifest]
    assert setup.run("sync").exit_code == 0
    assert part.manifest not in images(setup), "no list and no tag tells"
    before, builds = Published.by(setup), setup.builds
    run = setup.run("sync", "--verify")
    assert run.exit_code == 0, run
    assert f"repaired: the image for {platform} was missing" in run.outcomes[0]["reason"]
    assert part.manifest in images(setup)
    assert (Published.by(setup), setup.builds) == (before, builds)
    assert_idle(setup)


def test_what_strangers_add_to_a_release_is_vouched_for_by_nobody(setup: Recorded) -> None:
    sums = release(setup).asset("SHA256SUMS")
    assert sums
    release(setup).put_asset("zfs-of-mine.tar.xz", b"a stranger's")
    lose_asset(setup)
    run = setup.run("sync")
    assert run.exit_code == 1, run
    assert "zfs-of-mine.tar.xz" in run.stderr
    assert "delete what is not to be there" in run.stderr
    there = release(setup).asset("SHA256SUMS")
    assert there
    assert there.content == sums.content


def test_what_people_have_by_digest_is_never_deleted(setup: Recorded) -> None:
    replace_image(setup)
    stranger = setup.tags()[SLUG]
    assert setup.run("sync", "--verify").exit_code == 0
    assert stranger in images(setup)
    assert not [
        one
        for one in setup.registry.requests
        if one.method == "DELETE" and "/blobs/uploads/" not in one.path
    ]


def note_down_amd64_alone(there: Release) -> Receipt:
    """Takes arm64 out of a release's receipt; the receipt that there was."""
    receipt = Receipt.find(there.body or "")
    assert receipt
    files = {one: file for one, file in receipt.files.items() if "arm64" not in one}
    parts = {one: part for one, part in receipt.platforms.items() if one == AMD64}
    alone = replace(receipt, files=files, platforms=parts)
    there.body = (there.body or "").replace(str(receipt), str(alone))
    return receipt


def test_a_stranger_s_file_by_our_name_is_taken_for_nothing_that_was_tested(both: Recorded) -> None:
    """The receipt does not know it: nobody has built for that platform yet."""
    both.machine = "x86_64"
    there, name = release(both), f"zfs-{SLUG}-arm64.tar.xz"
    note_down_amd64_alone(there)
    there.put_asset(name, b"a stranger's")
    there.put_asset(f"zfs-{SLUG}-amd64.tar.xz", None)
    run = both.run("sync")
    assert run.exit_code == 0, run
    sums = there.asset("SHA256SUMS")
    assert sums
    assert isinstance(sums.content, bytes)
    assert b"arm64" not in sums.content
    assert there.asset(name) is None
    both.machine = "aarch64"
    run = both.run("sync")
    assert run.exit_code == 0, run
    found = there.asset(name)
    assert found
    assert found.content != b"a stranger's"


def test_what_a_run_uploaded_and_did_not_live_to_note_down_is_completed(both: Recorded) -> None:
    there = release(both)
    names = {one.name for one in there.assets}
    receipt = note_down_amd64_alone(there)
    both.machine = "aarch64"
    run = both.run("sync")
    assert run.exit_code == 0, run
    assert {one.name for one in there.assets} == names
    found = Receipt.find(there.body or "")
    assert found
    assert found.files.keys() == receipt.files.keys()


@pytest.fixture
def immutable(setup: Recorded) -> Recorded:
    """Releases became immutable once they were published."""
    setup.releases.immutable_releases = True
    setup.releases.publish(release(setup))
    return setup


def test_an_immutable_release_that_is_wrong_gets_a_successor(immutable: Recorded) -> None:
    setup = immutable
    old, whole = release(setup), content(setup)
    truncate_asset(setup)
    damaged = content(setup)
    images_before = setup.tags()
    run = setup.run("sync")
    assert run.exit_code == 0, run
    (outcome,) = run.outcomes
    assert outcome["github_release"] == f"{GIT_TAG}-2"
    assert outcome["reason"].startswith("repaired: ")
    kept, new = setup.releases.releases
    assert kept is old
    assert {one.name: one.content for one in kept.assets}[new.assets[0].name] == damaged
    assert new.assets[0].content == whole
    assert (new.tag_name, new.draft) == (f"{GIT_TAG}-2", False)
    why = f"takes the place of `{GIT_TAG}`, which is not right (its {new.assets[0].name} is wrong)"
    assert why in (new.body or "")
    changed = {name for name, digest in setup.tags().items() if images_before[name] != digest}
    assert changed == {"latest"}, "whose catalogue names the asset of the new release"
    assert_idle(setup)


def test_a_deleted_immutable_release_gets_a_successor(immutable: Recorded) -> None:
    setup = immutable
    delete_release(setup)
    run = setup.run("sync")
    assert run.exit_code == 0, run
    (new,) = setup.releases.releases
    assert (new.tag_name, new.draft) == (f"{GIT_TAG}-2", False)
    assert f"takes the place of `{GIT_TAG}`, which was deleted" in (new.body or "")
    assert run.outcomes[0]["github_release"] == f"{GIT_TAG}-2"
    assert_idle(setup)


def test_an_entry_that_was_lost_is_recorded_again_and_nothing_is_built(setup: Recorded) -> None:
    before, entries, builds = Published.by(setup), setup.load().kernels, setup.builds
    for lost in (
        "",
        f"  - image: {entries[0].image}\n    desktop: [4.13.0]\n",
        f"  - image: {entries[0].image}\n    digest: {entries[0].digest}\n",
    ):
        setup.write_versions(lost)
        run = setup.run("sync", DOCKER_HOST="unix:///nowhere")
        assert run.exit_code == 0, run
        assert "is published: recorded again" in run.stderr
        (outcome,) = run.outcomes
        assert outcome["status"] == "published"
        assert outcome["reason"].startswith("repaired: what versions.yaml had lost")
        assert setup.load().kernels == entries
        assert setup.builds == builds
        assert Published.by(setup).releases == before.releases
        assert setup.tags() == before.tags
        assert_idle(setup)


def test_an_entry_that_was_lost_of_a_kernel_that_upstream_deleted(setup: Recorded) -> None:
    entries = setup.load().kernels
    setup.push_kernel("5.4.40")
    setup.hub.repository("linuxkit", "kernel").delete(VERSION)
    setup.write_versions()
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert entries[0] in setup.load().kernels
    assert len(setup.load().kernels) == 2


def test_a_kernel_that_upstream_deleted_is_repaired_all_the_same(setup: Recorded) -> None:
    before = Published.by(setup)
    setup.registry.delete(KERNELS)
    lose_all_images(setup)
    run = setup.run("publish", "all")
    assert run.exit_code == 0, run
    assert Published.by(setup).releases == before.releases
    assert setup.tags()[SLUG] == before.tags[SLUG]


def test_a_tag_that_cannot_be_moved_is_told_to_programs_too(setup: Recorded) -> None:
    before = setup.tags()
    del images(setup)["latest"]
    setup.registry.fail("PUT .*/manifests/latest$", Response(403), times=None)
    written = setup.path.parent / "outcomes.json"
    assert setup.run("plan").exit_code == 0
    assert json.loads(written.read_text())["behind"] == ["latest"]
    run = setup.run("sync")
    assert run.exit_code == 3, run
    unmoved = json.loads(written.read_text())["unmoved"]
    assert unmoved.keys() == {"latest"}
    assert "manifests/latest: answered 403" in unmoved["latest"]
    setup.registry.recover()
    assert setup.run("sync").exit_code == 0
    assert setup.tags() == before


def test_latest_that_was_moved_or_deleted_is_put_together_again(setup: Recorded) -> None:
    before = setup.tags()
    images(setup)["latest"] = images(setup)[SLUG]
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert f"; repaired: latest pointed to {before[SLUG]}" in run.stderr
    assert setup.tags() == before
    del images(setup)["latest"]
    assert "latest is behind" in setup.run("plan").stdout
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert "; repaired: latest was missing" in run.stderr
    assert setup.tags() == before


def test_a_run_looks_at_a_share_of_the_tags_and_plan_tells_what_it_sees(setup: Recorded) -> None:
    move_desktop(setup)
    damaged = Published.by(setup)
    plan = setup.run("plan", "--verify")
    assert plan.exit_code == 0, plan
    assert "to repair: desktop-4.13.0 pointed to sha256:" in plan.stdout
    assert Published.by(setup) == damaged, "a plan changes nothing"
    setup.registry.requests.clear()
    assert setup.run("plan").exit_code == 0
    assert setup.registry.count(f"HEAD /v2/{IMAGES}/manifests/(desktop|{SLUG})") == LOOKS


def test_who_publishes_for_a_plan_looks_at_what_it_saw(setup: Recorded) -> None:
    names = sorted(name for name in setup.tags() if name.startswith((SLUG, "desktop-")))
    move_desktop(setup)
    minutes = {share(names, minute): minute for minute in range(100)}
    directory = setup.path.parent / "plan"
    setup.path.with_name("nothing").mkdir()
    for drawn in (SLUG, "desktop-4.13.0"):
        assert setup.run("plan", "--hand-over", "plan").exit_code == 0
        planned = handover.read_plan(directory)
        assert 0 <= time.time() // 60 - planned.minute <= 10
        handover.write_plan(replace(planned, minute=minutes[(drawn,)]), directory)
        run = setup.run("sync", "--delivered", "nothing", "--expected", "plan")
        assert run.exit_code == 0, run
        repaired = "desktop-4.13.0 pointed to" in run.outcomes[0]["reason"]
        assert repaired == (drawn == "desktop-4.13.0"), run


@pytest.mark.parametrize("status", [401, 403, 500])
def test_what_could_not_be_looked_at_is_not_damaged(setup: Recorded, status: int) -> None:
    setup.push_kernel("5.4.40")
    assert setup.run("sync").exit_code == 0
    before = Published.by(setup)
    (other,) = (one for one in setup.releases.releases if "5.4.40" in one.tag_name)
    name = asset_names("linuxkit-kernel-5.4.40", native_platform())[0]
    other.put_asset(name, None)
    setup.forget()
    match = "HEAD .*/manifests/(desktop-4.13.0|latest)$"
    setup.registry.fail(match, Response(status), times=None)
    run = setup.run("sync", "--verify")
    assert run.exit_code == 3, run
    assert "manifests/desktop-4.13.0" in run.stderr
    reasons = {one["status"]: one["reason"] for one in run.outcomes}
    assert f"{name} was never uploaded" in reasons["published"], "the rest is repaired"
    assert "unchanged" in reasons
    setup.registry.recover()
    assert Published.by(setup) == before
    assert_idle(setup)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Recorded]:
    """A kernel for two platforms, published by a machine of each."""
    with Recorded(tmp_path) as setup:
        kernel = setup.push_kernel(VERSION, [AMD64, ARM64])
        setup.write_versions(f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n")
        for setup.machine in ("x86_64", "aarch64"):
            run = setup.run("sync")
            assert run.exit_code == 0, run
            setup.forget()
        yield setup
        assert setup.violations == []


def test_a_machine_repairs_the_image_of_another_platform_too(both: Recorded) -> None:
    before, builds = both.tags(), both.builds
    names = {name for one in (AMD64, ARM64) for name in asset_names(SLUG, one)}
    assert {one.name for one in release(both).assets} == {"SHA256SUMS", *names}
    body = release(both).body or ""
    assert "Kernel banner (amd64)" in body
    assert "Kernel banner (arm64)" in body
    both.machine = "x86_64"
    lose_all_images(both)
    run = both.run("sync")
    assert run.exit_code == 0, run
    assert both.tags() == before
    assert release(both).body == body
    assert both.builds == builds


def test_the_asset_of_another_platform_is_left_to_its_machine(both: Recorded) -> None:
    before = Published.by(both)
    name = f"zfs-{SLUG}-arm64.tar.xz"
    release(both).put_asset(name, None)
    both.machine = "x86_64"
    run = both.run("sync")
    assert [one["status"] for one in run.outcomes] == ["unchanged", "skipped"], run
    both.machine = "aarch64"
    run = both.run("sync")
    assert run.exit_code == 0, run
    assert f"{name} was never uploaded to its end" in run.outcomes[0]["reason"]
    assert Published.by(both) == before


def test_what_people_use_is_mended_before_a_newer_zfs_takes_its_place(setup: Recorded) -> None:
    before, builds = setup.tags(), setup.builds
    setup.follow_newest_zfs()
    setup.release_openzfs("2.1.17", "3.10", "6.7")
    for module in setup.results.glob("*/zfs.ko"):
        module.unlink()
    lose_the_tag(setup)
    lose_asset(setup)
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert run.outcomes[0]["reason"].startswith("repaired: the image was missing")
    assert (setup.tags(), setup.builds) == (before, builds)
    run = setup.run("sync")
    assert run.outcomes[0]["status"] == "failed", "only now is the newer one built"
    assert setup.tags() == before


def test_what_is_mended_lets_a_newer_zfs_that_fails_wait_on(setup: Recorded) -> None:
    setup.follow_newest_zfs()
    setup.release_openzfs("2.1.17", "3.10", "6.7")
    for module in setup.results.glob("*/zfs.ko"):
        module.unlink()
    assert [setup.run("sync").exit_code for _ in range(MOST_ATTEMPTS)] == [1] * MOST_ATTEMPTS
    builds = setup.builds
    lose_asset(setup)
    run = setup.run("sync")
    assert run.outcomes[0]["reason"].startswith("repaired: "), run
    run = setup.run("sync")
    assert run.outcomes[0]["status"] == "waiting", run
    assert setup.builds == builds


def test_two_versions_that_fail_in_turns_wait_both(setup: Recorded) -> None:
    lose_all_images(setup)
    release(setup).assets.clear()
    setup.follow_newest_zfs()
    setup.release_openzfs("2.1.17", "3.10", "6.7")
    for module in setup.results.glob("*/zfs.ko"):
        module.unlink()
    runs = [setup.run("sync") for _ in range(2 * MOST_ATTEMPTS + 1)]
    assert [run.exit_code for run in runs] == [1] * 2 * MOST_ATTEMPTS + [0]
    assert f"failed {MOST_ATTEMPTS} times" in runs[-1].outcomes[0]["reason"]
    before = setup.builds
    assert setup.run("sync").outcomes[0]["status"] == "waiting"
    assert setup.builds == before


def test_what_this_machine_cannot_keep_is_not_gone(
    setup: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_all_images(setup)
    for name, value in setup.environment.items():
        monkeypatch.setenv(name, value)
    registry = Registry(Http(), setup.environment)
    github = GitHub(Http(), setup.github.url, setup.releases.full_name, "writer")
    (there,) = github.releases()
    receipt = Receipt.find(there.body)
    assert receipt
    restorer = Restorer(registry, Reference.parse(setup.image), github, tmp_path / "here")
    (found,) = restorer.restore(SLUG, receipt, there)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            list(restorer.restore(SLUG, receipt, there))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert [one.digest for one in restorer.restore(SLUG, receipt, there)] == [found.digest]

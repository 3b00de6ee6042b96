"""Kernels for two platforms, on a machine that does both, or one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from release.plan import asset_name
from release.state import MOST_ATTEMPTS
from tests.lab.module_images import AMD64, ARM64
from tests.published import Published
from tests.recorded import IMAGES, Kernel, Recorded, Run

BOTH = ("--platform", AMD64, "--platform", ARM64)
DESKTOP = "desktop-4.13.0"


class Shop:
    """A maintainer, and a kernel that a Docker Desktop runs on two platforms."""

    def __init__(self, setup: Recorded, kernel: Kernel) -> None:
        self.setup, self.kernel = setup, kernel
        self._module = (self._recorded / "zfs.ko").read_bytes()

    @property
    def _recorded(self) -> Path:
        return self.setup.results / self.kernel.platforms[ARM64].replace(":", "-")

    def write(self, *, top: str = "", entry: str = "") -> None:
        first = f"  - image: {self.kernel.reference}\n    desktop: [4.13.0]\n"
        self.setup.write_versions(f"{first}{entry}", top)

    def break_arm64(self) -> None:
        (self._recorded / "zfs.ko").unlink()

    def lose_arm64_headers(self) -> None:
        (self._recorded / "files" / "kernel-dev.tar").unlink()

    def mend_arm64(self) -> None:
        (self._recorded / "zfs.ko").write_bytes(self._module)

    @property
    def assets(self) -> set[str]:
        return {one.name for release in self.setup.releases.releases for one in release.assets}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Recorded(tmp_path) as setup:
        setup.machine = "x86_64"
        shop = Shop(setup, setup.push_kernel("5.4.39", [AMD64, ARM64]))
        shop.write()
        yield shop
        assert setup.violations == []


def statuses(run: Run) -> dict[str, str]:
    return {one["platform"]: one["status"] for one in run.outcomes}


def test_one_machine_does_both(shop: Shop) -> None:
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 0, run
    assert statuses(run) == {AMD64: "published", ARM64: "published"}
    tags = shop.setup.tags()
    assert tags[DESKTOP] == tags[shop.kernel.slug]
    assert {asset_name(shop.kernel.slug, one) for one in (AMD64, ARM64)} <= shop.assets
    run = shop.setup.run("sync", *BOTH)
    assert statuses(run) == {AMD64: "unchanged", ARM64: "unchanged"}
    assert len(shop.setup.builds) == 2


def test_a_platform_that_fails_holds_back_desktop_alone(shop: Shop) -> None:
    shop.break_arm64()
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 1, run
    assert statuses(run) == {AMD64: "published", ARM64: "failed"}
    assert asset_name(shop.kernel.slug, AMD64) in shop.assets
    assert asset_name(shop.kernel.slug, ARM64) not in shop.assets
    assert shop.kernel.slug in shop.setup.tags()
    assert DESKTOP not in shop.setup.tags()
    before = shop.setup.tags()

    run = shop.setup.run("sync", *BOTH)
    assert statuses(run) == {AMD64: "unchanged", ARM64: "failed"}, run.outcomes
    assert shop.setup.tags() == before

    shop.mend_arm64()
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 0, run
    assert statuses(run)[ARM64] == "published"
    tags = shop.setup.tags()
    assert tags[DESKTOP] == tags[shop.kernel.slug]
    # What was published of the other platform was built once.
    assert len(shop.setup.builds) == 4


def test_a_platform_that_fails_on_and_on_waits(shop: Shop) -> None:
    shop.break_arm64()
    for _ in range(MOST_ATTEMPTS):
        assert statuses(shop.setup.run("sync", *BOTH))[ARM64] == "failed"
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 0, run
    assert statuses(run) == {AMD64: "unchanged", ARM64: "waiting"}
    assert DESKTOP not in shop.setup.tags()
    # This machine is none of arm64, and says so all the same.
    assert f"{ARM64}: failed {MOST_ATTEMPTS} times" in shop.setup.run("status").stdout

    shop.write(entry="    without: [linux/arm64]\n")
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 0, run
    assert set(statuses(run)) == {AMD64}
    tags = shop.setup.tags()
    assert tags[DESKTOP] == tags[shop.kernel.slug]


def test_a_platform_that_waits_keeps_no_damage_of_the_other_from_being_repaired(shop: Shop) -> None:
    shop.break_arm64()
    for _ in range(MOST_ATTEMPTS):
        shop.setup.run("sync", *BOTH)
    tags, builds = shop.setup.tags(), shop.setup.builds
    (release,) = shop.setup.releases.releases
    name = asset_name(shop.kernel.slug, AMD64)
    release.assets = [one for one in release.assets if one.name != name]
    del shop.setup.registry.manifests[IMAGES][shop.kernel.slug]
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 0, run
    assert statuses(run)[AMD64] == "published"
    assert f"{name} was missing" in run.outcomes[0]["reason"]
    assert name in shop.assets
    assert (shop.setup.tags(), shop.setup.builds) == (tags, builds)
    assert statuses(shop.setup.run("sync", *BOTH)) == {AMD64: "unchanged", ARM64: "waiting"}


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_what_is_left_of_one_platform_comes_back_without_the_other(shop: Shop, damage: str) -> None:
    assert shop.setup.run("sync", *BOTH).exit_code == 0
    before, slug = shop.setup.tags(), shop.kernel.slug
    shop.setup.registry.delete(IMAGES)
    (release,) = shop.setup.releases.releases
    if damage == "changed":
        release.put_asset(asset_name(slug, ARM64), b"something else")
    else:
        release.assets = [one for one in release.assets if "arm64" not in one.name]
    shop.setup.forget()
    shop.break_arm64()
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 1, run
    assert statuses(run) == {AMD64: "published", ARM64: "failed"}
    assert slug in shop.setup.tags()
    assert DESKTOP not in shop.setup.tags()
    assert statuses(shop.setup.run("sync", *BOTH)) == {AMD64: "unchanged", ARM64: "failed"}

    shop.mend_arm64()
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 0, run
    assert shop.setup.tags().keys() == before.keys()
    assert shop.setup.tags()[DESKTOP] == shop.setup.tags()[slug]


def test_desktop_waits_for_a_newer_zfs_on_every_platform(shop: Shop) -> None:
    assert shop.setup.run("sync", *BOTH).exit_code == 0
    before = shop.setup.tags()
    shop.setup.release_openzfs("2.1.17", "3.10", "6.7")
    shop.setup.follow_newest_zfs()
    shop.break_arm64()
    run = shop.setup.run("sync", *BOTH)
    assert statuses(run) == {AMD64: "published", ARM64: "failed"}, run
    after = shop.setup.tags()
    assert after[shop.kernel.slug] != before[shop.kernel.slug]
    assert after[DESKTOP] == before[DESKTOP]

    shop.mend_arm64()
    assert shop.setup.run("sync", *BOTH).exit_code == 0
    after = shop.setup.tags()
    assert after[DESKTOP] == after[shop.kernel.slug] != before[DESKTOP]


@pytest.mark.parametrize("here", [BOTH, ("--platform", ARM64)], ids=["both", "arm64"])
def test_what_lacks_something_for_one_platform_is_not_given_up_for_the_other(
    shop: Shop, here: tuple[str, ...]
) -> None:
    shop.lose_arm64_headers()
    run = shop.setup.run("sync", *here)
    (lost,) = (one for one in run.outcomes if one["platform"] == ARM64)
    assert lost["status"] == "skipped"
    assert "no kernel-dev.tar" in lost["reason"]
    assert "`without: [linux/arm64]` in its entry lets desktop-X do without it" in lost["reason"]
    assert statuses(shop.setup.run("sync", *BOTH))[AMD64] in ("published", "unchanged")
    assert asset_name(shop.kernel.slug, AMD64) in shop.assets


def test_latest_is_booted_for_every_platform_that_the_machine_can_emulate(shop: Shop) -> None:
    for shop.setup.machine in ("x86_64", "aarch64"):
        assert shop.setup.run("sync").exit_code == 0
    before = shop.setup.tags()
    del shop.setup.registry.manifests[IMAGES]["latest"]
    shop.setup.forget()
    shop.setup.machine = "x86_64"
    run = shop.setup.run("sync")
    assert run.exit_code == 0, run
    for platform in (AMD64, ARM64):
        assert f"boot {shop.kernel.slug} with it on {platform}" in run.stderr
    assert shop.setup.tags() == before


def test_desktop_waits_for_the_other_machine(shop: Shop) -> None:
    run = shop.setup.run("sync")
    assert statuses(run) == {AMD64: "published", ARM64: "skipped"}
    assert DESKTOP not in shop.setup.tags()
    run = shop.setup.run("sync")
    assert statuses(run) == {AMD64: "unchanged", ARM64: "skipped"}
    shop.setup.machine = "aarch64"
    run = shop.setup.run("sync")
    assert statuses(run) == {ARM64: "published", AMD64: "skipped"}
    tags = shop.setup.tags()
    assert tags[DESKTOP] == tags[shop.kernel.slug]


@pytest.mark.parametrize(
    ("top", "entry"),
    [("platforms: [linux/amd64]\n", ""), ("", "    without: [linux/arm64]\n")],
    ids=["platforms", "without"],
)
def test_desktop_waits_for_no_platform_that_is_not_wanted(shop: Shop, top: str, entry: str) -> None:
    shop.write(top=top, entry=entry)
    run = shop.setup.run("sync")
    assert run.exit_code == 0, run
    assert statuses(run) == {AMD64: "published"}
    assert DESKTOP in shop.setup.tags()


def test_a_builder_that_cannot_emulate_is_found_out_before_any_work(shop: Shop) -> None:
    (shop.setup.results / "platforms").write_text("Platforms: linux/amd64, linux/amd64/v2\n")
    run = shop.setup.run("sync", *BOTH)
    assert run.exit_code == 4, run
    assert "the builder cannot run programs for linux/arm64" in run.stderr
    assert "tonistiigi/binfmt --install arm64" in run.stderr
    assert shop.setup.builds == []


def test_a_platform_is_one_that_images_are_for(shop: Shop) -> None:
    run = shop.setup.run("sync", "--platform", "linux/s390x")
    assert run.exit_code == 2, run
    assert "versions.yaml: is for linux/amd64, linux/arm64 alone" in run.stderr
    assert "add linux/s390x to platforms: there" in run.stderr
    assert shop.setup.run("plan", "--platform", "arm64").exit_code == 2


# While one platform has a newer ZFS than the other


@pytest.fixture
def halfway(shop: Shop) -> Shop:
    """amd64 has a newer ZFS; arm64 fails with it, and keeps the older one, as desktop-X does."""
    assert shop.setup.run("sync", *BOTH).exit_code == 0
    shop.setup.release_openzfs("2.1.17", "3.10", "6.7")
    shop.setup.follow_newest_zfs()
    shop.break_arm64()
    run = shop.setup.run("sync", *BOTH)
    assert statuses(run) == {AMD64: "published", ARM64: "failed"}, run
    shop.setup.forget()
    return shop


def architectures(shop: Shop, tag: str) -> set[str]:
    _, content = shop.setup.registry.manifests[IMAGES][tag]
    found = {one["platform"]["architecture"] for one in json.loads(content)["manifests"]}
    return found - {"unknown"}


def lose(shop: Shop, tag: str) -> None:
    del shop.setup.registry.manifests[IMAGES][tag]


def lose_arm64(shop: Shop) -> None:
    """The older image of arm64, and its tar, which no release but the older one has."""
    held = shop.setup.registry.manifests[IMAGES]
    for one in json.loads(held[shop.kernel.slug][1])["manifests"]:
        if one["platform"]["architecture"] == "arm64":
            del held[one["digest"]]


def lose_older_asset(shop: Shop) -> None:
    name = asset_name(shop.kernel.slug, ARM64)
    for release in shop.setup.releases.releases:
        release.assets = [one for one in release.assets if one.name != name]


def test_a_platform_of_which_nothing_is_left_is_told_until_a_newer_zfs_is_there(
    halfway: Shop,
) -> None:
    lose_arm64(halfway)
    lose_older_asset(halfway)
    for _ in range(MOST_ATTEMPTS + 1):
        run = halfway.setup.run("sync", *BOTH)
        assert statuses(run) == {AMD64: "unchanged", ARM64: "failed"}, run
    assert "nothing is left of ZFS 2.1.16" in run.stdout
    assert "repaired" not in run.stdout
    halfway.mend_arm64()
    assert halfway.setup.run("sync", "--force-rebuild", *BOTH).exit_code == 0
    assert halfway.setup.run("sync", *BOTH).exit_code == 0


def versions_in(shop: Shop, tag: str) -> dict[str, str]:
    """The ZFS of each architecture's image behind a tag."""
    held = shop.setup.registry.manifests[IMAGES]
    found = {}
    for one in json.loads(held[tag][1])["manifests"]:
        if one["platform"]["architecture"] != "unknown":
            config = json.loads(held[one["digest"]][1])["config"]["digest"]
            labels = json.loads(shop.setup.small.blobs[config])["config"]["Labels"]
            found[one["platform"]["architecture"]] = labels["install-zfs.zfs-version"]
    return found


def test_what_cannot_be_brought_back_holds_back_no_newer_zfs(halfway: Shop) -> None:
    lose_arm64(halfway)
    lose_older_asset(halfway)
    for _ in range(MOST_ATTEMPTS):
        halfway.setup.run("sync", *BOTH)
    halfway.mend_arm64()
    halfway.setup.release_openzfs("2.1.18", "3.10", "6.7")
    run = halfway.setup.run("sync", *BOTH)
    assert statuses(run) == {AMD64: "published", ARM64: "published"}, run
    both = {"amd64": "2.1.18", "arm64": "2.1.18"}
    assert versions_in(halfway, DESKTOP) == versions_in(halfway, halfway.kernel.slug) == both


def test_a_platform_that_was_lost_before_the_upgrade_comes_back_under_the_tag(shop: Shop) -> None:
    setup = shop.setup
    setup.run("sync", *BOTH)
    lose_arm64(shop)
    setup.release_openzfs("2.1.17", "3.10", "6.7")
    setup.follow_newest_zfs()
    shop.break_arm64()
    setup.run("sync", *BOTH)
    assert versions_in(shop, shop.kernel.slug) == {"amd64": "2.1.17"}
    setup.run("sync", "--verify", *BOTH)
    for tag in (shop.kernel.slug, f"{shop.kernel.slug}-modules"):
        assert versions_in(shop, tag) == {"amd64": "2.1.17", "arm64": "2.1.16"}


def test_latest_asks_for_no_platform_that_is_not_wanted_any_more(halfway: Shop) -> None:
    path = halfway.setup.path
    path.write_text(f"platforms: [linux/amd64]\n{path.read_text()}")
    lose_arm64(halfway)
    lose(halfway, "latest")
    run = run_on(halfway, "x86_64")
    assert run.exit_code == 0
    assert architectures(halfway, "latest") == {"amd64"}
    assert "latest" not in run_on(halfway, "x86_64").stderr


def test_desktop_is_repaired_though_nothing_is_left_of_another_release(leapt: Shop) -> None:
    setup, slug = leapt.setup, leapt.kernel.slug
    held, before = setup.registry.manifests[IMAGES], setup.tags()[DESKTOP]
    for one in json.loads(held[slug][1])["manifests"]:
        if one["platform"]["architecture"] == "amd64":
            del held[one["digest"]]
    for release in setup.releases.releases:
        if release.tag_name.endswith("2.1.17"):
            release.assets = [one for one in release.assets if not one.name.endswith(".xz")]
    lose(leapt, DESKTOP)
    run = run_on(leapt, "aarch64", "--verify")
    assert "nothing is left of ZFS 2.1.17" in run.stdout
    assert setup.tags()[DESKTOP] == before


def test_an_older_zfs_under_the_tag_is_no_other_machine_s(leapt: Shop) -> None:
    slug, held = leapt.kernel.slug, leapt.setup.registry.manifests[IMAGES]
    before = versions_in(leapt, slug)
    was = leapt.setup.tags()[slug]
    held[slug] = held[DESKTOP]
    del held[was]
    assert run_on(leapt, "aarch64", "--verify").exit_code == 0
    assert versions_in(leapt, slug) == before == {"amd64": "2.1.17", "arm64": "2.1.18"}
    assert leapt.setup.tags()[slug] == was


@pytest.fixture
def leapt(shop: Shop) -> Shop:
    """Each of two machines published another newer ZFS than the other; desktop-X has the oldest."""
    shop.setup.follow_newest_zfs()
    for machine in ("x86_64", "aarch64"):
        assert run_on(shop, machine).exit_code == 0
    for machine, zfs in (("x86_64", "2.1.17"), ("aarch64", "2.1.18")):
        shop.setup.release_openzfs(zfs, "3.10", "6.7")
        assert run_on(shop, machine).exit_code == 0
    return shop


def run_on(shop: Shop, machine: str, *arguments: str) -> Run:
    shop.setup.forget()
    shop.setup.machine = machine
    return shop.setup.run("sync", *arguments)


def test_latest_has_of_each_platform_what_its_tag_has(leapt: Shop) -> None:
    assert architectures(leapt, "latest") == {"amd64", "arm64"}
    run = run_on(leapt, "aarch64")
    assert run.exit_code == 0
    assert "latest" not in run.stderr


@pytest.mark.parametrize("tag", [DESKTOP, "linuxkit-kernel-5.4.39", "an attestation"])
def test_what_is_repaired_while_platforms_differ_is_no_other_zfs(leapt: Shop, tag: str) -> None:
    setup = leapt.setup
    before, builds = Published.by(setup), setup.builds
    held = setup.registry.manifests[IMAGES]
    if tag in held:
        lose(leapt, tag)
    else:
        for one in json.loads(held[leapt.kernel.slug][1])["manifests"]:
            if one["platform"]["architecture"] == "unknown":
                del held[one["digest"]]
    run = run_on(leapt, "aarch64", "--verify")
    assert run.exit_code == 0, run
    assert "repaired: " in run.stdout
    assert (Published.by(setup), setup.builds) == (before, builds)
    again = run_on(leapt, "aarch64", "--verify")
    assert statuses(again)[ARM64] == "unchanged", again


def move_desktop(shop: Shop) -> None:
    held = shop.setup.registry.manifests[IMAGES]
    held[DESKTOP] = held["latest"]


DAMAGES: dict[str, Callable[[Shop], None]] = {
    "desktop": lambda shop: lose(shop, DESKTOP),
    "desktop moved": move_desktop,
    "image": lambda shop: lose(shop, shop.kernel.slug),
    "modules": lambda shop: lose(shop, f"{shop.kernel.slug}-modules"),
    "arm64's image": lose_arm64,
    "arm64's asset": lose_older_asset,
    "all images": lambda shop: shop.setup.registry.delete(IMAGES),
}


def test_latest_keeps_the_platform_that_has_the_older_zfs(halfway: Shop) -> None:
    assert architectures(halfway, "latest") == {"amd64", "arm64"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("waits", [False, True], ids=["fails", "waits"])
def test_what_is_damaged_while_one_platform_has_a_newer_zfs_is_repaired(
    halfway: Shop, damage: str, waits: bool
) -> None:
    setup = halfway.setup
    for _ in range(MOST_ATTEMPTS - 1 if waits else 0):
        setup.run("sync", *BOTH)
    before, builds = Published.by(setup), len(setup.builds)
    DAMAGES[damage](halfway)
    assert "to repair: " in setup.run("plan", "--verify", *BOTH).stdout
    run = setup.run("sync", "--verify", *BOTH)
    assert statuses(run) == {AMD64: "published", ARM64: "waiting" if waits else "failed"}
    assert "repaired: " in run.stdout
    assert Published.by(setup) == before
    held = setup.registry.manifests[IMAGES]
    for tag in setup.tags():
        children = json.loads(held[tag][1])["manifests"]
        assert all(one["digest"] in held for one in children), tag
    assert len(setup.builds) == builds + (not waits), "what is left is not built again"
    run = setup.run("sync", "--verify", *BOTH)
    assert statuses(run)[AMD64] == "unchanged"
    assert Published.by(setup) == before

    halfway.mend_arm64()
    assert setup.run("sync", "--force-rebuild", *BOTH).exit_code == 0
    tags = setup.tags()
    assert tags[DESKTOP] == tags[halfway.kernel.slug] != before.tags[DESKTOP]

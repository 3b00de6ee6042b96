"""What is to be done: entries against what is out there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import pytest
from semver import Version

from release.budget import Requests, share
from release.github import Asset, Release
from release.plan import (
    SUMS,
    Observed,
    Target,
    asset_name,
    git_tag,
    newest_first,
    old_asset_name,
    open_questions,
    plan,
)
from release.reference import Platform, Reference, parse_digest
from release.report import Status
from release.solver import Choice, Chosen, Policy, Range, TooOld, Unread, Waiting
from release.versions import Entry

AMD64, ARM64 = Platform("linux/amd64"), Platform("linux/arm64")
DIGEST = parse_digest("sha256:" + "a" * 64)


def entry(tag: str, *platforms: Platform, **changes: Any) -> Entry:
    facts: dict[str, Any] = {
        "digest": DIGEST,
        "platforms": MappingProxyType(dict.fromkeys(platforms or (AMD64,), DIGEST)),
        "builder": Reference.parse("linuxkit/alpine:1"),
        "zfs": "2.1.5",
    }
    return Entry(Reference.parse(f"linuxkit/kernel:{tag}"), **{**facts, **changes})


def release_of(
    one: Entry, *, names: Iterable[str] | None = None, state: str = "uploaded", draft: bool = False
) -> Release:
    """The release of an entry with everything that belongs to it, or with ``names`` alone."""
    if names is None:
        names = [SUMS, *(asset_name(one.slug, platform) for platform in one.platforms)]
    size = 0 if state == "starter" else 1
    return Release(
        id=1,
        git_tag=git_tag(one.slug, one.zfs or ""),
        name="",
        draft=draft,
        prerelease=False,
        immutable=False,
        body="",
        url="",
        upload_url="",
        created=None,
        assets=tuple(Asset(1, name, state, size, DIGEST, "") for name in names),
    )


def one_target(
    one: Entry, tags: Iterable[str] = (), releases: Iterable[Release] | None = ()
) -> Target:
    observed = Observed(frozenset(tags), None if releases is None else tuple(releases))
    (target,) = plan([one], observed, platforms=frozenset({AMD64}))
    return target


def test_nothing_is_to_do_where_everything_is_there() -> None:
    one = entry("5.4.39", desktop=("4.13.0",))
    target = one_target(one, [one.slug, "desktop-4.13.0"], [release_of(one)])
    assert (target.to_do, target.missing, target.reason) == (False, (), "")


def test_everything_is_to_do_where_nothing_is_there() -> None:
    target = one_target(entry("5.4.39", desktop=("4.13.0", "4.13.1")))
    assert target.missing == ("image", "release", "desktop-4.13.0", "desktop-4.13.1")
    assert target.reason == "missing: image, release, desktop-4.13.0, desktop-4.13.1"
    assert target.platforms == (AMD64,)
    assert target.to_do


ONE = entry("5.4.39")


@pytest.mark.parametrize(
    "releases",
    [
        [],
        [release_of(ONE, draft=True)],
        [release_of(ONE, state="starter")],
        [release_of(ONE, names=[SUMS])],
        [release_of(ONE, names=[asset_name(ONE.slug, AMD64)])],
        [release_of(entry("5.4.39", zfs="2.1.4"))],
        [release_of(entry("5.4.3"))],
    ],
    ids=["none", "draft", "broken upload", "no asset", "no sums", "other ZFS", "other kernel"],
)
def test_an_incomplete_release_is_to_do(releases: list[Release]) -> None:
    assert one_target(ONE, [ONE.slug], releases).missing == ("release",)


def test_a_published_release_may_have_its_assets_under_old_names() -> None:
    old = release_of(ONE, names=[SUMS, old_asset_name(ONE.slug, AMD64)])
    assert not one_target(ONE, [ONE.slug], [old]).to_do


def test_the_tag_of_the_modules_alone_is_missed_where_the_release_names_it() -> None:
    body = f"| Without `zfs` and `zpool` | `me/zfs:{ONE.slug}-modules` |"
    named = dataclasses.replace(release_of(ONE), body=body)
    assert one_target(ONE, [ONE.slug], [named]).missing == (f"{ONE.slug}-modules",)
    assert not one_target(ONE, [ONE.slug, f"{ONE.slug}-modules"], [named]).to_do


def test_a_published_release_counts_though_drafts_lie_about() -> None:
    releases = [release_of(ONE, draft=True), release_of(ONE), release_of(ONE, draft=True)]
    assert not one_target(ONE, [ONE.slug], releases).to_do


def test_releases_that_could_not_be_looked_at_are_not_taken_for_there() -> None:
    (missing,) = one_target(ONE, [ONE.slug], None).missing
    assert "GITHUB_REPOSITORY is not set" in missing


def test_an_entry_that_is_not_resolved_gets_recorded() -> None:
    bare = Entry(ONE.image)
    assert one_target(bare).missing == ("image", "release", "record")
    assert one_target(bare).platforms == ()
    assert one_target(bare).to_do


def test_a_kernel_for_another_platform_alone_is_left_out_with_the_reason() -> None:
    target = one_target(entry("5.4.39", ARM64))
    assert not target.to_do
    assert target.elsewhere == (ARM64,)
    assert "linux/arm64 only" in target.reason


def test_only_this_machine_s_platforms_count() -> None:
    both = entry("5.4.39", ARM64, AMD64)
    ours = release_of(both, names=[SUMS, asset_name(both.slug, AMD64)])
    target = one_target(both, [both.slug], [ours])
    assert (target.platforms, target.elsewhere, target.to_do) == ((AMD64,), (ARM64,), False)


NAMES = ["4.19.76", "5.15.49-" + "a" * 40, "5.4.39", "6.1.2", "5.15.49-" + "b" * 40, "by-hand"]


def test_newest_first_and_of_one_version_the_last_pushed() -> None:
    order = [one.image.tag for one in newest_first(map(entry, NAMES))]
    assert order == [NAMES[n] for n in (3, 4, 1, 2, 0, 5)]


def test_kernels_that_a_desktop_runs_come_first() -> None:
    observed, platforms = Observed(frozenset(), ()), frozenset({AMD64})
    entries = [entry(NAMES[n]) for n in (1, 4, 3)]
    run = dataclasses.replace(entries[0], desktop=("4.13.0",))
    by_entry = plan([run, *entries[1:]], observed, platforms=platforms)
    by_map = plan(entries, observed, platforms=platforms, desktop={run.slug: ("4.13.0",)})
    for targets in (by_entry, by_map):
        order = [target.entry.image.tag for target in targets]
        assert order == [NAMES[n] for n in (1, 3, 4)]


def limited(targets: list[Target], limit: int | None) -> list[Target]:
    """What a run with ``--limit`` works on, where no requests are wanting."""
    plenty = Requests(10**6, 10**6, 10**6)
    return share(targets, Reference("localhost", "me/zfs"), 0, plenty, plenty, limit).targets


def planned(**options: Any) -> dict[str, str]:
    """The reasons by tag of what is left out, in the order of the plan."""
    done = entry("6.1.2")
    observed = Observed(frozenset({done.slug}), (release_of(done),))
    entries = [entry(name) for name in NAMES[:5]]
    limit = options.pop("limit", None)
    targets = limited(plan(entries, observed, platforms=frozenset({AMD64}), **options), limit)
    return {str(target.entry.image.tag): target.left_out for target in targets if target.missing}


def test_a_limit_takes_the_newest_that_are_to_do() -> None:
    left_out = planned(limit=2)
    assert list(left_out) == [NAMES[n] for n in (4, 1, 2, 0)]
    assert [bool(reason) for reason in left_out.values()] == [False, False, True, True]
    assert "--limit 2" in left_out["4.19.76"]
    assert all(planned(limit=0).values())


def test_what_is_not_chosen_is_left_out_and_not_lost() -> None:
    left_out = planned(chosen=frozenset({entry("5.4.39").slug}))
    assert [tag for tag, reason in left_out.items() if not reason] == ["5.4.39"]
    assert "--only" in left_out["4.19.76"]
    assert len(left_out) == 4


def test_a_limit_counts_among_what_is_chosen() -> None:
    chosen = frozenset(entry(tag).slug for tag in ("5.4.39", "4.19.76"))
    left_out = planned(chosen=chosen, limit=1)
    assert [tag for tag, reason in left_out.items() if not reason] == ["5.4.39"]


# The ZFS version

UNRESOLVED = entry("5.4.40", zfs=None)
RANGE = Range(Version(4, 18), Version(5, 3))
WAITS = Waiting(Version(5, 4, 40), Version(2, 4, 4), RANGE)
OLD = TooOld(Version(5, 4, 40), Version(2, 4, 4), RANGE)


def settled(one: Entry, choice: Choice, policy: Policy = Policy.PIN, **options: Any) -> Target:
    """The target of an entry that is published as it is recorded."""
    observed = Observed(frozenset({ONE.slug}), (release_of(ONE),))
    (target,) = plan(
        [one],
        observed,
        platforms=frozenset({AMD64}),
        policy=policy,
        choices={one.slug: choice},
        **options,
    )
    return target


def test_a_chosen_version_is_known_before_any_work() -> None:
    target = settled(UNRESOLVED, Chosen("2.4.4"))
    assert (target.to_do, target.zfs, target.missing[-1]) == (True, "2.4.4", "record")


@pytest.mark.parametrize(
    ("choice", "status"),
    [
        (WAITS, Status.WAITING),
        (OLD, Status.SKIPPED),
        (Unread("answered 500"), Status.SKIPPED),
    ],
)
def test_without_a_zfs_version_nothing_is_built(choice: Choice, status: Status) -> None:
    target = settled(UNRESOLVED, choice)
    assert not target.to_do
    assert not isinstance(choice, Chosen)
    assert (target.status, target.reason) == (status, choice.reason)


def test_what_waits_takes_nobody_s_place() -> None:
    targets = plan(
        [entry("5.4.39"), UNRESOLVED],
        Observed(frozenset(), ()),
        platforms=frozenset({AMD64}),
        choices={UNRESOLVED.slug: WAITS},
    )
    targets = limited(targets, 1)
    assert [target.to_do for target in targets] == [False, True]


def test_a_newer_version_is_to_do_where_the_policy_says_so() -> None:
    target = settled(ONE, Chosen("2.1.12"), Policy.LATEST_PATCH)
    assert target.zfs == "2.1.12"
    assert target.missing == ("ZFS 2.1.12 in place of 2.1.5 (policy latest-patch)", "release")
    own = dataclasses.replace(ONE, policy=Policy.LATEST)
    assert "(policy latest)" in settled(own, Chosen("2.4.4")).reason
    assert not settled(ONE, Chosen("2.1.5"), Policy.LATEST).to_do


def test_a_newer_version_that_is_published_but_not_recorded_is_still_to_do() -> None:
    newer = release_of(dataclasses.replace(ONE, zfs="2.1.12"))
    (target,) = plan(
        [ONE],
        Observed(frozenset({ONE.slug}), (release_of(ONE), newer)),
        platforms=frozenset({AMD64}),
        policy=Policy.LATEST_PATCH,
        choices={ONE.slug: Chosen("2.1.12")},
    )
    assert target.missing == ("ZFS 2.1.12 in place of 2.1.5 (policy latest-patch)",)


def test_a_list_that_could_not_be_read_leaves_alone_what_has_its_version() -> None:
    target = settled(ONE, Unread("answered 500"), Policy.LATEST)
    assert (target.to_do, target.left_out, target.zfs) == (False, "", "2.1.5")


def test_what_speaks_against_a_pin_is_shown() -> None:
    target = settled(ONE, Chosen("2.1.5", "is for other kernels"))
    assert (target.warning, target.reason) == (
        "is for other kernels",
        "warning: is for other kernels",
    )


def test_a_kernel_for_elsewhere_does_not_wait_here() -> None:
    target = settled(entry("5.4.40", ARM64, zfs=None), WAITS)
    assert "linux/arm64 only" in target.reason


def test_only_what_matters_is_asked() -> None:
    published = ONE
    unpublished = entry("5.4.41")
    mine = dataclasses.replace(entry("5.4.42"), policy=Policy.PIN)
    entries = [published, unpublished, UNRESOLVED, entry("5.4.43", ARM64, zfs=None), mine]
    observed = Observed(
        frozenset({published.slug, mine.slug}), (release_of(published), release_of(mine))
    )
    draft = plan(entries, observed, platforms=frozenset({AMD64}))

    def asked(policy: Policy) -> set[str | None]:
        return {one.image.tag for one in open_questions(draft, policy)}

    assert asked(Policy.PIN) == {"5.4.41", "5.4.40"}
    assert asked(Policy.LATEST) == {"5.4.39", "5.4.41", "5.4.40"}

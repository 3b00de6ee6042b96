"""Which OpenZFS version is for a kernel, against a search through all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from release.errors import UpstreamError
from release.solver import (
    Chosen,
    Policy,
    Range,
    TooOld,
    Waiting,
    choose,
    parse_meta,
    pin_warning,
    table,
    wanted,
)

META = "Meta:          1\nName:          zfs\nLinux-Maximum: {}\nLinux-Minimum: {}\n"


def version(text: str) -> Version:
    return Version.parse(text, optional_minor_and_patch=True)


def ranges(text: str) -> dict[Version, Range]:
    """From lines such as ``2.1.5 3.10 5.18``."""
    rows = [[version(word) for word in line.split()] for line in text.strip().splitlines()]
    return {row[0]: Range(row[1], row[2]) for row in rows}


# In the shape of OpenZFS's own, where a line is carried on beside newer ones, and one raised its
# minimum on the way.
KNOWN = ranges(
    """
    0.8.5 2.6.32 5.6
    0.8.6 2.6.32 5.9
    2.1.0 3.10 5.13
    2.1.5 3.10 5.18
    2.1.16 3.10 6.7
    2.2.0 3.10 6.5
    2.2.1 3.10 6.6
    2.2.6 3.10 6.10
    2.2.7 4.18 6.12
    2.2.9 4.18 6.17
    2.3.0 4.18 6.12
    2.3.1 4.18 6.13
    2.4.0 4.18 6.16
    """
)


class Metas:
    """META files, and which of them were read."""

    def __init__(self, known: Mapping[Version, Range], missing: Iterable[Version] = ()) -> None:
        self.known = {one: found for one, found in known.items() if one not in set(missing)}
        self.read: list[Version] = []

    def __call__(self, one: Version) -> Range | None:
        self.read.append(one)
        return self.known.get(one)


# Ranges


@pytest.mark.parametrize(
    ("kernel", "inside"),
    [
        *(("3.9.99", False), ("3.10.0", True), ("4.19.76", True)),
        *(("5.18.0", True), ("5.18.19", True), ("5.19.0", False), ("6.1.0", False)),
    ],
)
def test_both_ends_of_a_range_are_in_it_whatever_the_patch_level(kernel: str, inside: bool) -> None:
    assert parse_meta(META.format("5.18", "3.10"), "META").holds(version(kernel)) == inside


def test_a_minimum_may_have_a_patch_level() -> None:
    kernels = parse_meta(META.format("5.1", "2.6.32"), "META")
    assert [kernels.holds(version(one)) for one in ("2.6.31", "2.6.32")] == [False, True]
    assert str(kernels) == "2.6.32 to 5.1"


def test_a_meta_with_other_line_ends() -> None:
    text = META.format("5.18", "3.10").replace("\n", "\r\n")
    assert str(parse_meta(text, "META")) == "3.10 to 5.18"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Linux-Maximum: 6.2\n",
        "Linux-Maximum:\nLinux-Minimum: 3.10\n",
        META.format("six", "3.10"),
        META.format("3.9", "3.10"),
        "<!DOCTYPE html>",
    ],
)
def test_a_meta_without_a_range(text: str) -> None:
    with pytest.raises(UpstreamError, match="META names no range") as caught:
        parse_meta(text, "openzfs/zfs zfs-2.1.5 META")
    assert "zfs-2.1.5" in caught.value.on


# Choosing


@pytest.mark.parametrize(
    ("kernel", "says", "reads"),
    [
        ("6.16.9", "2.4.0", 1),
        ("4.18", "2.4.0", 1),
        ("6.17.1", "2.2.9", 3),
        ("4.17.19", "2.2.6", 7),
        ("3.10", "2.2.6", 7),
        ("3.9", "0.8.6", 8),
        ("6.18", "waiting: nearest 2.2.9 up to 6.17", 5),
        ("7.0.1", "waiting: nearest 2.2.9 up to 6.17", 5),
        ("2.6.31", "none: 0.8.6 begins with 2.6.32", 9),
    ],
)
def test_the_newest_that_holds_the_kernel_and_how_little_is_read(
    kernel: str, says: str, reads: int
) -> None:
    metas = Metas(KNOWN)
    assert str(choose(version(kernel), KNOWN, metas)) == says
    assert len(metas.read) <= reads
    assert len(set(metas.read)) == len(metas.read)


def test_a_choice_says_why() -> None:
    waiting = choose(version("6.18.2"), KNOWN, KNOWN.get)
    assert isinstance(waiting, Waiting)
    assert waiting.reason == (
        "no OpenZFS release is for Linux 6.18.2 yet: the nearest, 2.2.9, is for 4.18 to 6.17"
    )
    old = choose(version("2.6.18"), KNOWN, KNOWN.get)
    assert isinstance(old, TooOld)
    assert old.reason == (
        "no OpenZFS release is for a kernel as old as Linux 2.6.18: the nearest, 0.8.6, is for "
        "2.6.32 to 5.9"
    )


def test_of_two_that_reach_as_far_the_newer_is_the_nearest() -> None:
    known = ranges("2.3.9 4.18 7.2\n2.4.4 4.18 7.2\n2.2.11 4.18 6.17")
    assert str(choose(version("7.3"), known, known.get)) == "waiting: nearest 2.4.4 up to 7.2"


def test_a_kernel_between_two_lines_waits_for_the_older() -> None:
    known = ranges("2.0.7 3.10 5.15\n3.0.0 6.0 6.5")
    assert str(choose(version("5.17"), known, known.get)) == "waiting: nearest 2.0.7 up to 5.15"


def test_one_that_is_missing_is_passed_over() -> None:
    missing = [version("2.4.0"), version("2.3.1")]
    assert choose(version("6.1"), KNOWN, Metas(KNOWN, missing)) == Chosen("2.3.0")


def test_without_any_meta_nothing_is_known() -> None:
    with pytest.raises(UpstreamError, match="not one OpenZFS release has a META"):
        choose(version("6.1"), KNOWN, Metas({}))


def test_the_table() -> None:
    kernels = [version(one) for one in ("4.4.74", "6.18.1", "5.15.49", "4.4.74")]
    assert {
        str(one): str(choice) for one, choice in table(kernels, list(KNOWN), KNOWN.get).items()
    } == {
        "6.18.1": "waiting: nearest 2.2.9 up to 6.17",
        "5.15.49": "2.4.0",
        "4.4.74": "2.2.6",
    }


series = st.integers(0, 40).map(lambda number: Version(number // 10, number % 10))
kernels = st.builds(Version, st.integers(0, 4), st.integers(0, 9), st.integers(0, 2))


@st.composite
def lines(draw: st.DrawFn) -> dict[Version, Range]:
    """Lines of releases in which no end of a range goes down, as OpenZFS keeps it."""
    known = {}
    for major, minor in draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1)):
        patches = sorted(draw(st.sets(st.integers(0, 98), min_size=1, max_size=12)))
        minima = sorted(draw(st.lists(series, min_size=len(patches), max_size=len(patches))))
        maxima = sorted(draw(st.lists(series, min_size=len(patches), max_size=len(patches))))
        for patch, low, high in zip(patches, minima, maxima, strict=True):
            known[Version(major, minor, patch)] = Range(low, max(low, high))
    return known


@given(lines(), kernels, st.data())
def test_it_finds_what_a_search_through_all_finds(
    known: dict[Version, Range], kernel: Version, data: st.DataObject
) -> None:
    missing = data.draw(st.sets(st.sampled_from(sorted(known)), max_size=len(known) - 1))
    metas = Metas(known, missing)
    choice = choose(kernel, data.draw(st.permutations(sorted(known))), metas)
    best = max((one for one, found in metas.known.items() if found.holds(kernel)), default=None)
    if isinstance(choice, Chosen):
        assert choice.version == str(best)
    else:
        assert best is None
        assert choice.nearest in metas.known
        above = all(found.begins_after(kernel) for found in metas.known.values())
        assert isinstance(choice, TooOld) == above
    count = len({(one.major, one.minor) for one in known})
    assert len(metas.read) <= 6 * count + len(missing)


# What a newer release means for a kernel that has one


@pytest.mark.parametrize(
    ("kernel", "recorded", "patch", "latest"),
    [
        ("5.15.49", "2.1.5", "2.1.16", "2.4.0"),
        ("4.14.1", "2.1.5", "2.1.16", "2.2.6"),
        ("4.14.1", "2.2.0", "2.2.6", "2.2.6"),
        ("6.17.0", "2.3.0", "2.3.0", "2.3.0"),
        ("6.6.1", "2.2.6", "2.2.9", "2.4.0"),
        ("6.1.1", "2.4.0", "2.4.0", "2.4.0"),
        ("6.1.1", "2.4.5", "2.4.5", "2.4.5"),
        ("6.1.1", "2.4.0-rc1", "2.4.0", "2.4.0"),
        ("3.2.0", "2.1.5", "2.1.5", "2.1.5"),
    ],
)
def test_policies(kernel: str, recorded: str, patch: str, latest: str) -> None:
    def result(policy: Policy) -> str:
        return wanted(version(kernel), recorded, policy, KNOWN, KNOWN.get)

    assert result(Policy.PIN) == recorded
    assert result(Policy.LATEST_PATCH) == patch
    assert result(Policy.LATEST) == latest


def test_a_newer_release_without_meta_changes_nothing() -> None:
    metas = Metas(KNOWN, [version("2.1.16")])
    assert wanted(version("5.4"), "2.1.5", Policy.LATEST_PATCH, KNOWN, metas) == "2.1.5"
    assert metas.read == [version("2.1.16")]


@given(lines(), kernels, st.data())
def test_no_policy_goes_back_or_leaves_what_it_is_for(
    known: dict[Version, Range], kernel: Version, data: st.DataObject
) -> None:
    recorded = data.draw(st.sampled_from(sorted(known)))
    for policy in Policy:
        result = version(wanted(kernel, str(recorded), policy, known, known.get))
        assert result >= recorded
        if result != recorded:
            assert policy is not Policy.PIN
            assert known[result].holds(kernel)
        if policy is Policy.LATEST_PATCH:
            assert (result.major, result.minor) == (recorded.major, recorded.minor)


# Pins


@pytest.mark.parametrize(
    ("kernel", "pinned", "kernels", "says"),
    [
        ("5.15.1", "2.1.5", "3.10 5.18", ""),
        ("6.1.1", "2.1.5", "3.10 5.18", "does not refuse a kernel above its maximum, but it may"),
        ("6.1.1", "2.1.5", "3.10 5.18", "for Linux 3.10 to 5.18, not 6.1.1"),
        ("6.18.0", "2.3.0", "4.18 6.12", "its configure refuses a kernel above its maximum"),
        ("6.18.0", "2.3.0-rc1", "4.18 6.12", "its configure refuses a kernel above its maximum"),
        ("4.14.0", "2.2.9", "4.18 6.17", "its configure refuses a kernel below its minimum"),
        ("2.6.30", "0.8.6", "2.6.32 5.9", "does not refuse a kernel below its minimum, but it may"),
    ],
)
def test_what_speaks_against_a_pin(kernel: str, pinned: str, kernels: str, says: str) -> None:
    low, high = map(version, kernels.split())
    warning = pin_warning(version(kernel), pinned, Range(low, high))
    assert says in warning
    assert bool(warning) == bool(says)


def test_a_pin_that_no_meta_speaks_of() -> None:
    warning = pin_warning(version("5.4"), "0.7.13", None)
    assert warning == "ZFS 0.7.13 is pinned, and no META says which kernels it is for"

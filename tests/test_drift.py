"""Receipts in notes, and what differs from them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.drift import LOOKS, is_turn_of_signatures, moved_tags, share
from release.http import bytes_digest
from release.plan import Observed, git_tag, next_git_tag, row_of
from release.receipt import File, Part, Receipt
from release.reference import Platform, Reference
from release.solver import Policy
from release.versions import Entry
from tests.lab.module_images import AMD64, ARM64, entry, release

ENTRY = Entry(
    Reference.parse("docker/for-desktop-kernel:5.15.49-abc"),
    bytes_digest(b"kernel"),
    MappingProxyType({AMD64: bytes_digest(b"a"), ARM64: bytes_digest(b"b")}),
    Reference.parse("linuxkit/alpine:1"),
    "2.1.5",
    desktop=("4.13.0", "4.14.0"),
    policy=Policy.LATEST,
    aliases=(Reference.parse("docker/for-desktop-kernel:desktop-4.13.0"),),
)
RECEIPT = Receipt(
    ENTRY,
    bytes_digest(b"index"),
    bytes_digest(b"modules"),
    {AMD64: Part(bytes_digest(b"image"), "5.15.49-linuxkit", "Linux version --> <b>`|` #1")},
    {"zfs-x.tar.xz": File(10, bytes_digest(b"tar")), "sbom.json": File(1, bytes_digest(b"s"))},
    "`x`, which was deleted",
)


def test_a_receipt_is_read_as_it_was_written_wherever_it_stands_in_the_notes() -> None:
    assert Receipt.find(str(RECEIPT)) == RECEIPT
    notes = f"ZFS for you.\r\n\r\n{RECEIPT}\r\n"
    assert Receipt.find(notes) == RECEIPT
    line = str(RECEIPT)
    assert line.count("-->") == 1
    assert "\n" not in line


def test_a_receipt_tells_what_is_to_be_signed_and_older_ones_stay_as_they_are() -> None:
    assert "to_sign" not in str(RECEIPT)
    assert RECEIPT.to_sign == set()
    part = RECEIPT.platforms[AMD64]
    platforms = {AMD64: dataclasses.replace(part, to_sign=True), ARM64: part}
    asks = dataclasses.replace(RECEIPT, platforms=platforms)
    assert asks.to_sign == {AMD64}
    assert Receipt.find(str(asks)) == asks
    assert str(asks).count('"to_sign":true') == 1
    doubtful = Receipt.find(str(asks).replace('"to_sign":true', '"to_sign":"false"'))
    assert doubtful
    assert doubtful.to_sign == set()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('"image":"sha256:', '"image":"sha256:0'),
        lambda text: text.replace('"size":10', '"size":"ten"'),
        lambda text: text.replace('"files"', '"filez"'),
        lambda text: text.replace("zfs-x.tar.xz", "../zfs-x.tar.xz"),
        lambda text: text.replace("zfs-x.tar.xz", ".hidden"),
        lambda text: text.replace("image: docker.io", "imagine: docker.io"),
        lambda text: text.replace("linux/amd64", "amd64"),
        lambda text: text.replace('{"entry"', '{"entry'),
    ],
)
def test_a_receipt_that_is_not_whole_is_none(spoil: Callable[[str], str]) -> None:
    text = spoil(str(RECEIPT))
    assert text != str(RECEIPT)
    assert Receipt.find(text) is None


@given(st.text())
def test_any_text_has_a_receipt_or_none(text: str) -> None:
    assert Receipt.find(text) is None
    assert Receipt.find(f"<!-- install-zfs.receipt {text} -->") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.sampled_from(["entry", "image", "modules", "platforms", "files", "instead_of"]), json_values
)
def test_any_value_in_a_receipt_is_understood_or_refused(key: str, value: object) -> None:
    facts = json.loads(str(RECEIPT).removeprefix("<!-- install-zfs.receipt ")[:-4])
    facts[key] = value
    text = json.dumps(facts).replace(">", "\\u003e")
    found = Receipt.find(f"<!-- install-zfs.receipt {text} -->")
    assert found is None or Receipt.find(str(found)) == found


@pytest.mark.parametrize(
    "step", [1, 5, 15, 30, 60, 3 * 60, 4 * 60, 6 * 60, 12 * 60, 24 * 60, 7 * 24 * 60]
)
@pytest.mark.parametrize(("tags", "looks"), [(1, LOOKS), (3, LOOKS), (250, LOOKS), (301, 2)])
def test_every_tag_is_looked_at_in_the_course_of_time(step: int, tags: int, looks: int) -> None:
    names = [f"tag-{n}" for n in range(tags)]
    shares = -(-tags // looks)
    # As often as all cards of a pack are drawn in all but one of some thousand cases.
    runs = math.ceil(shares * (math.log(shares) + 8))
    seen = Counter(
        name for run in range(runs) for name in share(names, 29_000_000 + run * step, looks)
    )
    assert seen.keys() == set(names)
    assert max(len(share(names, minute, looks)) for minute in range(100)) <= looks


@pytest.mark.parametrize("step", [1, 5, 60, 6 * 60, 24 * 60, 7 * 24 * 60])
def test_signatures_and_tags_take_turns_and_each_tag_has_its_own_in_those_runs(step: int) -> None:
    minutes = range(29_000_000, 29_000_000 + 200 * step, step)
    turns = {minute for minute in minutes if is_turn_of_signatures(minute)}
    assert 60 < len(turns) < 140
    for which in (turns, set(minutes) - turns):
        assert {name for minute in which for name in share("abc", minute)} == set("abc")


def test_the_same_minute_looks_at_the_same_tags_and_nothing_at_none() -> None:
    names = [f"tag-{n}" for n in range(9)]
    assert share(names, 29_000_001) == share(names[::-1], 29_000_001)
    assert share((), 29_000_001) == ()


def test_only_what_was_looked_at_can_differ() -> None:
    one, other = bytes_digest(b"1"), bytes_digest(b"2")
    wanted = {"a": one, "b": one, "c": one, "d": one}
    said = list(moved_tags(wanted, {"a": one, "b": other, "c": None}))
    assert said == [f"b pointed to {other}", "c pointed to nothing"]


def test_releases_that_take_each_others_place() -> None:
    tag = git_tag("linuxkit-kernel-5.4.39", "2.3.0-rc5")
    assert row_of(tag) == tag
    assert next_git_tag(tag) == f"{tag}-2"
    assert next_git_tag(f"{tag}-9") == f"{tag}-10"
    assert row_of(f"{tag}-10") == tag


def test_of_releases_that_take_each_others_place_the_last_one_counts() -> None:
    one = entry("5.4.1")
    first = release(one)
    second = dataclasses.replace(first, id=2, git_tag=f"{first.git_tag}-2")
    tenth = dataclasses.replace(first, id=3, git_tag=f"{first.git_tag}-10")
    other = release(entry("5.4.2"))
    observed = Observed(frozenset(), (tenth, first, other, second))
    assert observed.release(one.slug, "2.1.5") is tenth
    draft = dataclasses.replace(first, id=4, draft=True)
    assert Observed(frozenset(), (draft, first)).release(one.slug, "2.1.5") is first
    assert observed.release(one.slug, "2.1.6") is None


def test_a_receipt_of_another_kernel_under_the_same_name_is_none() -> None:
    one = entry("5.4.1", Platform("linux/amd64"))
    body = str(dataclasses.replace(RECEIPT, entry=one))
    observed = Observed(frozenset(), (dataclasses.replace(release(one), body=body),))
    assert observed.receipt(one, "2.1.5")
    moved = dataclasses.replace(one, digest=bytes_digest(b"another kernel"))
    assert observed.receipt(moved, "2.1.5") is None

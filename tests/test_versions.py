"""``versions.yaml``: errors with their line, and writing that leaves alone what is there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.errors import ConfigurationError
from release.reference import Digest, Platform, Reference
from release.solver import Policy
from release.versions import (
    DEFAULT_SOURCES,
    Entry,
    OpenZFSSource,
    Versions,
    append,
    load,
    revise,
)

A = Digest("sha256:" + "a" * 64)
B = Digest("sha256:" + "b" * 64)
KERNEL = Reference.parse("linuxkit/kernel:5.4.39")
FULL = f"""\
image: docker.io/me/install-zfs   # where module images go
sources:
  - repository: docker.io/docker/for-desktop-kernel
  - repository: linuxkit/kernel
    hub: http://127.0.0.1:1/
  - repository: localhost:5000/kernel
openzfs:
  api: http://127.0.0.1:2/
  repository: me/zfs
  policy: latest-patch
desktop:
  release_notes: [https://example.org/notes.md]
kernels:
  # the first
  - image: docker.io/linuxkit/kernel:5.4.39
    digest: {A}
    platforms: {{linux/amd64: {A}, linux/arm64: {B}}}
    builder: linuxkit/alpine:1
    zfs: 2.1.5
    desktop: [4.13.0, 4.13.1]
  - image: linuxkit/kernel:4.19.76
    policy: pin
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "versions.yaml"


def test_everything_that_can_be_said(path: Path) -> None:
    path.write_text(FULL)
    versions = load(path)
    assert str(versions.image) == "docker.io/me/install-zfs"
    assert [(str(source.repository), source.hub) for source in versions.sources] == [
        ("docker.io/docker/for-desktop-kernel", "https://hub.docker.com"),
        ("docker.io/linuxkit/kernel", "http://127.0.0.1:1"),
        ("localhost:5000/kernel", None),
    ]
    assert versions.openzfs == OpenZFSSource("http://127.0.0.1:2", "me/zfs", Policy.LATEST_PATCH)
    assert versions.release_notes == ("https://example.org/notes.md",)
    full, bare = versions.kernels
    assert full == Entry(
        KERNEL,
        A,
        MappingProxyType({Platform("linux/amd64"): A, Platform("linux/arm64"): B}),
        Reference.parse("linuxkit/alpine:1"),
        "2.1.5",
        ("4.13.0", "4.13.1"),
    )
    assert bare == Entry(Reference.parse("linuxkit/kernel:4.19.76"), policy=Policy.PIN)
    assert (full.resolved, bare.resolved) == (True, False)


def test_defaults(path: Path) -> None:
    path.write_text("image: me/install-zfs\n")
    versions = load(path)
    assert versions.sources == DEFAULT_SOURCES
    assert versions.openzfs == OpenZFSSource("https://api.github.com", "openzfs/zfs", Policy.PIN)
    assert versions.kernels == ()
    assert versions.latest == 100


def test_whether_the_image_that_builds_on_the_spot_is_published(path: Path) -> None:
    path.write_text(TOP)
    assert load(path).on_the_spot
    path.write_text(f"{TOP}on_the_spot: false\n")
    assert not load(path).on_the_spot


def test_how_many_kernels_latest_has(path: Path) -> None:
    path.write_text(f"{TOP}latest: {{kernels: 0}}\n")
    assert load(path).latest == 0


def test_which_platforms_images_are_for(path: Path) -> None:
    path.write_text(TOP)
    assert load(path).platforms == (Platform("linux/amd64"), Platform("linux/arm64"))
    entry = f"- image: a/b:1\n  platforms: {{linux/amd64: {A}, linux/arm64: {B}}}\n"
    path.write_text(f"{TOP}platforms: [linux/arm64]\nkernels:\n{entry}  without: [linux/amd64]\n")
    versions = load(path)
    (kernel,) = versions.kernels
    assert kernel.without == ("linux/amd64",)
    assert kernel.wanted(versions.platforms) == {"linux/arm64"}
    assert kernel.wanted([Platform("linux/amd64"), Platform("linux/s390x")]) == set()


def test_the_image_of_probes(path: Path) -> None:
    path.write_text(f"{TOP}probe: busybox:1\n")
    assert load(path).probe == "docker.io/library/busybox:1"
    path.write_text(f"{TOP}probe: Busy box\n")
    with pytest.raises(ConfigurationError, match="not an image reference"):
        load(path)


TOP = "image: me/zfs\n"
ONE = f"{TOP}kernels:\n- image: a/b:1\n"


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ("", 1, "is empty"),
        ("# nothing\n", 1, "is empty"),
        ("- image\n", 1, "expected 'key: value' lines"),
        ("sources: []\n", 1, "the key 'image' is missing"),
        (f"{TOP}kernel: []\n", 2, "unknown key 'kernel'"),
        (f"{TOP}platforms: []\n", 2, "names no platform"),
        (f"{TOP}platforms: [arm64]\n", 2, "is not a platform"),
        (f"{ONE}  without: []\n", 4, "names no platform"),
        (f"{TOP}{TOP}", 2, "the key 'image' is there twice"),
        ("image: me/zfs:1\n", 1, "has a tag"),
        ("image:\n  - me/zfs\n", 2, "expected a text"),
        ("image: Me/Zfs\n", 1, "is not an image reference"),
        ("image:\n", 1, "expected a text"),
        (f"{TOP}kernels: [\n", 3, "is not YAML"),
        (f"{TOP}\tkernels:\n", 2, "is not YAML"),
        (f"{TOP}---\n{TOP}", 2, "is not YAML"),
        (f"{TOP}kernels: \0\n", 2, "is not YAML"),
        (f"{TOP}# \udcff\n", 2, "is not UTF-8"),
        (f"\ufeff{TOP}", 1, "byte order mark"),
        (f"{TOP}kernels: many\n", 2, "expected a list"),
        (f"{TOP}kernels:\n- a/b:1\n", 3, "expected 'key: value' lines"),
        (f"{TOP}kernels:\n- zfs: 2.1.5\n", 3, "the key 'image' is missing"),
        (f"{TOP}kernels:\n- image: a/b\n", 3, "needs its tag"),
        (f"{TOP}kernels:\n- image: a/b:1@{A}\n", 3, "needs its tag"),
        (f"{ONE}  color: red\n", 4, "unknown key 'color'"),
        (f"{ONE}  digest: sha256:abc\n", 4, "'sha256:abc' is not a digest"),
        (f"{ONE}  digest: {A.upper()}\n", 4, "is not a digest"),
        (f"{ONE}  digest:\n", 4, "expected a text"),
        (f"{ONE}  platforms: {{amd64: {A}}}\n", 4, "'amd64' is not a platform"),
        (f"{ONE}  platforms: {{linux/amd64: abc}}\n", 4, "'abc' is not a digest"),
        (f"{ONE}  platforms: [linux/amd64]\n", 4, "expected 'key: value' lines"),
        (f"{ONE}  platforms: {{}}\n", 4, "names no platform"),
        (f"{ONE}  builder: [x]\n", 4, "expected a text"),
        (f"{ONE}  builder: 'a b'\n", 4, "is not an image reference"),
        (f"{ONE}  zfs: 2.1\n", 4, "'2.1' is not an OpenZFS version"),
        (f"{ONE}  desktop: 4.13.0\n", 4, "expected a list"),
        (f"{ONE}  desktop: [4.13]\n", 4, "'4.13' is not a Docker Desktop version"),
        (f"{ONE}- image: docker.io/a/b:1\n", 4, "is there twice (first in line 3)"),
        (f"{ONE}- image: a/b:1\n  digest: {A}\n", 4, "is there twice (first in line 3)"),
        (f"{ONE}  digest: {A}\n- image: a/b:1\n", 5, "is there twice (first in line 3)"),
        (
            f"{ONE}  digest: {A}\n- image: a/b:1\n  digest: {A}\n",
            5,
            "is there twice (first in line 3)",
        ),
        (f"{ONE}- image: ghcr.io/a/b:1\n", 4, "under the name of docker.io/a/b:1"),
        (
            f"{ONE}  desktop: [4.13.0]\n- image: a/b:2\n  desktop: [4.13.0]\n",
            5,
            "Docker Desktop 4.13.0 is already said to run docker.io/a/b:1",
        ),
        (f"{ONE}- image: a/b:1-modules\n", 4, "under the name of docker.io/a/b:1"),
        (f"{TOP}on_the_spot: no\n", 2, "'no' is not true or false"),
        (f"{TOP}latest: 5\n", 2, "expected 'key: value' lines"),
        (f"{TOP}latest: {{kernels: all}}\n", 2, "'all' is not a number of kernels"),
        (f"{TOP}latest: {{kernels: 123}}\n", 2, "an image has room for 122 kernels"),
        (f"{TOP}sources: docker.io/a/b\n", 2, "expected a list"),
        (f"{TOP}sources:\n- hub: https://h\n", 3, "the key 'repository' is missing"),
        (f"{TOP}sources:\n- repository: a/b:1\n", 3, "without a tag"),
        (f"{TOP}sources:\n- repository: a/b\n- repository: a/b\n", 3, "there twice"),
        (f"{TOP}sources:\n- repository: a/b\n  hub: ftp://h\n", 4, "is not a URL"),
        (f"{TOP}openzfs:\n  api: here\n", 3, "is not a URL"),
        (f"{TOP}openzfs:\n  repository: zfs\n", 3, "is not a repository"),
        (f"{TOP}openzfs:\n  policy: newest\n", 3, "'newest' is not a policy"),
        (f"{ONE}  policy: no\n", 4, "'no' is not a policy"),
        (f"{ONE}  zfs: 2.01.5\n", 4, "'2.01.5' is not an OpenZFS version"),
        (f"{TOP}desktop:\n  release_notes: [x]\n", 3, "is not a URL"),
        (f"{TOP}desktop:\n  notes: []\n", 3, "unknown key 'notes'"),
    ],
)
def test_an_error_says_where_and_what_to_do(path: Path, content: str, line: int, what: str) -> None:
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert caught.value.on == f"{path}, line {line}"
    assert what in caught.value.what
    assert caught.value.hint


def test_the_policies_are_named_where_another_word_stands(path: Path) -> None:
    path.write_text(f"{TOP}openzfs:\n  policy: newest\n")
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert caught.value.hint == "write one of: pin, latest-patch, latest"


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not there") as caught:
        load(path)
    assert "--versions" in caught.value.hint


# Appending

NEW = Entry(
    Reference.parse("linuxkit/kernel:6.1.2"), B, MappingProxyType({Platform("linux/amd64"): B})
)
ADDED = f"""\
- image: docker.io/linuxkit/kernel:6.1.2
  digest: {B}
  platforms: {{linux/amd64: {B}}}
"""
INDENTED = "".join(f"  {line}\n" for line in ADDED.splitlines())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (FULL, FULL + INDENTED),
        (ONE, ONE + ADDED),
        (ONE[:-1], ONE + ADDED),
        (f"{ONE}# the end", f"{ONE}# the end\n{ADDED}"),
        (f"{TOP}kernels:\n", f"{TOP}kernels:\n{INDENTED}"),
        (f"{TOP}kernels:", f"{TOP}kernels:\n{INDENTED}"),
        (f"{TOP}kernels:\n  # none yet\n", f"{TOP}kernels:\n  # none yet\n{INDENTED}"),
        (f"{TOP}kernels: []\n", f"{TOP}kernels:\n{INDENTED}"),
        (f"{TOP}kernels: [ ]  # none", f"{TOP}kernels:  # none\n{INDENTED}"),
        (f"{TOP}kernels: null  # none\n", f"{TOP}kernels:  # none\n{INDENTED}"),
        (f"{TOP}kernels: ~\n", f"{TOP}kernels:\n{INDENTED}"),
        (TOP, f"{TOP}kernels:\n{INDENTED}"),
        (TOP[:-1], f"{TOP}kernels:\n{INDENTED}"),
        (f"# é€😀\n{ONE}", f"# é€😀\n{ONE}{ADDED}"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_append(path: Path, before: str, after: str, newline: str) -> None:
    path.write_bytes(before.replace("\n", newline).encode())
    old = load(path)
    new = append(old, [NEW])
    # What has no line break at all gets a plain one.
    expected = after.replace("\n", newline) if "\n" in before else after
    assert path.read_bytes().decode() == expected
    assert new == load(path)
    assert new.kernels == (*old.kernels, NEW)
    assert list(path.parent.iterdir()) == [path]


def test_appending_nothing_writes_nothing(path: Path) -> None:
    path.write_text(ONE)
    written = path.stat().st_mtime_ns
    assert append(load(path), []) == load(path)
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("kernels: []\nimage: me/zfs\n", "must be the last"),
        (f"{TOP}kernels: [{{image: 'a/b:1'}}]\n", "written in [brackets]"),
    ],
)
def test_what_cannot_be_appended_to_stays_as_it_is(path: Path, content: str, what: str) -> None:
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        append(load(path), [NEW])
    assert what in caught.value.what
    assert "line 2" in caught.value.on
    assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_what_others_wrote_meanwhile_is_kept(path: Path) -> None:
    path.write_text(TOP)
    old = load(path)
    path.write_text(ONE)
    assert [entry.image.tag for entry in append(old, [NEW]).kernels] == ["1", "6.1.2"]


def test_the_file_keeps_its_mode(path: Path) -> None:
    path.write_text(ONE)
    path.chmod(0o640)
    append(load(path), [NEW])
    assert path.stat().st_mode & 0o777 == 0o640


digests = st.integers(0, 2**256 - 1).map(lambda number: Digest(f"sha256:{number:064x}"))
platforms = st.sampled_from(["linux/amd64", "linux/arm64", "linux/arm/v7"]).map(Platform)
versions_of_desktop = st.from_regex(r"[1-9]?[0-9]\.[0-9]{1,2}\.[0-9](\.[0-9])?", fullmatch=True)
entries = st.builds(
    Entry,
    image=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,40}", fullmatch=True).map(
        Reference.parse("linuxkit/kernel").with_tag
    ),
    digest=st.none() | digests,
    platforms=st.dictionaries(platforms, digests, max_size=3).map(MappingProxyType),
    builder=st.none() | st.just(Reference.parse("ghcr.io/a/b:c")),
    zfs=st.none() | st.sampled_from(["0.8.2", "2.1.5", "2.2.0-rc1"]),
    desktop=st.lists(versions_of_desktop, max_size=2, unique=True).map(tuple),
    policy=st.none() | st.sampled_from(Policy),
    aliases=st.lists(
        st.from_regex(r"alias-[a-z]{3}", fullmatch=True).map(
            Reference.parse("docker/other").with_tag
        ),
        max_size=2,
        unique=True,
    ).map(tuple),
    deleted=st.booleans(),
    smoke=st.sampled_from(["", "host"]),
    without=st.sampled_from([(), (Platform("linux/arm64"),)]),
    skip=st.text(),
)


def has_nothing_twice(found: list[Entry]) -> bool:
    """No Desktop version and no alias belongs to two kernels."""
    names = [name for entry in found for name in (*entry.desktop, *entry.aliases)]
    return len(set(names)) == len(names)


lists_of_entries = st.lists(
    entries, max_size=6, unique_by=(lambda entry: entry.image, lambda entry: entry.slug)
).filter(has_nothing_twice)
tops = st.sampled_from([TOP, f"{TOP}kernels:\n", FULL, FULL[:-1], FULL.replace("\n", "\r\n")])


@given(tops, lists_of_entries, st.integers(0, 6))
def test_what_is_appended_is_there_and_nothing_above_has_changed(
    top: str, new: list[Entry], first: int
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, "versions.yaml")
        path.write_bytes(top.encode())
        before = load(path)
        taken = {known.image for known in before.kernels}
        desktops = {version for known in before.kernels for version in known.desktop}
        new = [e for e in new if e.image not in taken and not desktops & {*e.desktop}]
        after = append(append(before, new[:first]), new[first:])
        content = path.read_bytes()
        assert after == load(path)
        assert after.kernels == (*before.kernels, *new)
        assert content.startswith(top.encode())
        # The same facts give the same bytes.
        path.write_bytes(top.encode())
        append(load(path), new)
        assert path.read_bytes() == content


def test_a_moved_tag_is_told_apart_by_its_digest(path: Path) -> None:
    path.write_text(f"{ONE}  digest: {A}\n")
    moved = dataclasses.replace(NEW, image=Reference.parse("a/b:1"), moved=True)
    first, second = append(load(path), [moved]).kernels
    assert first.slug == "a-b-1"
    assert second == moved
    assert second.slug == "a-b-1-" + "b" * 12


@pytest.mark.parametrize(
    ("image", "slug"),
    [
        ("docker/for-desktop-kernel:5.15.49-1342", "docker-for-desktop-kernel-5.15.49-1342"),
        ("localhost:5000/linuxkit/kernel:5.4.39", "linuxkit-kernel-5.4.39"),
    ],
)
def test_slugs(image: str, slug: str) -> None:
    assert Entry(Reference.parse(image)).slug == slug


# Filling in

FACTS = Entry(
    KERNEL,
    A,
    MappingProxyType({Platform("linux/arm64"): B, Platform("linux/amd64"): A}),
    Reference.parse("linuxkit/alpine:1"),
    "2.1.5",
)
UNKNOWN = Entry(KERNEL)
DIGEST_LINE = f"  digest: {A}\n"
PLATFORMS_LINE = f"  platforms: {{linux/amd64: {A}, linux/arm64: {B}}}\n"
LINES = f"{DIGEST_LINE}{PLATFORMS_LINE}  builder: linuxkit/alpine:1\n  zfs: 2.1.5\n"
HEAD = f"{TOP}kernels:\n"
BARE = "- image: linuxkit/kernel:5.4.39"
NEXT = "\n# the next\n- image: linuxkit/kernel:5.4.40\n"
IN_BRACES = f", digest: {A}, platforms: {{linux/amd64: {A}, linux/arm64: {B}}}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{BARE}\n", f"{BARE}\n{LINES}"),
        (BARE, f"{BARE}\n{LINES}"),
        (f"{BARE}  # mine\n{NEXT}", f"{BARE}  # mine\n{LINES}{NEXT}"),
        (f"{BARE}\n  zfs: 2.0.7\n{NEXT}", f"{BARE}\n  zfs: 2.0.7\n{LINES[:-13]}{NEXT}"),
        (f"{BARE}\n{LINES}{NEXT}", f"{BARE}\n{LINES}{NEXT}"),
        (
            f"{BARE}\n  desktop:\n  - 4.13.0  # mine\n{NEXT}",
            f"{BARE}\n  desktop:\n  - 4.13.0  # mine\n{LINES}{NEXT}",
        ),
        (
            f"{BARE}\n{DIGEST_LINE}  builder: x/y:1\n  zfs: 2.0.7 # é\n",
            f"{BARE}\n{DIGEST_LINE}  builder: x/y:1\n  zfs: 2.0.7 # é\n{PLATFORMS_LINE}",
        ),
        (
            "- {image: linuxkit/kernel:5.4.39, builder: 'x/y:1', zfs: 2.0.7}  # mine\n" + NEXT,
            f"- {{image: linuxkit/kernel:5.4.39, builder: 'x/y:1', zfs: 2.0.7{IN_BRACES}}}"
            f"  # mine\n{NEXT}",
        ),
        (
            "- {image: linuxkit/kernel:5.4.39, zfs: 2.0.7, builder: x/y,}\n",
            f"- {{image: linuxkit/kernel:5.4.39, zfs: 2.0.7, builder: x/y{IN_BRACES},}}\n",
        ),
        (f"- zfs: 2.0.7\n  image: {KERNEL}\n", f"- zfs: 2.0.7\n  image: {KERNEL}\n{LINES[:-13]}"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_is_missing_is_added_and_no_more(
    path: Path, before: str, after: str, newline: str
) -> None:
    path.write_bytes((HEAD + before).replace("\n", newline).encode())
    old = load(path)
    new = revise(old, UNKNOWN, FACTS)
    assert path.read_bytes().decode() == (HEAD + after).replace("\n", newline)
    assert new == load(path)
    assert new.kernels[0].resolved
    assert new.kernels[1:] == old.kernels[1:]
    assert revise(new, UNKNOWN, FACTS) == new


def test_facts_find_the_entry_of_a_moved_tag(path: Path) -> None:
    path.write_text(f"{HEAD}{BARE}\n  digest: {B}\n{BARE}\n{DIGEST_LINE}")
    first, second = revise(load(path), Entry(KERNEL, A), FACTS).kernels
    assert (first.resolved, second.resolved) == (False, True)


def test_an_entry_that_somebody_took_away_is_not_put_back(path: Path) -> None:
    path.write_text(f"{HEAD}{BARE}\n")
    old = load(path)
    path.write_text(ONE)
    with pytest.raises(ConfigurationError, match="no longer there"):
        revise(old, UNKNOWN, FACTS)
    assert path.read_text() == ONE


@given(entries, entries)
def test_filled_in_facts_read_back(known: Entry, facts: Entry) -> None:
    facts = dataclasses.replace(facts, image=known.image, digest=known.digest or facts.digest)
    with TemporaryDirectory() as directory:
        path = Path(directory, "versions.yaml")
        path.write_text(TOP)
        versions = append(load(path), [known])
        (filled,) = revise(versions, Entry(known.image), facts).kernels
        assert filled == Entry(
            known.image,
            known.digest or facts.digest,
            known.platforms or facts.platforms,
            known.builder or facts.builder,
            known.zfs or facts.zfs,
            known.desktop or facts.desktop,
            policy=known.policy or facts.policy,
            aliases=known.aliases or facts.aliases,
            deleted=known.deleted or facts.deleted,
            smoke=known.smoke or facts.smoke,
            without=known.without or facts.without,
            skip=known.skip or facts.skip,
        )
        (revised,) = revise(load(path), filled, facts).kernels
        assert revised == dataclasses.replace(
            filled,
            platforms=facts.platforms or filled.platforms,
            builder=facts.builder or filled.builder,
            zfs=facts.zfs or filled.zfs,
            desktop=facts.desktop or filled.desktop,
            policy=facts.policy or filled.policy,
            aliases=facts.aliases,
            deleted=facts.deleted or filled.deleted,
            smoke=facts.smoke or filled.smoke,
            without=facts.without or filled.without,
            skip=facts.skip or filled.skip,
        )


# A value in place of another


def newer(versions: Versions) -> Versions:
    """ZFS 2.1.12 takes the place of 2.1.5."""
    was = next(one for one in versions.kernels if one.image == KERNEL)
    was = dataclasses.replace(was, zfs="2.1.5")
    return revise(versions, was, dataclasses.replace(was, zfs="2.1.12"))


@pytest.mark.parametrize(
    "entry",
    [
        f"{BARE}\n  zfs: 2.1.5\n",
        f"{BARE}\n  zfs: 2.1.5",
        f"{BARE}\n{LINES}{NEXT}",
        f"# é😀 zfs: 2.1.5\n{BARE}\n  zfs:   2.1.5   # zfs: 2.1.5\n  policy: latest\n{NEXT}",
        f"- zfs: 2.1.5\n  image: {KERNEL}\n",
        "- {zfs: 2.1.5, image: linuxkit/kernel:5.4.39}\n",
        f"- image: linuxkit/kernel:5.4.38\n  zfs: 2.1.5\n{BARE}\n{DIGEST_LINE}  zfs: 2.1.5\n{NEXT}",
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_replacing_the_zfs_version_changes_nothing_else(
    path: Path, entry: str, newline: str
) -> None:
    before = (HEAD + entry).replace("\n", newline)
    path.write_bytes(before.encode())
    old = load(path)
    new = newer(old)
    assert new == load(path)
    changed = [one for one, was in zip(new.kernels, old.kernels, strict=True) if one != was]
    assert [(one.image, one.zfs) for one in changed] == [(KERNEL, "2.1.12")]
    after = path.read_bytes().decode()
    assert len(after) == len(before) + 1
    place = next(n for n, (a, b) in enumerate(zip(after, before, strict=False)) if a != b)
    assert after[:place] + after[place + 2 :] == before[:place] + before[place + 1 :]
    assert newer(new) == new


@pytest.mark.parametrize("quote", ["'", '"'])
def test_replacing_a_quoted_zfs_version(path: Path, quote: str) -> None:
    path.write_text(f"{HEAD}{BARE}\n  zfs: {quote}2.1.5{quote} # mine\n")
    newer(load(path))
    assert path.read_text() == f"{HEAD}{BARE}\n  zfs: 2.1.12 # mine\n"


@pytest.mark.parametrize("line", ["  zfs: 2.1.6\n", "  zfs: 2.1.12\n"])
def test_what_somebody_changed_meanwhile_is_not_replaced(path: Path, line: str) -> None:
    path.write_text(f"{HEAD}{BARE}\n{line}")
    newer(load(path))
    assert path.read_text() == f"{HEAD}{BARE}\n{line}"


def test_platforms_and_aliases_grow_in_place(path: Path) -> None:
    """A block that somebody wrote becomes one line; comments around it stay."""
    one = MappingProxyType({Platform("linux/amd64"): A})
    two = MappingProxyType({Platform("linux/amd64"): A, Platform("linux/arm64"): B})
    path.write_text(
        f"{HEAD}{BARE} # mine\n  platforms:\n    linux/amd64: {A} # one\n  digest: {A}\n{NEXT}"
    )
    was = Entry(KERNEL, A, one)
    alias = Reference.parse("linuxkit/kernel:5.4.39-arm64")
    new = revise(load(path), was, Entry(KERNEL, A, two, aliases=(alias,)))
    assert path.read_text() == (
        f"{HEAD}{BARE} # mine\n  platforms:\n    {{linux/amd64: {A}, linux/arm64: {B}}} # one\n"
        f"  digest: {A}\n  aliases: [{alias}]\n{NEXT}"
    )
    assert new.kernels[0].platforms == two
    other = Reference.parse("linuxkit/kernel:other")
    revise(new, new.kernels[0], dataclasses.replace(new.kernels[0], aliases=(alias, other)))
    assert f"  aliases: [{alias}, {other}]\n" in path.read_text()


@pytest.mark.parametrize(
    ("kernels", "says"),
    [
        (
            "- image: a/k:1\n- image: a/k:2\n  aliases: [a/k:1]\n",
            "docker.io/a/k:1 is already a tag of docker.io/a/k:1",
        ),
        (
            "- image: a/k:1\n  aliases: [a/k:3]\n- image: a/k:2\n  aliases: [a/k:3]\n",
            "docker.io/a/k:3 is already a tag of docker.io/a/k:1",
        ),
        (
            f"- image: a/k:1\n  aliases: [a/k:2@{A}]\n",
            "a kernel image needs its tag here",
        ),
        ("- image: a/k:1\n  deleted: maybe\n", "'maybe' is not true or false"),
        ("- image: a/k:1\n  smoke: none\n", "'none' is not a way to test"),
        (
            "- image: a/k:1\n  aliases: [a/k:2]\n- image: a/k:2\n",
            "docker.io/a/k:2 would be published under the name of docker.io/a/k:1",
        ),
    ],
)
def test_aliases_that_make_no_sense(path: Path, kernels: str, says: str) -> None:
    path.write_text(HEAD + kernels)
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        load(path)


def test_a_tag_that_moved_on_from_an_alias_is_a_kernel_of_its_own(path: Path) -> None:
    path.write_text(f"{HEAD}- image: a/k:1\n  aliases: [a/k:2]\n- image: a/k:2\n  digest: {A}\n")
    first, second = load(path).kernels
    assert first.image_tags == ("a-k-1", "a-k-2")
    assert second.image_tags == (f"a-k-2-{A[7:19]}",)

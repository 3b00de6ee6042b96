"""Image tags: what each says, and why some are left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.tags import ImageTag

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("tag", "version", "source_hash", "architecture"),
    [
        ("5.4.39", "5.4.39", None, None),
        ("4.19", "4.19.0", None, None),
        ("5.15.49-amd64", "5.15.49", None, "amd64"),
        (f"5.15.49-{HASH}", "5.15.49", HASH, None),
        (f"5.15.49-pr-{HASH}", "5.15.49", HASH, None),
        (f"5.15.49-release-{HASH}", "5.15.49", HASH, None),
        (f"4.19.76-{HASH}-amd64", "4.19.76", HASH, "amd64"),
        (f"6.6.71-{HASH}-arm64", "6.6.71", HASH, "arm64"),
    ],
)
def test_kernels(tag: str, version: str, source_hash: str | None, architecture: str | None) -> None:
    kernel = ImageTag.parse(tag)
    assert kernel.reason == ""
    assert (str(kernel), str(kernel.version)) == (tag, version)
    assert (kernel.source_hash, kernel.architecture) == (source_hash, architecture)
    assert str(kernel.joined) == tag.removesuffix("-amd64").removesuffix("-arm64")


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("5.10.104-builder", "the compiler's image"),
        ("5.10.104-builder-arm64", "the compiler's image"),
        ("5.4.39-dbg", "debug"),
        ("4.9.31_dbg", "debug"),
        ("5.4.39-rt-dbg-s390x", "debug"),
        (f"5.4.39-rt-{HASH}", "realtime"),
        (f"5.4.39-{HASH}-dirty", "modified source tree"),
        (f"5.4.39-{HASH}-dirty-amd64", "modified source tree"),
        ("5.4.39-s390x", "architecture"),
        (f"6.6.13-{HASH}-riscv64", "architecture"),
        ("desktop-4.13.0", "Docker Desktop version"),
        ("desktop-3.3.0.1", "Docker Desktop version"),
        ("4.9.x", "moves"),
        ("4.9.14-0", "before LinuxKit's first release"),
    ],
)
def test_tags_that_are_no_kernels_to_build_for(tag: str, reason: str) -> None:
    other = ImageTag.parse(tag)
    assert other.text is None, "it is understood"
    assert str(other) == tag
    assert reason in other.reason


@pytest.mark.parametrize(
    "tag",
    [
        "4.04.1",
        "4.9.1.x",
        "٤.١٩",
        f"5.4.39-{HASH[:-1]}",
        f"5.4.39-{HASH.upper()}",
        f"4.14.52-wifi-{HASH}",
        "4.9.",
        "4.9.33-",
        "4.9.28-foo",
        "5",
        "5.4.39\n",
        "5.4.39.1",
        "1" * 5000 + ".1",
        "latest",
        "desktop-",
        "",
    ],
)
def test_tags_that_follow_no_known_rule(tag: str) -> None:
    other = ImageTag.parse(tag)
    assert other == ImageTag(text=tag)
    assert "not a kernel version" in other.reason
    assert other.version is None


numbers = st.integers(0, 999_999_999)


@st.composite
def tags(draw: st.DrawFn) -> ImageTag:
    moving = draw(st.booleans())
    count = 2 if moving else draw(st.integers(2, 3))
    desktop = draw(st.none() | st.from_regex(r"[1-9]\.[0-9](\.[1-9]){0,2}", fullmatch=True))
    return ImageTag(
        numbers=() if desktop else tuple(draw(numbers) for _ in range(count)),
        desktop=desktop,
        moving=moving and not desktop,
        realtime=draw(st.booleans()),
        debug=draw(st.sampled_from(["", "-dbg", "_dbg"])),
        qualifier=draw(st.sampled_from([None, "pr", "release"])),
        source_hash=draw(st.none() | st.from_regex(r"[0-9a-f]{40}", fullmatch=True)),
        build=draw(st.none() | numbers),
        dirty=draw(st.booleans()),
        builder=draw(st.booleans()),
        architecture=draw(st.sampled_from([None, "amd64", "arm64", "s390x", "riscv64"])),
    )


@given(tags())
def test_what_is_printed_reads_back(tag: ImageTag) -> None:
    assert ImageTag.parse(str(tag)) == tag


@given(
    st.text()
    | st.from_regex(
        r"\d+\.\d+(\.\d+)?(-rt)?([-_]dbg)?(-[0-9a-f]{40})?(-[a-z0-9]+)?", fullmatch=True
    )
)
def test_any_string_is_a_kernel_or_has_a_reason(text: str) -> None:
    tag = ImageTag.parse(text)
    assert str(tag) == text
    assert tag.reason or tag.version
    assert ImageTag.parse(str(tag.joined)) == tag.joined


def test_the_order_is_that_of_kernel_versions() -> None:
    in_order = [
        "latest",
        "desktop-3.3.1",
        "4.9",
        "4.9.14",
        "4.9.14-0",
        "4.9.14-1",
        "4.10",
        "4.19.76",
        "5.4.39",
        "5.15.49",
        "6.12.59",
        "10.0",
    ]
    parsed = [ImageTag.parse(tag) for tag in in_order]
    assert sorted(parsed, key=lambda tag: (tag.order, str(tag) != "latest")) == parsed

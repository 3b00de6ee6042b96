"""Docker's release notes: what is a statement about a release's kernel, and what is not."""

from __future__ import annotations

import time
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.errors import ExitCode, UpstreamError
from release.notes import HOSTS, Host, Notes, Statement, parse_notes
from release.reference import Reference

URL = "https://example.org/release-notes.md"
OLD = "4.19.76-" + "8" * 40 + "-amd64"
NEW = "5.10.25-" + "6" * 40
MAC, WINDOWS, LINUX = (Host.MAC,), (Host.WINDOWS,), (Host.LINUX,)


def layers(tag: str, repository: str = "docker/for-desktop-kernel") -> str:
    return (
        f"https://hub.docker.com/layers/{repository}/{tag}/images/sha256-{'0' * 64}?context=explore"
    )


def desktop_kernel(tag: str) -> Reference:
    return Reference.parse(f"docker/for-desktop-kernel:{tag}")


def read(text: str, url: str = URL) -> Notes:
    return parse_notes(text, url)


def about(sentence: str) -> Notes:
    return read(f"## 4.13.0\n\n### Upgrades\n\n- {sentence}\n")


def only(notes: Notes) -> Statement:
    assert notes.not_understood == ()
    (statement,) = notes.statements
    return statement


PAGE = f"""\
---
description: Release notes for Docker Desktop for Mac, Linux, Windows
title: Docker Desktop release notes
aliases:
  - /desktop/mac/release-notes/
---
{{{{< rss-button text="Subscribe" >}}}}

<!-- Linux kernel 9.9.9 is only a comment -->

## 4.14.0

{{{{< release-date date="2022-11-10" >}}}}

{{{{< desktop-install all=true version="4.14.0" build_path="/91661/" >}}}}

### Upgrades

- [Docker Engine v20.10.21](https://docs.docker.com/engine/release-notes/#201021)
- [Linux kernel 5.10.25]({layers(NEW)})

### Bug fixes and enhancements

#### For all platforms

- Updated kernel to 5.10.124.
  Fixes [docker/for-mac#1](https://github.com/docker/for-mac/issues/1).

#### For Mac

- Downgraded Linux kernel to `v6.10.14` to fix a bug in OpenJDK that causes
  containers to terminate. See [docker/for-mac#7573](https://example.org).

#### For Windows

- Fixed Registry Access Management under WSL 2 with latest 5.10.60.1 kernel.
- Re-added `CONFIG_DM_CRYPT` kernel module.

### Known issues

- Linux kernel 5.15.49 to fix nothing.

## 4.13.1

{{% include release-date.html date="22-10-31" %}}

### Upgrades

- [Go 1.19.3](https://example.org)

## 4.13.0
2022-10-19

> Download Docker Desktop

* Upgrades
  - Kernel v6.12.54
"""


def test_a_page() -> None:
    notes = read(PAGE)
    assert notes.releases == ("4.14.0", "4.13.1", "4.13.0")
    found = [(s.desktop, s.date, s.platforms, s.kernel, s.image) for s in notes.statements]
    november = date(2022, 11, 10)
    assert found == [
        ("4.14.0", november, HOSTS, "5.10.25", desktop_kernel(NEW)),
        ("4.14.0", november, HOSTS, "5.10.124", None),
        ("4.14.0", november, MAC, "6.10.14", None),
        ("4.13.0", date(2022, 10, 19), HOSTS, "6.12.54", None),
    ]
    assert notes.statements[1].sentence == "Updated kernel to 5.10.124."
    assert {s.url for s in notes.statements} == {URL}
    (doubt,) = notes.not_understood
    assert (doubt.desktop, doubt.sentence) == ("4.14.0", "Linux kernel 5.15.49 to fix nothing.")
    assert doubt.reason == "stands under 'Known issues'"


@pytest.mark.parametrize(
    ("sentence", "kernel"),
    [
        ("Linux kernel 5.10.25", "5.10.25"),
        ("Linux Kernel 4.9.184", "4.9.184"),
        ("Linux kernel `v6.10`", "6.10"),
        ("**Linux kernel**: 6.6.31", "6.6.31"),
        ("Kernel v6.12.54", "6.12.54"),
        ("LinuxKit 4.19.76", "4.19.76"),
        ("LinuxKit kernel 4.9.38", "4.9.38"),
        ("Linux kernel 5.15.49-linuxkit", "5.15.49"),
        ("Linux kernel [v6.12.54](https://cdn.kernel.org/pub/linux/v6.x/)", "6.12.54"),
        ("Linux Kernel 4.9.93 with CEPH, DRBD and MPLS_ROUTING enabled", "4.9.93"),
        ("Upgraded kernel to 5.10.124.", "5.10.124"),
        ("Upgrade the Linux kernel to 5.10.124", "5.10.124"),
        ("Downgraded the kernel to 4.19.121 to reduce the CPU usage of hyperkit.", "4.19.121"),
        ("Downgraded Linux kernel from 6.11.2 to `v6.10.14`", "6.10.14"),
        ("Reverted the kernel to 5.10.25 because of docker/for-mac#5044", "5.10.25"),
        ("Update to Linux kernel 5.10.25 to improve reliability.", "5.10.25"),
        ("Linux kernel updated to 6.10.1", "6.10.1"),
        ("Kernel upgrade to 4.4.9", "4.4.9"),
        ("Linux kernel 4.4.14, aufs 20160627", "4.4.14"),
        ("Docker Desktop now uses Linux kernel 5.15.49.", "5.15.49"),
    ],
)
def test_wordings(sentence: str, kernel: str) -> None:
    statement = only(about(sentence))
    assert (statement.kernel, statement.image) == (kernel, None)


@pytest.mark.parametrize(
    "sentence",
    [
        "LinuxKit v0.5",
        "[linuxkit v1.2.0](https://github.com/linuxkit/linuxkit/releases/tag/v1.2.0)",
        f"LinuxKit [init]({layers('1' * 40, 'linuxkit/init')})",
        "Fixed Registry Access Management under WSL 2 with latest 5.10.60.1 kernel.",
        "Upgraded the WSL 2 kernel to 5.15.90.",
        "Incompatible with the most recent WSL 2 Linux kernel. If so, downgrade WSL 2 to 2.5.7.",
        "Added support for WSL2 2.3.11, which includes loadable kernel modules.",
        "Re-added `CONFIG_PSI` kernel module.",
        "Update kernel configuration to fix a regression in [Docker Desktop 3.0.0](#docker-300)",
        "Fixed a kernel panic on Macs with macOS 12.5.",
        "Detect Linux kernel crashes and escalate them to the user.",
        "[Qemu 7.0.0](https://wiki.qemu.org/ChangeLog/7.0)",
    ],
)
def test_what_is_not_about_the_version_of_this_kernel(sentence: str) -> None:
    notes = about(sentence)
    assert (notes.statements, notes.not_understood) == ((), ())


@pytest.mark.parametrize(
    "sentence",
    [
        "Linux kernel 5.4 or later is required.",
        "Support for Linux kernel 6.1.2",
        "Fixed a crash with kernel 5.10.47 on arm64.",
        "Upgraded kernel to 6.6.12 on Apple silicon",
        "Linux kernel 5.10.25 (Intel only)",
        "Linux kernel 5.10.25 with WSL 2",
        "Linux kernel 5.15.49 and 4.19.121",
        "Linux kernel 5.15.49 with a fallback, which is 4.19.121",
        "Linux kernel 6.10-rc1",
        "Linux kernel 6.6.x",
        "Linux kernel 5.10.60.1",
        "Linux kernel 5.04.1",
        "Reverted Linux kernel 6.11.2",
        f"The image is [this kernel]({layers(NEW)})",
        f"[Linux kernel 5.10.25]({layers(NEW + '-dbg', 'linuxkit/kernel')})",
        f"[Linux kernel 5.10.25]({layers(NEW, 'docker/for-desktop-kernel-grpcfuse')})",
        f"[Linux kernel 5.10.25]({layers(NEW)}), [Linux kernel 4.19.76]({layers(OLD)})",
        f"[Linux kernel 5.10.25]({layers(NEW)}) with [modules]({layers(OLD)})",
        "[Linux kernel 5.10.25](https://hub.docker.com/r/docker/for-desktop-kernel/tags?name=4.19)",
        f"[Linux kernel 5.10.25]({layers('desktop-3.3.1')})",
    ],
)
def test_what_is_for_a_person_to_read(sentence: str) -> None:
    notes = about(sentence)
    assert notes.statements == ()
    assert notes.not_understood
    assert {(one.desktop, one.url) for one in notes.not_understood} == {("4.13.0", URL)}
    assert all(one.reason for one in notes.not_understood)


HUB = "https://hub.docker.com"


@pytest.mark.parametrize(
    ("link", "image"),
    [
        (f"[Linux kernel 5.10.25]({layers(NEW)})", f"docker/for-desktop-kernel:{NEW}"),
        (f"[Linux kernel 5.10.25]({layers(OLD)})", f"docker/for-desktop-kernel:{OLD}"),
        (
            f"[LinuxKit 5.10.25]({layers(NEW, 'for-desktop-kernel/docker/for-desktop-kernel')})",
            f"docker/for-desktop-kernel:{NEW}",
        ),
        (f"[Kernel 5.10.25]({layers(NEW, 'linuxkit/kernel')})", f"linuxkit/kernel:{NEW}"),
        (f"[Kernel 5.10.25]({layers('5.10.25', 'linuxkit/kernel')})", "linuxkit/kernel:5.10.25"),
        (
            f"[Linux kernel 5.10.25]({HUB}/r/docker/for-desktop-kernel/tags?page=1&name={NEW})",
            f"docker/for-desktop-kernel:{NEW}",
        ),
        (f"Upgraded kernel to [5.10.25]({layers(NEW)}).", f"docker/for-desktop-kernel:{NEW}"),
        (f"[Linux kernel 5.10.25]({layers(NEW)} 'a title')", f"docker/for-desktop-kernel:{NEW}"),
        ("[Linux kernel 5.10.25][kernel]", f"docker/for-desktop-kernel:{NEW}"),
        ("[Linux kernel 5.10.25][]", f"docker/for-desktop-kernel:{OLD}"),
        ("[Linux kernel 5.10.25]", f"docker/for-desktop-kernel:{OLD}"),
        (f'<a href="{layers(NEW)}">Linux kernel 5.10.25</a>', f"docker/for-desktop-kernel:{NEW}"),
        (f"Linux kernel 5.10.25 <{layers(NEW)}>", f"docker/for-desktop-kernel:{NEW}"),
        (f"[Kernel 5.10.25]({HUB}/r/docker/for-desktop-kernel/tags)", None),
        (f"[Kernel 5.10.25]({HUB}/r/docker/for-desktop-kernel/tags?name=5.10.25)", None),
        (f"[Kernel 5.10.25]({HUB}/r/linuxkit/kernel/tags?name=5.10.25)", None),
    ],
)
def test_links(link: str, image: str | None) -> None:
    definitions = f"[kernel]: {layers(NEW)}\n[Linux kernel 5.10.25]: {layers(OLD)}\n"
    statement = only(read(f"## 4.13.0\n\n- {link}\n\n{definitions}"))
    assert statement.kernel == "5.10.25"
    assert statement.image == (Reference.parse(image) if image else None)


@pytest.mark.parametrize(
    ("heading", "desktop"),
    [
        ("## Docker Desktop 4.13.0", "4.13.0"),
        ("## 4.13.0", "4.13.0"),
        ("## v4.13.0 {#4130}", "4.13.0"),
        ("### Docker Desktop 3.3.2", "3.3.2"),
        ("## Docker Desktop Community 2.3.0.2", "2.3.0.2"),
        ("## Docker Desktop for Windows 3.0.0", "3.0.0"),
        ("### Docker Community Edition 2.0.0.0-mac78 2018-11-19", "2.0.0.0-mac78"),
        (
            "### Docker Community Edition 18.06.0-ce-mac70, 2018-07-25 (stable) ##",
            "18.06.0-ce-mac70",
        ),
        ("### Docker for Mac 1.12.3 2016-11-09", "1.12.3"),
        ("### Beta 17 Release (2016-06-29 1.12.0-rc2-beta17)", "1.12.0-rc2-beta17"),
        ("### Beta 18.1 Release Notes (2016-07-07 1.12.0-rc3-beta18.1)", "1.12.0-rc3-beta18.1"),
    ],
)
def test_release_headings(heading: str, desktop: str) -> None:
    notes = read(f"# Docker Desktop\n{heading}\n* Upgrades\n  - Linux kernel 5.10.25\n")
    assert notes.releases == (desktop,)
    statement = only(notes)
    assert statement.desktop == desktop
    day = heading.replace("(", " ").partition(" 20")[2][:8]
    assert statement.date == (date.fromisoformat(f"20{day}") if day else None)


@pytest.mark.parametrize(
    "heading", ["## Docker Desktop 4.14.0 RC 2", "## Older versions", "# Beta 3", "### Edge 2"]
)
def test_what_stands_under_another_heading_is_not_said_of_the_release_before(heading: str) -> None:
    notes = read(f"## 4.13.0\n\n{heading}\n\n### Upgrades\n\n- Linux kernel 5.10.25\n")
    assert notes.statements == ()
    assert [one.desktop for one in notes.not_understood] == [""]


def test_a_component_with_a_heading_of_its_own_is_no_release() -> None:
    notes = read("## 4.13.0\n\n#### 2.12.0\n\n- Linux kernel 5.10.25\n")
    assert notes.releases == ("4.13.0",)
    assert notes.statements == ()


@pytest.mark.parametrize(
    ("above", "platforms"),
    [
        ("### Upgrades", HOSTS),
        ("### For Mac", MAC),
        ("### Bug fixes\n#### Windows", WINDOWS),
        ("### For Mac\n#### Upgrades", MAC),
        ("### For Mac\n### Upgrades", HOSTS),
        ("#### For Mac and Linux", LINUX + MAC),
        ("### For Mac\n#### For all platforms", HOSTS),
        ("### Upgrades\n**For Linux**", LINUX),
        ("### Upgrades\n**For Linux**\n\n**Other**", HOSTS),
        ("### Upgrades\n\n* For Windows:", WINDOWS),
        ("### Upgrades\n\n* For Windows:\n  - Other\n\n* All else", HOSTS),
        ("### For Mac with Apple silicon", None),
        ("### Upgrades\n**WSL 2**", None),
        ("### Upgrades\n\n* Hyper-V", None),
        ("### Deprecation", None),
    ],
)
def test_the_platforms_of_a_section(above: str, platforms: tuple[Host, ...] | None) -> None:
    notes = read(f"## 4.13.0\n{above}\n  - Linux kernel 5.10.25\n")
    assert [statement.platforms for statement in notes.statements] == [platforms] * bool(platforms)
    assert len(notes.not_understood) == (platforms is None)


@pytest.mark.parametrize(
    ("head", "url", "platforms"),
    [
        ("title: Docker Desktop for Mac 3.x release notes", URL, MAC),
        ("title: Docker Desktop for Windows Edge Release notes", URL, WINDOWS),
        ("title: Docker Desktop release notes", URL, HOSTS),
        ("title: Older versions\ndescription: Docker Desktop for Mac notes", URL, MAC),
        ("description: Docker Desktop for Mac, Linux and Windows", URL, HOSTS),
        ("# Docker for Windows", URL, WINDOWS),
        ("", "https://example.org/previous-versions/3.x-windows/", WINDOWS),
        ("", "https://example.org/linuxkit/", HOSTS),
    ],
)
def test_the_platforms_of_a_page(head: str, url: str, platforms: tuple[Host, ...]) -> None:
    notes = read(f"{head}\n\n## Docker Desktop 3.3.0\n\n- Linux kernel 5.10.25\n", url)
    assert only(notes).platforms == platforms


@pytest.mark.parametrize("above", ["#### Linux kernel", "* **Kernel:**", "**Linux Kernel**"])
def test_a_version_that_stands_under_a_kernel(above: str) -> None:
    notes = read(f"## 4.13.0\n\n### Upgrades\n\n{above}\n  - v6.12.54\n\n### New\n\n- v4.1.2\n")
    assert notes.statements == ()
    assert [one.sentence for one in notes.not_understood] == ["v6.12.54"]


def test_code_and_comments_say_nothing() -> None:
    kernel = "- Linux kernel 5.10.25\n"
    notes = read(
        f"## 4.13.0\n```\n{kernel}```\n<!--\n{kernel}-->\n"
        f"{{% comment %}}\n{kernel}{{% endcomment %}}\n## 4.12.0\n```console\n{kernel}"
        f"## 4.11.0\n{kernel}"
    )
    assert [statement.desktop for statement in notes.statements] == ["4.11.0"]
    assert notes.not_understood == ()


@pytest.mark.parametrize("day", ["2022-13-40", "yesterday"])
def test_a_date_that_is_none(day: str) -> None:
    assert only(read(f"## 4.13.0\n{day}\n\n- Linux kernel 5.10.25\n")).date is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "are empty"),
        (" \n\n", "are empty"),
        ("\ufeff<!DOCTYPE html>\n## 4.13.0\n- Linux kernel 5.10.25\n", "HTML"),
        ("<!-- 1 -->\n<html><h1>Docker Desktop 4.13.0</h1></html>", "HTML"),
        ("404: Not Found", "no heading"),
        ('{"message": "Not Found"}', "no heading"),
        ("# Docker Desktop\n\nNothing yet.\n", "no heading"),
        ("---\ntitle: Docker Engine 28 release notes\n---\n## 28.5.1\n", "something else"),
    ],
)
def test_what_is_no_page_of_release_notes(text: str, what: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        read(text)
    assert what in caught.value.what
    assert caught.value.on == URL
    assert caught.value.hint
    assert caught.value.exit_code is ExitCode.UPSTREAM_INCOMPLETE


def test_a_page_that_is_cut_anywhere_says_nothing_else() -> None:
    def facts(notes: Notes) -> set[tuple[str, tuple[Host, ...], str, Reference | None]]:
        return {(s.desktop, s.platforms, s.kernel, s.image) for s in notes.statements}

    whole = facts(read(PAGE))
    for end in range(len(PAGE)):
        try:
            part = read(PAGE[:end])
        except UpstreamError:
            continue
        assert facts(part) <= whole


_PIECES = st.sampled_from(
    [
        *("## 4.13.0\n", "### For Mac\n", "- ", "  * ", "Linux kernel ", "5.10.25", "kernel to "),
        *(layers(NEW), "[", "](", ")", "`", "**", "_", "|", ">", "<", "<!--", "-->", "```\n", "\n"),
        *(". ", " to fix", "\r", "\0", "\ud800", "\u2028", "{{< date date=", '"2022-10-19"', "\t"),
        *("https://hub.docker.com/r/linuxkit/kernel?name=%zz&name=", "Upgraded ", "#", "٣.٣.٣"),
    ]
)


@given(st.lists(_PIECES | st.text(max_size=5)).map("".join) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for page in (text, f"## 4.13.0\n- Linux kernel {text}\n"):
        try:
            notes = read(page)
        except UpstreamError:
            continue
        for statement in notes.statements:
            assert statement.kernel in page
            assert statement.sentence.isprintable()


@pytest.mark.parametrize(
    "piece",
    [
        *("[", "[](", "# ", "<!--", "```\n", "kernel ", "a/", "_", "*", "<a ", "docker ", "\r"),
        *("- Linux kernel 5.10.25 to fix a\n", "kernel. A", "## Docker Desktop ((((\n", "> "),
        *("wsl kernel 5.5.5.5 ", "(((", "\t", "- kernel 5.10 x\n\n", '{{< date date "\n'),
    ],
)
def test_it_takes_time_in_proportion_to_the_text(piece: str) -> None:
    def seconds(length: int) -> float:
        start = f"## 4.13.0\n\n- Linux kernel 5.10.25 to fix {piece}\n"
        before = time.process_time()
        parse_notes(start + piece * (length // len(piece)), URL)
        return time.process_time() - before

    seconds(1_000)
    # Twice the text takes twice the time; where that were four times, this would be minutes.
    assert seconds(400_000) < 5

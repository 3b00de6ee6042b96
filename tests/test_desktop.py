"""``desktop.yaml``: which Desktop runs which kernel. Golden files are in ``golden/desktop``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.desktop import (
    DesktopMap,
    Finding,
    Grade,
    PolledNotes,
    Row,
    Verdict,
    append,
    load,
    poll_notes,
    show,
    verdicts,
    version_key,
)
from release.errors import ConfigurationError, ExitCode
from release.http import Http
from release.notes import HOSTS, Host, NotUnderstood
from release.reference import DOCKER_HUB, Digest, Reference
from release.versions import Entry
from tests.lab.docs import Docs
from tests.lab.server import Fault, Response, html_page

GOLDEN = Path(__file__).parent / "golden" / "desktop"
ROOT = Path(__file__).parent.parent
A = Digest("sha256:" + "a" * 64)
B = Digest("sha256:" + "b" * 64)
URL = "https://example.org/notes/"


def kernel(tag: str, repository: str = "docker/for-desktop-kernel") -> Reference:
    return Reference(DOCKER_HUB, repository, tag)


OLD = kernel("4.19.76-" + "8" * 40 + "-amd64")
NEW = kernel("5.10.25-" + "6" * 40)
OTHER = kernel("5.10.25-" + "7" * 40)
LINKED = Row("3.3.0", "5.10.25", Grade.LINKED, URL, "Linux kernel 5.10.25", image=NEW)
STATED = Row("4.12.0", "5.10.124", Grade.STATED, URL, "Upgraded kernel to 5.10.124.")
FULL = f"""\
# which Desktop runs which kernel
rows:
  # the first
  - desktop: 3.3.0
    platforms: [mac]
    date: 2021-04-08
    kernel: 5.10.25
    image: {NEW}
    grade: linked
    evidence: {{source: "{URL}", sentence: Linux kernel 5.10.25}}
    decided: docker/for-desktop-kernel:1@{A}
  - desktop: 2.0.0.0-mac78
    kernel: 4.9
    grade: seen
    evidence:
      source: /etc/linuxkit.yml
      sentence: 'kernel: image: linuxkit/kernel:4.9'
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "desktop.yaml"


# The file


def test_everything_that_can_be_said(path: Path) -> None:
    path.write_text(FULL)
    assert load(path).rows == (
        Row(
            "3.3.0",
            "5.10.25",
            Grade.LINKED,
            URL,
            "Linux kernel 5.10.25",
            (Host.MAC,),
            date(2021, 4, 8),
            NEW,
            Reference.parse(f"docker/for-desktop-kernel:1@{A}"),
        ),
        Row(
            "2.0.0.0-mac78",
            "4.9",
            Grade.SEEN,
            "/etc/linuxkit.yml",
            "kernel: image: linuxkit/kernel:4.9",
        ),
    )


def test_no_file_is_an_empty_map(path: Path) -> None:
    assert load(path) == DesktopMap(path)


@pytest.mark.parametrize(
    ("old", "new", "line", "what", "hint"),
    [
        (FULL, "", 1, "is empty", "rows: []"),
        (FULL, "# none\n", 1, "is empty", "rows: []"),
        (FULL, "rows: {}\n", 1, "expected a list", "- "),
        ("rows:", "row:", 4, "unknown key 'row'", "rows"),
        ("    kernel: 5.10.25\n", "", 4, "'kernel' is missing", "kernel: ..."),
        ("desktop: 3.3.0", "desktop: 3.3", 4, "is not a Docker Desktop version", "4.13.0"),
        ("[mac]", "[mac, solaris]", 5, "is not a list of platforms", "linux, mac, windows"),
        ("[mac]", "[]", 5, "nothing is not a list", "leave it out"),
        ("[mac]", "[mac, mac]", 5, "is not a list of platforms", "once"),
        ("2021-04-08", "2021-04-31", 6, "not in the calendar", "year-month-day"),
        ("2021-04-08", "April 8", 6, "is not a date", "2022-10-19"),
        ("kernel: 5.10.25", "kernel: v5.10.25", 7, "is not a kernel version", "5.15.49"),
        ("kernel: 4.9\n", "kernel: 4.09\n", 13, "is not a kernel version", "5.15.49"),
        (f"image: {NEW}\n", f"image: {NEW}@{A}\n", 8, "needs its tag", "repository:tag"),
        (f"image: {NEW}\n", "image: docker/x\n", 8, "needs its tag", "repository:tag"),
        (f"    image: {NEW}\n", "", 8, "names the kernel image", "grade: stated"),
        ("grade: linked", "grade: stated", 8, "names no kernel image", "decided:"),
        ("grade: linked", "grade: inferred", 9, "is not allowed", "remove the row"),
        ("grade: linked", "grade: good", 9, "is not a grade", "seen, linked, stated"),
        ("source: /etc/linuxkit.yml", "source: ''", 16, "words on one line", "quote"),
        (":1@sha", "@sha", 11, "needs its tag", "repository:tag"),
        ("desktop: 2.0.0.0-mac78", "desktop: 3.3.0", 0, "", ""),
    ],
)
def test_errors_name_the_line(
    path: Path, old: str, new: str, line: int, what: str, hint: str
) -> None:
    assert old in FULL
    path.write_text(FULL.replace(old, new))
    if not line:
        assert len(load(path).rows) == 2
        return
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.on == f"{path}, line {line}"


def test_the_same_evidence_twice(path: Path) -> None:
    append(DesktopMap(path), [LINKED])
    text = path.read_text()
    path.write_text(text + text[text.index("  - desktop") :].replace(URL, "elsewhere"))
    with pytest.raises(ConfigurationError, match="is there twice") as caught:
        load(path)
    assert "(first in line 19)" in caught.value.what


def test_two_decisions(path: Path) -> None:
    path.write_text(FULL.replace("2.0.0.0-mac78", "3.3.0") + f"    decided: {OLD}\n")
    with pytest.raises(ConfigurationError, match="already decided to run") as caught:
        load(path)
    assert caught.value.on == f"{path}, line 12"


def test_a_new_file(path: Path) -> None:
    seen = Row("4.9.1", "5.10.104", Grade.SEEN, "/proc/version", 'Linux version 5.10 "x" # é')
    new = append(load(path), [STATED, seen, LINKED])
    assert new == load(path)
    assert new.rows == (LINKED, seen, STATED)
    assert path.read_text() == (GOLDEN / "new.yaml").read_text()
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_appending_leaves_every_byte_above(path: Path, newline: str) -> None:
    before = FULL.replace("\n", newline).encode()
    path.write_bytes(before)
    old = load(path)
    new = append(old, [STATED, LINKED])
    assert path.read_bytes().startswith(before)
    assert new == load(path)
    assert new.rows == (*old.rows, LINKED, STATED)
    assert path.read_bytes().count(b"\r\n") == (path.read_bytes().count(b"\n") * (newline != "\n"))


def test_what_is_there_is_not_appended_again(path: Path) -> None:
    new = append(load(path), [LINKED, STATED])
    written = path.stat().st_mtime_ns
    again = Row("3.3.0", "5.10.25", Grade.LINKED, "elsewhere", "Other words", image=NEW)
    assert append(load(path), [again, STATED]) == new
    assert append(DesktopMap(path), []) == new
    assert path.stat().st_mtime_ns == written


def test_what_cannot_be_appended_to_stays_as_it_is(path: Path) -> None:
    evidence = "{source: a, sentence: b}"
    content = f"rows: [{{desktop: 4.1.1, kernel: 5.1, grade: seen, evidence: {evidence}}}]"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="written in"):
        append(load(path), [LINKED])
    assert path.read_text() == content


_WORDS = st.text(min_size=1).filter(lambda text: text.isprintable() and text.strip() == text)
_IMAGES = st.sampled_from([OLD, NEW, OTHER])


@st.composite
def _rows(draw: st.DrawFn) -> Row:
    grade = draw(st.sampled_from(Grade))
    image = draw(_IMAGES) if grade is Grade.LINKED else None
    hosts = draw(st.sets(st.sampled_from(HOSTS), min_size=1))
    return Row(
        draw(st.sampled_from(["4.13.0", "2.0.0.0-win78", "18.06.0-ce", "4.9.1"])),
        draw(st.sampled_from(["5.10", "5.10.25", "6.0.1"])),
        grade,
        " ".join(draw(_WORDS).split()),
        " ".join(draw(_WORDS).split()),
        tuple(host for host in HOSTS if host in hosts),
        draw(st.none() | st.dates(min_value=date(1000, 1, 1))),
        image or (draw(st.none() | _IMAGES) if grade is Grade.SEEN else None),
        draw(st.none() | st.just(NEW.with_tag("1"))),
    )


@given(st.lists(_rows(), unique_by=lambda row: row.fact))
def test_what_is_written_is_what_is_read(rows: list[Row]) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "desktop.yaml"
        new = append(DesktopMap(path), rows)
        assert sorted(new.rows, key=repr) == sorted(rows, key=repr)
        assert [version_key(row.desktop) for row in new.rows] == sorted(
            version_key(row.desktop) for row in rows
        )
        assert load(path) == new
        if rows:
            written = path.read_bytes()
            path.unlink()
            append(DesktopMap(path), new.rows)
            assert path.read_bytes() == written


# Verdicts


def judge(*rows: Row, known: tuple[Entry, ...] = (Entry(OLD), Entry(NEW), Entry(OTHER))) -> Verdict:
    (verdict,) = verdicts(DesktopMap(Path("desktop.yaml"), rows), known)
    return verdict


def row(
    version: str = "5.10.25",
    image: Reference | None = None,
    *hosts: Host,
    desktop: str = "3.3.0",
    decided: Reference | None = None,
) -> Row:
    grade = Grade.LINKED if image else Grade.STATED
    return Row(desktop, version, grade, URL, "x", hosts or HOSTS, None, image, decided)


def test_one_linked_image_that_is_known() -> None:
    verdict = judge(row(image=NEW))
    assert verdict == Verdict("3.3.0", Finding.PUBLISHABLE, "linked", "", Entry(NEW))
    assert judge(row(image=NEW), row(), row(image=NEW, version="5.10.25")).entry == Entry(NEW)


def test_the_evidence_of_two_platforms_agrees() -> None:
    assert judge(row("5.10.25", NEW, Host.MAC), row("5.10.25", None, Host.WINDOWS)).entry


@pytest.mark.parametrize(
    "rows",
    [
        # What Docker's notes of 3.3.0 for Windows say.
        (row("5.10.25", OLD),),
        (row("5.10.25", NEW, Host.MAC), row("5.10.25", OLD, Host.WINDOWS)),
        (row("5.10.25", NEW, Host.MAC), row("4.19.76", OLD, Host.WINDOWS)),
        (row("5.10.25", NEW), row("5.10.25", OTHER)),
        (row("5.10.25", NEW), row("5.10.47")),
        (row("5.10.25"), row("5.10.47")),
        (row("5.10.25", kernel("desktop-3.3.1")),),
    ],
)
def test_contradictions(rows: tuple[Row, ...]) -> None:
    verdict = judge(*rows)
    assert verdict.finding is Finding.CONTRADICTORY
    assert verdict.entry is None
    assert "decided: IMAGE" in verdict.hint


def test_what_versions_yaml_says_otherwise_is_a_contradiction() -> None:
    known = (Entry(NEW), Entry(OTHER, desktop=("3.3.0",)))
    assert judge(row(image=NEW), known=known).finding is Finding.CONTRADICTORY
    assert judge(row(image=OTHER), known=known).finding is Finding.PUBLISHABLE


def test_a_decision_counts_more_than_evidence() -> None:
    verdict = judge(row("5.10.25", OLD, Host.WINDOWS, decided=NEW), row("5.10.25", OTHER, Host.MAC))
    assert (verdict.finding, verdict.entry) == (Finding.PUBLISHABLE, Entry(NEW))
    assert verdict.reason == "decided by hand in desktop.yaml"


def test_a_decision_for_what_is_not_known() -> None:
    verdict = judge(row(decided=kernel("6.1.1")))
    assert (verdict.finding, verdict.entry) == (Finding.NO_HEADERS, None)
    assert "not among the known kernels" in verdict.reason


def test_a_version_without_an_image() -> None:
    verdict = judge(row("6.10", desktop="4.33.0"), known=(Entry(kernel("6.10.1")), Entry(NEW)))
    assert verdict.finding is Finding.NO_HEADERS
    assert "on Docker Desktop 4.33.0 run: python -m release capture" in verdict.hint


def test_a_version_alone_proves_no_image() -> None:
    verdict = judge(row(), known=(Entry(NEW), Entry(OLD)))
    assert verdict.finding is Finding.UNPROVEN
    assert "one kernel image of that version is known" in verdict.reason
    assert "python -m release detect" in verdict.hint
    assert "2 kernel images of that version are known" in judge(row()).reason
    assert judge(row("6.10"), known=(Entry(kernel("6.10.0", "linuxkit/kernel")),)).finding is (
        Finding.UNPROVEN
    )


def test_a_linked_image_that_is_not_known() -> None:
    assert judge(row(image=NEW), known=(Entry(OLD),)).finding is Finding.NO_HEADERS
    assert judge(row(image=NEW), known=(Entry(OTHER),)).finding is Finding.UNPROVEN


def test_a_tag_that_was_moved_is_two_kernels() -> None:
    known = (Entry(NEW, A), Entry(NEW, B, moved=True))
    verdict = judge(row(image=NEW), known=known)
    assert (verdict.finding, verdict.entry) == (Finding.UNPROVEN, None)
    decided = row(decided=Reference(NEW.registry, NEW.repository, NEW.tag, B))
    assert judge(decided, known=known).entry == known[1]


def test_second_names() -> None:
    second = kernel(f"{NEW.tag}-amd64")
    rows = DesktopMap(Path("desktop.yaml"), (row(image=second), row(image=NEW)))
    (verdict,) = verdicts(rows, [Entry(NEW)])
    assert verdict.finding is Finding.CONTRADICTORY
    (verdict,) = verdicts(rows, [Entry(NEW)], lambda image: {second: NEW}.get(image, image))
    assert verdict.entry == Entry(NEW)


def test_what_no_evidence_tells_of_has_no_verdict() -> None:
    rows = (row(image=NEW, desktop="4.10.0"), row(image=NEW, desktop="4.9.0"))
    found = verdicts(DesktopMap(Path("desktop.yaml"), rows), [Entry(NEW)])
    assert [verdict.desktop for verdict in found] == ["4.9.0", "4.10.0"]


@given(st.lists(_rows()), st.lists(_IMAGES, unique=True))
def test_only_what_one_image_is_named_for_is_publishable(
    rows: list[Row], known: list[Reference]
) -> None:
    entries = [Entry(image) for image in known]
    for verdict in verdicts(DesktopMap(Path("desktop.yaml"), tuple(rows)), entries):
        own = [row for row in rows if row.desktop == verdict.desktop]
        assert (verdict.entry is not None) == (verdict.finding is Finding.PUBLISHABLE)
        assert bool(verdict.hint) == (verdict.entry is None)
        if verdict.entry and not any(row.decided for row in own):
            assert {row.image for row in own} - {None} == {verdict.entry.image}
            assert len({row.kernel for row in own}) == 1
            assert verdict.entry.image.tag
            assert verdict.entry.image.tag.startswith(own[0].kernel + "-")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = DesktopMap(
        Path("desktop.yaml"),
        (
            STATED,
            row("6.10", desktop="4.33.0"),
            row("5.10.25", NEW, Host.MAC),
            row("5.10.25", OLD, Host.WINDOWS),
            row("5.10.25", NEW, Host.LINUX, Host.MAC, desktop="3.4.0"),
        ),
    )
    known = [Entry(NEW), Entry(kernel("5.10.124-" + "1" * 40))]
    doubts = [NotUnderstood("4.9.0", "Support for [bold]Linux kernel 5.4", URL, "is not plain")]
    show(rows, verdicts(rows, known), doubts)
    captured = capsys.readouterr()
    assert captured.out == (GOLDEN / "table.txt").read_text()
    assert captured.err == ""
    show(rows, verdicts(rows, known))
    assert "not understood" not in capsys.readouterr().out


# Docker's release notes


def ask(docs: Docs, known: DesktopMap) -> PolledNotes:
    return poll_notes([f"{docs.url}{path}" for path in docs.pages], Http(), known)


LINK = f"https://hub.docker.com/layers/docker/for-desktop-kernel/{NEW.tag}/images/sha256-0"
ALL = f"""\
## 4.13.0
2022-10-19

- [Linux kernel 5.10.25]({LINK})
- Support for Linux kernel 5.4

## 4.12.0

- Upgraded kernel to 5.10.124.
"""
MAC = "title: Docker Desktop for Mac\n## Docker Desktop 3.3.0\n\n- Linux kernel 5.10.25\n"


@pytest.fixture
def docs() -> Iterator[Docs]:
    with Docs() as docs:
        docs.pages = {"/all.md": ALL, "/mac.md": MAC}
        yield docs
        assert docs.violations == []


def test_polling(docs: Docs, path: Path) -> None:
    polled = ask(docs, load(path))
    assert polled.failures == ()
    assert polled.new == (
        Row(
            "3.3.0",
            "5.10.25",
            Grade.STATED,
            f"{docs.url}/mac.md",
            "Linux kernel 5.10.25",
            (Host.MAC,),
        ),
        Row(
            "4.12.0", "5.10.124", Grade.STATED, f"{docs.url}/all.md", "Upgraded kernel to 5.10.124."
        ),
        Row(
            "4.13.0",
            "5.10.25",
            Grade.LINKED,
            f"{docs.url}/all.md",
            f"[Linux kernel 5.10.25]({LINK})",
            date=date(2022, 10, 19),
            image=NEW,
        ),
    )
    (doubt,) = polled.not_understood
    assert (doubt.desktop, doubt.sentence) == ("4.13.0", "Support for Linux kernel 5.4")
    known = append(load(path), polled.new)
    assert ask(docs, known).new == ()


def test_notes_that_moved_and_were_reworded_are_known(docs: Docs, path: Path) -> None:
    known = append(load(path), ask(docs, load(path)).new)
    docs.pages = {
        "/new.md": ALL.replace("Upgraded kernel to", "Linux kernel").replace("- Support", "- No"),
        "/also.md": f"# Docker Desktop\n\nOlder notes.\n\n{ALL}",
        "/older.md": MAC.replace("- Linux kernel", "### Upgrades\n\n* Upgraded the kernel to"),
    }
    polled = ask(docs, known)
    assert polled.new == ()
    assert len(polled.not_understood) == 2
    docs.pages["/new.md"] = ALL.replace("5.10.124", "5.10.125")
    assert [row.kernel for row in ask(docs, known).new] == ["5.10.125"]


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (html_page(), "HTML page instead of release notes"),
        (Response(200, {}, b""), "are empty"),
        (Response(200, {}, b"\xff\xfe\x00- \x80Linux kernel 5.10.25"), "no heading"),
        (Response(404), "is not there (404)"),
        (Response(401), "answered 401"),
        (Response(403), "answered 403"),
    ],
)
def test_a_page_that_fails_fails_alone(docs: Docs, path: Path, fault: Fault, what: str) -> None:
    known = append(load(path), [LINKED])
    before = path.read_bytes()
    docs.fail("all.md", fault)
    polled = ask(docs, known)
    assert [row.desktop for row in polled.new] == ["3.3.0"]
    (failure,) = polled.failures
    assert what in failure.what
    assert failure.on == f"{docs.url}/all.md"
    assert failure.hint
    assert failure.exit_code is ExitCode.UPSTREAM_INCOMPLETE
    assert path.read_bytes() == before


def test_nothing_to_poll(path: Path) -> None:
    assert poll_notes([], Http(), load(path)) == PolledNotes()


# The project's own map


def test_the_project_s_map() -> None:
    known = load(ROOT / "desktop.yaml")
    versions = [version_key(row.desktop) for row in known.rows]
    assert versions
    assert versions == sorted(versions)
    assert all(row.source.startswith("https://docs.docker.com/desktop/") for row in known.rows)

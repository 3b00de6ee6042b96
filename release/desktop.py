"""``desktop.yaml``: which Docker Desktop runs which kernel, with the evidence for it.

Docker publishes no such map. Each row is one piece of evidence, and rows are only ever appended.
What may be published as ``desktop-X`` follows from all rows of a Docker Desktop version together:
the evidence has to name exactly one kernel image that is known, and nothing may contradict it.
Versions that no evidence tells of are not guessed from their neighbours.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from pathlib import Path

from release.errors import ReleaseError, UpstreamError
from release.http import Http, redact
from release.notes import (
    DESKTOP_VERSION,
    HOSTS,
    KERNEL_VERSION,
    Host,
    Notes,
    NotUnderstood,
    Statement,
    kernel_version,
    parse_notes,
    printable,
)
from release.reference import Reference
from release.report import table
from release.tags import ImageTag
from release.versions import Entry
from release.yamlfile import Node, appended, compose, read, write

NAME = "desktop.yaml"


class Grade(StrEnum):
    """How good a piece of evidence is, best first."""

    SEEN = "seen"
    """On a running Docker Desktop: its ``/etc/linuxkit.yml``, or what ``detect`` shows."""
    LINKED = "linked"
    """Docker's release notes link the kernel image."""
    STATED = "stated"
    """Docker's release notes name the kernel version alone."""


@dataclass(frozen=True)
class Row:
    """One piece of evidence.

    Attributes:
        desktop: the Docker Desktop version.
        kernel: the kernel version, as it is stated.
        source: the URL of the notes, or what was looked at on a running Docker Desktop.
        sentence: what it says there, on one line.
        platforms: the hosts that this holds for, in the order of :class:`Host`.
        date: of the Docker Desktop release.
        image: the kernel image that the evidence names; None where it names none.
        decided: the kernel image that a maintainer decided on for this Docker Desktop version.
    """

    desktop: str
    kernel: str
    grade: Grade
    source: str
    sentence: str
    platforms: tuple[Host, ...] = HOSTS
    date: date | None = None
    image: Reference | None = None
    decided: Reference | None = None

    @property
    def fact(self) -> tuple[object, ...]:
        """What makes two rows the same piece of evidence, wherever its sentence stands."""
        return self.desktop, self.platforms, self.kernel, self.image, self.grade


@dataclass(frozen=True)
class DesktopMap:
    """All of ``desktop.yaml``."""

    path: Path
    rows: tuple[Row, ...] = ()


def version_key(desktop: str) -> tuple[tuple[int, ...], str]:
    """Orders Docker Desktop versions by their numbers, then by what is behind them."""
    numbers, _, suffix = desktop.partition("-")
    return tuple(int(number) for number in numbers.split(".")), suffix


# Reading

_BEGIN = "rows: []"
_HEADER = """\
# Which Docker Desktop runs which kernel. Each row is one piece of evidence:
#
#   desktop    the Docker Desktop version
#   platforms  the hosts that this holds for (linux, mac, windows); without it: all
#   date       of the release
#   kernel     the kernel version, as it is stated
#   image      the kernel image that the evidence names, if it names one
#   grade      seen    on a running Docker Desktop (/etc/linuxkit.yml, or python -m release detect)
#              linked  Docker's release notes link the kernel image
#              stated  Docker's release notes name the kernel version alone
#   evidence   source: a URL, or what was looked at; sentence: what it says there
#   decided    the kernel image that a maintainer decided on for this Docker Desktop version;
#              it counts more than all evidence, and settles a contradiction
#
# `python -m release poll` and `sync` append to it and leave alone what is there. A kernel that is
# only inferred (from the release before, say) does not belong here.

"""


def load(path: Path) -> DesktopMap:
    """Reads ``desktop.yaml``; one that is not there is an empty map.

    Raises:
        ConfigurationError: it cannot be read, or says something that makes no sense; with the
            line, and what to write instead.
    """
    if not path.exists():
        return DesktopMap(path)
    return parse(path, read(path, hint="name another one"))


def parse(path: Path, text: str) -> DesktopMap:
    """Parses the text of ``desktop.yaml``; ``path`` is for messages and for writing back."""
    top = Node(path, compose(path, text, begin=_BEGIN)).mapping("rows", required=["rows"])
    rows = []
    facts: dict[tuple[object, ...], int] = {}
    decisions: dict[str, Row] = {}
    for node in top["rows"].items():
        row = _row(node)
        line = node.node.start_mark.line + 1
        if (first := facts.setdefault(row.fact, line)) != line:
            raise node.error(
                f"the same evidence for Docker Desktop {row.desktop} is there twice"
                f" (first in line {first})",
                "remove one of the two",
            )
        if row.decided:
            decision = decisions.setdefault(row.desktop, row)
            if decision.decided != row.decided:
                raise node.error(
                    f"Docker Desktop {row.desktop} is already decided to run {decision.decided}",
                    "a Desktop version runs one kernel; remove one of the two decisions",
                )
        rows.append(row)
    return DesktopMap(path, tuple(rows))


def _row(node: Node) -> Row:
    keys = node.mapping(
        "desktop",
        "platforms",
        "date",
        "kernel",
        "image",
        "grade",
        "evidence",
        "decided",
        required=["desktop", "kernel", "grade", "evidence"],
    )
    grade = _grade(keys["grade"])
    image = _image(keys["image"], digest=False) if "image" in keys else None
    if grade is Grade.LINKED and not image:
        raise keys["grade"].error(
            "a linked row names the kernel image that is linked",
            "add image:, or write grade: stated",
        )
    if grade is Grade.STATED and image:
        raise keys["image"].error(
            "a stated row names no kernel image",
            "write grade: linked where the notes link it, or decided: for a decision of yours",
        )
    evidence = keys["evidence"].mapping("source", "sentence", required=["source", "sentence"])
    return Row(
        desktop=keys["desktop"].match(
            re.compile(DESKTOP_VERSION, re.ASCII), "a Docker Desktop version", "4.13.0"
        ),
        kernel=keys["kernel"].match(
            re.compile(KERNEL_VERSION, re.ASCII), "a kernel version", "5.15.49"
        ),
        grade=grade,
        source=_words(evidence["source"]),
        sentence=_words(evidence["sentence"]),
        platforms=_platforms(keys["platforms"]) if "platforms" in keys else HOSTS,
        date=_date(keys["date"]) if "date" in keys else None,
        image=image,
        decided=_image(keys["decided"], digest=True) if "decided" in keys else None,
    )


def _grade(node: Node) -> Grade:
    text = node.text()
    if text == "inferred":
        raise node.error(
            "an inferred kernel is not allowed: no evidence names it",
            "remove the row, or find evidence that is seen, linked or stated",
        )
    if text not in list(Grade):
        raise node.error(f"{text!r} is not a grade of evidence", f"write one of {', '.join(Grade)}")
    return Grade(text)


def _image(node: Node, *, digest: bool) -> Reference:
    image = node.parse(Reference.parse)
    if not image.tag or (image.digest and not digest):
        raise node.error("a kernel image needs its tag here", "write: repository:tag")
    return image


def _words(node: Node) -> str:
    text = node.text()
    if not text or text != printable(text):
        raise node.error("evidence is words on one line", "quote what was read or seen")
    return text


def _platforms(node: Node) -> tuple[Host, ...]:
    names = [item.text() for item in node.items()]
    if not names or len(set(names)) < len(names) or not set(names) <= set(HOSTS):
        raise node.error(
            f"{', '.join(names) or 'nothing'} is not a list of platforms",
            f"name some of {', '.join(HOSTS)}, each once; leave it out where it holds for all",
        )
    return tuple(host for host in HOSTS if host in names)


def _date(node: Node) -> date:
    text = node.match(
        re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII), "a date", "2022-10-19 (year, month, day)"
    )
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise node.error(f"{text} is not in the calendar", "write year-month-day") from None


# Writing


def append(known: DesktopMap, rows: Iterable[Row]) -> DesktopMap:
    """Appends those of ``rows`` that are not there yet and returns the file's new content.

    They are appended in ascending order of the Docker Desktop versions. Every byte above stays.

    Raises:
        ConfigurationError: the file was changed into a shape that cannot be appended to.
    """
    path = known.path
    text = read(path, hint="run again") if path.exists() else f"{_HEADER}{_BEGIN}\n"
    current = parse(path, text)
    facts = {row.fact for row in current.rows}
    new = {row.fact: row for row in reversed(_sorted(rows)) if row.fact not in facts}
    if not new:
        return current
    items = (_lines(row) for row in reversed(new.values()))
    text = appended(path, text, "rows", items, begin=_BEGIN)
    changed = parse(path, text)
    write(path, text)
    return changed


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (version_key(row.desktop), row.platforms))


def as_yaml(row: Row) -> str:
    """A row as it stands in ``desktop.yaml``, for who wants to add it by hand."""
    first, *rest = _lines(row)
    return "\n".join((f"  - {first}", *(f"    {line}" for line in rest)))


def _lines(row: Row) -> list[str]:
    lines = [f"desktop: {row.desktop}", f"platforms: [{', '.join(row.platforms)}]"]
    if row.date:
        lines.append(f"date: {row.date}")
    lines.append(f"kernel: {row.kernel}")
    if row.image:
        lines.append(f"image: {row.image}")
    lines.append(f"grade: {row.grade}")
    lines.append("evidence:")
    # JSON's strings are YAML's, as long as nothing in them needs to be escaped by a number.
    lines.append(f"  source: {json.dumps(printable(row.source), ensure_ascii=False)}")
    lines.append(f"  sentence: {json.dumps(printable(row.sentence), ensure_ascii=False)}")
    if row.decided:
        lines.append(f"decided: {row.decided}")
    return lines


# Docker's release notes


@dataclass(frozen=True)
class PolledNotes:
    """What the release notes say beyond what is in the map.

    Attributes:
        new: rows to append, in ascending order of the Docker Desktop versions.
        not_understood: sentences for a person to read.
        failures: one for each page that could not be read.
    """

    new: tuple[Row, ...] = ()
    not_understood: tuple[NotUnderstood, ...] = ()
    failures: tuple[UpstreamError, ...] = ()


def poll_notes(urls: Sequence[str], http: Http, known: DesktopMap) -> PolledNotes:
    """Reads the pages of release notes; one that fails does not keep the others from being read.

    A sentence that stands on several pages is one piece of evidence, of the first page.
    """

    def ask(url: str) -> Notes | UpstreamError:
        try:
            answer = http.request("GET", url)
            return parse_notes(answer.body.decode("utf-8", errors="replace"), url)
        except UpstreamError as error:
            return error
        except ReleaseError as error:
            # Not ours, so a 404 or a 401 says no more than that it could not be read.
            return UpstreamError(
                error.what,
                on=error.on,
                detail=error.detail,
                hint="correct desktop: release_notes: if the notes have moved; nothing was lost",
            )

    with ThreadPoolExecutor(max(1, min(8, len(urls)))) as pool:
        answers = list(pool.map(ask, urls))
    pages = [answer for answer in answers if isinstance(answer, Notes)]
    facts = {row.fact for row in known.rows}
    new: dict[tuple[object, ...], Row] = {}
    sentences: dict[tuple[str, str], NotUnderstood] = {}
    for page in pages:
        for row in map(_evidence, page.statements):
            if row.fact not in facts:
                new.setdefault(row.fact, row)
        for one in page.not_understood:
            sentences.setdefault((one.desktop, one.sentence), one)
    return PolledNotes(
        tuple(_sorted(new.values())),
        tuple(sentences.values()),
        tuple(answer for answer in answers if isinstance(answer, UpstreamError)),
    )


def _evidence(said: Statement) -> Row:
    return Row(
        said.desktop,
        said.kernel,
        Grade.LINKED if said.image else Grade.STATED,
        redact(printable(said.url)),
        said.sentence,
        said.platforms,
        said.date,
        said.image,
    )


# Verdicts


class Finding(StrEnum):
    """What the evidence for a Docker Desktop version comes to."""

    PUBLISHABLE = "publishable"
    """It names one known kernel image: the module image gets the tag ``desktop-X``."""
    CONTRADICTORY = "contradictory"
    """It names several kernels; a maintainer decides in ``desktop.yaml``, or no one."""
    NO_HEADERS = "no-headers"
    """It names a kernel version of which no published kernel image is known."""
    UNPROVEN = "unproven"
    """It does not say which of the known kernel images it is."""


@dataclass(frozen=True)
class Verdict:
    """What the evidence for one Docker Desktop version comes to.

    Attributes:
        entry: the kernel of ``versions.yaml`` that it runs; only where it is publishable.
        reason: why, as a sentence without its subject.
        hint: what a user or a maintainer can do; empty where there is nothing to do.
    """

    desktop: str
    finding: Finding
    reason: str
    hint: str = ""
    entry: Entry | None = None

    @property
    def why(self) -> str:
        """The reason, and what can be done."""
        return f"{self.reason}; {self.hint}" if self.hint else self.reason


def _itself(image: Reference) -> Reference:
    return image


def verdicts(
    desktop_map: DesktopMap,
    kernels: Iterable[Entry],
    same: Callable[[Reference], Reference] = _itself,
) -> tuple[Verdict, ...]:
    """What may be published as ``desktop-X``, and why the rest may not; by ascending version.

    Args:
        kernels: the known kernels, of ``versions.yaml``.
        same: the image of which its argument is a second name; without it only equal references
            are the same image.
    """
    entries = tuple(kernels)
    rows: dict[str, list[Row]] = {}
    for row in desktop_map.rows:
        rows.setdefault(row.desktop, []).append(row)
    judge = _Judge(desktop_map.path, entries, same)
    return tuple(judge.verdict(desktop, rows[desktop]) for desktop in sorted(rows, key=version_key))


def judge(desktop_map: DesktopMap, kernels: Sequence[Entry]) -> tuple[Verdict, ...]:
    """The verdicts, with the aliases of each kernel as names of the same image."""
    names = {image: entry.image for entry in kernels for image in entry.references}
    return verdicts(desktop_map, kernels, lambda image: names.get(image, image))


def publishable(desktop_map: DesktopMap, kernels: Sequence[Entry]) -> dict[str, tuple[str, ...]]:
    """By the slug of a kernel, the Docker Desktop versions that the evidence gives to it, without
    those that ``versions.yaml`` has already.
    """
    said = {version for entry in kernels for version in entry.desktop}
    found: dict[str, tuple[str, ...]] = {}
    for verdict in judge(desktop_map, kernels):
        if verdict.entry and verdict.desktop not in said:
            slug = verdict.entry.slug
            found[slug] = (*found.get(slug, ()), verdict.desktop)
    return found


@dataclass(frozen=True)
class _Judge:
    path: Path
    entries: tuple[Entry, ...]
    same: Callable[[Reference], Reference]

    def verdict(self, desktop: str, rows: Sequence[Row]) -> Verdict:
        decided = next((row.decided for row in rows if row.decided), None)
        if decided:
            return self._name(desktop, decided, f"decided by hand in {self.path.name}")
        if contradiction := self._contradiction(desktop, rows):
            return Verdict(
                desktop,
                Finding.CONTRADICTORY,
                contradiction,
                f"find out which it is, and add decided: IMAGE to a row of it in {self.path.name}",
            )
        images = [row.image for row in rows if row.image]
        if images:
            grade = next(row.grade for row in rows if row.image)
            return self._name(desktop, images[0], grade)
        return self._unnamed(desktop, rows[0].kernel, f"Linux {rows[0].kernel} is stated")

    def _name(self, desktop: str, image: Reference, how: str) -> Verdict:
        """The verdict where the evidence names ``image``."""
        wanted = self.same(replace(image, digest=None))
        found = [
            entry
            for entry in self.entries
            if self.same(entry.image) == wanted and image.digest in (None, entry.digest)
        ]
        if len(found) == 1:
            return Verdict(desktop, Finding.PUBLISHABLE, how, entry=found[0])
        if found:
            return Verdict(
                desktop,
                Finding.UNPROVEN,
                f"{image} has been {len(found)} kernels",
                f"add decided: {image}@DIGEST to a row of it in {self.path.name}",
            )
        return self._unnamed(
            desktop, _tag_version(image), f"{image} is {how}, but not among the known kernels"
        )

    def _unnamed(self, desktop: str, kernel: str | None, what: str) -> Verdict:
        """The verdict where no known kernel image is named."""
        count = sum(
            kernel is not None
            and (version := _tag_version(entry.image)) is not None
            and kernel_version(version) == kernel_version(kernel)
            for entry in self.entries
        )
        if count:
            images = "one kernel image" if count == 1 else f"{count} kernel images"
            return Verdict(
                desktop,
                Finding.UNPROVEN,
                f"{what}; {images} of that version {'is' if count == 1 else 'are'} known",
                f"on Docker Desktop {desktop} run: python -m release detect,"
                " and record what it shows as a row of grade seen",
            )
        return Verdict(
            desktop,
            Finding.NO_HEADERS,
            f"{what}; no published kernel image of that version is known",
            f"on Docker Desktop {desktop} run: python -m release capture IMAGE",
        )

    def _contradiction(self, desktop: str, rows: Sequence[Row]) -> str:
        """Where the evidence contradicts itself; empty where it does not."""
        for row in rows:
            tag = (row.image.tag if row.image else None) or ""
            version = _tag_version(row.image) if row.image else None
            if version and kernel_version(version) != kernel_version(row.kernel):
                hosts = ", ".join(row.platforms)
                return f"for {hosts}, Linux {row.kernel} is named together with the image tag {tag}"
            if tag.startswith("desktop-") and tag != f"desktop-{desktop}":
                return f"the image tag {tag} is that of another Docker Desktop"
        for row in rows[1:]:
            if kernel_version(row.kernel) != kernel_version(rows[0].kernel):
                return f"Linux {rows[0].kernel} and {row.kernel} are both named"
        named = list(dict.fromkeys(self.same(row.image) for row in rows if row.image))
        if len(named) > 1:
            return f"{named[0]} and {named[1]} are both named"
        for entry in self.entries:
            if named and desktop in entry.desktop and self.same(entry.image) != named[0]:
                return f"{named[0]} is named here, and {entry.image} in versions.yaml"
        return ""


def _tag_version(image: Reference) -> str | None:
    """The kernel version in an image tag; None where it holds none."""
    version = ImageTag.parse(image.tag or "").version
    return str(version) if version else None


# What people see


def show(
    desktop_map: DesktopMap,
    judged: Iterable[Verdict],
    not_understood: Iterable[NotUnderstood] = (),
) -> None:
    """Prints the map on stdout, each row with the verdict on its Docker Desktop version, and the
    sentences of the release notes that were not understood.
    """
    by_version = {verdict.desktop: verdict for verdict in judged}
    cells = []
    told: set[str] = set()
    for row in _sorted(desktop_map.rows):
        verdict = by_version[row.desktop]
        image = verdict.entry.image if verdict.entry else row.image
        cells.append(
            (
                row.desktop,
                "all" if row.platforms == HOSTS else ", ".join(row.platforms),
                row.date or "",
                row.kernel,
                row.grade,
                verdict.finding,
                image or "",
                "" if row.desktop in told else verdict.why,
            )
        )
        told.add(row.desktop)
    header = ("DESKTOP", "PLATFORMS", "DATE", "KERNEL", "GRADE", "VERDICT", "IMAGE", "REASON")
    table(header, cells)
    sentences = list(not_understood)
    if sentences:
        sys.stdout.write("\nSentences of the release notes that were not understood:\n\n")
        rows = [
            (one.desktop or "-", f"{one.sentence} [{one.reason}; {one.url}]") for one in sentences
        ]
        table(("DESKTOP", "REASON"), [(name, redact(text)) for name, text in rows])

"""Docker's release notes: what they say about the kernel of each Docker Desktop release.

The notes are Markdown written by people, of many years and in changing words
(docs.docker.com/desktop/release-notes and .../previous-versions). Only sentences that say in so
many words which kernel a release has become statements. Whatever else tells of a kernel version
is kept as not understood, for a person to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from urllib.parse import parse_qs, unquote

import semver

from release.errors import ConfigurationError, UpstreamError
from release.reference import DOCKER_HUB, Reference
from release.tags import ImageTag


class Host(StrEnum):
    """What Docker Desktop is installed on."""

    LINUX = "linux"
    MAC = "mac"
    WINDOWS = "windows"


HOSTS = tuple(Host)


@dataclass(frozen=True)
class Statement:
    """A sentence that says which kernel a Docker Desktop release has.

    Attributes:
        desktop: the Docker Desktop version, as in ``4.13.0`` or ``2.0.0.0-mac78``.
        date: of the release; None where the notes do not say.
        platforms: the hosts that it is said of, in the order of :class:`Host`.
        kernel: the kernel version in the sentence, without ``v``.
        image: the kernel image that the sentence links; None where it links none.
        sentence: as it stands in the notes, on one line.
        url: of the notes.
    """

    desktop: str
    date: date | None
    platforms: tuple[Host, ...]
    kernel: str
    image: Reference | None
    sentence: str
    url: str


@dataclass(frozen=True)
class NotUnderstood:
    """A sentence about a kernel version that does not plainly say which kernel a release has.

    ``desktop`` is empty where the sentence stands under no release.
    """

    desktop: str
    sentence: str
    url: str
    reason: str


@dataclass(frozen=True)
class Notes:
    """A page of release notes.

    Attributes:
        releases: the Docker Desktop versions that it tells of, in its order.
    """

    releases: tuple[str, ...]
    statements: tuple[Statement, ...]
    not_understood: tuple[NotUnderstood, ...]


def parse_notes(text: str, url: str) -> Notes:
    """Reads a page of Docker Desktop's release notes.

    Takes time in proportion to the length of ``text``, whatever stands in it.

    Args:
        text: the page, in Markdown.
        url: where it is from, to be named as evidence.

    Raises:
        UpstreamError: it is no such page, as when an error page is answered with 200.
    """

    def refuse(why: str, hint: str) -> UpstreamError:
        return UpstreamError(why, on=url, detail=printable(text[:200])[:200], hint=hint)

    text = _without_comments(text.removeprefix("\ufeff"))
    if not text.strip():
        raise refuse("the release notes are empty", "run again later; nothing was lost")
    if _HTML.match(text):
        raise refuse(
            "answered with an HTML page instead of release notes in Markdown",
            "look at the page; under desktop: release_notes: name the Markdown source of the notes",
        )
    page = _Page(text, url)
    if not page.releases:
        raise refuse(
            "has no heading of a Docker Desktop release",
            "look at the page; correct desktop: release_notes: if the notes have moved",
        )
    if page.other_product:
        raise refuse(
            "holds the release notes of something else than Docker Desktop",
            "correct desktop: release_notes:",
        )
    return page.read()


def printable(text: str) -> str:
    """``text`` on one line, without what a terminal or a YAML file would stumble over."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def kernel_version(text: str) -> semver.Version:
    """A kernel version as a value; a missing third number is 0."""
    return semver.Version.parse(text, optional_minor_and_patch=True)


# The page's shape

_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype|html|head|body)\b", re.IGNORECASE)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
_ATTRIBUTES = re.compile(r"\{[:#%][^{}]*\}")
DESKTOP_VERSION = r"\d{1,3}\.\d{1,3}\.\d{1,4}(?:\.\d{1,4})?(?:-[a-z0-9]+(?:[.-][a-z0-9]+)*)?"
"""Three numbers, or four until 2.5.1.0; the first ones had their build in it: 2.0.0.0-mac78."""

_RELEASE = re.compile(
    r"""(?:(?P<product>docker\ (?:desktop|for\ mac|for\ windows|community\ edition))\ )?
    (?:(?:for\ (?:mac|windows|linux)|community|edition|edge|stable|version|release)\ )*
    v?(?P<version>DESKTOP_VERSION)
    (?P<rest>(?:[\ ,()]|\b(?:edge|stable|release|\d{4}-\d{2}-\d{2})\b)*)""".replace(
        "DESKTOP_VERSION", DESKTOP_VERSION
    ),
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_BETA = re.compile(
    rf"beta \d+(?:\.\d+)?[a-z]? release(?: notes)? ?"
    rf"(?P<rest>\((?:\d{{4}}-\d{{2}}-\d{{2}}(?:-\d{{4}})?[ -])?(?P<version>{DESKTOP_VERSION})\))",
    re.IGNORECASE | re.ASCII,
)
"""As in "Beta 17 Release (2016-06-29 1.12.0-rc2-beta17)"."""

_LOOKS_LIKE_RELEASE = re.compile(
    r"docker (?:desktop|for|community) .*\d|(?:beta|edge|stable|rc|version|release) ?\d|v?\d+\.\d",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"""\**(?:released(?:\ on)?:?\ *)?\**(?P<bare>\d{4}-\d{2}-\d{2})\**
    |\{\{?[<%].*\bdate\b.*"(?P<shortcode>(?:\d{2})?\d{2}-\d{2}-\d{2})".*""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_DATE_IN_HEADING = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
_FENCE = re.compile(r" {0,3}(?:```|~~~)")
_BULLET = re.compile(r"([ \t]*)(?:[-*+]|\d{1,9}[.)])[ \t]+(\S.*)")
_BOLD_LINE = re.compile(r"[ \t]*(?:\*\*|__)([^*_]{1,80})(?:\*\*|__):?[ \t]*")
_DEFINITION = re.compile(r" {0,3}\[([^\[\]]{1,100})\]:[ \t]*<?(\S+?)>?(?:[ \t].*)?")
_LONGEST = 5_000
"""A longer paragraph is not a sentence that tells a kernel version; the rest is not looked at."""

_SET_OF_HOSTS = re.compile(
    r"(?:(?:for|on) )?(?:docker desktop (?:for|on) )?(?P<all>all platforms|all)"
    r"|(?:(?:for|on) )?(?:docker desktop (?:for|on) )?"
    r"(?P<hosts>(?:mac|macos|windows|linux)"
    r"(?:(?:,| and| &|, and|/) ?(?:mac|macos|windows|linux))*)",
    re.IGNORECASE,
)
_HOST = re.compile(r"\b(mac|macos|windows|linux)\b", re.IGNORECASE)
_PART_OF_A_HOST = re.compile(
    r"\b(?:mac|macos|windows|linux|wsl|hyper-v|intel|apple|arm|arm64|amd64)\b", re.IGNORECASE
)
_NOT_DONE = re.compile(r"\b(?:known issues?|deprecat\w+|removed|removals?)\b", re.IGNORECASE)


def _without_comments(text: str) -> str:
    """``text`` without its HTML and Liquid comments; one that does not end takes the rest along."""
    for opening, closing in (("<!--", "-->"), ("{% comment %}", "{% endcomment %}")):
        first, *others = text.split(opening)
        kept = [first]
        for other in others:
            # A comment ends at the first closing mark, also where another opening is in between.
            _, closed, after = other.partition(closing)
            kept.append(after if closed else "")
        text = "".join(kept)
    return text


def _hosts(text: str) -> tuple[Host, ...]:
    words = {word.lower().removesuffix("os") for word in _HOST.findall(text)}
    return tuple(host for host in HOSTS if host in words)


def _page_hosts(title: str, description: str, url: str) -> tuple[Host, ...]:
    """The hosts of a whole page: all, unless its title, its first words or its URL name one."""
    path = re.sub(r"[^a-z]+", " ", url.partition("?")[0].lower())
    for text in (title, description, path):
        hosts = _hosts(text)
        if hosts:
            return hosts if len(hosts) == 1 else HOSTS
    return HOSTS


@dataclass
class _Section:
    """A heading, a line in bold or a list item, which what follows belongs to.

    ``depth`` orders them: a heading's number of #; 7 for bold; from 10 on a list item's indent.
    """

    depth: int
    title: str


@dataclass
class _Release:
    desktop: str
    named: bool
    """Whether the heading names the product, not just a version."""
    date: date | None = None
    dated: bool = False
    """Whether a date is no longer looked for: it stands before the release's first section."""


@dataclass
class _Paragraph:
    """A list item or a paragraph, of one or several lines."""

    lines: list[str] = field(default_factory=list)
    length: int = 0

    def add(self, line: str) -> None:
        if self.length < _LONGEST:
            self.lines.append(line[:_LONGEST])
            self.length += len(line)

    @property
    def text(self) -> str:
        return " ".join(self.lines)[:_LONGEST]


class _Page:
    def __init__(self, text: str, url: str) -> None:
        self._url = url
        # Not splitlines(), which also breaks at characters that are part of a sentence.
        self._lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._links: dict[str, str] = {}
        found = []
        for number, line in enumerate(self._lines):
            if (heading := _heading(line)) and (release := _release(heading[1])):
                found.append((number, heading[0], release))
            elif match := _DEFINITION.fullmatch(line[:_LONGEST]):
                self._links[match[1].lower()] = match[2]
        first = min((number for number, _, _ in found), default=0)
        self._release_depth = min((depth for _, depth, _ in found), default=0)
        self.releases = tuple(
            dict.fromkeys(
                release.desktop
                for _, depth, release in found
                if release.named or depth == self._release_depth
            )
        )
        head = [line[:_LONGEST] for line in self._lines[:first]]
        titles = [line for line in head if re.match(r"title:|# ", line)]
        descriptions = [line for line in head if re.match(r"description:|This page ", line)]
        self._hosts = _page_hosts(" ".join(titles), " ".join(descriptions), url)
        self.other_product = bool(titles) and not re.search(
            r"\bdesktop\b|docker for (?:mac|windows)", " ".join(head), re.IGNORECASE
        )
        self._release: _Release | None = None
        self._sections: list[_Section] = []
        self._statements: list[Statement] = []
        self._not_understood: list[NotUnderstood] = []

    def read(self) -> Notes:
        paragraph = _Paragraph()
        fenced = False
        for line in self._lines:
            heading = _heading(line)
            release = self._begins(heading)
            if fenced and not release:
                fenced = not _FENCE.match(line)
                continue
            fenced = False
            quoted = line[:_LONGEST].lstrip(" >\t") if line.lstrip()[:1] == ">" else line
            if heading:
                self._end(paragraph)
                paragraph = _Paragraph()
                self._enter(heading, release)
            elif _FENCE.match(line):
                self._end(paragraph)
                paragraph = _Paragraph()
                fenced = True
            elif not quoted.strip():
                self._end(paragraph)
                paragraph = _Paragraph()
            elif self._is_date(quoted) or _DEFINITION.fullmatch(quoted[:_LONGEST]):
                continue
            elif match := _BOLD_LINE.fullmatch(quoted):
                self._end(paragraph)
                paragraph = _Paragraph()
                self._open(7, match[1])
            elif match := _BULLET.match(quoted):
                self._end(paragraph)
                paragraph = _Paragraph()
                self._open(10 + min(len(match[1].expandtabs(4)), 50), match[2][:100])
                paragraph.add(match[2])
            else:
                if not paragraph.lines and not quoted[:1].isspace():
                    self._leave(10)
                paragraph.add(quoted)
        # What is at the end of a page without a last line break may be cut in the middle.
        self._end(paragraph, cut=bool(self._lines[-1]))
        return Notes(
            self.releases,
            tuple(dict.fromkeys(self._statements)),
            tuple(dict.fromkeys(self._not_understood)),
        )

    def _begins(self, heading: tuple[int, str] | None) -> _Release | None:
        release = _release(heading[1]) if heading else None
        if heading and release and heading[0] > self._release_depth and not release.named:
            return None  # a bare version deeper down is some component's
        return release

    def _enter(self, heading: tuple[int, str], release: _Release | None) -> None:
        depth, title = heading
        if release:
            self._release = release
            self._sections = []
            return
        if depth <= self._release_depth or _LOOKS_LIKE_RELEASE.match(title):
            # What follows is not the release's before it.
            self._release = None
        if self._release:
            self._release.dated = True
        self._open(depth, title)

    def _open(self, depth: int, title: str) -> None:
        self._leave(depth)
        self._sections.append(_Section(depth, title))

    def _leave(self, depth: int) -> None:
        while self._sections and self._sections[-1].depth >= depth:
            self._sections.pop()

    def _is_date(self, line: str) -> bool:
        match = _DATE.fullmatch(line[:200].strip())
        if not match or not self._release or self._release.dated:
            return False
        self._release.date = self._release.date or _date(match["bare"] or match["shortcode"])
        return True

    def _where(self) -> tuple[tuple[Host, ...] | None, str]:
        """The hosts of the section that is being read, or None and why they are not known."""
        hosts: tuple[Host, ...] = self._hosts
        for section in self._sections:
            if section.depth >= 10 and section is self._sections[-1]:
                break  # the list item that is being read
            title = _plain(section.title).strip(" :")
            match = _SET_OF_HOSTS.fullmatch(title)
            if match:
                hosts = _hosts(match["hosts"]) if match["hosts"] else self._hosts
            elif _NOT_DONE.search(title):
                return None, f"stands under {title!r}"
            elif _PART_OF_A_HOST.search(title):
                return None, f"stands under {title!r}, which is not a platform"
        return hosts, ""

    def _end(self, paragraph: _Paragraph, *, cut: bool = False) -> None:
        text = paragraph.text
        if not _TELLS_OF_A_KERNEL.search(text):
            if _NUMBERS.search(text) and any(
                _KERNEL_TITLE.fullmatch(_plain(section.title)) for section in self._sections
            ):
                self._keep(printable(text), "stands under a kernel, but does not name it itself")
            return
        sentences = _SENTENCE_END.split(printable(text))
        for number, sentence in enumerate(sentences, 1):
            said = _understand(sentence, self._links)
            if said is None:
                continue
            release = self._release
            hosts, why_not = self._where()
            if isinstance(said, str):
                why_not = said
            elif not release:
                why_not = "stands under no release"
            elif said.own_release not in (None, release.desktop):
                why_not = f"links the kernel of Docker Desktop {said.own_release}"
            elif cut and number == len(sentences):
                why_not = "is where the page ends without a line break, as if it was cut"
            if isinstance(said, str) or not release or not hosts or why_not:
                self._keep(sentence, why_not)
                continue
            self._statements.append(
                Statement(
                    release.desktop,
                    release.date,
                    hosts,
                    said.kernel,
                    said.image,
                    sentence,
                    self._url,
                )
            )

    def _keep(self, sentence: str, reason: str) -> None:
        """For a person to read."""
        desktop = self._release.desktop if self._release else ""
        self._not_understood.append(NotUnderstood(desktop, sentence, self._url, reason))


def _heading(line: str) -> tuple[int, str] | None:
    match = _HEADING.match(line[:300])
    if not match:
        return None
    title = _ATTRIBUTES.sub("", match[2]).strip().rstrip("#").strip()
    return len(match[1]), _plain(title)


def _release(title: str) -> _Release | None:
    match = _BETA.fullmatch(title)
    named = match is not None
    if not match:
        match = _RELEASE.fullmatch(title)
        named = match is not None and match["product"] is not None
    if not match:
        return None
    day = _DATE_IN_HEADING.search(match["rest"])
    return _Release(match["version"].lower(), named, _date(day[0]) if day else None)


def _date(text: str) -> date | None:
    try:
        # One date in the notes has a year of two digits (4.4.2: 22-01-13).
        return date.fromisoformat(text if len(text) == 10 else f"20{text}")
    except ValueError:
        return None


# Sentences

_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z\[*_`(])")
_KERNEL_TITLE = re.compile(r"(?:the )?(?:linux ?(?:kit)? ?)?kernel[ :]*", re.IGNORECASE)
_TELLS_OF_A_KERNEL = re.compile(r"kernel|linuxkit", re.IGNORECASE)
_LINK = re.compile(r"!?\[([^\[\]]*)\](?:(\([^()\s]*(?: [^()]*)?\))|\[([^\[\]]*)\])?")
_TAG_OR_URL = re.compile(r"<[^<>]*>|https?://\S+")
_MARKS = re.compile(r"[*`\[\]]+|(?<!\w)_{1,3}(?=\w)|(?<=\w)_{1,3}(?!\w)|\{:[^{}]*\}")
_HUB_URL = re.compile(r"https?://hub\.docker\.com/[^\s()<>\"'\]]+", re.IGNORECASE)
_KERNEL_REPOSITORIES = ("docker/for-desktop-kernel", "linuxkit/kernel")

KERNEL_VERSION = r"[1-9]\d?\.(?:0|[1-9]\d{0,2})(?:\.(?:0|[1-9]\d{0,3}))?"
_V = rf"v?{KERNEL_VERSION}(?:-(?:linuxkit|moby))?(?![\w+-]|\.\d)"
_KERNEL = r"(?:the[ ])?(?:embedded[ ]|bundled[ ]|VM(?:'s)?[ ])?(?:LinuxKit[ ]|Linux[ ])?kernel"
_TO = rf"(?:[ ]version)?(?:[ ]from[ ](?:version[ ])?{_V})?(?:[ ]back)?[ ]to[ ](?:version[ ])?"
_STATEMENT = re.compile(
    rf"""(?:
    (?:(?:upgrade|update|bump|downgrade)(?:d|s|ed)?[ ]to[ ])?{_KERNEL}(?:[ ]version|[ ]-|:)?:?[ ]
    |(?:upgrade|update|bump)(?:d|s|ed)?[ ]{_KERNEL}(?:[ ]version|:)?[ ]
    |(?:upgrade|update|bump|downgrade|revert|move|switch|roll)(?:d|s|ed)?(?:[ ]back)?
        [ ]{_KERNEL}{_TO}
    |{_KERNEL}[ ](?:(?:was|has[ ]been|is[ ]now)[ ])?
        (?:upgraded?|updated?|downgraded?|bumped|reverted){_TO}
    |Docker[ ]Desktop[ ](?:now[ ])?(?:uses|runs|ships|ships[ ]with|comes[ ]with|includes)
        [ ]{_KERNEL}(?:[ ]version)?[ ]
    |(?P<linuxkit>LinuxKit)(?:[ ]kernel)?:?[ ]
    )(?P<kernel>{_V})(?P<rest>.*)""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_REST = re.compile(
    r"[\s.!;,]*"
    r"|,? (?:(?:in order )?to (?!be\b)[a-z]|with |which |because |due to |fix|see ).*"
    r"|,? aufs \d+"
    r"| \([^()]*\)[\s.!;]*",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:mac|macos|windows|wsl|wsl2|hyper-v|intel|apple|arm|arm64|amd64|ubuntu|debian|fedora"
    r"|hosts?|distributions?|distros?|custom|only|optional|optionally|older|newer|later|above"
    r"|requires?d?|supports?|not|no|will|would|may|might|cannot|until|unless|if|except|both)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_ISSUE = re.compile(r"(?<![\w./-])[\w./-]*#\d+")
_NUMBERS = re.compile(r"(?<![\w.-])[vV]?(\d{1,2})(?:\.\d{1,4}){1,3}(?!\.?\d)", re.ASCII)
_OF_SOMETHING_ELSE = re.compile(
    r"\b(?:docker desktop|docker engine|docker compose|docker|desktop|kubernetes|compose|buildkit"
    r"|containerd|runc|go|qemu|wsl ?2?|windows|macos|ubuntu|debian|fedora|alpine|openjdk|java)"
    r"(?: version)? v?\d+(?:\.\d+)*",
    re.IGNORECASE,
)
_WSL_KERNEL = re.compile(
    r"\bwsl ?2?(?:'s)? (?:linux )?kernel|microsoft-standard"
    r"|windows subsystem for linux.{0,20} kernel",
    re.IGNORECASE,
)
_FIRST_KERNEL_WORTH_IT = 3
"""LinuxKit itself is at 0.x and 1.x; Docker for Mac began with Linux 4.1."""


@dataclass(frozen=True)
class _Said:
    kernel: str
    image: Reference | None
    own_release: str | None
    """The Docker Desktop version that the linked image tag names; None where it names none."""


def _plain(text: str) -> str:
    """What a reader sees of Markdown: no URLs, no marks."""
    text = _LINK.sub(r"\1", text)
    text = _TAG_OR_URL.sub("", text)
    return " ".join(_MARKS.sub("", text).replace("\u2019", "'").split())


def _understand(sentence: str, links: dict[str, str]) -> _Said | str | None:
    """What a sentence says about the kernel, why that is not clear, or None: it says nothing."""
    seen = _plain(sentence)
    urls = _HUB_URL.findall(sentence)
    for text, inline, label in _LINK.findall(sentence):
        if not inline:
            urls += _HUB_URL.findall(links.get((label or text).lower(), ""))
    linked = [_hub_link(url) for url in urls]
    kernels = {link for link in linked if link.repository in _KERNEL_REPOSITORIES}
    match = _STATEMENT.fullmatch(seen)
    if not match:
        return "links a kernel, but does not say which this is" if kernels else _why_not(seen)
    kernel = match["kernel"].lower().removeprefix("v").partition("-")[0]
    if int(kernel.partition(".")[0]) < _FIRST_KERNEL_WORTH_IT:
        return None if match["linuxkit"] else "names no kernel version that Docker Desktop ever had"
    rest = _ISSUE.sub("", match["rest"])
    if not _REST.fullmatch(rest):
        return "goes on with words that may change its sense"
    if doubt := _DOUBT.search(rest):
        return f"may not hold for all: {doubt[0]!r}"
    if _NUMBERS.search(_OF_SOMETHING_ELSE.sub("", rest)):
        return "names two versions"
    if kernels != set(linked):
        return "links an image that is not a kernel"
    return _linked(kernel, kernels)


def _why_not(seen: str) -> str | None:
    if not _TELLS_OF_A_KERNEL.search(seen) or _WSL_KERNEL.search(seen):
        return None
    for match in _NUMBERS.finditer(_OF_SOMETHING_ELSE.sub("", seen)):
        # Four numbers are a WSL kernel's version (github.com/microsoft/WSL2-Linux-Kernel).
        of_wsl = match[0].count(".") == 3 and re.search(r"\bwsl", seen, re.IGNORECASE)
        if _FIRST_KERNEL_WORTH_IT <= int(match[1]) < 10 and not of_wsl:
            return "does not plainly say that the release has this kernel"
    return None


@dataclass(frozen=True)
class _HubLink:
    repository: str
    tag: str | None = None
    sought: str | None = None
    """What is looked for among the tags' names: a tag, or a part that several have."""


def _hub_link(url: str) -> _HubLink:
    """What a page on Docker Hub shows.

    Pages are ``/layers/REPOSITORY/TAG/images/...``, of which one shape has the repository's last
    part before it once more, and ``/r/REPOSITORY/tags?name=TAG``.
    """
    path, _, query = url.partition("#")[0].partition("?")
    parts = [unquote(part) for part in path.split("/")[3:13] if part]
    tag = None
    if parts[:1] == ["layers"] and "images" in parts:
        *parts, tag = parts[: parts.index("images")]
    names = parse_qs(query).get("name", [None])
    for repository in _KERNEL_REPOSITORIES:
        owner_and_name = repository.split("/")
        if any(parts[at : at + 2] == owner_and_name for at in range(len(parts))):
            return _HubLink(repository, tag, names[0])
    return _HubLink("/".join(parts))


def _linked(kernel: str, links: set[_HubLink]) -> _Said | str:
    """The statement with the one image that it links, if it links one."""
    images: set[Reference] = set()
    own_release = None
    for link in links:
        tag = link.tag or link.sought
        if tag is None or (link.tag is None and tag == kernel):
            continue  # a list of tags, which names no single image
        what = ImageTag.parse(tag)
        if release := re.fullmatch(r"desktop-(\d[\w.]*)", tag):
            own_release = release[1]
        elif what.reason or not (link.tag or what.source_hash):
            return f"links {tag[:80]!r}, which does not name one kernel"
        try:
            images.add(Reference(DOCKER_HUB, link.repository).with_tag(tag))
        except ConfigurationError:
            return f"links {tag[:80]!r}, which is not an image tag"
    if len(images) > 1:
        return "links two kernels"
    return _Said(kernel, next(iter(images), None), own_release)

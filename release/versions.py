"""``versions.yaml``: read with line numbers, appended to without touching a byte above.

People write the top of the file, the pipeline appends to ``kernels`` and fills in what a
hand-written entry leaves out. Writing is atomic, and the same facts give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import yaml

from release.errors import ConfigurationError
from release.reference import (
    DOCKER_HUB,
    Digest,
    Platform,
    Reference,
    parse_digest,
    parse_platform,
)
from release.yamlfile import Node, appended, compose, end_of, read, write

DOCKER_HUB_URL = "https://hub.docker.com"
_ZFS_VERSION = re.compile(r"\d+\.\d+\.\d+(?:-rc\d+)?")
_BEGIN = "image: docker.io/NAME/install-zfs"
_DESKTOP_VERSION = re.compile(r"\d+\.\d+\.\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Source:
    """A repository of kernel images, and where its tags are listed.

    ``hub`` is the URL of a Docker Hub; None where the registry's own ``tags/list`` is read.
    """

    repository: Reference
    hub: str | None


@dataclass(frozen=True)
class OpenZFSSource:
    """Where OpenZFS releases are listed and downloaded: a GitHub API and a repository there."""

    api: str = "https://api.github.com"
    repository: str = "openzfs/zfs"


@dataclass(frozen=True)
class Entry:
    """One kernel of ``kernels``. What is None is not known yet and gets resolved.

    ``digest`` is the index's, or the manifest's where there is no index; ``platforms`` has the
    manifest digest of each platform.
    """

    image: Reference
    digest: Digest | None = None
    platforms: Mapping[Platform, Digest] = field(default_factory=lambda: MappingProxyType({}))
    builder: Reference | None = None
    zfs: str | None = None
    desktop: tuple[str, ...] = ()
    moved: bool = False
    """Whether an earlier entry has the same image tag: then the digest tells the two apart."""

    @property
    def slug(self) -> str:
        """The kernel's name in file names and tags: its image without registry, joined by ``-``.

        A kernel whose image tag was an earlier kernel's has 12 digits of its digest behind it.
        """
        slug = f"{self.image.repository}-{self.image.tag}".replace("/", "-")
        return f"{slug}-{self.digest[7:19]}" if self.moved and self.digest else slug

    @property
    def resolved(self) -> bool:
        """Whether everything that a build needs is known."""
        return bool(self.digest and self.platforms and self.builder and self.zfs)


DEFAULT_SOURCES = (
    Source(Reference(DOCKER_HUB, "docker/for-desktop-kernel"), DOCKER_HUB_URL),
    Source(Reference(DOCKER_HUB, "linuxkit/kernel"), DOCKER_HUB_URL),
)


@dataclass(frozen=True)
class Versions:
    """All of ``versions.yaml``."""

    path: Path
    image: Reference
    sources: tuple[Source, ...] = DEFAULT_SOURCES
    openzfs: OpenZFSSource = OpenZFSSource()
    release_notes: tuple[str, ...] = ()
    kernels: tuple[Entry, ...] = ()


# Reading


def load(path: Path) -> Versions:
    """Reads ``versions.yaml``.

    Raises:
        ConfigurationError: it cannot be read, or says something that makes no sense; with the
            line, and what to write instead.
    """
    return parse(path, read(path, hint="name it with --versions FILE"))


def parse(path: Path, text: str) -> Versions:
    """Parses the text of ``versions.yaml``; ``path`` is for messages and for writing back."""
    top = Node(path, compose(path, text, begin=_BEGIN)).mapping(
        "image", "sources", "openzfs", "desktop", "kernels", required=["image"]
    )
    image = top["image"].parse(Reference.parse)
    if image.tag or image.digest:
        raise top["image"].error(
            "the image for module images has a tag", f"write the repository alone: {image.name}"
        )
    sources: tuple[Source, ...] = DEFAULT_SOURCES
    if "sources" in top:
        sources = tuple(_source(item) for item in top["sources"].items())
        if len({source.repository for source in sources}) < len(sources):
            raise top["sources"].error("a repository is there twice", "remove one of the two")
    return Versions(
        path=path,
        image=image,
        sources=sources,
        openzfs=_openzfs(top["openzfs"]) if "openzfs" in top else OpenZFSSource(),
        release_notes=_release_notes(top["desktop"]) if "desktop" in top else (),
        kernels=_kernels(top["kernels"].items()) if "kernels" in top else (),
    )


def _url(node: Node) -> str:
    return node.match(re.compile(r"https?://[^\s/?#]+[^\s?#]*"), "a URL", "https://hub.docker.com")


def _source(node: Node) -> Source:
    keys = node.mapping("repository", "hub", required=["repository"])
    repository = keys["repository"].parse(Reference.parse)
    if repository.tag or repository.digest:
        raise keys["repository"].error(
            "a source is a repository, without a tag", f"write: {repository.name}"
        )
    default = DOCKER_HUB_URL if repository.registry == DOCKER_HUB else None
    return Source(repository, _url(keys["hub"]).rstrip("/") if "hub" in keys else default)


def _openzfs(node: Node) -> OpenZFSSource:
    keys = node.mapping("api", "repository")
    default = OpenZFSSource()
    return OpenZFSSource(
        _url(keys["api"]).rstrip("/") if "api" in keys else default.api,
        keys["repository"].match(re.compile(r"[\w.-]+/[\w.-]+"), "a repository", "openzfs/zfs")
        if "repository" in keys
        else default.repository,
    )


def _release_notes(node: Node) -> tuple[str, ...]:
    keys = node.mapping("release_notes")
    return tuple(_url(item) for item in keys["release_notes"].items()) if keys else ()


def _kernels(nodes: list[Node]) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    lines: dict[Reference, int] = {}
    slugs: dict[str, Entry] = {}
    desktops: dict[str, Entry] = {}
    for node in nodes:
        entry = _entry(node)
        first = lines.setdefault(entry.image, node.node.start_mark.line + 1)
        twins = {known.digest for known in entries if known.image == entry.image}
        if twins & {None, entry.digest} or (twins and not entry.digest):
            raise node.error(
                f"{entry.image} is there twice (first in line {first})",
                "remove one of the two; a kernel whose tag was moved needs its own digest",
            )
        if twins:
            entry = replace(entry, moved=True)
        if (same := slugs.setdefault(entry.slug, entry)) is not entry:
            raise node.error(
                f"{entry.image} would be published under the name of {same.image}",
                f"both are called {entry.slug}; remove one of the two",
            )
        for version in entry.desktop:
            if version in desktops:
                raise node.error(
                    f"Docker Desktop {version} is already said to run {desktops[version].image}",
                    "a Desktop version runs one kernel; remove one of the two",
                )
            desktops[version] = entry
        entries.append(entry)
    return tuple(entries)


def _entry(node: Node) -> Entry:
    keys = node.mapping(
        "image", "digest", "platforms", "builder", "zfs", "desktop", required=["image"]
    )
    image = keys["image"].parse(Reference.parse)
    if not image.tag or image.digest:
        raise keys["image"].error(
            "a kernel image needs its tag here, and its digest in a line of its own",
            "write: image: repository:tag",
        )
    platforms = {}
    if "platforms" in keys:
        pairs = keys["platforms"].pairs()
        if not pairs:
            raise keys["platforms"].error("names no platform", "leave it out to have it filled in")
        for name, digest in pairs.items():
            try:
                platforms[parse_platform(name)] = digest.parse(parse_digest)
            except ConfigurationError as error:
                raise digest.error(f"{error.on} {error.what}", error.hint) from None
    return Entry(
        image=image,
        digest=keys["digest"].parse(parse_digest) if "digest" in keys else None,
        platforms=MappingProxyType(platforms),
        builder=keys["builder"].parse(Reference.parse) if "builder" in keys else None,
        zfs=keys["zfs"].match(_ZFS_VERSION, "an OpenZFS version", "2.1.5")
        if "zfs" in keys
        else None,
        desktop=tuple(
            item.match(_DESKTOP_VERSION, "a Docker Desktop version", "4.13.0")
            for item in keys["desktop"].items()
        )
        if "desktop" in keys
        else (),
    )


# Writing


def _lines(entry: Entry, indent: str, known: Entry | None = None) -> list[str]:
    """The lines of ``entry``'s facts, without those that ``known`` has already."""
    lines = []
    if entry.digest and not (known and known.digest):
        lines.append(f"digest: {entry.digest}")
    if entry.platforms and not (known and known.platforms):
        pairs = ", ".join(f"{name}: {digest}" for name, digest in sorted(entry.platforms.items()))
        lines.append(f"platforms: {{{pairs}}}")
    if entry.builder and not (known and known.builder):
        lines.append(f"builder: {_plain(entry.builder)}")
    if entry.zfs and not (known and known.zfs):
        lines.append(f"zfs: {entry.zfs}")
    if entry.desktop and not (known and known.desktop):
        lines.append(f"desktop: [{', '.join(entry.desktop)}]")
    return [indent + line for line in lines]


def _plain(reference: Reference) -> str:
    return str(reference).removeprefix(f"{DOCKER_HUB}/")


def append(versions: Versions, entries: Iterable[Entry]) -> Versions:
    """Appends ``entries`` to ``kernels`` and returns the file's new content.

    Raises:
        ConfigurationError: the file was changed into a shape that cannot be appended to.
    """
    entries = tuple(entries)
    if not entries:
        return versions
    text = versions.path.read_bytes().decode()
    items = ([f"image: {entry.image}", *_lines(entry, "")] for entry in entries)
    return _write(versions.path, appended(versions.path, text, "kernels", items, begin=_BEGIN))


def fill(versions: Versions, image: Reference, facts: Entry) -> Versions:
    """Adds to the entry of ``image`` those of ``facts`` that it does not have.

    The entry is the one with the same image and either the same digest or none.

    Raises:
        ConfigurationError: the entry is no longer there.
    """
    text = versions.path.read_bytes().decode()
    current = parse(versions.path, text)
    top = Node(versions.path, compose(versions.path, text, begin=_BEGIN)).pairs()
    nodes = top["kernels"].items() if "kernels" in top else []
    matching = [
        (entry, item.node)
        for entry, item in zip(current.kernels, nodes, strict=True)
        if entry.image == image and entry.digest in (None, facts.digest)
    ]
    if not matching:
        raise ConfigurationError(
            "the entry is no longer there", on=f"{versions.path}: {image}", hint="run again"
        )
    entry, node = matching[0]
    assert isinstance(node, yaml.MappingNode)
    newline = "\r\n" if "\r\n" in text else "\n"
    if node.flow_style:
        position = node.end_mark.index - 1
        if text[position - 1] == ",":
            position -= 1
        addition = "".join(f", {line}" for line in _lines(facts, "", entry))
        return _write(versions.path, text[:position] + addition + text[position:])
    lines = _lines(facts, " " * node.start_mark.column, entry)
    if not lines:
        return current
    position = text.find("\n", end_of(node))
    if position < 0:
        text += newline
        position = len(text) - 1
    addition = "".join(line + newline for line in lines)
    return _write(versions.path, text[: position + 1] + addition + text[position + 1 :])


def _write(path: Path, text: str) -> Versions:
    """Replaces the file as a whole, after making sure that what is written can be read."""
    versions = parse(path, text)
    write(path, text)
    return versions

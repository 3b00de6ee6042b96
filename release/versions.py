"""``versions.yaml``: read with line numbers, appended to without touching a byte above.

People write the top of the file, the pipeline appends to ``kernels`` and fills in what a
hand-written entry leaves out. Writing is atomic, and the same facts give the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import TypeVar

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
from release.solver import Policy

DOCKER_HUB_URL = "https://hub.docker.com"
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_ZFS_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-rc[0-9]+)?")
_DESKTOP_VERSION = re.compile(r"\d+\.\d+\.\d+(?:\.\d+)?")

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A repository of kernel images, and where its tags are listed.

    ``hub`` is the URL of a Docker Hub; None where the registry's own ``tags/list`` is read.
    """

    repository: Reference
    hub: str | None


@dataclass(frozen=True)
class OpenZFSSource:
    """Where OpenZFS releases are listed and downloaded: a GitHub API and a repository there.

    ``policy`` is what a newer release means for kernels that have a ZFS version already.
    """

    api: str = "https://api.github.com"
    repository: str = "openzfs/zfs"
    policy: Policy = Policy.PIN


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
    policy: Policy | None = None
    """For this kernel alone, in place of the one under ``openzfs``."""

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


class _Node:
    """A YAML node that knows its file and line."""

    def __init__(self, path: Path, node: yaml.Node) -> None:
        self.path = path
        self.node = node

    def error(self, what: str, hint: str) -> ConfigurationError:
        line = self.node.start_mark.line + 1
        return ConfigurationError(what, on=f"{self.path}, line {line}", hint=hint)

    def text(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag.endswith(":null"):
            raise self.error("expected a text here", "write a value on one line")
        return str(self.node.value)

    def items(self) -> list[_Node]:
        if isinstance(self.node, yaml.ScalarNode) and self.node.tag.endswith(":null"):
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("expected a list here", "begin each item with '- '")
        return [_Node(self.path, item) for item in self.node.value]

    def pairs(self) -> dict[str, _Node]:
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("expected 'key: value' lines here", "see the README for the keys")
        found: dict[str, _Node] = {}
        for key, value in self.node.value:
            name = _Node(self.path, key).text()
            if name in found:
                raise _Node(self.path, key).error(
                    f"the key {name!r} is there twice", "remove one of the two"
                )
            found[name] = _Node(self.path, value)
        return found

    def mapping(self, *allowed: str, required: Iterable[str] = ()) -> dict[str, _Node]:
        found = self.pairs()
        for name, value in found.items():
            if name not in allowed:
                raise value.error(f"unknown key {name!r}", f"known here: {', '.join(allowed)}")
        for name in required:
            if name not in found:
                raise self.error(f"the key {name!r} is missing", f"add: {name}: ...")
        return found

    def parse(self, parser: Callable[[str], T]) -> T:
        try:
            return parser(self.text())
        except ConfigurationError as error:
            raise self.error(f"{error.on} {error.what}", error.hint) from None

    def match(self, pattern: re.Pattern[str], what: str, example: str) -> str:
        text = self.text()
        if not pattern.fullmatch(text):
            raise self.error(f"{text!r} is not {what}", f"write it as in {example}")
        return text


def load(path: Path) -> Versions:
    """Reads ``versions.yaml``.

    Raises:
        ConfigurationError: it cannot be read, or says something that makes no sense; with the
            line, and what to write instead.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigurationError(
            "is not there", on=str(path), hint="name it with --versions FILE"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            "is not UTF-8", on=f"{path}, line {line}", hint="mend the line, or restore the file"
        ) from error
    except OSError as error:
        raise ConfigurationError("cannot be read", on=str(path), detail=str(error)) from error
    return parse(path, text)


def _compose(path: Path, text: str) -> yaml.Node:
    if text.startswith("\ufeff"):
        raise ConfigurationError(
            "begins with a byte order mark", on=f"{path}, line 1", hint="save it as plain UTF-8"
        )
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigurationError(
            f"is not YAML: {error.problem}", on=where, hint="mend the line, or restore the file"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise ConfigurationError(
            f"is not YAML: {error.reason}", on=f"{path}, line {line}", hint="remove the character"
        ) from None
    if node is None:
        raise ConfigurationError(
            "is empty", on=f"{path}, line 1", hint="begin with: image: docker.io/NAME/install-zfs"
        )
    return node


def parse(path: Path, text: str) -> Versions:
    """Parses the text of ``versions.yaml``; ``path`` is for messages and for writing back."""
    top = _Node(path, _compose(path, text)).mapping(
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


def _url(node: _Node) -> str:
    return node.match(re.compile(r"https?://[^\s/?#]+[^\s?#]*"), "a URL", "https://hub.docker.com")


def _source(node: _Node) -> Source:
    keys = node.mapping("repository", "hub", required=["repository"])
    repository = keys["repository"].parse(Reference.parse)
    if repository.tag or repository.digest:
        raise keys["repository"].error(
            "a source is a repository, without a tag", f"write: {repository.name}"
        )
    default = DOCKER_HUB_URL if repository.registry == DOCKER_HUB else None
    return Source(repository, _url(keys["hub"]).rstrip("/") if "hub" in keys else default)


def _openzfs(node: _Node) -> OpenZFSSource:
    keys = node.mapping("api", "repository", "policy")
    default = OpenZFSSource()
    return OpenZFSSource(
        _url(keys["api"]).rstrip("/") if "api" in keys else default.api,
        keys["repository"].match(re.compile(r"[\w.-]+/[\w.-]+"), "a repository", "openzfs/zfs")
        if "repository" in keys
        else default.repository,
        _policy(keys["policy"]) if "policy" in keys else default.policy,
    )


def _policy(node: _Node) -> Policy:
    text = node.text()
    if text not in list(Policy):
        raise node.error(f"{text!r} is not a policy", f"write one of: {', '.join(Policy)}")
    return Policy(text)


def _release_notes(node: _Node) -> tuple[str, ...]:
    keys = node.mapping("release_notes")
    return tuple(_url(item) for item in keys["release_notes"].items()) if keys else ()


def _kernels(nodes: list[_Node]) -> tuple[Entry, ...]:
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


def _entry(node: _Node) -> Entry:
    keys = node.mapping(
        "image", "digest", "platforms", "builder", "zfs", "policy", "desktop", required=["image"]
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
        policy=_policy(keys["policy"]) if "policy" in keys else None,
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
    if entry.policy and not (known and known.policy):
        lines.append(f"policy: {entry.policy}")
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
    node = _compose(versions.path, text)
    assert isinstance(node, yaml.MappingNode)
    newline = "\r\n" if "\r\n" in text else "\n"
    if not text.endswith("\n"):
        text += newline
    column = 2
    last = node.value[-1]
    kernels = [value for key, value in node.value if key.value == "kernels"]
    if not kernels:
        text += f"kernels:{newline}"
    elif last[0].value != "kernels":
        raise _Node(versions.path, last[0]).error(
            "a key follows kernels, which must be the last to be appended to",
            f"move {last[0].value!r} above kernels",
        )
    elif kernels[0].value and isinstance(kernels[0], yaml.SequenceNode):
        if kernels[0].flow_style:
            raise _Node(versions.path, kernels[0]).error(
                "kernels is written in [brackets], which cannot be appended to",
                "write each entry on a line that begins with '- '",
            )
        column = kernels[0].start_mark.column
    else:
        # An empty list or null makes room, and a comment behind it stays.
        start, end = kernels[0].start_mark.index, kernels[0].end_mark.index
        text = text[:start].rstrip(" ") + text[end:] if start < end else text
    added = []
    for entry in entries:
        added.append(" " * column + f"- image: {entry.image}")
        added += _lines(entry, " " * (column + 2))
    return _write(versions.path, text + newline.join(added) + newline)


def fill(versions: Versions, image: Reference, facts: Entry) -> Versions:
    """Adds to the entry of ``image`` those of ``facts`` that it does not have.

    The entry is the one with the same image and either the same digest or none.

    Raises:
        ConfigurationError: the entry is no longer there.
    """
    text = versions.path.read_bytes().decode()
    current = parse(versions.path, text)
    entry, node = _find(current, text, image, facts.digest)
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
    position = text.find("\n", _end(node))
    if position < 0:
        text += newline
        position = len(text) - 1
    addition = "".join(line + newline for line in lines)
    return _write(versions.path, text[: position + 1] + addition + text[position + 1 :])


def replace_zfs(versions: Versions, facts: Entry, was: str | None) -> Versions:
    """Puts the ZFS version of ``facts`` in the place of the one that its entry had.

    An entry that no longer has the version that it ``was`` stays as somebody changed it.

    Raises:
        ConfigurationError: the entry is no longer there.
    """
    text = versions.path.read_bytes().decode()
    current = parse(versions.path, text)
    entry, node = _find(current, text, facts.image, facts.digest)
    if entry.zfs is None or entry.zfs != was or not facts.zfs:
        return current
    (value,) = (value for key, value in node.value if key.value == "zfs")
    start, end = value.start_mark.index, value.end_mark.index
    return _write(versions.path, text[:start] + facts.zfs + text[end:])


def _find(
    current: Versions, text: str, image: Reference, digest: Digest | None
) -> tuple[Entry, yaml.MappingNode]:
    """The entry with this image and either this digest or none, and its node in ``text``."""
    top = _Node(current.path, _compose(current.path, text)).pairs()
    nodes = top["kernels"].items() if "kernels" in top else []
    for entry, item in zip(current.kernels, nodes, strict=True):
        if entry.image == image and entry.digest in (None, digest):
            assert isinstance(item.node, yaml.MappingNode)
            return entry, item.node
    raise ConfigurationError(
        "the entry is no longer there", on=f"{current.path}: {image}", hint="run again"
    )


def _end(node: yaml.Node) -> int:
    """Where the text of ``node`` ends; the end mark of a block collection is past the next line
    break.
    """
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        return _end(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return _end(node.value[-1])
    return int(node.end_mark.index)


def _write(path: Path, text: str) -> Versions:
    """Replaces the file as a whole, after making sure that what is written can be read."""
    versions = parse(path, text)
    with NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(path.stat().st_mode & 0o777)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return versions

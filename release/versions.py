"""``versions.yaml``: read with line numbers, appended to without touching a byte above.

People write the top of the file, the pipeline appends to ``kernels`` and fills in what a
hand-written entry leaves out. Writing is atomic, and the same facts give the same bytes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import yaml

from release.components import parse_components
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
from release.yamlfile import Node, appended, compose, end_of, read, write

NAME = "versions.yaml"
DOCKER_HUB_URL = "https://hub.docker.com"
MAX_LAYERS = 125
"""As many layers as an image may have: overlay2's 127 without the two of a container (moby,
``layer/layer_store.go``: ``maxLayerDepth``)."""

_MOST_KERNELS = MAX_LAYERS - 3
"""The loader, the catalogue and the commands of ZFS are the other layers of ``latest``; of commands
there is one for each version and builder."""
SMOKE_HOST = "host"
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
ZFS_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-rc[0-9]+)?")
_BEGIN = "image: docker.io/NAME/install-zfs"
_DESKTOP_VERSION = re.compile(r"\d+\.\d+\.\d+(?:\.\d+)?(?:-[a-z0-9.]+)?")


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
    aliases: tuple[Reference, ...] = ()
    """Other image tags of the same kernel."""
    headers_from: Reference | None = None
    """A kernel image of the same release, whose headers are taken with this one's seed."""
    deleted: bool = False
    """Whether upstream no longer has it, as a maintainer found: nobody is told that it is gone."""
    smoke: str = ""
    """``host`` where its modules are tested by loading them on the machine that runs the kernel,
    and not by booting it: for a captured kernel that cannot be booted."""
    skip: str = ""
    """Why nothing is ever built for it: what its image lacks, or what a maintainer wrote."""
    without: tuple[Platform, ...] = ()
    """Platforms that a maintainer has given up for it: nothing is built for them, and
    ``desktop-X`` does not wait for them."""

    def wanted(self, platforms: Collection[Platform]) -> frozenset[Platform]:
        """Those of the platforms that it is to have images for, as far as upstream has them."""
        return frozenset(self.platforms).intersection(platforms).difference(self.without)

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every image tag under which upstream has this kernel."""
        return (self.image, *self.aliases)

    @property
    def image_tags(self) -> tuple[str, ...]:
        """What the module image is called: the slug, and the same for each alias."""
        return (self.slug, *map(slug, self.aliases))

    @property
    def slug(self) -> str:
        """The kernel's name in file names and tags: its image without registry, joined by ``-``.

        A kernel whose image tag was an earlier kernel's has 12 digits of its digest behind it.
        """
        name = slug(self.image)
        return f"{name}-{self.digest[7:19]}" if self.moved and self.digest else name

    @property
    def resolved(self) -> bool:
        """Whether everything that a build needs is known."""
        return bool(self.digest and self.platforms and self.builder and self.zfs)


_KEYS = (
    "digest",
    "platforms",
    "builder",
    "headers_from",
    "zfs",
    "policy",
    "desktop",
    "aliases",
    "deleted",
    "smoke",
    "skip",
    "without",
)
"""The keys of an entry behind its image, in the order in which they are written."""


def slug(image: Reference) -> str:
    """An image's name in file names and tags: without its registry, joined by ``-``."""
    return f"{image.repository}-{image.tag}".replace("/", "-")


def modules_tag(slug: str) -> str:
    """The image tag of a kernel's image without the userland, where it was built with one."""
    return f"{slug}-modules"


PLATFORMS = (Platform("linux/amd64"), Platform("linux/arm64"))
"""Those that Docker Desktop runs on."""

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
    builders: Path | None = None
    """A table of builder images in place of the project's."""
    linuxkit: Mapping[str, Reference] = field(default_factory=lambda: MappingProxyType({}))
    """Images in place of those that the project makes LinuxKit's VMs of, by name."""
    request_budget: int = 500
    """How many requests a poll may make."""
    latest: int = 100
    """Of how many kernels ``latest`` holds the modules; 0 for no ``latest``."""
    on_the_spot: bool = True
    """Whether the image that builds where it runs is published, under the tag ``build``."""
    kernels: tuple[Entry, ...] = ()
    platforms: tuple[Platform, ...] = PLATFORMS
    """Of those that upstream has, the ones that images are for: ``desktop-X`` moves once a kernel
    has all of them."""
    probe: str | None = None
    """The image of the container with which ``detect`` and ``capture`` look at a machine."""


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
        "image",
        "sources",
        "openzfs",
        "desktop",
        "builders",
        "linuxkit",
        "request_budget",
        "latest",
        "on_the_spot",
        "platforms",
        "probe",
        "kernels",
        required=["image"],
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
        builders=path.parent / top["builders"].text() if "builders" in top else None,
        linuxkit=MappingProxyType(parse_components(top["linuxkit"]) if "linuxkit" in top else {}),
        request_budget=int(
            top["request_budget"].match(
                re.compile("[1-9][0-9]{0,5}"), "a number of requests", "500"
            )
        )
        if "request_budget" in top
        else Versions.request_budget,
        latest=_latest(top["latest"]) if "latest" in top else Versions.latest,
        on_the_spot=top["on_the_spot"].match(re.compile("true|false"), "true or false", "false")
        == "true"
        if "on_the_spot" in top
        else Versions.on_the_spot,
        platforms=_platforms(top["platforms"]) if "platforms" in top else PLATFORMS,
        kernels=_kernels(top["kernels"].items()) if "kernels" in top else (),
        probe=str(top["probe"].parse(Reference.parse)) if "probe" in top else None,
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
    keys = node.mapping("api", "repository", "policy")
    default = OpenZFSSource()
    return OpenZFSSource(
        _url(keys["api"]).rstrip("/") if "api" in keys else default.api,
        keys["repository"].match(re.compile(r"[\w.-]+/[\w.-]+"), "a repository", "openzfs/zfs")
        if "repository" in keys
        else default.repository,
        _policy(keys["policy"]) if "policy" in keys else default.policy,
    )


def _policy(node: Node) -> Policy:
    text = node.text()
    if text not in list(Policy):
        raise node.error(f"{text!r} is not a policy", f"write one of: {', '.join(Policy)}")
    return Policy(text)


def _platforms(node: Node) -> tuple[Platform, ...]:
    found = tuple(item.parse(parse_platform) for item in node.items())
    if not found:
        raise node.error("names no platform", f"write: [{', '.join(PLATFORMS)}]")
    return found


def _latest(node: Node) -> int:
    kernels = node.mapping("kernels", required=["kernels"])["kernels"]
    number = int(kernels.match(re.compile("[0-9]{1,6}"), "a number of kernels", "100"))
    if number > _MOST_KERNELS:
        raise kernels.error(
            f"an image has room for {_MOST_KERNELS} kernels: it may have {MAX_LAYERS} layers",
            f"write at most {_MOST_KERNELS}; the catalogue names all kernels in any case",
        )
    return number


def _release_notes(node: Node) -> tuple[str, ...]:
    keys = node.mapping("release_notes")
    return tuple(_url(item) for item in keys["release_notes"].items()) if keys else ()


def _kernels(nodes: list[Node]) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    images: dict[Reference, tuple[Entry, int]] = {}
    digests: dict[Reference, set[Digest | None]] = {}
    aliases: dict[Reference, Entry] = {}
    names: dict[str, Entry] = {}
    desktops: dict[str, Entry] = {}
    for node in nodes:
        entry = _entry(node)
        first = images.setdefault(entry.image, (entry, node.node.start_mark.line + 1))[1]
        twins = digests.setdefault(entry.image, set())
        if twins & {None, entry.digest} or (twins and not entry.digest):
            raise node.error(
                f"{entry.image} is there twice (first in line {first})",
                "remove one of the two; a kernel whose tag was moved needs its own digest",
            )
        if twins or (entry.digest and entry.image in aliases):
            entry = replace(entry, moved=True)
        for alias in entry.aliases:
            other = aliases.setdefault(alias, entry)
            if other is not entry or alias in images:
                other = images[alias][0] if alias in images else other
                raise node.error(
                    f"{alias} is already a tag of {other.image}",
                    "remove it from aliases here",
                )
        for name in (*entry.image_tags, modules_tag(entry.slug)):
            if (same := names.setdefault(name, entry)) is not entry:
                raise node.error(
                    f"{entry.image} would be published under the name of {same.image}",
                    f"both are called {name}; remove one of the two",
                )
        for version in entry.desktop:
            if version in desktops:
                raise node.error(
                    f"Docker Desktop {version} is already said to run {desktops[version].image}",
                    "a Desktop version runs one kernel; remove one of the two",
                )
            desktops[version] = entry
        twins.add(entry.digest)
        entries.append(entry)
    return tuple(entries)


def _image(node: Node) -> Reference:
    """A kernel image by its tag alone; its digest has a line of its own."""
    image = node.parse(Reference.parse)
    if not image.tag or image.digest:
        raise node.error(
            "a kernel image needs its tag here, and its digest in a line of its own",
            "write: repository:tag",
        )
    return image


def _entry(node: Node) -> Entry:
    keys = node.mapping("image", *_KEYS, required=["image"])
    image = _image(keys["image"])
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
        zfs=keys["zfs"].match(ZFS_VERSION, "an OpenZFS version", "2.1.5")
        if "zfs" in keys
        else None,
        policy=_policy(keys["policy"]) if "policy" in keys else None,
        desktop=tuple(
            item.match(_DESKTOP_VERSION, "a Docker Desktop version", "4.13.0")
            for item in keys["desktop"].items()
        )
        if "desktop" in keys
        else (),
        aliases=tuple(map(_image, keys["aliases"].items())) if "aliases" in keys else (),
        headers_from=keys["headers_from"].parse(Reference.parse)
        if "headers_from" in keys
        else None,
        deleted=_flag(keys["deleted"]) if "deleted" in keys else False,
        smoke=keys["smoke"].match(re.compile(SMOKE_HOST), "a way to test", "smoke: host")
        if "smoke" in keys
        else "",
        skip=keys["skip"].text() if "skip" in keys else "",
        without=_platforms(keys["without"]) if "without" in keys else (),
    )


def parse_entry(text: str) -> Entry:
    """Parses an entry as :func:`entry_lines` writes it.

    Raises:
        ConfigurationError: it is none.
    """
    return _entry(Node(Path("entry"), compose(Path("entry"), text, begin=_BEGIN)))


def _flag(node: Node) -> bool:
    return node.match(re.compile("true|false"), "true or false", "deleted: true") == "true"


# Writing


def _value(entry: Entry, name: str) -> str:
    """What stands behind a key of an entry, on one line; nothing where it is not known."""
    match name:
        case "platforms":
            pairs = (
                f"{platform}: {digest}" for platform, digest in sorted(entry.platforms.items())
            )
            return f"{{{', '.join(pairs)}}}" if entry.platforms else ""
        case "builder" | "headers_from":
            reference = getattr(entry, name)
            return _plain(reference) if reference else ""
        case "skip":
            quoted = yaml.safe_dump(entry.skip, default_style='"', width=sys.maxsize)
            return quoted.rstrip("\n") if entry.skip else ""
        case "deleted":
            return "true" if entry.deleted else ""
        case "aliases":
            return f"[{', '.join(map(str, entry.aliases))}]" if entry.aliases else ""
        case "desktop" | "without":
            words = getattr(entry, name)
            return f"[{', '.join(words)}]" if words else ""
        case _:
            return str(getattr(entry, name) or "")


def _plain(reference: Reference) -> str:
    return str(reference).removeprefix(f"{DOCKER_HUB}/")


def entry_lines(entry: Entry) -> list[str]:
    """An entry as it is written, a ``key: value`` a line."""
    values = [f"{name}: {value}" for name in _KEYS if (value := _value(entry, name))]
    return [f"image: {entry.image}", *values]


def append(versions: Versions, entries: Iterable[Entry]) -> Versions:
    """Appends ``entries`` to ``kernels`` and returns the file's new content.

    Raises:
        ConfigurationError: the file was changed into a shape that cannot be appended to.
    """
    entries = tuple(entries)
    if not entries:
        return versions
    text = versions.path.read_bytes().decode()
    items = map(entry_lines, entries)
    return _write(versions.path, appended(versions.path, text, "kernels", items, begin=_BEGIN))


def revise(versions: Versions, was: Entry, now: Entry) -> Versions:
    """Writes into an entry what became known of it since it ``was`` read.

    What the entry lacks is added behind it, and a value that changed takes the old one's place.
    A value that somebody else changed in the file meanwhile stays.

    Raises:
        ConfigurationError: the entry is no longer there.
    """
    return revise_all(versions, ((was, now),))


def revise_all(versions: Versions, changes: Iterable[tuple[Entry, Entry]]) -> Versions:
    """:func:`revise` for many entries, each as it was and as it is to be, in one go: a file of
    thousands is read and written once.

    Raises:
        ConfigurationError: one of the entries is no longer there.
    """
    changes = tuple(changes)
    if not changes:
        return versions
    text = versions.path.read_bytes().decode()
    current = parse(versions.path, text)
    top = Node(current.path, compose(current.path, text, begin=_BEGIN)).pairs()
    nodes = top["kernels"].items() if "kernels" in top else []
    there: dict[Reference, list[tuple[Entry, yaml.MappingNode]]] = {}
    for entry, item in zip(current.kernels, nodes, strict=True):
        assert isinstance(item.node, yaml.MappingNode)
        there.setdefault(entry.image, []).append((entry, item.node))
    edits: list[_Edit] = []
    for was, now in changes:
        for entry, node in there.get(now.image, ()):
            if entry.digest in (None, was.digest, now.digest):
                edits += _edits(text, entry, node, was, now)
                break
        else:
            raise ConfigurationError(
                "the entry is no longer there", on=f"{current.path}: {now.image}", hint="run again"
            )
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return _write(versions.path, text) if edits else current


_Edit = tuple[int, int, str]
"""From where, to where, and by what a text is replaced."""


def _edits(
    text: str, entry: Entry, node: yaml.MappingNode, was: Entry, now: Entry
) -> Iterator[_Edit]:
    """What is to be changed of the text of an entry."""
    values = {key.value: value for key, value in node.value}
    added: list[str] = []
    for name in _KEYS:
        wanted, there = _value(now, name), _value(entry, name)
        if name == "aliases" and was.aliases and not now.aliases:
            wanted = "[]"
        if not wanted or wanted == there:
            continue
        if name not in values:
            added.append(f"{name}: {wanted}")
        elif there == _value(was, name):
            yield values[name].start_mark.index, end_of(values[name]), wanted
    if not added:
        return
    if node.flow_style:
        position = node.end_mark.index - 1
        if text[position - 1] == ",":
            position -= 1
        yield position, position, "".join(f", {line}" for line in added)
        return
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = [f"{' ' * node.start_mark.column}{line}" for line in added]
    position = text.find("\n", end_of(node))
    if position < 0:
        yield len(text), len(text), "".join(f"{newline}{line}" for line in lines) + newline
    else:
        yield position + 1, position + 1, "".join(f"{line}{newline}" for line in lines)


def _write(path: Path, text: str) -> Versions:
    """Replaces the file as a whole, after making sure that what is written can be read."""
    versions = parse(path, text)
    write(path, text)
    return versions

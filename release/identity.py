"""Which listed tags are new kernels, and which are other names of known ones. Pure, no I/O.

A kernel is its image digest, never its tag: tags are moved, and one kernel may have many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType

from release.hub import ListedTag
from release.reference import Digest, Platform, Reference
from release.tags import ImageTag
from release.versions import Entry

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class LeftOut:
    """An image tag for which nothing is built, and why. It is as upstream wrote it."""

    repository: Reference
    image_tag: str
    reason: str


@dataclass(frozen=True)
class Changes:
    """What a poll changes in what is recorded.

    Attributes:
        new: kernels to append, in the order in which upstream pushed them.
        revised: recorded kernels, each as it was and as it is to be.
        left_out: image tags that are no kernels to build for.
        notes: what a maintainer should hear of: tags that moved, other names of a kernel.
    """

    new: tuple[Entry, ...] = ()
    revised: tuple[tuple[Entry, Entry], ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def identify(listed: Iterable[tuple[Reference, ListedTag]], recorded: Sequence[Entry]) -> Changes:
    """Holds what the sources list against what is recorded.

    Args:
        listed: each image tag with its repository; those without a digest are passed over.
    """
    listed = tuple(listed)
    known = _Known(recorded, tuple(dict.fromkeys(repository for repository, _ in listed)))
    left_out = []
    for repository, tag in sorted(listed, key=_rank):
        if reason := known.take(repository, tag):
            left_out.append(LeftOut(repository, tag.image_tag, reason))
    revised = [(was, now) for was, now in zip(recorded, known.entries, strict=False) if was != now]
    # What a kernel loses, another one gets, and at no time both have it.
    revised.sort(key=lambda both: len(both[1].aliases) - len(both[0].aliases))
    return Changes(
        new=known.new,
        revised=tuple(revised),
        left_out=tuple(left_out),
        notes=tuple(known.notes),
    )


def _rank(item: tuple[Reference, ListedTag]) -> tuple[bool, bool]:
    """An index comes before the manifests in it, a name of a Desktop version after the kernels."""
    about = ImageTag.parse(item[1].image_tag)
    return bool(about.desktop), bool(about.architecture)


class _Known:
    """What is known while the tags of a poll are gone through, one after the other."""

    def __init__(self, recorded: Sequence[Entry], repositories: Sequence[Reference]) -> None:
        self.entries: list[Entry] = []
        self.notes: list[str] = []
        self._recorded = len(recorded)
        self._repositories = repositories
        self._pushed: list[datetime] = []
        self._by_digest: dict[tuple[Reference, Digest], int] = {}
        self._by_name: dict[Reference, list[int]] = {}
        self._by_sources: dict[tuple[Reference, str], int] = {}
        for entry in recorded:
            self._put(len(self.entries), entry)

    def _put(self, place: int, entry: Entry) -> None:
        """Keeps an entry, and by what it is found."""
        self.entries[place : place + 1] = [entry]
        for digest in (entry.digest, *entry.platforms.values()):
            if digest:
                self._by_digest.setdefault((entry.image.name, digest), place)
        for image in entry.references:
            places = self._by_name.setdefault(image, [])
            if place not in places:
                places.append(place)
            sources = str(ImageTag.parse(image.tag or "").joined)
            self._by_sources.setdefault((image.name, sources), place)

    @property
    def new(self) -> tuple[Entry, ...]:
        """Source by source, each in the order of pushes, then of versions."""

        def order(one: tuple[datetime, Entry]) -> tuple[object, ...]:
            pushed, entry = one
            version = ImageTag.parse(entry.image.tag or "").order
            return self._repositories.index(entry.image.name), pushed, version

        found = zip(self._pushed, self.entries[self._recorded :], strict=True)
        return tuple(entry for _, entry in sorted(found, key=order))

    def take(self, repository: Reference, tag: ListedTag) -> str:
        """Finds out what a tag is. Returns why nothing is built for it, or nothing."""
        about = ImageTag.parse(tag.image_tag)
        if about.reason and not about.desktop:
            return about.reason
        if tag.digest is None:
            return ""
        image = repository.with_tag(tag.image_tag)
        places = self._by_name.get(image, ())
        if (place := self._by_digest.get((repository, tag.digest))) is not None:
            self._name(place, image, tag)
        elif about.desktop:
            return f"{about.reason}, and its digest is no known kernel's"
        elif same := [n for n in places if _same_kernel(self.entries[n], image, tag)]:
            self._complete(same[0], image, tag)
        elif (
            about.architecture
            and not places
            and (place := self._by_sources.get((repository, str(about.joined)))) is not None
        ):
            return self._join(place, image, tag, Platform(f"linux/{about.architecture}"))
        else:
            self._add(image, tag)
        return ""

    def _name(self, place: int, image: Reference, tag: ListedTag) -> None:
        """A tag of a known digest: its own, or one more."""
        entry = self.entries[place]
        if image in entry.references:
            if tag.platforms and not entry.platforms and tag.digest == entry.digest:
                self._put(place, replace(entry, platforms=_frozen(tag)))
            return
        for other in self._by_name.get(image, ()):
            was = self.entries[other]
            if was.image == image and was.digest in (None, tag.digest):
                # Somebody wrote an entry for each of the two tags.
                platforms = was.platforms or _frozen(tag)
                self._put(other, replace(was, digest=tag.digest, platforms=platforms))
                return
            if was.image == image:
                self.notes.append(f"{image} points to the kernel of {entry.image} now")
                return
            kept = tuple(alias for alias in was.aliases if alias != image)
            self.entries[other] = replace(was, aliases=kept)
        self._put(place, replace(entry, aliases=(*entry.aliases, image)))
        self.notes.append(f"{image} is another tag of {entry.image}")

    def _complete(self, place: int, image: Reference, tag: ListedTag) -> None:
        """The entry's own digests where it had none, or those of an index that has grown."""
        entry = self.entries[place]
        if entry.digest:
            more = sorted(set(tag.platforms or ()) - set(entry.platforms))
            self.notes.append(f"{image} is there for {' and '.join(more) or 'no more'} too now")
        platforms = _frozen(tag) if tag.platforms else entry.platforms
        self._put(place, replace(entry, digest=tag.digest, platforms=platforms))

    def _join(self, place: int, image: Reference, tag: ListedTag, platform: Platform) -> str:
        """One architecture's image of a kernel that is known by another one's, or by its index."""
        entry = self.entries[place]
        if not entry.platforms or not tag.platforms or platform in entry.platforms:
            return f"is one architecture of {entry.image.tag}"
        platforms = MappingProxyType({**entry.platforms, **tag.platforms})
        aliases = (*entry.aliases, image)
        self._put(place, replace(entry, platforms=platforms, aliases=aliases))
        self.notes.append(f"{image} is {entry.image} for {platform}")
        return ""

    def _add(self, image: Reference, tag: ListedTag) -> None:
        if moved := self._by_name.get(image, ()):
            self.notes.append(
                f"{image} was moved to another image: a new kernel, the old one stays\n"
                f"was {self.entries[moved[-1]].digest}\nis  {tag.digest}"
            )
        self._pushed.append(tag.pushed or _NEVER)
        entry = Entry(image, tag.digest, _frozen(tag), moved=bool(moved))
        self._put(len(self.entries), entry)


def _frozen(tag: ListedTag) -> MappingProxyType[Platform, Digest]:
    return MappingProxyType(dict(tag.platforms or {}))


def _same_kernel(entry: Entry, image: Reference, tag: ListedTag) -> bool:
    """Whether an entry is this very tag's: not looked at yet, or with the same manifests."""
    if entry.image != image:
        return False
    if entry.digest is None:
        return True
    there = tag.platforms or {}
    return (
        not entry.moved
        and bool(entry.platforms)
        and all(there.get(platform) == digest for platform, digest in entry.platforms.items())
    )

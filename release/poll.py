"""Asks the sources which kernels there are. Nothing upstream says can make us forget anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType

from release.errors import ReleaseError, UpstreamError
from release.http import Http
from release.hub import Hub, ListedTag
from release.kernel import KernelTag, NotAKernel, parse_tag
from release.reference import Digest
from release.registry import Registry
from release.versions import Entry, Source, Versions

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Polled:
    """What the sources say beyond what is recorded.

    Attributes:
        new: kernels to append, in the order in which upstream pushed them.
        found: entries that were recorded without digest, with the digests that were listed.
        left_out: image tags that are no kernels to build for.
        failures: one for each source that could not be read completely.
    """

    new: tuple[Entry, ...] = ()
    found: tuple[Entry, ...] = ()
    left_out: tuple[NotAKernel, ...] = ()
    failures: tuple[ReleaseError, ...] = ()

    def merge(self, recorded: Sequence[Entry]) -> tuple[Entry, ...]:
        """What is recorded, with the digests that were found, and what is new."""
        digests = {entry.image: entry for entry in self.found}
        merged = []
        for entry in recorded:
            found = digests.get(entry.image)
            if found and entry.digest in (None, found.digest):
                platforms = entry.platforms or found.platforms
                entry = replace(entry, digest=found.digest, platforms=platforms)
            merged.append(entry)
        return (*merged, *self.new)


def poll(
    versions: Versions, http: Http, registry: Registry, environment: Mapping[str, str]
) -> Polled:
    """Asks every source; one that fails does not keep the others from being read."""

    def ask(source: Source) -> Polled:
        try:
            return _poll(source, versions, http, registry, environment)
        except ReleaseError as error:
            return Polled(failures=(error,))

    with ThreadPoolExecutor(max(1, len(versions.sources))) as pool:
        answers = list(pool.map(ask, versions.sources))
    return Polled(
        new=tuple(entry for answer in answers for entry in answer.new),
        found=tuple(entry for answer in answers for entry in answer.found),
        left_out=tuple(tag for answer in answers for tag in answer.left_out),
        failures=tuple(error for answer in answers for error in answer.failures),
    )


def _poll(
    source: Source,
    versions: Versions,
    http: Http,
    registry: Registry,
    environment: Mapping[str, str],
) -> Polled:
    recorded: dict[str, list[Entry]] = {}
    for entry in versions.kernels:
        if entry.image.name == source.repository:
            recorded.setdefault(entry.image.tag or "", []).append(entry)

    digests: set[Digest | None] = set()
    for entries in recorded.values():
        for entry in entries:
            digests |= {entry.digest, *entry.platforms.values()}
    digests.discard(None)

    def is_recorded(tag: ListedTag) -> bool:
        return any(
            tag.digest is None or entry.digest in (None, tag.digest)
            for entry in recorded.get(tag.image_tag, ())
        )

    def known(tag: ListedTag) -> bool:
        what = parse_tag(tag.image_tag)
        return (
            isinstance(what, NotAKernel)
            or is_recorded(tag)
            or tag.digest in digests
            or (what.architecture is not None and what.joined in recorded)
        )

    tags = (
        _list_hub(Hub(http, source.hub, environment), source, recorded, known)
        if source.hub
        else _list_registry(registry, source, recorded)
    )
    new: list[tuple[datetime, Entry]] = []
    found: list[Entry] = []
    left_out: list[NotAKernel] = []
    names = {tag.image_tag for tag in tags} | set(recorded)
    for tag in tags:
        what = parse_tag(tag.image_tag)
        if isinstance(what, NotAKernel):
            left_out.append(what)
        elif is_recorded(tag):
            found += [
                _entry(source, tag)
                for entry in recorded[tag.image_tag]
                if tag.digest and not (entry.digest and entry.platforms)
            ]
        elif what.architecture and what.joined in names:
            left_out.append(NotAKernel(tag.image_tag, f"is one architecture of {what.joined}"))
        else:
            entry = _entry(source, tag)
            if not entry.digest:
                entry = replace(entry, digest=_ask_digest(registry, entry))
            if entry.digest in digests:
                left_out.append(NotAKernel(tag.image_tag, "is a second tag of a kernel"))
            else:
                digests |= {entry.digest, *entry.platforms.values()}
                entry = replace(entry, moved=tag.image_tag in recorded)
                new.append((tag.pushed or _NEVER, entry))
    new.sort(key=lambda item: (item[0], _version_key(item[1])))
    return Polled(tuple(entry for _, entry in new), tuple(found), tuple(left_out))


def _list_hub(
    hub: Hub,
    source: Source,
    recorded: Mapping[str, object],
    known: Callable[[ListedTag], bool],
) -> tuple[ListedTag, ...]:
    listing = hub.tags(source.repository, known)
    if listing.total < len(recorded):
        raise UpstreamError(
            f"lists {listing.total} tags, but {len(recorded)} are recorded",
            on=str(source.repository),
            hint="a list that shrank changes nothing here; run again later",
        )
    return listing.tags


def _list_registry(
    registry: Registry, source: Source, recorded: Mapping[str, object]
) -> tuple[ListedTag, ...]:
    names = registry.tags(source.repository)
    if not names:
        raise UpstreamError(
            "lists no tags at all",
            on=str(source.repository),
            hint="check the name under sources; if it is right, run again later",
        )
    if gone := sorted(set(recorded) - names):
        raise UpstreamError(
            "no longer lists what is recorded",
            on=str(source.repository),
            detail="\n".join(gone[:10]),
            hint="a list that shrank changes nothing here; run again later",
        )
    return tuple(ListedTag(name) for name in sorted(names))


def _ask_digest(registry: Registry, entry: Entry) -> Digest:
    digest = registry.head(entry.image)
    if digest is None:
        raise UpstreamError(
            "is listed, but its registry does not have it",
            on=str(entry.image),
            hint="run again later",
        )
    return digest


def _entry(source: Source, tag: ListedTag) -> Entry:
    return Entry(
        source.repository.with_tag(tag.image_tag),
        tag.digest,
        MappingProxyType(dict(tag.platforms or {})),
    )


def _version_key(entry: Entry) -> tuple[object, str]:
    tag = parse_tag(entry.image.tag or "")
    assert isinstance(tag, KernelTag)
    return tag.version, tag.image_tag

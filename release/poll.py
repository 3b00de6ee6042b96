"""Asks the sources which kernels there are. Nothing upstream says can make us forget anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from release.errors import ReleaseError, UpstreamError
from release.http import Http
from release.hub import Hub, ListedTag, PagingRefusedError
from release.identity import Changes, LeftOut, identify
from release.reference import Digest, Platform, Reference
from release.registry import MANIFESTS, Registry
from release.tags import ImageTag
from release.versions import Entry, Source, Versions

_LOOKS_AT_ONCE = 8


@dataclass(frozen=True)
class Polled:
    """What the sources say beyond what is recorded.

    Attributes:
        changes: new kernels, other names of known ones, and what is left out.
        failures: what could not be read completely, at least one for each such source.
    """

    changes: Changes
    failures: tuple[ReleaseError, ...] = ()

    @property
    def new(self) -> tuple[Entry, ...]:
        return self.changes.new

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return self.changes.left_out

    def merge(self, recorded: Sequence[Entry]) -> tuple[Entry, ...]:
        """What is recorded, as it is to be, and what is new."""
        revised = {id(was): now for was, now in self.changes.revised}
        return (*(revised.get(id(entry), entry) for entry in recorded), *self.new)


def poll(
    versions: Versions,
    http: Http,
    registry: Registry,
    environment: Mapping[str, str],
    *,
    whole: bool = False,
) -> Polled:
    """Asks every source; one that fails does not keep the others from being read.

    Args:
        whole: read every list to its end, also where nothing new is on the first page.
    """
    budget = _Budget(http, versions.request_budget)
    hubs = {
        source.hub: Hub(http, source.hub, environment) for source in versions.sources if source.hub
    }

    def ask(source: Source) -> _Read:
        recorded = [one for one in versions.kernels if _is_from(one, source)]
        reader = _Reader(source, recorded, registry, budget, whole)
        try:
            if source.hub:
                return reader.hub(hubs[source.hub])
            return reader.registry_list()
        except ReleaseError as error:
            return _Read((), (error,))

    with ThreadPoolExecutor(max(1, len(versions.sources))) as pool:
        answers = list(pool.map(ask, versions.sources))
    listed = [
        (source.repository, tag)
        for source, answer in zip(versions.sources, answers, strict=True)
        for tag in answer.tags
    ]
    return Polled(
        identify(listed, versions.kernels),
        tuple(error for answer in answers for error in answer.failures),
    )


def _is_from(entry: Entry, source: Source) -> bool:
    return any(image.name == source.repository for image in entry.references)


class _Budget:
    """How many requests a poll may make, whoever makes them."""

    def __init__(self, http: Http, limit: int) -> None:
        self._http = http
        self._before = http.requests.total()
        self.limit = limit

    def check(self, on: object) -> None:
        """Raises:
        UpstreamError: no request is left.
        """
        if not self.left:
            raise self.refusal(on)

    @property
    def left(self) -> int:
        """How many requests are left."""
        return max(0, self.limit - (self._http.requests.total() - self._before))

    def refusal(self, on: object) -> UpstreamError:
        """What is said of something that no request is left for."""
        return UpstreamError(
            f"the budget of {self.limit} requests is used up",
            on=str(on),
            hint="run again: it goes on where this run stopped; or raise request_budget in "
            "versions.yaml",
        )


@dataclass(frozen=True)
class _Read:
    """The tags that a source lists, and what could not be looked at."""

    tags: tuple[ListedTag, ...]
    failures: tuple[ReleaseError, ...] = ()


@dataclass(frozen=True)
class _Reader:
    """Reads one source, no further than is needed."""

    source: Source
    recorded: Sequence[Entry]
    registry: Registry
    budget: _Budget
    whole: bool

    def hub(self, hub: Hub) -> _Read:
        """Docker Hub's list, newest first, to the first page that holds nothing new.

        What lies beyond (older than that page, or behind the offset up to which anybody may page)
        is completed by the registry's own list of names.
        """
        repository = self.source.repository
        found: dict[str, ListedTag] = {}
        page, total = 1, 0
        while True:
            self.budget.check(repository)
            try:
                answer = hub.page(repository, page)
            except PagingRefusedError as refused:
                return self._completed(found, total, refused)
            before = len(found)
            found.update((tag.image_tag, tag) for tag in answer.tags)
            total = answer.total
            if not answer.more:
                if len(found) < answer.total:
                    raise _half(repository, len(found), answer.total)
                self._check_names(found)
                return self._with_digests(found.values())
            if len(answer.tags) < hub.page_size or len(found) == before:
                raise _half(repository, len(found), answer.total)
            if not self.whole and all(map(self._is_known, answer.tags)):
                return self._completed(found, total)
            page += 1

    def registry_list(self) -> _Read:
        """The registry's own list, which has names only."""
        self.budget.check(self.source.repository)
        names = self.registry.tags(self.source.repository)
        if not names:
            raise UpstreamError(
                "lists no tags at all",
                on=str(self.source.repository),
                hint="check the name under sources; if it is right, run again later",
            )
        self._check_names(names)
        return self._with_digests(ListedTag(name) for name in sorted(names))

    def _completed(
        self,
        found: Mapping[str, ListedTag],
        total: int,
        refused: PagingRefusedError | None = None,
    ) -> _Read:
        """What Docker Hub listed, and from the registry's own list the names that it did not."""
        self.budget.check(self.source.repository)
        names = self.registry.tags(self.source.repository)
        if refused and len({*names, *found}) < total:
            raise refused
        if names:
            self._check_names({*names, *found})
        elif total < len(self._names):
            raise UpstreamError(
                f"lists {total} tags, but {len(self._names)} are recorded",
                on=str(self.source.repository),
                hint="a list that shrank changes nothing here; run again later",
            )
        others = (ListedTag(name) for name in sorted(names - found.keys()))
        return self._with_digests((*found.values(), *others))

    @cached_property
    def _names(self) -> frozenset[str]:
        """The image tags here that are recorded and not known to be deleted."""
        return frozenset(
            image.tag
            for entry in self.recorded
            if not entry.deleted
            for image in entry.references
            if image.tag and image.name == self.source.repository
        )

    def _is_known(self, tag: ListedTag) -> bool:
        """Whether a tag on a page is no reason to read the next one."""
        about = ImageTag.parse(tag.image_tag)
        if about.reason:
            return True
        if tag.digest in self._digests or (
            about.architecture and str(about.joined) in self._joined
        ):
            return True
        image = self.source.repository.with_tag(tag.image_tag)
        return any(
            tag.digest in (None, entry.digest)
            for entry in self.recorded
            if image in entry.references
        )

    @cached_property
    def _digests(self) -> frozenset[Digest]:
        found = (
            digest for one in self.recorded for digest in (one.digest, *one.platforms.values())
        )
        return frozenset(digest for digest in found if digest)

    @cached_property
    def _joined(self) -> frozenset[str]:
        """The tags that images of one architecture belong to."""
        tags = (
            ImageTag.parse(one.tag or "") for entry in self.recorded for one in entry.references
        )
        return frozenset(str(tag.joined) for tag in tags)

    def _check_names(self, listed: Collection[str]) -> None:
        """Raises:
        UpstreamError: something that is recorded is no longer listed.
        """
        if gone := sorted(self._names - set(listed)):
            raise UpstreamError(
                f"lists {len(listed)} tags, but {len(self._names)} are recorded"
                if len(listed) < len(self._names)
                else "no longer lists what is recorded",
                on=str(self.source.repository),
                detail="\n".join(gone[:20] + [f"and {len(gone) - 20} more"] * (len(gone) > 20)),
                hint="a list that shrank changes nothing here; run again later. If upstream has "
                "deleted it for good, write deleted: true in its entry",
            )

    def _with_digests(self, tags: Iterable[ListedTag]) -> _Read:
        """Looks up, without a pull, the digests that were not listed and that matter."""
        tags = tuple(tags)
        known = {image.tag for entry in self.recorded if entry.digest for image in entry.references}
        unknown = [
            tag
            for tag in tags
            if not tag.digest and tag.image_tag not in known and _may_matter(tag)
        ]
        if not unknown:
            return _Read(tags)
        # A list may be any long: what there are no requests for is not even begun.
        left = self.budget.left
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            looked_up = dict(
                zip(
                    (tag.image_tag for tag in unknown[:left]),
                    pool.map(self._look_up, unknown[:left]),
                    strict=True,
                )
            )
        for tag in unknown[left:]:
            image = self.source.repository.with_tag(tag.image_tag)
            looked_up[tag.image_tag] = self.budget.refusal(image)
        failures = [found for found in looked_up.values() if isinstance(found, ReleaseError)]
        return _Read(
            tuple(
                found if isinstance(found := looked_up.get(tag.image_tag, tag), ListedTag) else tag
                for tag in tags
            ),
            _summarized(self.source.repository, failures),
        )

    def _look_up(self, tag: ListedTag) -> ListedTag | ReleaseError:
        image = self.source.repository.with_tag(tag.image_tag)
        try:
            self.budget.check(image)
            found = self.registry.describe(image)
        except ReleaseError as error:
            return error
        if found is None:
            return UpstreamError(
                "is listed, but its registry does not have it",
                on=str(image),
                hint="run again later",
            )
        digest, media_type = found
        architecture = ImageTag.parse(tag.image_tag).architecture
        platforms = None
        if architecture and media_type in MANIFESTS:
            platforms = MappingProxyType({Platform(f"linux/{architecture}"): digest})
        return replace(tag, digest=digest, platforms=platforms)


def _may_matter(tag: ListedTag) -> bool:
    about = ImageTag.parse(tag.image_tag)
    return bool(about.desktop) or not about.reason


def _summarized(
    repository: Reference, failures: Sequence[ReleaseError]
) -> tuple[ReleaseError, ...]:
    """One failure for all tags that could not be looked at for the same reason."""
    by_reason: dict[str, list[ReleaseError]] = {}
    for error in failures:
        by_reason.setdefault(error.what, []).append(error)
    summarized: list[ReleaseError] = []
    for what, alike in by_reason.items():
        if len(alike) == 1:
            summarized.append(alike[0])
        else:
            names = [error.on for error in alike]
            summarized.append(
                UpstreamError(
                    f"{len(alike)} tags could not be looked at: {what}",
                    on=str(repository),
                    detail="\n".join(names[:10]),
                    hint=alike[0].hint,
                )
            )
    return tuple(summarized)


def _half(repository: Reference, got: int, total: int) -> UpstreamError:
    return UpstreamError(
        f"Docker Hub listed {got} of {total} tags and stopped",
        on=str(repository),
        hint="nothing was taken from this list; run again later",
    )

"""From an entry of ``versions.yaml`` to everything that a build needs, by digest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

from semver import Version

from release.errors import (
    NotFoundError,
    NotYetError,
    ResolveError,
    UnbuildableError,
    UpstreamError,
)
from release.openzfs import OpenZFS
from release.reference import Digest, Platform, Reference
from release.registry import MALFORMED, Document, Registry, labels_of
from release.solver import Choice, Chosen, Policy, TooOld, Waiting, pin_warning, wanted
from release.tags import ImageTag
from release.versions import Entry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Kernel:
    """A kernel image pinned by digest, as found in its registry.

    Attributes:
        created: when the image was made, the time stamp of all that is built from it.
        labels: of the first platform's image.
    """

    image: Reference
    digest: Digest
    platforms: Mapping[Platform, Digest]
    created: datetime
    labels: Mapping[str, str]


class BuilderSource(StrEnum):
    """What named a builder: the entry, or what was found in or beside the kernel image."""

    ENTRY = "entry"
    LABEL = "label"
    TAG = "tag"
    FILE = "file"
    TABLE = "table"


@dataclass(frozen=True)
class BuilderImage:
    """The image with a kernel's compiler.

    Attributes:
        image: as it was named.
        digest: what that points to, of an index where there is one.
    """

    image: Reference
    digest: Digest
    source: BuilderSource

    @property
    def pinned(self) -> Reference:
        return self.image.at(self.digest)


def find_digests(registry: Registry, entry: Entry) -> Entry:
    """``entry`` with its digest and the manifest digest of each platform.

    Raises:
        NotFoundError: the image is no longer there.
    """
    if entry.digest and entry.platforms:
        return entry
    document = _get(registry, entry.image.at(entry.digest) if entry.digest else entry.image)
    platforms = entry.platforms or registry.platforms(entry.image, document)
    if not platforms:
        raise UnbuildableError("the kernel image names no platform", on=str(entry.image))
    return replace(entry, digest=document.digest, platforms=MappingProxyType(dict(platforms)))


def read_kernel(registry: Registry, entry: Entry) -> Kernel:
    """Looks at a kernel image's configuration; ``entry`` has its digests."""
    assert entry.digest
    first = entry.image.at(entry.platforms[min(entry.platforms)])
    config = registry.config(first, _get(registry, first))
    try:
        labels = labels_of(config)
    except MALFORMED as error:
        raise ResolveError(
            "the kernel image's labels are not understood",
            on=str(first),
            detail=repr(error),
            hint="look at them: docker buildx imagetools inspect, and report it upstream",
        ) from error
    return Kernel(
        entry.image, entry.digest, entry.platforms, _created(config.get("created")), labels
    )


def known_kernel(entry: Entry) -> Kernel:
    """What an entry with its digests tells of a kernel without a look at it."""
    assert entry.digest
    return Kernel(entry.image, entry.digest, entry.platforms, EPOCH, {})


def _get(registry: Registry, reference: Reference) -> Document:
    try:
        return registry.get(reference)
    except NotFoundError as error:
        raise ResolveError(
            "the kernel image is not in its registry",
            on=str(reference),
            hint="if upstream deleted it, keep the entry; what is published stays",
        ) from error


def _created(text: object) -> datetime:
    """When an image was made; builders that do not say write year 1 or nothing."""
    if not isinstance(text, str):
        return EPOCH
    # Docker writes nanoseconds, of which datetime takes six digits.
    try:
        when = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).astimezone(UTC)
    except (ValueError, OverflowError):
        return EPOCH
    return max(when, EPOCH).replace(microsecond=0)


def choose_zfs(openzfs: OpenZFS, entry: Entry) -> str:
    """The ZFS version for a kernel: the entry's own, else the newest that is made for it.

    Raises:
        NotYetError: OpenZFS has not released one for this kernel yet.
        UnbuildableError: none will ever be, or the kernel's version is not known.
    """
    if entry.zfs:
        return entry.zfs
    version = ImageTag.parse(entry.image.tag or "").version
    if not version:
        raise UnbuildableError(
            "its tag names no kernel version, so no ZFS version can be chosen",
            on=str(entry.image),
            hint="write zfs: in its entry of versions.yaml",
        )
    choice = openzfs.choose(version)
    if isinstance(choice, Waiting):
        raise NotYetError(
            choice.reason,
            on=str(entry.image),
            hint="nothing to do; a later run goes on by itself",
        )
    if isinstance(choice, TooOld):
        raise UnbuildableError(
            choice.reason, on=str(entry.image), hint="write zfs: in its entry to try one anyway"
        )
    return choice.version


def settle_zfs(openzfs: OpenZFS, entry: Entry, policy: Policy) -> Choice | None:
    """What is to be known of a kernel's ZFS version before any work; None where its tag names no
    kernel version.

    A version that the entry has is kept or replaced as ``policy`` says; where it is kept and
    its META is against it, the choice says so.

    Raises:
        UpstreamError: the releases could not be read completely.
    """
    version = ImageTag.parse(entry.image.tag or "").version
    if not version:
        return None
    if not entry.zfs:
        return openzfs.choose(version)
    if policy is not Policy.PIN:
        zfs = wanted(version, entry.zfs, policy, openzfs.versions(), openzfs.read)
        if zfs != entry.zfs:
            return Chosen(zfs)
    try:
        kernels = openzfs.read(Version.parse(entry.zfs))
    except UpstreamError as error:
        # A pin is obeyed whatever is known of it.
        return Chosen(entry.zfs, f"ZFS {entry.zfs} is pinned, unseen: {error.summary}")
    return Chosen(entry.zfs, pin_warning(version, entry.zfs, kernels))

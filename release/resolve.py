"""From an entry of ``versions.yaml`` to everything that a build needs, by digest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType

from semver import Version

from release.errors import (
    ConfigurationError,
    NotFoundError,
    NotYetError,
    ResolveError,
    UnbuildableError,
    UpstreamError,
)
from release.openzfs import OpenZFS
from release.reference import Digest, Platform, Reference
from release.registry import Document, Registry
from release.solver import Choice, Chosen, Policy, TooOld, Waiting, pin_warning, wanted
from release.tags import ImageTag
from release.versions import Entry

BUILD_IMAGE_LABEL = "org.mobyproject.linuxkit.kernel.buildimage"
"""Where LinuxKit's kernel build names its compiler's image (kernel/common/Dockerfile)."""

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
    return Kernel(
        entry.image,
        entry.digest,
        entry.platforms,
        _created(config.get("created")),
        dict((config.get("config") or {}).get("Labels") or {}),
    )


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


def choose_builder(registry: Registry, entry: Entry, kernel: Kernel) -> Reference:
    """The image with the kernel's own compiler.

    In this order: what the entry says; the kernel image's label; the ``-builder`` tag beside it.

    Raises:
        UnbuildableError: none of them names one.
    """
    if entry.builder:
        return entry.builder
    label = kernel.labels.get(BUILD_IMAGE_LABEL, "")
    if label:
        try:
            return Reference.parse(label)
        except ConfigurationError as error:
            raise UnbuildableError(
                "its label for the compiler's image is no image reference",
                on=str(entry.image),
                detail=f"{BUILD_IMAGE_LABEL}={label!r}",
                hint="write builder: in its entry of versions.yaml",
            ) from error
    if ImageTag.parse(entry.image.tag or "").version:
        beside = entry.image.with_tag(f"{entry.image.tag}-builder")
        if registry.head(beside):
            return beside
    raise UnbuildableError(
        "no image with this kernel's compiler is known",
        on=str(entry.image),
        hint="write builder: in its entry of versions.yaml",
    )


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

"""What is to be done: wanted (``versions.yaml``) against what is really out there. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import semver

from release.github import Release
from release.kernel import KernelTag, parse_tag
from release.reference import Platform, architecture
from release.versions import Entry

SUMS = "SHA256SUMS"


def git_tag(slug: str, zfs: str) -> str:
    """The git tag, and so the name, of the GitHub release of a kernel and a ZFS version."""
    return f"{slug}-zfs-{zfs}"


def asset_name(slug: str, platform: Platform) -> str:
    """The release asset that holds the sideload tar of one platform."""
    return f"zfs-{slug}-{architecture(platform)}.tar.zst"


def desktop_tag(version: str) -> str:
    """The image tag that users of a Docker Desktop version type."""
    return f"desktop-{version}"


def not_here(platform: Platform) -> str:
    """Why a platform that upstream has is left out."""
    return f"this machine cannot boot {platform}: run it on one that can, too"


@dataclass(frozen=True)
class Observed:
    """What is out there: the module image's tags, and the GitHub releases.

    ``releases`` is None where there was no repository to look at.
    """

    image_tags: frozenset[str]
    releases: tuple[Release, ...] | None

    def release(self, tag: str) -> Release | None:
        """The release with this git tag, a published one before a draft."""
        found = [release for release in self.releases or () if release.git_tag == tag]
        return min(found, key=lambda release: release.draft, default=None)


@dataclass(frozen=True)
class Target:
    """One kernel, and what is missing of it out there.

    Attributes:
        platforms: those that this run builds for; empty before they are known.
        missing: what is not there yet, in the order in which it will be made.
        left_out: why this kernel is not built at all, or empty.
        elsewhere: the platforms that this machine does not build for.
    """

    entry: Entry
    platforms: tuple[Platform, ...]
    missing: tuple[str, ...]
    left_out: str = ""
    elsewhere: tuple[Platform, ...] = ()

    @property
    def to_do(self) -> bool:
        return bool(self.missing) and not self.left_out

    @property
    def reason(self) -> str:
        if self.left_out:
            return self.left_out
        missing = [f"missing: {', '.join(self.missing)}"] if self.missing else []
        return "; ".join((*missing, *(not_here(platform) for platform in self.elsewhere)))


def newest_first(entries: Iterable[Entry]) -> list[Entry]:
    """Entries by kernel version, then by their place in the file, which is the order of pushes.

    A tag that names no version (one written by hand) comes last.
    """

    def key(item: tuple[int, Entry]) -> tuple[semver.Version, int]:
        position, entry = item
        tag = parse_tag(entry.image.tag or "")
        version = tag.version if isinstance(tag, KernelTag) else semver.Version(0)
        return version, position

    return [entry for _, entry in sorted(enumerate(entries), key=key, reverse=True)]


def plan(
    entries: Iterable[Entry],
    observed: Observed,
    *,
    platforms: frozenset[Platform],
    chosen: frozenset[str] | None = None,
    limit: int | None = None,
) -> list[Target]:
    """One target for each entry, newest kernels first.

    Args:
        platforms: what this machine can build and boot.
        chosen: slugs to work on, None for all.
        limit: how many kernels to work on at most.
    """
    targets = []
    started = 0
    for entry in newest_first(entries):
        target = _target(entry, observed, platforms)
        if target.to_do:
            if chosen is not None and entry.slug not in chosen:
                target = _leave_out(target, "not chosen in this run (--only)")
            elif limit is not None and started >= limit:
                target = _leave_out(target, f"beyond --limit {limit}; the next run goes on")
            else:
                started += 1
        targets.append(target)
    return targets


def _leave_out(target: Target, why: str) -> Target:
    return Target(target.entry, target.platforms, target.missing, why, target.elsewhere)


def _target(entry: Entry, observed: Observed, platforms: frozenset[Platform]) -> Target:
    here = tuple(sorted(platform for platform in entry.platforms if platform in platforms))
    elsewhere = tuple(sorted(set(entry.platforms) - platforms))
    missing = []
    if entry.slug not in observed.image_tags:
        missing.append("image")
    if observed.releases is None:
        missing.append("release (not looked at, GITHUB_REPOSITORY is not set)")
    elif entry.zfs is None or not _complete(entry, here, observed):
        missing.append("release")
    missing += [
        desktop_tag(version)
        for version in entry.desktop
        if desktop_tag(version) not in observed.image_tags
    ]
    if not entry.resolved:
        missing.append("record")
    why = ""
    if entry.platforms and not here:
        why = f"upstream has it for {', '.join(elsewhere)} only, which this machine cannot boot"
    return Target(entry, here, tuple(missing), why, elsewhere)


def _complete(entry: Entry, here: Iterable[Platform], observed: Observed) -> bool:
    """Whether the release stands with everything that this machine has to give to it."""
    assert entry.zfs
    release = observed.release(git_tag(entry.slug, entry.zfs))
    if release is None or release.draft:
        return False
    uploaded = {asset.name for asset in release.assets if asset.state == "uploaded" and asset.size}
    return {SUMS, *(asset_name(entry.slug, platform) for platform in here)} <= uploaded

"""What is to be done: wanted (``versions.yaml``) against what is really out there. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from semver import Version

from release import drift
from release.attest import provenance_name
from release.errors import ConfigurationError
from release.github import Asset, Release
from release.receipt import Receipt
from release.reference import Digest, Platform, architecture
from release.report import Status
from release.solver import Choice, Chosen, Policy, Waiting
from release.tags import ImageTag
from release.versions import PLATFORMS, Entry, modules_tag

SUMS = "SHA256SUMS"

Held = Mapping[tuple[str, str | None], Mapping[Platform, str]]
"""By slug and ZFS version, the platforms that are not to be tried again now, each with why."""

_NUMBERED = re.compile(r"(.+)-([1-9][0-9]*)")


def git_tag(slug: str, zfs: str) -> str:
    """The git tag, and so the name, of the GitHub release of a kernel and a ZFS version.

    One that takes the place of another, which cannot be mended, has a number behind it, from 2 on.
    """
    return f"{slug}-zfs-{zfs}"


def row_of(tag: str) -> str:
    """The git tag that stands first among those that take each other's place."""
    match = _NUMBERED.fullmatch(tag)
    return match[1] if match else tag


def next_git_tag(tag: str) -> str:
    """The name of the release that takes the place of another."""
    match = _NUMBERED.fullmatch(tag)
    return f"{match[1]}-{int(match[2]) + 1}" if match else f"{tag}-2"


def asset_name(slug: str, platform: Platform) -> str:
    """The release asset that holds the sideload tar of one platform."""
    return f"zfs-{slug}-{architecture(platform)}.tar.xz"


def old_asset_name(slug: str, platform: Platform) -> str:
    """What :func:`asset_name` was at first. Published releases keep such an asset."""
    return f"zfs-{slug}-{architecture(platform)}.tar.zst"


def find_asset(release: Release, slug: str, platform: Platform) -> Asset | None:
    """The uploaded sideload tar of one platform, under its name or its old one."""
    for name in (asset_name(slug, platform), old_asset_name(slug, platform)):
        asset = release.asset(name)
        if asset and asset.state == "uploaded" and asset.size:
            return asset
    return None


def desktop_tag(version: str) -> str:
    """The image tag that users of a Docker Desktop version type."""
    return f"desktop-{version}"


def not_here(platform: Platform) -> str:
    """Why a platform that upstream has is left out."""
    return f"not here: run it on a machine of {platform}, too, or with --platform {platform}"


@dataclass(frozen=True)
class Standing:
    """A release, and what was published with it."""

    release: Release
    receipt: Receipt


@dataclass(frozen=True)
class Observed:
    """What is out there.

    Attributes:
        image_tags: of the module image.
        releases: on GitHub; None where there was no repository to look at.
        digests: what is behind the tags, and under the digests, that were looked at; None for
            nothing.
    """

    image_tags: frozenset[str]
    releases: tuple[Release, ...] | None
    digests: Mapping[str, Digest | None] = field(default_factory=lambda: MappingProxyType({}))

    def release(self, slug: str, zfs: str) -> Release | None:
        """The release of a kernel and a ZFS version: of several in a row the last, a published one
        before a draft.
        """
        return release_in(self._by_tag.get(git_tag(slug, zfs), ()))

    def with_digests(self, digests: Mapping[str, Digest | None]) -> Observed:
        """The same, after a look behind some tags; no release is read once more."""
        closer = replace(self, digests=digests)
        closer.__dict__.update(_by_tag=self._by_tag, _by_slug=self._by_slug, receipts=self.receipts)
        return closer

    @cached_property
    def _by_tag(self) -> Mapping[str, Sequence[Release]]:
        """The releases by git tag, those with a number by the one without."""
        found: dict[str, list[Release]] = {}
        for release in self.releases or ():
            found.setdefault(row_of(release.git_tag), []).append(release)
        return found

    def receipt(self, entry: Entry, zfs: str | None) -> Receipt | None:
        """What was published of this very kernel with a ZFS version; None where nothing is known
        to have been, or the release is yet to be published for the first time.
        """
        release = self.release(entry.slug, zfs) if zfs else None
        if not release or (release.draft and not entry.resolved):
            return None
        receipt = self.receipts.get(release.id)
        return receipt if receipt and receipt.entry.digest == entry.digest else None

    @cached_property
    def _by_slug(self) -> Mapping[str, Sequence[Standing]]:
        """What was published of each kernel, the newest ZFS first."""
        found: dict[str, list[Standing]] = {}
        for row in self._by_tag.values():
            release = release_in(row)
            receipt = self.receipts.get(release.id) if release and not release.draft else None
            if release and receipt and receipt.entry.zfs:
                found.setdefault(receipt.entry.slug, []).append(Standing(release, receipt))
        for each in found.values():
            each.sort(key=lambda one: Version.parse(one.receipt.entry.zfs or ""), reverse=True)
        return found

    def standing(self, entry: Entry, wanted: Collection[Platform]) -> Standing | None:
        """The newest release that has all platforms, where the one that counts lacks some: the
        tags ``desktop-X`` stay with it.

        Args:
            wanted: what images are for.
        """
        receipt, platforms = self.receipt(entry, entry.zfs), entry.wanted(wanted)
        if not receipt or receipt.platforms.keys() >= platforms:
            return None
        return self._with(entry, platforms)

    def older(self, entry: Entry, wanted: Collection[Platform]) -> dict[Platform, Standing]:
        """The newest release of each platform that the one that counts lacks, with its receipt of
        that platform alone: what the tag SLUG has of it.

        Args:
            wanted: what images are for.
        """
        receipt = self.receipt(entry, entry.zfs)
        if not receipt:
            return {}
        lacking = sorted(entry.wanted(wanted) - receipt.platforms.keys())
        found = {platform: self._with(entry, {platform}) for platform in lacking}
        return {
            platform: Standing(one.release, one.receipt.only(platform))
            for platform, one in found.items()
            if one
        }

    def _with(self, entry: Entry, platforms: Collection[Platform]) -> Standing | None:
        """The newest release of this very kernel that has them all."""
        return next(
            (
                one
                for one in self._by_slug.get(entry.slug, ())
                if one.receipt.entry.digest == entry.digest
                and one.receipt.platforms.keys() >= set(platforms)
            ),
            None,
        )

    @cached_property
    def receipts(self) -> Mapping[int, Receipt]:
        """What was published, by the number of its release."""
        found = ((release.id, Receipt.find(release.body)) for release in self.releases or ())
        return {number: receipt for number, receipt in found if receipt}


def release_in(row: Iterable[Release]) -> Release | None:
    """The one that counts of the releases of a kernel and a ZFS version."""

    def key(release: Release) -> tuple[int, bool, int]:
        match = _NUMBERED.fullmatch(release.git_tag)
        return int(match[2]) if match else 1, not release.draft, -release.id

    return max(row, key=key, default=None)


def images_to_be(
    entries: Iterable[Entry], observed: Observed, platforms: Collection[Platform] = PLATFORMS
) -> list[Digest]:
    """The manifests that the tags of what is published lead to: of all platforms, and beside.

    Args:
        platforms: what images are for.
    """
    found: dict[Digest, None] = {}
    for entry in entries:
        standing = observed.standing(entry, platforms)
        older = (one.receipt for one in observed.older(entry, platforms).values())
        own = observed.receipt(entry, entry.zfs)
        for receipt in filter(None, (own, standing.receipt if standing else None, *older)):
            parts = (part.manifest for part in receipt.platforms.values())
            found |= dict.fromkeys((*parts, *receipt.beside))
    return list(found)


def digests_to_be(
    entries: Iterable[Entry],
    observed: Observed,
    desktop: Mapping[str, Sequence[str]],
    platforms: Collection[Platform] = PLATFORMS,
) -> dict[str, Digest]:
    """The digest that is to be behind each tag of a kernel, of those that there are.

    Args:
        platforms: what images are for.
    """
    wanted: dict[str, Digest] = {}
    for entry in entries:
        if receipt := observed.receipt(entry, entry.zfs):
            versions = (*entry.desktop, *desktop.get(entry.slug, ()))
            standing = observed.standing(entry, platforms)
            wanted |= _digests(entry, receipt, () if standing else versions)
            wanted |= _desktop_digests(standing.receipt, versions) if standing else {}
    return {name: digest for name, digest in wanted.items() if name in observed.image_tags}


def receipts_to_sign(entries: Iterable[Entry], observed: Observed) -> list[Receipt]:
    """The receipts of the kernels that were published to be signed, those first to whose releases
    something was added last.
    """
    found: list[tuple[int, Receipt]] = []
    for entry in entries:
        release = observed.release(entry.slug, entry.zfs) if entry.zfs else None
        receipt = observed.receipt(entry, entry.zfs)
        if release and receipt and receipt.to_sign:
            # GitHub numbers assets as they come.
            found.append((max((asset.id for asset in release.assets), default=0), receipt))
    return [receipt for _, receipt in sorted(found, key=lambda one: one[0], reverse=True)]


def _digests(entry: Entry, receipt: Receipt, desktop: Iterable[str]) -> dict[str, Digest]:
    return receipt.digests(entry, (*entry.image_tags, *map(desktop_tag, desktop)))


def _desktop_digests(receipt: Receipt, desktop: Iterable[str]) -> dict[str, Digest]:
    """Of those Docker Desktop versions that it was published for."""
    return {desktop_tag(one): receipt.image for one in desktop if one in receipt.entry.desktop}


@dataclass(frozen=True)
class Target:
    """One kernel, and what is missing of it out there.

    Attributes:
        platforms: those that this run builds for; empty before they are known.
        missing: what is not there yet, in the order in which it will be made.
        left_out: why this kernel is not built at all, or empty.
        elsewhere: the platforms that this machine does not build for.
        choice: which ZFS version it is to have, as far as that was looked at.
        desktop: the Docker Desktop versions that are known to run it.
        repairs: how what is there differs from what was published, in words.
        receipt: what was published of it, where that is known.
        release: its release, if there is one.
        waits: whether it is left out only until something changes.
        held: the platforms that are not tried again now, each with why.
        unsigned: whether it was published to be signed, and is not.
        standing: what ``desktop-X`` stays with, see :meth:`Observed.standing`.
        older: what other platforms have of it, see :meth:`Observed.older`.
        standing_repairs: how these two differ from what was published.
    """

    entry: Entry
    platforms: tuple[Platform, ...]
    missing: tuple[str, ...]
    left_out: str = ""
    elsewhere: tuple[Platform, ...] = ()
    choice: Choice | None = None
    desktop: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    receipt: Receipt | None = None
    release: Release | None = None
    waits: bool = False
    held: Mapping[Platform, str] = field(default_factory=lambda: MappingProxyType({}))
    unsigned: bool = False
    standing: Standing | None = None
    older: Mapping[Platform, Standing] = field(default_factory=lambda: MappingProxyType({}))
    standing_repairs: tuple[str, ...] = ()

    @property
    def zfs(self) -> str | None:
        """The ZFS version to publish; None where it is not known before the kernel is looked at."""
        return self.choice.version if isinstance(self.choice, Chosen) else self.entry.zfs

    @property
    def warning(self) -> str:
        """What speaks against the ZFS version, or nothing."""
        return self.choice.warning if isinstance(self.choice, Chosen) else ""

    @property
    def status(self) -> Status:
        """How a target that is left out ends."""
        waits = self.waits or isinstance(self.choice, Waiting)
        return Status.WAITING if waits else Status.SKIPPED

    @property
    def to_do(self) -> bool:
        return bool(self.missing or self.all_repairs) and not self.left_out

    @property
    def all_repairs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.repairs, *self.standing_repairs)))

    @property
    def reason(self) -> str:
        if self.left_out:
            return self.left_out
        missing = [f"missing: {', '.join(self.missing)}"] if self.missing else []
        repairs = [f"to repair: {', '.join(self.all_repairs)}"] if self.all_repairs else []
        warning = [f"warning: {self.warning}"] if self.warning else []
        elsewhere = [not_here(platform) for platform in self.elsewhere]
        return "; ".join((*missing, *repairs, *warning, *elsewhere))


def newest_first(entries: Iterable[Entry], preferred: Collection[str] = frozenset()) -> list[Entry]:
    """Entries by kernel version, then by their place in the file, which is the order of pushes.

    A tag that names no version (one written by hand) comes last.

    Args:
        preferred: slugs that come before all others.
    """

    def key(item: tuple[int, Entry]) -> tuple[bool, object, int]:
        position, entry = item
        order = ImageTag.parse(entry.image.tag or "").order
        return entry.slug in preferred, order, position

    return [entry for _, entry in sorted(enumerate(entries), key=key, reverse=True)]


def choose(
    entries: Iterable[Entry], refs: Sequence[str], desktop: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """The slugs that references, slugs and ``desktop-X`` name.

    Args:
        desktop: by slug, Docker Desktop versions beside those that the entries name.

    Raises:
        ConfigurationError: one of them names nothing that is known.
    """
    entries = tuple(entries)
    chosen: set[str] = set()
    for ref in refs:
        names = {ref, f"docker.io/{ref}"}
        found = {
            entry.slug
            for entry in entries
            if names
            & {
                *entry.image_tags,
                *map(str, entry.references),
                *map(desktop_tag, (*entry.desktop, *desktop.get(entry.slug, ()))),
            }
        }
        if not found:
            known = newest_first(entries)
            raise ConfigurationError(
                "names no kernel that is known",
                on=ref,
                hint="use a kernel image, a slug or desktop-X, such as "
                + (known[0].slug if known else "one that `poll` finds"),
            )
        chosen |= found
    return frozenset(chosen)


def plan(
    entries: Iterable[Entry],
    observed: Observed,
    *,
    platforms: Collection[Platform],
    wanted: Collection[Platform] = PLATFORMS,
    chosen: frozenset[str] | None = None,
    policy: Policy = Policy.PIN,
    choices: Mapping[str, Choice] = MappingProxyType({}),
    desktop: Mapping[str, Sequence[str]] = MappingProxyType({}),
    held: Held = MappingProxyType({}),
    mend: bool = True,
    unsigned: Collection[str] = (),
) -> list[Target]:
    """One target for each entry: first the kernels that a Docker Desktop is known to run, the
    newest of them first, then the others.

    Args:
        platforms: what this run is for.
        wanted: what images are for at all.
        chosen: slugs to work on, None for all.
        policy: why an entry's ZFS version may be replaced.
        choices: by slug, the ZFS versions of the entries that :func:`open_questions` names.
        desktop: by slug, Docker Desktop versions beside those that the entries name.
        held: what is not to be tried again now, and why.
        mend: mend what is published before another ZFS version takes its place.
        unsigned: slugs of what was published to be signed, and is not.
    """
    targets = []
    entries = tuple(entries)
    run = {entry.slug for entry in entries if entry.desktop or desktop.get(entry.slug)}

    def draw(entry: Entry, choice: Choice | None) -> Target:
        versions = (*entry.desktop, *desktop.get(entry.slug, ()))
        there = entry.wanted(wanted)
        signed = entry.slug not in unsigned

        def among(here: Collection[Platform]) -> Target:
            on, off = sorted(there.intersection(here)), sorted(there.difference(here))
            target = _target(entry, observed, tuple(on), tuple(off), choice, policy, versions)
            return target if signed or target.left_out else _unsigned(target)

        target = among(platforms)
        if target.to_do and (why := held.get((entry.slug, target.zfs))):
            # What waits is as good as elsewhere, and keeps nothing from being done to the rest.
            rest = among(set(platforms) - why.keys())
            target = _hold(target, rest, why)
        if target.to_do and chosen is not None and entry.slug not in chosen:
            target = _leave_out(target, "not chosen in this run (--only)")
        return target

    for entry in newest_first(entries, run):
        target = draw(entry, choices.get(entry.slug))
        if mend and entry.zfs and target.zfs != entry.zfs:
            standing = draw(entry, None)
            # What is left of an older one may not be enough, and holds back no newer one.
            mends = standing.repairs or (standing.standing_repairs and not target.to_do)
            if mends and standing.to_do:
                target = standing
        targets.append(target)
    return targets


def _leave_out(target: Target, why: str) -> Target:
    return replace(target, left_out=why)


def _unsigned(target: Target) -> Target:
    return replace(target, repairs=(*target.repairs, "it was not signed"), unsigned=True)


def _hold(target: Target, rest: Target, held: Mapping[Platform, str]) -> Target:
    """``rest``, which is ``target`` without the platforms that wait, if it has something to do."""
    if rest.platforms and rest.to_do:
        return replace(rest, elsewhere=target.elsewhere, held=held)
    reasons = (f"{platform}: {why}" for platform, why in sorted(held.items()))
    return replace(_leave_out(target, "; ".join(reasons)), waits=True, held=held)


def open_questions(targets: Iterable[Target], policy: Policy) -> list[Entry]:
    """The entries whose ZFS version has a say in what is to be done, of a plan without choices.

    All that is published counts only where a newer OpenZFS may replace it, so that a run with
    nothing to do asks nothing.
    """
    return [
        target.entry
        for target in targets
        if target.to_do
        or (
            target.entry.zfs
            and (target.entry.policy or policy) is not Policy.PIN
            and not target.left_out
        )
    ]


def _target(
    entry: Entry,
    observed: Observed,
    here: tuple[Platform, ...],
    elsewhere: tuple[Platform, ...],
    choice: Choice | None,
    policy: Policy,
    desktop: tuple[str, ...],
) -> Target:
    missing = []
    there = {*here, *elsewhere}
    zfs = choice.version if isinstance(choice, Chosen) else entry.zfs
    if entry.zfs and zfs != entry.zfs:
        missing.append(f"ZFS {zfs} in place of {entry.zfs} (policy {entry.policy or policy})")
    if entry.slug not in observed.image_tags:
        missing.append("image")
    release = observed.release(entry.slug, zfs) if zfs else None
    receipt = observed.receipt(entry, zfs)
    if observed.releases is None:
        missing.append("release (not looked at, GITHUB_REPOSITORY is not set)")
    elif entry.zfs is None or zfs is None or not _complete(entry.slug, zfs, here, observed):
        missing.append("release")
    names = list(entry.image_tags[1:])
    # Who types desktop-X may be on any platform that upstream has.
    if set(elsewhere) <= set(receipt.platforms if receipt else ()):
        names += map(desktop_tag, desktop)
    if release and _has_modules_tag(entry.slug, release):
        names.insert(0, modules_tag(entry.slug))
    missing += [name for name in names if name not in observed.image_tags]
    repairs: tuple[str, ...] = ()
    if receipt or (entry.resolved and zfs == entry.zfs and (release or _is_there(entry, observed))):
        # Before all platforms were there, desktop-X was not to point to it.
        whole = there <= set(receipt.platforms if receipt else ())
        due = desktop if whole else ()
        repairs = tuple(_repairs(entry, missing, due, elsewhere, release, receipt, observed))
    standing = observed.standing(entry, there) if zfs == entry.zfs else None
    older = observed.older(entry, there) if zfs == entry.zfs else {}
    more = tuple(_standing_repairs(desktop, standing, older, observed))
    if not entry.resolved:
        missing.append("record")
    why = entry.skip
    if why:
        missing, repairs, more = [], (), ()
    elif elsewhere and not here:
        why = f"upstream has it for {', '.join(elsewhere)} only: {not_here(elsewhere[0])}"
    elif entry.platforms and not here:
        only = ", ".join(sorted(entry.platforms))
        why = f"upstream has it for {only} only, which platforms or without leave out"
    elif choice and not isinstance(choice, Chosen) and not entry.zfs:
        why = choice.reason
    return Target(
        entry,
        here,
        tuple(missing),
        why,
        elsewhere,
        choice,
        desktop,
        repairs,
        receipt,
        release,
        standing=standing,
        older=older,
        standing_repairs=more,
    )


def _standing_repairs(
    desktop: Iterable[str],
    standing: Standing | None,
    older: Mapping[Platform, Standing],
    observed: Observed,
) -> Iterator[str]:
    """How what other platforms, and ``desktop-X``, have beside a newer ZFS differs from what was
    published.
    """
    for one in older.values():
        yield from drift.lost_images(one.receipt, observed.digests)
    if not standing:
        return
    receipt = standing.receipt
    digests = _desktop_digests(receipt, desktop)
    yield from (f"{name} was missing" for name in digests if name not in observed.image_tags)
    yield from drift.damaged_files(receipt, standing.release)
    yield from drift.lost_images(receipt, observed.digests)
    yield from drift.moved_tags(digests, observed.digests)


def _is_there(entry: Entry, observed: Observed) -> bool:
    return entry.slug in observed.image_tags


def _repairs(
    entry: Entry,
    missing: Iterable[str],
    desktop: Iterable[str],
    elsewhere: Iterable[Platform],
    release: Release | None,
    receipt: Receipt | None,
    observed: Observed,
) -> Iterator[str]:
    """How what is there differs from what was published.

    What is missing and was never published, as the tag of a new Desktop version, is none of it.
    """
    known = {"image": "the image", "release": "the release"}
    if receipt:
        published = set(receipt.entry.desktop).intersection(desktop)
        tags = (*receipt.entry.image_tags[1:], *map(desktop_tag, published))
        known |= {name: name for name in (modules_tag(entry.slug), *tags)}
    for name in missing:
        if name == "release" and release and release.draft:
            yield "the release was a draft"
        elif name == "release" and release:
            # A receipt tells what it had; the rest was never published.
            yield from () if receipt else ("the release lacked a file",)
        elif name in known:
            yield f"{known[name]} was missing"
    if receipt and release:
        leave_out = [asset_name(entry.slug, platform) for platform in elsewhere]
        yield from drift.damaged_files(receipt, release, leave_out)
    if receipt:
        yield from drift.lost_images(receipt, observed.digests)
        yield from drift.moved_tags(_digests(entry, receipt, desktop), observed.digests)
    elif release and _lost_its_receipt(entry.slug, release, observed):
        yield "the release's notes had no receipt"


def _lost_its_receipt(slug: str, release: Release, observed: Observed) -> bool:
    """Whether somebody took the receipt out of a release's notes. Those from before receipts, which
    had no attestations either, never had one.
    """
    names = (provenance_name(asset_name(slug, one)) for one in PLATFORMS)
    return release.id not in observed.receipts and any(map(release.asset, names))


def _has_modules_tag(slug: str, release: Release) -> bool:
    """Whether a kernel's image was published without its userland, too: its release says so."""
    return f":{modules_tag(slug)}`" in release.body


def _complete(slug: str, zfs: str, here: Iterable[Platform], observed: Observed) -> bool:
    """Whether the release stands with everything that this machine has to give to it.

    Where a receipt says what was there, what was damaged since is another matter.
    """
    release = observed.release(slug, zfs)
    if release is None or release.draft:
        return False
    if receipt := observed.receipts.get(release.id):
        names = ((asset_name(slug, one), old_asset_name(slug, one)) for one in here)
        return receipt.platforms.keys() >= set(here) and all(
            receipt.files.keys() & set(either) for either in names
        )
    sums = release.asset(SUMS)
    return bool(sums and sums.state == "uploaded" and sums.size) and all(
        find_asset(release, slug, platform) for platform in here
    )

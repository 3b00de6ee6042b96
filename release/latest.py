"""``latest``: one image with the modules of all published kernels, and a catalogue of them.

It is put together in the registry from the very layers that were tested with each kernel. What it
has to hold follows from the list of releases alone; whether it does is told by two HEADs: a small
record beside it, whose digest can be computed, says from which releases it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import quote

from release import publish, receipt
from release.attest import (
    Attestation,
    Ingredient,
    Made,
    attest,
    file_material,
    loader,
    source_material,
)
from release.errors import NotFoundError, PublishError, UpstreamError
from release.github import Asset, GitHub, Release
from release.http import bytes_digest
from release.layers import (
    START_BYTES,
    Assembled,
    Image,
    Kind,
    Layer,
    assemble,
    file_layer,
)
from release.plan import SUMS, Observed, find_asset, newest_first
from release.record import Record, is_made_from
from release.reference import Digest, Platform, Reference, machine, parse_digest, platform_fields
from release.registry import MALFORMED, Document, Registry
from release.verify import lost, verify_image
from release.versions import MAX_LAYERS, PLATFORMS, SMOKE_HOST, Entry

T = TypeVar("T")

TAG = "latest"
CATALOGUE = "catalogue"

_RECIPE = 3
"""To be raised when the same releases are to give another image."""
_JOBS = 8

_SLUG = "install-zfs.slug"
_MANIFEST = "install-zfs.manifest"
_USERLAND = "install-zfs.userland"
_CREATED = "org.opencontainers.image.created"
_TITLE = "ZFS kernel modules for the kernels of Docker Desktop and LinuxKit"
_KEPT_LABELS = (
    "org.opencontainers.image.revision",
    "org.opencontainers.image.source",
    "org.opencontainers.image.version",
)


# What is wanted


@dataclass(frozen=True)
class Member:
    """A kernel that is published for a platform, as the list of releases shows it.

    Attributes:
        part: what the receipt says of its image.
    """

    entry: Entry
    platform: Platform
    release: Release
    asset: Asset
    part: receipt.Part

    @property
    def key(self) -> tuple[str, Platform]:
        return self.entry.slug, self.platform


@dataclass(frozen=True)
class Wanted:
    """What ``latest`` has to hold.

    Attributes:
        members: all that is published, the newest kernels first.
        kernels: of how many kernels it holds the modules; the catalogue has all of them.
    """

    members: tuple[Member, ...]
    kernels: int

    @classmethod
    def of(
        cls,
        entries: Iterable[Entry],
        observed: Observed,
        kernels: int,
        platforms: Collection[Platform] = PLATFORMS,
    ) -> Wanted:
        """What is published, from what is listed in bulk.

        Args:
            platforms: what images are for.
        """
        return cls(tuple(_members(entries, observed, platforms)) if kernels else (), kernels)

    @cached_property
    def fingerprint(self) -> str:
        """Tells apart what would give different images."""
        facts = [
            [
                one.entry.slug,
                one.platform,
                one.asset.name,
                one.asset.size,
                one.asset.digest,
                one.asset.download_url,
                one.part.manifest,
                one.part.kernel_release,
                one.part.kernel_banner,
            ]
            for one in self.members
        ]
        return hashlib.sha256(json.dumps([_RECIPE, self.kernels, facts]).encode()).hexdigest()

    @property
    def platforms(self) -> tuple[Platform, ...]:
        return tuple(sorted({one.platform for one in self.members}))

    def newest(self, platform: Platform) -> tuple[Member, ...]:
        """The members of one platform whose modules it holds, if there is room for them."""
        return tuple(one for one in self.members if one.platform == platform)[: self.kernels]


def _members(
    entries: Iterable[Entry], observed: Observed, platforms: Collection[Platform]
) -> Iterator[Member]:
    for entry in newest_first(entries):
        if entry.slug not in observed.image_tags or not entry.zfs:
            continue
        release = observed.release(entry.slug, entry.zfs)
        if release is None or release.draft:
            continue
        own = observed.receipt(entry, entry.zfs)
        if not own:
            continue
        older = observed.older(entry, platforms)
        for platform in sorted(entry.platforms):
            # Of a platform that has no newer ZFS yet, an older one.
            one = older.get(platform)
            known = replace(entry, zfs=one.receipt.entry.zfs) if one else entry
            of, said = (one.release, one.receipt) if one else (release, own)
            asset, part = find_asset(of, entry.slug, platform), said.platforms.get(platform)
            if asset and part:
                yield Member(known, platform, of, asset, part)


def is_behind(
    registry: Registry,
    image: Reference,
    wanted: Wanted,
    there: Digest | None,
    *,
    whole: bool = False,
) -> bool:
    """Whether ``latest`` is not what it has to be. One HEAD, and no pull.

    Args:
        there: what its tag points to.
        whole: look at all that its index holds, too.
    """
    if not wanted.members:
        return False
    return not is_made_from(registry, image, there, wanted.fingerprint) or (
        whole and bool(lost(registry, image.with_tag(TAG)))
    )


# What is known of each member


@dataclass(frozen=True)
class Line:
    """A line of the catalogue: a published kernel on one platform, and where to download it."""

    architecture: str
    kernel_release: str
    zfs_version: str
    slug: str
    size: int
    sha256: str
    url: str
    kernel_banner: str

    def __str__(self) -> str:
        fields = (
            self.architecture,
            self.kernel_release,
            self.zfs_version,
            self.slug,
            str(self.size),
            self.sha256,
            self.url,
            self.kernel_banner,
        )
        return "\t".join(" ".join(field.split()) for field in fields)


@dataclass(frozen=True)
class Part:
    """What a kernel gives to ``latest``: its layers, as they were tested.

    Attributes:
        manifest: of the image that they are of.
    """

    slug: str
    manifest: Digest
    modules: Layer
    userland: Layer | None
    created: str


def read_before(registry: Registry, reference: Reference) -> Mapping[tuple[str, Platform], Part]:
    """What the ``latest`` that is out there has of its members, so that only those that are new
    have to be read; nothing where it is not as this module makes it.
    """
    with suppress(NotFoundError, UpstreamError, PublishError, *MALFORMED):
        document = registry.get(reference)
        parts: dict[tuple[str, Platform], Part] = {}
        for platform, digest in registry.platforms(reference, document).items():
            at = reference.at(digest)
            manifest = registry.get(at)
            for part in _parts(manifest, registry.config(at, manifest)):
                parts[part.slug, platform] = part
        return parts
    return {}


def _parts(manifest: Document, config: Mapping[str, Any]) -> Iterator[Part]:
    items = manifest.content["layers"]
    layers = {
        item["digest"]: Layer(
            parse_digest(item["digest"]),
            int(item["size"]),
            str(item["mediaType"]),
            parse_digest(diff_id),
            Kind.KERNELS if _SLUG in item.get("annotations", {}) else Kind.USERLAND,
        )
        for item, diff_id in zip(items, config["rootfs"]["diff_ids"], strict=True)
    }
    for item in items:
        about = item.get("annotations", {})
        if _SLUG in about:
            userland = layers[about[_USERLAND]] if _USERLAND in about else None
            yield Part(
                about[_SLUG],
                parse_digest(about[_MANIFEST]),
                layers[item["digest"]],
                userland,
                about[_CREATED],
            )


@dataclass(frozen=True)
class Reader:
    """Reads what is known of members: from their releases and the present ``latest`` where it can,
    else from their images.

    Attributes:
        before: what the present ``latest`` has, as far as it is believed.
    """

    registry: Registry
    image: Reference
    github: GitHub
    before: Mapping[tuple[str, Platform], Part]
    _images: dict[tuple[str, Platform], Image] = field(default_factory=dict)

    def line(self, member: Member) -> Line:
        """The catalogue's line for a member.

        Raises:
            PublishError: the release does not say which digest its asset has.
        """
        assert member.entry.zfs
        return Line(
            machine(member.platform),
            member.part.kernel_release,
            member.entry.zfs,
            member.entry.slug,
            member.asset.size,
            self._sha256(member),
            member.asset.download_url,
            member.part.kernel_banner,
        )

    def is_new(self, member: Member) -> bool:
        """Whether the present ``latest`` does not have this very image."""
        known = self.before.get(member.key)
        return not known or known.manifest != member.part.manifest

    def part(self, member: Member) -> Part:
        """The layers of a member."""
        if not self.is_new(member):
            return self.before[member.key]
        image = self.read(member)
        modules, userland = image.of(Kind.KERNELS), image.of(Kind.USERLAND)
        if len(modules) != 1 or len(userland) > 1:
            raise PublishError(
                "does not have the modules in one layer, and the userland in at most one",
                on=str(self.image.with_tag(member.entry.slug)),
            )
        return Part(
            member.entry.slug,
            member.part.manifest,
            modules[0],
            userland[0] if userland else None,
            image.labels[_CREATED],
        )

    def read(self, member: Member) -> Image:
        """The image of a member that its receipt names, wherever its tags point.

        Raises:
            NotFoundError: it is gone.
            PublishError: it is not what the receipt says.
        """
        if member.key not in self._images:
            self._images[member.key] = self._read(member)
        return self._images[member.key]

    def _read(self, member: Member) -> Image:
        part, reference = member.part, self.image.with_tag(member.entry.slug)
        manifest = self.registry.get(self.image.at(part.manifest))
        image = Image.read(
            manifest,
            self.registry.config(reference, manifest),
            lambda layer: self.registry.blob(self.image, layer, first=START_BYTES),
        )
        said = {
            "install-zfs.kernel-digest": member.entry.platforms[member.platform],
            "install-zfs.kernel-release": part.kernel_release,
            "install-zfs.kernel-banner": part.kernel_banner,
            "install-zfs.zfs-version": member.entry.zfs,
        }
        if wrong := {name for name, value in said.items() if image.labels.get(name) != value}:
            name = min(wrong)
            raise PublishError(
                "is the image of another kernel, or has another ZFS, than its release says",
                on=str(self.image.at(part.manifest)),
                detail=f"{name}\nexpected {said[name]}\nfound    {image.labels.get(name)}",
            )
        return image

    def _sha256(self, member: Member) -> str:
        """The digest of the release's asset, of GitHub or else of ``SHA256SUMS``."""
        if member.asset.digest:
            return member.asset.digest.removeprefix("sha256:")
        sums = member.release.asset(SUMS)
        text = self.github.read(sums).decode(errors="replace") if sums else ""
        for line in text.splitlines():
            sha256, _, name = line.partition("  ")
            if name == member.asset.name:
                return sha256
        raise PublishError(
            f"{SUMS} does not name {member.asset.name}",
            on=f"{self.github} release {member.release.git_tag}",
        )


# Putting it together


@dataclass(frozen=True)
class Latest:
    """A ``latest`` that was put together.

    Attributes:
        images: by platform.
        document: the index that the tag is to point to.
        catalogue: the layer with the catalogue.
        held: by platform, whose modules it holds, the newest first.
        to_boot: by platform, the kernel to boot it with: the newest that was not in it before, of
            those that can be booted.
        attestations: of the images.
        left_out: what is published and could not be taken, with the reason.
    """

    images: Mapping[Platform, Assembled]
    attestations: tuple[Attestation, ...]
    document: Document
    catalogue: bytes
    held: Mapping[Platform, tuple[Part, ...]]
    to_boot: Mapping[Platform, tuple[Member, Line]]
    left_out: tuple[PublishError | NotFoundError, ...]

    @property
    def bytes(self) -> int:
        """What all its layers have together, each counted once."""
        sizes = {
            item["digest"]: item["size"]
            for one in self.images.values()
            for item in one.manifest.content["layers"]
        }
        return sum(sizes.values())


def build(wanted: Wanted, reader: Reader) -> Latest:
    """Puts ``latest`` together. The same releases and images give the same bytes."""
    known, left_out = _of_each(reader.line, wanted.members)
    if not known:
        raise left_out[0]
    wanted = replace(wanted, members=tuple(one for one in wanted.members if one.key in known))
    text = "".join(f"{known[one.key]}\n" for one in wanted.members)
    catalogue, blob = file_layer(CATALOGUE, text.encode())
    images: dict[Platform, Assembled] = {}
    held: dict[Platform, tuple[Part, ...]] = {}
    to_boot: dict[Platform, tuple[Member, Line]] = {}
    for platform in wanted.platforms:
        found, odd = _of_each(reader.part, wanted.newest(platform))
        left_out += odd
        if not found:
            continue
        members = [one for one in wanted.newest(platform) if one.key in found]
        newest = reader.read(members[0])
        loader = newest.of(Kind.LOADER)
        parts = _that_fit(list(found.values()), MAX_LAYERS - len(loader) - 1)
        images[platform] = _image(platform, newest, parts, (*loader, catalogue))
        held[platform] = tuple(parts)
        candidates = [
            (one, known[one.key]) for one in members[: len(parts)] if one.entry.smoke != SMOKE_HOST
        ]
        if candidates:
            to_boot[platform] = next(
                (pair for pair in candidates if reader.is_new(pair[0])), candidates[0]
            )
    if not images:
        raise left_out[0]
    attestations = tuple(
        attest(_made(reader.image, platform, one, [known[part.slug, platform] for part in parts]))
        for platform, one in images.items()
        for parts in [held[platform]]
    )
    document = publish.index(
        {platform: one.manifest for platform, one in images.items()},
        {one.of: one.descriptor for one in attestations},
    )
    return Latest(images, attestations, document, blob, held, to_boot, tuple(left_out))


def _made(
    image: Reference, platform: Platform, assembled: Assembled, lines: Sequence[Line]
) -> Made:
    """What is told of the image of one platform: the tested images that it was made of."""
    labels = json.loads(assembled.config)["config"]["Labels"]
    source = labels.get("org.opencontainers.image.source", "")
    revision = labels.get("org.opencontainers.image.revision", "")
    kernels = (
        Ingredient(
            f"kernel-{number}",
            str(image.with_tag(line.slug)),
            "CONTAINER",
            "CONTAINS",
            f"its modules, and zfs and zpool, for {line.kernel_banner}",
            line.zfs_version,
            line.sha256,
            f"pkg:generic/{line.slug}?download_url={quote(line.url, safe='')}",
        )
        for number, line in enumerate(lines, 1)
    )
    return Made(
        image,
        platform,
        assembled.manifest.digest,
        datetime.fromisoformat(labels[_CREATED]).astimezone(UTC),
        labels.get("org.opencontainers.image.version", ""),
        f"ZFS for {len(lines)} kernels",
        source,
        TAG,
        {"kernels": [line.slug for line in lines], "platform": platform},
        {},
        (*kernels, loader(revision)),
        (
            *(file_material(line.url, line.sha256) for line in lines),
            *source_material(source, revision),
        ),
    )


def _of_each(
    make: Callable[[Member], T], members: Sequence[Member]
) -> tuple[dict[tuple[str, Platform], T], list[PublishError | NotFoundError]]:
    """What can be made of members, side by side, and why nothing could be made of the others."""

    def tried(member: Member) -> T | PublishError | NotFoundError:
        try:
            return make(member)
        except (PublishError, NotFoundError) as error:
            return error

    with ThreadPoolExecutor(_JOBS) as pool:
        made = list(pool.map(tried, members))
    found = {
        one.key: result
        for one, result in zip(members, made, strict=True)
        if not isinstance(result, PublishError | NotFoundError)
    }
    left_out = [one for one in made if isinstance(one, PublishError | NotFoundError)]
    return found, left_out


def _that_fit(parts: Sequence[Part], room: int) -> list[Part]:
    """As many of the newest as an image may have layers."""
    layers: set[Digest] = set()
    for number, part in enumerate(parts):
        layers |= {layer.digest for layer in (part.modules, part.userland) if layer}
        if len(layers) > room:
            return list(parts[:number])
    return list(parts)


def _image(
    platform: Platform, newest: Image, parts: Sequence[Part], top: Sequence[Layer]
) -> Assembled:
    """The image of one platform.

    The layers are in the order in which kernels came, so that an engine which has an earlier
    ``latest`` has the lowest of them already; what changes most is on top.
    """
    layers: dict[Digest, tuple[Layer, str, dict[str, str]]] = {}
    for part in reversed(parts):
        about = {_SLUG: part.slug, _MANIFEST: part.manifest, _CREATED: part.created}
        if part.userland:
            about[_USERLAND] = part.userland.digest
            layers.setdefault(part.userland.digest, (part.userland, "userland", {}))
        layers[part.modules.digest] = (part.modules, part.slug, about)
    for layer in top[:-1]:
        layers.setdefault(layer.digest, (layer, "loader", {}))
    layers[top[-1].digest] = (top[-1], CATALOGUE, {})
    created = max((part.created for part in parts), key=datetime.fromisoformat)
    labels = {
        **{name: newest.labels[name] for name in _KEPT_LABELS if name in newest.labels},
        _CREATED: created,
        "org.opencontainers.image.title": _TITLE,
        "install-zfs.kernels": str(len(parts)),
    }
    config = {
        "created": created,
        **platform_fields(platform),
        "config": {**(newest.config.get("config") or {}), "Labels": dict(sorted(labels.items()))},
        "rootfs": {
            "type": "layers",
            "diff_ids": [layer.diff_id for layer, _, _ in layers.values()],
        },
        "history": [
            {"created": created, "created_by": what, "comment": "as it was tested"}
            for _, what, _ in layers.values()
        ],
    }
    return assemble(config, [layer.descriptor(about) for layer, _, about in layers.values()])


def push(registry: Registry, image: Reference, wanted: Wanted, latest: Latest) -> bool:
    """Pushes what is not there of ``latest``, then its record, and moves the tag last.

    A ``latest`` that lacks what is published gets no record, so that the next run tries again.

    Returns:
        Whether the tag moved.

    Raises:
        PublishError: what the tag points to reads back differently.
    """
    reference = image.with_tag(TAG)
    there = registry.head(reference)
    if there != latest.document.digest or lost(registry, reference):
        registry.upload(image, bytes_digest(latest.catalogue), latest.catalogue)
        for one in latest.images.values():
            publish.put_assembled(registry, image, one)
        for attestation in latest.attestations:
            publish.put_attestation(registry, image, attestation)
    if not latest.left_out:
        Record(latest.document.digest, wanted.fingerprint).put(registry, image)
    if there == latest.document.digest:
        return False
    registry.put(reference, latest.document)
    made = {platform: one.manifest.digest for platform, one in latest.images.items()}
    verify_image(registry, reference, latest.document, made)
    return True


# Testing it


def layers_to_boot(
    latest: Latest, platform: Platform, fetch: Callable[[Digest], Any], budget: int
) -> list[Any]:
    """The layers of ``latest`` to boot a kernel with, in their order.

    All that is in memory of a guest is its initramfs: of the other kernels' modules, the newest
    that fit in ``budget`` bytes are taken.

    Args:
        fetch: gives the blob of a digest.
    """
    member, _ = latest.to_boot[platform]
    mine = [part for part in latest.held[platform] if part.slug == member.entry.slug]
    others = [part for part in latest.held[platform] if part.slug != member.entry.slug]
    size = 0
    taken: set[Digest] = set()
    left: set[Digest] = set()
    for part in (*mine, *others):
        layers = [layer for layer in (part.modules, part.userland) if layer]
        size += sum(layer.size for layer in layers if layer.digest not in taken)
        fits = part in mine or size <= budget
        (taken if fits else left).update(layer.digest for layer in layers)
    digests = [
        parse_digest(item["digest"]) for item in latest.images[platform].manifest.content["layers"]
    ]
    return [fetch(digest) for digest in digests if digest not in left - taken]

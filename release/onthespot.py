"""The image that builds ZFS where it runs, for kernels that nobody publishes.

What it does there is in ``image/on-the-spot.sh``; here it is put together and published.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from release import publish
from release.attest import (
    Ingredient,
    Made,
    Subject,
    attest,
    file_material,
    image_ingredient,
    image_material,
    loader,
    source_material,
    url_and_checksum,
)
from release.build import PROJECT
from release.builders import TABLE, load_table
from release.engine import Engine
from release.errors import BuildError, ConfigurationError, ResolveError, UpstreamError
from release.layout import Layout
from release.record import Record, is_made_from, repair
from release.reference import Digest, Platform, Reference
from release.registry import Document
from release.report import Report
from release.resolve import BuilderImage, BuilderSource
from release.verify import lost, verify_image
from release.world import World, native_platform

IMAGE_TAG = "build"
LOCAL = Reference("docker.io", "library/install-zfs").with_tag(IMAGE_TAG)

_FILES = ("Dockerfile", "image", "loader/install-zfs")
"""What of this project goes into the image, or makes it."""


@dataclass(frozen=True)
class Recipe:
    """What the image is made of.

    Attributes:
        builder: the image with the compiler.
        zfs: the versions whose sources it takes along.
        image: the repository that its messages name.
    """

    builder: Reference
    zfs: tuple[str, ...]
    image: Reference

    @property
    def fingerprint(self) -> str:
        """Tells apart what would give different images, of one platform."""
        sources = hashlib.sha256()
        for file in _sources():
            sources.update(f"{file.relative_to(PROJECT)} {file.stat().st_size}\n".encode())
            sources.update(file.read_bytes())
        facts = [str(self.builder), self.zfs, str(self.image), sources.hexdigest()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _sources() -> list[Path]:
    found: list[Path] = []
    for name in _FILES:
        path = PROJECT / name
        found += [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
    return sorted(found)


def recipe(world: World, *, builder: str | None = None, zfs: Sequence[str] = ()) -> Recipe:
    """The image to make.

    Args:
        builder: the image with the compiler; the first of the table of builders without it.
        zfs: the versions whose sources it takes along; the newest stable one without them.

    Raises:
        ConfigurationError: the builder's name or the table is malformed, or there is none.
        UpstreamError: the releases of OpenZFS could not be read.
    """
    table = world.versions.builders or TABLE
    named = [Reference.parse(builder)] if builder else [row.image for row in load_table(table)]
    if not named:
        raise ConfigurationError(
            f"names no builder, of which to make the image {IMAGE_TAG}",
            on=str(table),
            hint="add one, or write on_the_spot: false into versions.yaml",
        )
    versions = tuple(zfs) or (str(world.openzfs.versions()[0]),)
    return Recipe(named[0], versions, world.versions.image)


def build(world: World, report: Report, wanted: Recipe) -> Layout:
    """Builds the image, leaves its tar and the local image ``install-zfs:build``.

    Raises:
        ResolveError: there is no such builder or version.
        BuildError: the image could not be built, or does not run.
    """
    digest = world.registry.head(wanted.builder)
    if not digest:
        raise ResolveError("is not there", on=str(wanted.builder), hint="name another by --builder")
    # Each by its version's name, in a directory that holds no others.
    sources = world.cache / "sources" / IMAGE_TAG
    shutil.rmtree(sources, ignore_errors=True)
    sources.mkdir(parents=True)
    for version in wanted.zfs:
        report.step(IMAGE_TAG, f"fetch ZFS {version}")
        tarball = world.openzfs.tarball(version) / "zfs.tar.gz"
        os.link(tarball, sources / f"zfs-{version}.tar.gz")
    report.step(IMAGE_TAG, f"build from {wanted.builder}")
    layout = world.builder.on_the_spot(
        BuilderImage(wanted.builder, digest, BuilderSource.TABLE),
        sources,
        wanted.image,
        world.source,
        world.revision,
    )
    layout.save(tar(world.cache), (LOCAL, wanted.image.with_tag(IMAGE_TAG)))
    engine = Engine(world.environment)
    engine.load(tar(world.cache))
    ran = engine.run(f"install-zfs:{IMAGE_TAG}", "info")
    if ran.exit_code != 0 or any(f"ZFS {version} " not in ran.output for version in wanted.zfs):
        raise BuildError(
            f"does not say that it has ZFS {', '.join(wanted.zfs)}",
            on=f"install-zfs:{IMAGE_TAG}",
            detail=ran.output,
            hint=f"docker run --rm install-zfs:{IMAGE_TAG} info",
        )
    return layout


def tar(cache: Path) -> Path:
    """Where a build leaves the image for sideloading."""
    return cache / f"zfs-{IMAGE_TAG}.tar"


# Publishing it


def is_behind(world: World, there: Document | None, *, whole: bool = False) -> bool:
    """Whether the published image is not what it has to be. One HEAD, and no pull.

    Args:
        there: what its tag points to.
        whole: look at all that its index holds, too.

    Raises:
        UpstreamError: the releases of OpenZFS, or the registry, could not be read.
    """
    wanted = recipe(world)
    mark = _mark(wanted, native_platform())
    digest = there.digest if there else None
    return not is_made_from(world.registry, wanted.image, digest, mark) or (
        whole and bool(lost(world.registry, wanted.image.with_tag(IMAGE_TAG)))
    )


def is_unsigned(world: World, there: Document) -> bool:
    """Whether this platform's image was never signed. An index of this platform alone is, too; one
    that holds what another machine published never is.

    Args:
        there: what its tag points to.

    Raises:
        UpstreamError: GitHub could not be read, or it is no index as they are specified.
    """
    found = world.registry.platforms(world.versions.image, there) if there.is_index else {}
    mine = found.pop(native_platform(), None)
    return mine is None or not world.is_signed(mine if found else there.digest)


def bring_up_to_date(world: World, report: Report, *, signs: bool = False) -> list[Subject]:
    """Publishes the image for this machine's platform, beside those that others published. Only
    for one that :func:`is_behind`, or was not signed.

    Args:
        signs: whether it is signed then. Nothing but the registry says what an image that is there
            was made from, so it is made here once more.

    Returns:
        What there is to sign: the index only where it has no other platform.

    Raises:
        ReleaseError: it stays as it was.
    """
    wanted, platform = recipe(world), native_platform()
    registry, mark = world.registry, _mark(wanted, platform)
    reference = wanted.image.with_tag(IMAGE_TAG)
    before = registry.find(reference)
    there = _there(world, reference, before) if before else {}
    unsigned = False
    if signs and before:
        with suppress(UpstreamError):  # it is only told
            unsigned = is_unsigned(world, before)
    # Somebody else may have moved the tag for another platform, with this one's image in it.
    known = None if signs else there.get(platform)
    if known and Record(known.digest, mark).is_in(registry, wanted.image):
        made = known
    else:
        layout = build(world, report, wanted)
        report.step(IMAGE_TAG, "push")
        for digest, blob in layout.blobs():
            registry.upload(wanted.image, digest, blob)
        made = layout.manifest
        registry.put(wanted.image.at(made.digest), made)
    # What attests another platform's image, and is lost, comes back from a machine of that one.
    descriptors = publish.attested(registry, reference, before) if before else {}
    if signs or made.digest not in descriptors:
        attestation = attest(_made(world, wanted, platform, made))
        publish.put_attestation(registry, wanted.image, attestation)
        descriptors[made.digest] = attestation.descriptor
    document = publish.index({**there, platform: made}, descriptors)
    repaired = repair(registry, reference, Record(document.digest, mark), unsigned=unsigned)
    for digest in (made.digest, document.digest):
        Record(digest, mark).put(registry, wanted.image)
    registry.put(reference, document)
    verify_image(registry, reference, document, {platform: made.digest})
    does = f"builds ZFS {', '.join(wanted.zfs)} where it runs"
    report.say(f"{reference}: {does}" + (f"; {repaired}" if repaired else ""))
    alone = there.keys() <= {platform}
    digests = (made.digest, document.digest) if alone else (made.digest,)
    return [Subject(str(wanted.image), digest) for digest in digests]


def _made(world: World, wanted: Recipe, platform: Platform, manifest: Document) -> Made:
    """What is told of the image of one platform."""
    config = world.registry.config(wanted.image, manifest)
    labels = config["config"]["Labels"]
    source = labels.get("org.opencontainers.image.source", "")
    revision = labels.get("org.opencontainers.image.revision", "")
    builder, digest = labels["install-zfs.builder-image"], labels["install-zfs.builder-digest"]
    tarballs = {one: url_and_checksum(world.openzfs.package_url(one)) for one in wanted.zfs}
    return Made(
        wanted.image,
        platform,
        manifest.digest,
        datetime.fromisoformat(config["created"]).astimezone(UTC).replace(microsecond=0),
        " ".join(wanted.zfs),
        labels["org.opencontainers.image.title"],
        source,
        IMAGE_TAG,
        {"builderImage": builder, "platform": platform, "zfsVersions": list(wanted.zfs)},
        {},
        (
            *(
                Ingredient(
                    f"openzfs-{version}",
                    "OpenZFS",
                    "SOURCE",
                    "CONTAINS",
                    "its sources, and zfs and zpool",
                    version,
                    sha256,
                    url,
                )
                for version, (url, sha256) in tarballs.items()
            ),
            loader(revision),
            image_ingredient(
                "builder", builder, digest, "CONTAINER", "DESCENDANT_OF", "the compiler"
            ),
        ),
        (
            image_material(builder, digest),
            *(file_material(url, sha256) for url, sha256 in tarballs.values() if sha256),
            *source_material(source, revision),
        ),
    )


def _mark(wanted: Recipe, platform: Platform) -> str:
    return f"{wanted.fingerprint} {platform}"


def _there(world: World, reference: Reference, document: Document) -> dict[Platform, Document]:
    """The manifest of each platform that is published; an index can outlive what it names."""
    found: dict[Platform, Digest] = {}
    if document.is_index:
        found = world.registry.platforms(reference, document)
    manifests = ((one, world.registry.find(reference.at(at))) for one, at in found.items())
    return {platform: manifest for platform, manifest in manifests if manifest}

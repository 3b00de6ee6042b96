"""The image that builds ZFS where it runs, for kernels that nobody publishes.

What it does there is in ``image/on-the-spot.sh``; here it is put together.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from release.builders import TABLE, load_table
from release.engine import Engine
from release.errors import ResolveError
from release.reference import Reference
from release.report import Report
from release.resolve import BuilderImage, BuilderSource
from release.sync import World

IMAGE_TAG = "build"
LOCAL = Reference("docker.io", "library/install-zfs").with_tag(IMAGE_TAG)


def build(world: World, report: Report, *, builder: str | None, zfs: Sequence[str]) -> str:
    """Builds the image, leaves its tar and the local image ``install-zfs:build``.

    Args:
        builder: the image with the compiler; the first of the table of builders without it.
        zfs: the versions whose sources it takes along; the newest stable one without them.

    Returns:
        What to do with it.

    Raises:
        ResolveError: there is no such builder or version.
        BuildError: the image could not be built.
    """
    found = _builder(world, builder)
    wanted = tuple(zfs) or (str(world.openzfs.versions()[0]),)
    # Each by its version's name, in a directory that holds no others.
    sources = world.cache / "sources" / IMAGE_TAG
    shutil.rmtree(sources, ignore_errors=True)
    sources.mkdir(parents=True)
    for version in wanted:
        report.step(IMAGE_TAG, f"fetch ZFS {version}")
        tarball = world.openzfs.tarball(version) / "zfs.tar.gz"
        os.link(tarball, sources / f"zfs-{version}.tar.gz")
    report.step(IMAGE_TAG, f"build from {found.image}")
    layout = world.builder.on_the_spot(
        found, sources, world.versions.image, world.source, world.revision
    )
    tar = world.cache / f"zfs-{IMAGE_TAG}.tar"
    layout.save(tar, (LOCAL,))
    Engine(world.environment).load(tar)
    return (
        f"built with ZFS {', '.join(wanted)}: install-zfs:{IMAGE_TAG}; to sideload, copy {tar}; "
        f"to publish: docker tag install-zfs:{IMAGE_TAG} "
        f"{world.versions.image.with_tag(IMAGE_TAG)}, and docker push"
    )


def _builder(world: World, named: str | None) -> BuilderImage:
    """The image with the compiler, by digest."""
    if named:
        image, source = Reference.parse(named), BuilderSource.ENTRY
    else:
        table = load_table(world.versions.builders or TABLE)
        image, source = table[0].image, BuilderSource.TABLE
    digest = world.registry.head(image)
    if not digest:
        raise ResolveError("is not there", on=str(image), hint="name another by --builder")
    return BuilderImage(image, digest, source)

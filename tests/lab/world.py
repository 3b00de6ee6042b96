"""The world that the demo and the tests run in: a registry with real kernels, and OpenZFS sources.

Everything is made once, in containers, and kept for all processes and runs: packages and ports in
the lab's directory (``.lab``, or ``$LAB_DIR``), images in the lab's registry. So references and
digests are the same in every run, and so is what they were made from when Debian's archive has
moved on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import docker

from tests.lab.buildx import IMAGES, Buildx
from tests.lab.debian import BOOKWORM, BOOKWORM_ARM64, TRIXIE, Suite, base_image
from tests.lab.registry import Registry
from tests.lab.steps import LabError, once, step


@dataclass(frozen=True)
class KernelSource:
    """One of the lab's kernels: the suite that it comes from, the repository that it goes to.

    Attributes:
        rank: 0 for the suite's newest kernel, 1 for the one before it.
        index: whether the tag points to an index, as upstream's for several platforms do, or to
            a manifest, as its older ones.
    """

    suite: Suite
    rank: int
    repository: str
    index: bool


@dataclass(frozen=True)
class SeededSource:
    """A kernel of the lab's own: the same release with every seed, and structs laid out by it.

    Attributes:
        seed: of the layout, 64 hexadecimal digits.
        hours: from the source's release to the build that the banner names.
    """

    suite: Suite
    seed: str
    hours: int
    repository: str
    index: bool


DESKTOP = KernelSource(BOOKWORM, 0, "docker/for-desktop-kernel", index=True)
DESKTOP_ARM64 = KernelSource(BOOKWORM_ARM64, 0, "docker/for-desktop-kernel", index=True)
LINUXKIT = KernelSource(BOOKWORM, 1, "linuxkit/kernel", index=False)
NEWER = KernelSource(TRIXIE, 0, "docker/for-desktop-kernel", index=True)
BUILDERS = "linuxkit/alpine"
REGISTRY_IMAGE = "install-zfs-lab/registry"
KERNELS = "lab/kernel"
"""The repository that holds every kernel image; upstream's repositories have copies."""

ALL = (DESKTOP, LINUXKIT, NEWER)

SEEDED_DESKTOP = SeededSource(BOOKWORM, "1d" * 32, 1, "docker/for-desktop-kernel", index=True)
SEEDED_LINUXKIT = SeededSource(BOOKWORM, "2e" * 32, 2, "linuxkit/kernel", index=False)


@dataclass(frozen=True)
class LabKernel:
    """A kernel image in the lab's registry.

    Attributes:
        reference: ``HOST/REPOSITORY:VERSION-<40 hex>``.
        digest: what the tag points to, an index or a manifest.
        manifest: the digest of the manifest for linux/amd64, or of the only one.
        release: ``uname -r``.
        version: upstream's, as in the tag.
        builder: the reference of the image that has its compiler.
        created: when Debian made the package.
        arm64: the digest of the manifest for linux/arm64, where there are two.
    """

    reference: str
    digest: str
    manifest: str
    release: str
    version: str
    builder: str
    created: datetime
    arm64: str = ""


class World:
    """Makes and keeps the lab's parts; a context manager that calls :meth:`down`.

    Attributes:
        directory: where the lab keeps its files.
        client: the engine.
        buildx: image builds on that engine.
        openzfs: the tarballs of OpenZFS's sources by version.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = (directory or Path(os.environ.get("LAB_DIR", ".lab"))).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._logs = self.directory / "logs"
        self.client = docker.from_env()
        self.buildx = Buildx(self._logs)
        self.openzfs: dict[str, Path] = {}
        self._registry: Registry | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def up(self, kernels: Iterable[KernelSource] = ALL) -> Self:
        """Brings up the registry and these kernels, with what they need, side by side.

        Raises:
            LabError: something could not be made.
        """
        wanted = tuple(kernels)
        suites = tuple(dict.fromkeys(kernel.suite for kernel in wanted))
        with step("lab"), ThreadPoolExecutor() as pool:
            parts: list[Future[object]] = [pool.submit(self.registry)]
            for make in (self.builder, self._packages, self._openzfs):
                parts += [pool.submit(make, suite) for suite in suites]
            parts += [pool.submit(self.kernel, kernel) for kernel in wanted]
            for part in parts:
                part.result()
        self.openzfs.update(self._openzfs(suite) for suite in suites)
        return self

    def down(self) -> None:
        """Stops what runs, unless another process uses it; the lab's parts stay.

        What ``build`` and ``smoke`` leave in the engine for their user, made with the lab's
        builders, does not.
        """
        if self._registry and self._registry.stop():
            label = "install-zfs.builder-image"
            for image in self.client.images.list(filters={"label": label}):
                if image.labels[label].startswith(f"{self._registry.host}/"):
                    self.client.images.remove(str(image.id), force=True)

    @once
    def registry(self) -> Registry:
        """The registry, running from the first call on."""
        image = REGISTRY_IMAGE
        if not self.client.images.list(name=image):
            base = self.base(BOOKWORM)
            with step("registry, image"):
                self.buildx.build(
                    "registry, image",
                    IMAGES / "registry.Dockerfile",
                    output=f"type=docker,name={image}",
                    args={"BASE": base},
                )
        with step("registry, start"):
            self._registry = Registry(self.client, image, self.directory)
        return self._registry

    @once
    def builder(self, suite: Suite) -> str:
        """The reference of the image with the compiler and the tools that built the kernels."""
        recipe = IMAGES / "builder.Dockerfile"
        image_tag = _sha1(suite.key, recipe.read_text())
        reference = f"{self.registry().host}/{BUILDERS}:{image_tag}"
        if self.registry().digest(BUILDERS, image_tag) is None:
            args = {"BASE": self.base(suite)}
            self._push(f"builder {suite.key}", recipe, reference, args, platform=suite.platform)
        return reference

    @once
    def builder_for_both(self) -> str:
        """The same behind an index with both platforms."""
        digests = {}
        for suite in (BOOKWORM, BOOKWORM_ARM64):
            _, _, image_tag = self.builder(suite).rpartition(":")
            digest = self.registry().digest(BUILDERS, image_tag)
            assert digest
            digests[suite.architecture] = digest
        image_tag = _sha1(*digests.values())
        self.registry().join(BUILDERS, digests, BUILDERS, image_tag)
        return f"{self.registry().host}/{BUILDERS}:{image_tag}"

    @once
    def kernel_for_both(self) -> LabKernel:
        """A kernel image with an index of both platforms, as most of upstream's have."""
        builder = self.builder_for_both()
        amd64, arm64 = (self._debian_kernel(one, builder) for one in (DESKTOP, DESKTOP_ARM64))
        _, _, image_tag = amd64.reference.rpartition(":")
        digests = {"amd64": amd64.manifest, "arm64": arm64.manifest}
        digest = self.registry().join(KERNELS, digests, DESKTOP.repository, image_tag)
        reference = f"{self.registry().host}/{DESKTOP.repository}:{image_tag}"
        return replace(amd64, reference=reference, digest=digest, arm64=arm64.manifest)

    @once
    def kernel(self, source: KernelSource | SeededSource) -> LabKernel:
        """A kernel image in upstream's shape, in its repository."""
        builder = self.builder(source.suite)
        if isinstance(source, KernelSource):
            kernel = self._debian_kernel(source, builder)
        else:
            kernel = self._seeded_kernel(source, builder)
        _, _, image_tag = kernel.reference.rpartition(":")
        return self.publish(kernel, source.repository, image_tag, index=source.index)

    def _debian_kernel(self, source: KernelSource, builder: str) -> LabKernel:
        packages = self._packages(source.suite)[source.rank]
        package = next(packages.glob("linux-image-*.deb"))
        release, version = _release_and_version(package)
        return self._packed(
            LabKernel("", "", "", release, version, builder, _packed_at(package)),
            IMAGES / "kernel.Dockerfile",
            ("pack-kernel",),
            sorted(os.listdir(packages)),
            {"KERNEL_RELEASE": release},
            packages,
            source.suite.platform,
        )

    def _seeded_kernel(self, source: SeededSource, builder: str) -> LabKernel:
        """Takes some minutes, once for each lab; so nobody gets it who does not ask for it."""
        directory = self._sources(source.suite)
        (package,) = directory.iterdir()
        version = package.name.split("_")[1].partition("-")[0]
        created = _packed_at(package) + timedelta(hours=source.hours)
        return self._packed(
            LabKernel("", "", "", f"{version}-linuxkit", version, builder, created),
            IMAGES / "seeded.Dockerfile",
            ("build-seeded", "seeded.config"),
            [package.name, source.seed],
            {"SEED": source.seed},
            directory,
        )

    def _packed(
        self,
        kernel: LabKernel,
        recipe: Path,
        scripts: Iterable[str],
        identity: Iterable[str],
        args: Mapping[str, str],
        packages: Path,
        platform: str = "",
    ) -> LabKernel:
        """The kernel with the image that the recipe makes, once for all runs.

        Args:
            scripts: what the recipe copies, beside it.
            identity: what else tells this image from others.
        """
        registry = self.registry()
        texts = [path.read_text() for path in (recipe, *(IMAGES / name for name in scripts))]
        image_tag = f"{kernel.version}-{_sha1(kernel.builder, *texts, *identity)}"
        reference = f"{registry.host}/{KERNELS}:{image_tag}"
        manifest = registry.digest(KERNELS, image_tag)
        if manifest is None:
            self._push(
                f"kernel {kernel.release} {image_tag[-40:-28]}",
                recipe,
                reference,
                {"BUILDER": kernel.builder, **args},
                contexts={"packages": packages},
                epoch=int(kernel.created.timestamp()),
                platform=platform,
            )
            manifest = registry.digest(KERNELS, image_tag)
            if manifest is None:
                raise LabError("the registry lost what was pushed to it", on=reference)
        return replace(kernel, reference=reference, digest=manifest, manifest=manifest)

    def publish(
        self, kernel: LabKernel, repository: str, image_tag: str, *, index: bool = True
    ) -> LabKernel:
        """Publishes a kernel of the lab under another name, as upstream publishes a new one.

        Args:
            index: as an index with one platform, or as a bare manifest.
        """
        registry = self.registry()
        digest = registry.copy(KERNELS, kernel.manifest, repository, image_tag, index=index)
        reference = f"{registry.host}/{repository}:{image_tag}"
        return replace(kernel, reference=reference, digest=digest)

    @once
    def base(self, suite: Suite) -> str:
        """The image of a Debian suite."""
        with step(f"Debian {suite.key}"):
            return base_image(suite, self.client, self.buildx, self._logs)

    @once
    def _packages(self, suite: Suite) -> list[Path]:
        """One directory of packages for each of the suite's kernels, the newest first."""
        args = {"KERNELS": suite.kernels, "COUNT": str(suite.count)}
        directory = self._fetched("kernels", suite, args)
        return sorted(directory.iterdir(), key=lambda path: _numbers(path.name), reverse=True)

    @once
    def _sources(self, suite: Suite) -> Path:
        """The directory of the package with the kernel's sources."""
        return self._fetched("sources", suite, {"SOURCE": suite.source})

    @once
    def _openzfs(self, suite: Suite) -> tuple[str, Path]:
        """A version of OpenZFS and the tarball of its sources."""
        (tarball,) = self._fetched("openzfs", suite, {}).iterdir()
        return tarball.name.removeprefix("zfs-").removesuffix(".tar.gz"), tarball

    def _fetched(self, target: str, suite: Suite, args: Mapping[str, str]) -> Path:
        """A directory that fetch.Dockerfile filled, once for all runs."""
        directory = self.directory / target / suite.key
        if not directory.exists():
            base = self.base(suite)
            partial = directory.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            name = f"{target} of {suite.key}, download"
            with step(name):
                self.buildx.build(
                    name,
                    IMAGES / "fetch.Dockerfile",
                    target=target,
                    output=f"type=local,dest={partial}",
                    args={"BASE": base, **args},
                    platform=suite.platform,
                )
            partial.rename(directory)
        return directory

    def _push(
        self,
        name: str,
        recipe: Path,
        reference: str,
        args: Mapping[str, str],
        *,
        contexts: Mapping[str, Path] | None = None,
        epoch: int = 0,
        platform: str = "",
    ) -> None:
        """Builds an image into the registry; the engine's own list of images stays as it was."""
        output = f"type=image,name={reference},push=true,unpack=false,compression-level=1"
        with step(name):
            self.buildx.build(
                name,
                recipe,
                output=output,
                args=args,
                contexts=contexts,
                epoch=epoch,
                platform=platform,
            )
            self.client.images.remove(reference)


def _sha1(*texts: str) -> str:
    return hashlib.sha1("\0".join(texts).encode(), usedforsecurity=False).hexdigest()


def _release_and_version(image: Path) -> tuple[str, str]:
    """Takes the name of an image package apart, in ``uname -r`` and upstream's version.

    A package's file is called NAME_VERSION-REVISION_ARCHITECTURE.deb.
    """
    name, version, _ = image.name.split("_")
    return name.removeprefix("linux-image-"), version.partition("-")[0]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _packed_at(package: Path) -> datetime:
    """When a package was made: deb(5) is an ar archive, whose first member has the time.

    The archive's magic takes 8 bytes and the member's name 16; then come 12 digits.
    """
    with package.open("rb") as archive:
        archive.seek(24)
        return datetime.fromtimestamp(int(archive.read(12)), UTC)

"""Builds module images with BuildKit: modules compiled by the kernel's own compiler.

``docker buildx`` does the building wherever it points to; what it makes comes back as files, so
that the bytes that get tested are the bytes that get pushed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from release import bounded, child, seed, symbols
from release.attest import TARBALL_LABEL
from release.errors import BuildError, LackingError, UnbuildableError
from release.http import redact, without_secrets
from release.kernel import (
    SYMVERS,
    KernelFiles,
    banner_release,
    expected_vermagic,
    read_headers,
    read_members,
    vermagic,
)
from release.layout import Layout
from release.notes import printable
from release.reference import Digest, Platform, Reference, architecture, machine
from release.resolve import BuilderImage, Kernel
from release.versions import SMOKE_HOST

PROJECT = Path(__file__).parent.parent
"""The checkout: where the ``Dockerfile`` and what it copies are."""

BUILDX_BUILDER = "BUILDX_BUILDER"
"""Docker's own variable for the instance of BuildKit that builds (docs.docker.com, "Build
variables")."""
CACHE = "INSTALL_ZFS_CACHE"
"""The variable that names a cache for builds on machines that keep none: what ``docker buildx build
--cache-from`` takes, with ``{scope}`` in it."""
TIMEOUT_SECONDS = 2 * 60 * 60.0
SMOKE_LABEL = "install-zfs.smoke"
"""How the modules were tested, on an image whose kernel was not booted for it: ``host``."""
_ROOM_BYTES = 1 << 20
_MOST_LINE = 4096
_TITLE = "ZFS kernel modules for Docker Desktop and LinuxKit"

# The lines by which a failed build says why, in the words of gcc, make, configure and our scripts.
_TELLING = re.compile(
    r"(error:|\*\*\*|: fatal |(?:ERROR|FATAL): (?:modpost|\")|undefined reference|No space left|"
    r"^\S+ \S+ (?:modules|headers|userland|base|sources): |toolchain: the|configure: (?:ZFS|error))"
)
_STEP_PREFIX = re.compile(r"^#\d+ (?:\d+\.\d+ )?")


@dataclass(frozen=True)
class Facts:
    """What a module image says of itself (``kernel.env``, and its labels)."""

    image: str
    kernel_image: str
    kernel_release: str
    kernel_banner: str
    vermagic: str
    architecture: str
    zfs_version: str
    build_id: str = ""
    """The kernel's GNU build-id; empty where it cannot be told."""

    @classmethod
    def parse(cls, text: str) -> Facts:
        """Parses ``kernel.env``: a ``key=value`` a line, the value as it is."""
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        try:
            facts = {name: values[name] for name in cls.__dataclass_fields__ if name != "build_id"}
        except KeyError as error:
            raise BuildError(f"kernel.env has no {error.args[0]}", detail=text) from None
        return cls(**facts, build_id=values.get("build_id", ""))


@dataclass(frozen=True)
class Recipe:
    """All that goes into the image of one kernel and one platform."""

    slug: str
    image: Reference
    kernel: Kernel
    platform: Platform
    builder: BuilderImage
    zfs: str
    openzfs: Path
    """The directory that holds the OpenZFS tarball as ``zfs.tar.gz``."""
    source: str
    """The URL of the project that builds this, for the image's label."""
    revision: str
    """The project's commit, for the image's label."""
    openzfs_url: str = ""
    """The package URL of the tarball, its digest in it, for the image's label."""
    smoke: str = ""
    """How it is tested, where not by booting the kernel: the entry's word, for the label."""
    headers: Reference | None = None
    """By digest, the kernel image whose headers are taken with this kernel's seed."""

    @property
    def name(self) -> str:
        return f"{self.slug}-{architecture(self.platform)}"

    @property
    def scope(self) -> str:
        """What kernels have in common that share the most of a build: ZFS's version and builder."""
        return f"zfs-{self.zfs}-{self.builder.digest[7:19]}-{architecture(self.platform)}"

    @property
    def manifest(self) -> Digest:
        """The digest of the kernel image's manifest for this platform."""
        return self.kernel.platforms[self.platform]


@dataclass(frozen=True)
class Built:
    """A module image for one platform, on disk."""

    platform: Platform
    layout: Layout
    labels: Mapping[str, str]
    kernel: Path | None
    """The bootable kernel that it is for; None for a captured one that cannot be booted."""

    @property
    def digest(self) -> Digest:
        """The digest of the image's manifest."""
        return self.layout.manifest.digest

    @property
    def kernel_release(self) -> str:
        return self.labels["install-zfs.kernel-release"]

    @property
    def kernel_banner(self) -> str:
        return self.labels["install-zfs.kernel-banner"]

    @property
    def zfs_version(self) -> str:
        return self.labels["install-zfs.zfs-version"]


class Builder:
    """Builds in ``cache``, which may be deleted at any time."""

    def __init__(self, cache: Path, environment: Mapping[str, str]) -> None:
        self.cache = cache
        self._environment = without_secrets(environment)
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def kernel_files(self, image: Reference, manifest: Digest, platform: Platform) -> KernelFiles:
        """Fetches the files of a kernel image, by digest, once."""
        directory = self.cache / "kernels" / manifest.replace(":", "-")
        with self._locked(manifest):
            if directory.is_dir():
                return KernelFiles.inside(directory)
            part = directory.with_name(f".{directory.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            self._buildx(
                str(image.at(manifest)),
                self.cache / "logs" / f"{manifest[7:19]}.kernel.log",
                *("--platform", platform, "--target", "kernel-files"),
                *("--build-arg", f"KERNEL_IMAGE={image.at(manifest)}"),
                *("--output", f"type=local,dest={part}"),
            )
            part.replace(directory)
        return KernelFiles.inside(directory)

    def usable_files(self, kernel: Kernel, platform: Platform, *, smoke: str = "") -> KernelFiles:
        """The files of a kernel image that has what a build needs.

        Args:
            smoke: how the modules are to be tested, in the entry's words.

        Raises:
            LackingError: it lacks something.
            UnbuildableError: it cannot be booted, and the entry names no other test.
        """
        files = self.kernel_files(kernel.image, kernel.platforms[platform], platform)
        on = str(kernel.image)
        if not files.kernel and not files.stated_banner:
            raise LackingError("the kernel image has no /kernel to test with", on=on)
        if not files.kernel and smoke != SMOKE_HOST:
            # No lack for good: the entry can be changed.
            raise UnbuildableError(
                "it was captured without a kernel that can be booted for a test; on the machine "
                "that runs this kernel, write smoke: host in its entry of versions.yaml, and its "
                "modules are tested there",
                on=on,
            )
        if not files.headers:
            raise LackingError("the kernel image has no kernel-dev.tar to compile against", on=on)
        return files

    def known_compiler(self, builder: BuilderImage, platform: Platform) -> str | None:
        """What :meth:`compiler` found out before."""
        file = self._compiler_directory(builder, platform) / "gcc"
        # A link would lead to a file of this machine.
        if not file.is_file() or file.is_symlink():
            return None
        with file.open("rb") as opened:
            return opened.read(_MOST_LINE).decode(errors="replace").partition("\n")[0]

    def compiler(self, builder: BuilderImage, platform: Platform) -> str:
        """The version line of the compiler that a builder compiles with, asked once."""
        directory = self._compiler_directory(builder, platform)
        with self._locked(str(directory)):
            known = self.known_compiler(builder, platform)
            if known is not None:
                return known
            part = directory.with_name(f".{directory.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            self._buildx(
                str(builder.image),
                self.cache / "logs" / f"{builder.digest[7:19]}.compiler.log",
                *("--platform", platform, "--target", "compiler"),
                *("--build-arg", f"BUILDER_IMAGE={builder.pinned}"),
                *("--output", f"type=local,dest={part}"),
            )
            part.replace(directory)
        return self.known_compiler(builder, platform) or ""

    def _compiler_directory(self, builder: BuilderImage, platform: Platform) -> Path:
        digest = builder.digest.replace(":", "-")
        return self.cache / "compilers" / f"{digest}-{architecture(platform)}"

    def _locked(self, name: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())

    def log(self, recipe: Recipe) -> Path:
        return self.cache / "logs" / f"{recipe.name}.build.log"

    def build(self, recipe: Recipe) -> Built:
        """Builds the image of one platform. What BuildKit has in its cache is not built again.

        Raises:
            LackingError: the kernel image lacks what a build needs.
            BuildError: configure, the compiler or a check of the modules refused.
        """
        files = self.usable_files(recipe.kernel, recipe.platform, smoke=recipe.smoke)
        assert files.headers
        facts = _expected(recipe, files)
        if recipe.headers:
            self._check_headers(recipe, files.headers, recipe.headers)
        layout = self._image(recipe, facts)
        self._check(recipe, facts, layout, files.headers)
        return Built(recipe.platform, layout, layout.labels(), files.kernel)

    def _check_headers(self, recipe: Recipe, own: Path, image: Reference) -> None:
        """Makes sure that the other image's headers differ from the kernel's own in the seed only.

        Raises:
            LackingError: they are not there.
            BuildError: they differ in more, and in what.
        """
        assert image.digest
        files = self.kernel_files(image.name, image.digest, recipe.platform)
        hint = "name another image of the same release in headers_from, or none"
        if not files.headers:
            raise LackingError(
                "the image in headers_from has no kernel-dev.tar", on=str(image), hint=hint
            )
        for misfit in seed.misfits(own, files.headers):
            raise BuildError(
                f"the headers of {image} cannot be taken: they {misfit.what}",
                on=str(recipe.kernel.image),
                detail=misfit.detail,
                hint=hint,
            )

    def _check(self, recipe: Recipe, expected: Facts, layout: Layout, headers: Path) -> None:
        """Holds what was built against what the kernel itself says, before any boot."""
        if others := list(strangers(layout)):
            raise BuildError(
                "the image holds more than modules",
                on=str(recipe.kernel.image),
                detail="\n".join(map(printable, others[:10])),
                hint="find out what put them there; nothing of it is published",
            )
        for what, wanted, found in differences(expected, layout):
            raise BuildError(
                f"{what} is for another kernel",
                on=str(recipe.kernel.image),
                detail=f"expected {wanted}\nfound    {found}",
                hint=f"the build's whole log is in {self.log(recipe)}",
            )
        if misfits := list(symbol_misfits(layout, headers)):
            raise BuildError(
                f"symbols of {misfits[0].module} do not fit the kernel's",
                on=str(recipe.kernel.image),
                detail="\n".join(map(str, misfits[:10])),
                hint=f"the build's whole log is in {self.log(recipe)}",
            )

    def _image(self, recipe: Recipe, facts: Facts) -> Layout:
        created = int(recipe.kernel.created.timestamp())
        labels = {
            "org.opencontainers.image.created": recipe.kernel.created.isoformat(),
            "org.opencontainers.image.revision": recipe.revision,
            "org.opencontainers.image.source": recipe.source,
            "org.opencontainers.image.title": _TITLE,
            "org.opencontainers.image.version": recipe.zfs,
            "install-zfs.builder-digest": recipe.builder.digest,
            "install-zfs.builder-image": str(recipe.builder.image),
            "install-zfs.kernel-banner": facts.kernel_banner,
            "install-zfs.kernel-digest": recipe.manifest,
            "install-zfs.kernel-image": str(recipe.kernel.image),
            "install-zfs.kernel-release": facts.kernel_release,
            "install-zfs.vermagic": facts.vermagic,
            "install-zfs.zfs-version": recipe.zfs,
        }
        if facts.build_id:
            labels["install-zfs.kernel-build-id"] = facts.build_id
        if recipe.smoke:
            labels[SMOKE_LABEL] = recipe.smoke
        if recipe.openzfs_url:
            labels[TARBALL_LABEL] = recipe.openzfs_url
        headers = []
        if recipe.headers:
            labels["install-zfs.headers-image"] = str(recipe.headers)
            headers = ["--build-arg", f"HEADERS_IMAGE={recipe.headers}"]
        return self._exported(
            recipe.name,
            str(recipe.kernel.image),
            self.log(recipe),
            labels,
            *("--platform", recipe.platform),
            *("--build-arg", f"KERNEL_IMAGE={recipe.kernel.image.at(recipe.manifest)}"),
            *headers,
            *("--build-arg", f"KERNEL_NAME={recipe.kernel.image}"),
            *("--build-arg", f"BUILD_ID={facts.build_id}"),
            *("--build-arg", f"BUILDER_IMAGE={recipe.builder.pinned}"),
            *("--build-arg", f"ZFS_VERSION={recipe.zfs}"),
            *("--build-arg", f"IMAGE={recipe.image}"),
            *("--build-context", f"openzfs={recipe.openzfs}"),
            *("--build-arg", f"SOURCE_DATE_EPOCH={created}"),
            *cache_options(self._environment.get(CACHE, ""), recipe.scope),
            output="rewrite-timestamp=true",
        )

    def on_the_spot(
        self, builder: BuilderImage, openzfs: Path, image: Reference, source: str, revision: str
    ) -> Layout:
        """Builds the image that builds modules where it runs, for this machine's architecture.

        Args:
            openzfs: a directory of OpenZFS tarballs (``*.tar.gz``), all of which go into it.
            image: the repository that its messages name.

        Raises:
            BuildError: the builder image lacks something, or a tarball holds no OpenZFS.
        """
        labels = {
            "org.opencontainers.image.revision": revision,
            "org.opencontainers.image.source": source,
            "org.opencontainers.image.title": "Builds ZFS for the running kernel",
            "install-zfs.builder-digest": builder.digest,
            "install-zfs.builder-image": str(builder.image),
        }
        return self._exported(
            "on-the-spot",
            str(builder.image),
            self.cache / "logs" / "on-the-spot.build.log",
            labels,
            *("--target", "on-the-spot"),
            *("--build-arg", f"BUILDER_IMAGE={builder.pinned}"),
            *("--build-arg", f"IMAGE={image}"),
            *("--build-context", f"openzfs={openzfs}"),
        )

    def _exported(
        self,
        name: str,
        on: str,
        log: Path,
        labels: Mapping[str, str],
        *options: str,
        output: str = "",
    ) -> Layout:
        """Builds an image into a layout of that name, in place of what was there.

        Args:
            output: what else the exporter is to be told.
        """
        archive = self.cache / "images" / f".{name}.oci.tar"
        archive.parent.mkdir(parents=True, exist_ok=True)
        for label, value in labels.items():
            options += ("--label", f"{label}={value}")
        # gzip is what every Docker that runs these kernels can read.
        exporter = f"type=oci,dest={archive},compression=gzip,force-compression=true"
        self._buildx(
            on,
            log,
            *options,
            *("--provenance", "false", "--sbom", "false"),
            *("--output", f"{exporter},{output}".rstrip(",")),
        )
        layout = self.cache / "images" / name
        shutil.rmtree(layout, ignore_errors=True)
        bounded.unpack(archive, layout)
        archive.unlink()
        return Layout(layout)

    def _buildx(self, on: str, log: Path, *options: str) -> None:
        command = ["docker", "buildx", "build", "--progress", "plain", *options, str(PROJECT)]
        try:
            code = child.logged(command, log, self._environment, TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise BuildError(
                f"the build {error}", on=on, hint=f"its whole log is in {log}"
            ) from error
        if code != 0:
            # On a full disk not even the log says so.
            if shutil.disk_usage(log.parent).free < _ROOM_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log.parent))
            raise BuildError(
                "the build failed",
                on=on,
                detail=telling_lines(redact(log.read_text(errors="replace"))),
                hint=f"its whole log is in {log}",
            )


def cache_options(place: str, scope: str) -> tuple[str, ...]:
    """The options by which a build reads a cache and fills it; none where no place is named.

    A cache that cannot be filled fails no build.
    """
    if not place:
        return ()
    where = place.replace("{scope}", scope)
    return ("--cache-from", where, "--cache-to", f"{where},mode=max,ignore-error=true")


def _expected(recipe: Recipe, files: KernelFiles) -> Facts:
    """What the modules will have to say of themselves, from the kernel image alone.

    Raises:
        BuildError: its kernel and its headers are not the same kernel's.
    """
    banner, modules = files.banner, files.modules
    assert banner
    assert files.headers
    about = read_headers(files.headers, architecture(recipe.platform))
    if (found := banner_release(banner)) != about.release:
        raise BuildError(
            "the kernel and the headers in the kernel image are not of the same kernel",
            on=str(recipe.kernel.image),
            detail=f"/kernel          {found}\nkernel-dev.tar   {about.release}",
            hint="report it upstream; no module for it can be trusted",
        )
    return Facts(
        image=str(recipe.image),
        kernel_image=str(recipe.kernel.image),
        kernel_release=about.release,
        kernel_banner=banner,
        vermagic=(expected_vermagic(modules) if modules else None) or about.vermagic,
        architecture=machine(recipe.platform),
        zfs_version=recipe.zfs,
        build_id=files.build_id,
    )


def differences(expected: Facts, layout: Layout) -> Iterator[tuple[str, str, str]]:
    """Where a built image is not what it has to be: what, what was expected, what was found."""
    found = 0
    for name, content in _files(layout):
        if name.endswith(".ko"):
            found += 1
            if (magic := vermagic(content)) != expected.vermagic:
                yield f"the module {name}", expected.vermagic, magic or "no vermagic"
            continue
        facts = Facts.parse(content.decode(errors="replace"))
        for field in Facts.__dataclass_fields__:
            wanted, said = getattr(expected, field), getattr(facts, field)
            if wanted != said:
                yield f"the {field.replace('_', ' ')} in the image", wanted, said
    if not found:
        yield "an image without modules", "modules", "none"


def symbol_misfits(layout: Layout, headers: Path) -> Iterator[symbols.Misfit]:
    """The symbols that the modules of an image need otherwise than the kernel has them.

    Raises:
        BuildError: the headers do not say what the kernel exports, or a module is no module.
    """
    exported = symbols.read_symvers(read_members(headers, (SYMVERS,)).get(SYMVERS, ""))
    if not exported:
        raise BuildError(f"kernel-dev.tar has no symbols in {SYMVERS}", on=str(headers))
    modules = {
        name: symbols.read_module(name, content)
        for name, content in _files(layout)
        if name.endswith(".ko")
    }
    yield from symbols.misfits(modules, exported)


_OF_A_KERNEL = re.compile(r"kernels(?:/[^/]+(?:/(?:[\w-]+\.ko|modules\.load|kernel\.env))?)?")


def strangers(layout: Layout) -> Iterator[str]:
    """What the layer with the modules has no business to hold, whatever the kernel image did to
    the container that compiled them.
    """
    with bounded.opened_tar(layout.layers[-1]) as layer:
        for member in layer:
            plain = member.isdir() or member.isreg()
            name = member.name.removeprefix("./").rstrip("/")
            if not plain or not _OF_A_KERNEL.fullmatch(name):
                yield member.name


def _files(layout: Layout) -> Iterator[tuple[str, bytes]]:
    """The modules of an image and its ``kernel.env``, by name."""
    with bounded.opened_tar(layout.layers[-1]) as layer:
        for member in layer:
            path = PurePosixPath(member.name)
            if path.suffix == ".ko" or path.name == "kernel.env":
                file = layer.extractfile(member)
                assert file
                yield path.name, bounded.read(file)


def telling_lines(log: str, most: int = 12) -> str:
    """The lines of a failed build that say why: the first errors, or else the last lines."""
    lines = log.splitlines()
    # BuildKit repeats the failed step below this line.
    ends = next((n for n, line in enumerate(lines) if line == "------"), len(lines))
    telling = [_STEP_PREFIX.sub("", line) for line in lines[:ends] if _TELLING.search(line)]
    if telling:
        return "\n".join(list(dict.fromkeys(telling))[:most])
    return "\n".join(lines[-most:])

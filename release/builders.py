"""Which image has a kernel's own compiler: where that is said, and whether it is true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from release.build import PROJECT, Builder
from release.compiler import Compiler, banner_compiler
from release.errors import ConfigurationError, NoBuilderError, ResolveError
from release.kernel import KernelFiles, configured_compiler
from release.reference import Digest, Platform, Reference
from release.registry import Registry
from release.resolve import BuilderImage, BuilderSource, Kernel
from release.tags import ImageTag
from release.versions import Entry
from release.yamlfile import Node, compose, read

BUILD_IMAGE_LABEL = "org.mobyproject.linuxkit.kernel.buildimage"
"""Where LinuxKit's kernel build names its compiler's image (kernel/common/Dockerfile)."""
TABLE = PROJECT / "builders.yaml"
_BEGIN = "builders:"


@dataclass(frozen=True)
class Row:
    """A builder image of the table, and the compiler that it is said to have."""

    compiler: Compiler
    image: Reference


@dataclass(frozen=True)
class Choice:
    """A builder image whose compiler is the kernel's, as far as the kernel names it.

    Attributes:
        compiler: the builder's.
        passed_over: what was looked at before, and why it was not taken.
    """

    builder: BuilderImage
    compiler: Compiler
    passed_over: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.builder.image} ({self.builder.source}), {self.compiler}"
        return "; not ".join((text, *self.passed_over))


@dataclass(frozen=True)
class _Unfit:
    """Why something cannot be the builder; None for what is no image, or is not there."""

    why: str
    image: Reference | None = None
    digest: Digest | None = None


def load_table(path: Path) -> tuple[Row, ...]:
    """Reads ``builders.yaml``.

    Raises:
        ConfigurationError: it cannot be read, or says something that makes no sense.
    """
    text = read(path, hint="correct builders: in versions.yaml, or remove it")
    top = Node(path, compose(path, text, begin=_BEGIN)).mapping("builders", required=["builders"])
    return tuple(_row(node) for node in top["builders"].items())


def _row(node: Node) -> Row:
    keys = node.mapping("compiler", "image", required=["compiler", "image"])
    compiler = Compiler.parse(keys["compiler"].text())
    if not compiler:
        raise keys["compiler"].error(
            "names no compiler", "write the first line of: gcc --version, as the image prints it"
        )
    return Row(compiler, keys["image"].parse(Reference.parse))


def candidates(
    entry: Entry,
    kernel: Kernel,
    files: KernelFiles,
    compiler: Compiler | None,
    table: Sequence[Row],
) -> Iterator[tuple[BuilderSource, str]]:
    """What may name the builder, the best first. A builder in the entry is the only one."""
    if known := _named(entry, kernel):
        yield known
    if entry.builder:
        return
    about = ImageTag.parse(entry.image.tag or "")
    if about.version:
        # Upstream leaves out the last number where it is 0.
        named = ".".join(map(str, about.numbers))
        tags = dict.fromkeys((f"{named}-builder", f"{about.version}-builder"))
        # Docker's kernels are LinuxKit's, compiled by the same images.
        linuxkit = replace(entry.image, repository="linuxkit/kernel")
        for repository in dict.fromkeys((entry.image.name, linuxkit.name)):
            for tag in tags:
                yield BuilderSource.TAG, str(repository.with_tag(tag))
    if files.builder:
        yield BuilderSource.FILE, files.builder
    for row in table:
        if compiler and row.compiler.resembles(compiler):
            yield BuilderSource.TABLE, str(row.image)


def _named(entry: Entry, kernel: Kernel) -> tuple[BuilderSource, str] | None:
    """The candidate that is known before the kernel's files are."""
    if entry.builder:
        return BuilderSource.ENTRY, str(entry.builder)
    label = kernel.labels.get(BUILD_IMAGE_LABEL)
    return (BuilderSource.LABEL, label) if label else None


def kernel_compiler(files: KernelFiles) -> Compiler | None:
    """The compiler of a kernel: its own word counts, then that of its configuration."""
    named = banner_compiler(files.banner or "")
    if named or not files.headers:
        return named
    return Compiler.parse(configured_compiler(files.headers))


def choose_builder(
    registry: Registry,
    builder: Builder,
    entry: Entry,
    kernel: Kernel,
    platform: Platform,
    table: Path | None = None,
) -> Choice:
    """The image with the kernel's own compiler, which is looked at before anything is compiled.

    Args:
        table: in place of the project's.

    Raises:
        NoBuilderError: none is known; with all that were looked at.
        ResolveError: the entry names one that is not there or has another compiler.
        UpstreamError: one could not be looked at, which does not mean that it is not there.
    """
    named = _named(entry, kernel)
    with ThreadPoolExecutor(1) as pool:
        # Both fetch an image, which takes seconds.
        ahead = named and pool.submit(_look, registry, builder, *named, platform)
        files = builder.usable_files(kernel, platform, smoke=entry.smoke)
    wanted = kernel_compiler(files)
    refused: dict[str, str] = {}
    looked_at: dict[str, str | None] = {}
    for source, text in candidates(entry, kernel, files, wanted, load_table(table or TABLE)):
        name = _whole(text)
        if name in refused:
            continue
        found = (
            ahead.result()
            if ahead and (source, text) == named
            else _look(registry, builder, source, text, platform)
        )
        if isinstance(found, _Unfit):
            unfit = found
        elif wanted and not found[1].same(wanted):
            unfit = _Unfit(f"has {found[1]}", found[0].image, found[0].digest)
        else:
            return Choice(*found, tuple(refused.values()))
        if source is BuilderSource.ENTRY:
            raise ResolveError(
                f"its builder {unfit.why}"
                + ("" if found is unfit else f", the kernel was compiled by {wanted}"),
                on=str(entry.image),
                detail=f"builder: {name}",
                hint="correct builder: in its entry of versions.yaml, or remove it",
            )
        refused[name] = f"{source} {name}: {unfit.why}"
        if unfit.image:
            looked_at[name] = unfit.digest
    tried = "; ".join(refused.values()) or "nothing names one"
    raise NoBuilderError(
        f"no image with this kernel's compiler ({wanted or 'which it does not name'}) is known: "
        f"{tried}",
        looked_at,
        on=str(entry.image),
        hint="write builder: in its entry of versions.yaml",
    )


def _whole(text: str) -> str:
    """A reference as it is always written here; as it stands, where it is none."""
    try:
        return str(Reference.parse(text))
    except ConfigurationError:
        return repr(text)


def _look(
    registry: Registry,
    builder: Builder,
    source: BuilderSource,
    text: str,
    platform: Platform,
) -> tuple[BuilderImage, Compiler] | _Unfit:
    """An image and its compiler, or why it cannot be the builder."""
    try:
        image = Reference.parse(text)
    except ConfigurationError:
        return _Unfit("is no image reference")
    digest = registry.head(image)
    if not digest:
        return _Unfit("is not there", image)
    found = BuilderImage(image, digest, source)
    compiler = builder.known_compiler(found, platform)
    if not compiler:
        # Once for each digest: a GET counts as a pull.
        document = registry.get(found.pinned)
        if platform not in registry.platforms(found.pinned, document):
            return _Unfit(f"is not for {platform}", image, digest)
        compiler = builder.compiler(found, platform)
    parsed = Compiler.parse(compiler)
    if not parsed:
        return _Unfit(f"has no compiler that is known here ({compiler})", image, digest)
    return found, parsed

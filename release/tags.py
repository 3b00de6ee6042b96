"""Image tags of kernel repositories: what each says, and why some are left out.

Tags are those of ``docker/for-desktop-kernel`` and ``linuxkit/kernel`` (linuxkit,
``kernel/Makefile``) since 2017:

    VERSION [-rt] [-dbg | _dbg] [-pr | -release] [-HASH] [-dirty] [-builder] [-ARCHITECTURE]
    VERSION-N           a packaging number, in the spring of 2017
    4.9.x               moves with the newest of its line
    desktop-3.3.1       the kernel of a Docker Desktop version

VERSION has two numbers or three, HASH is 40 hexadecimal digits: of the sources that the kernel was
built from, not of the image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import semver

BUILT_ARCHITECTURES = ("amd64", "arm64")
"""What Docker Desktop runs on."""

_NUMBER = r"(?:0|[1-9]\d{0,8})"
_TAG = re.compile(
    rf"""
    (?: (?P<numbers>{_NUMBER}(?:\.{_NUMBER}){{1,2}}) (?P<moving>\.x)?
      | desktop-(?P<desktop>{_NUMBER}(?:\.{_NUMBER}){{1,3}}) )
    (?P<realtime>-rt)?
    (?P<debug>[-_]dbg)?
    (?:-(?P<qualifier>pr|release))?
    (?:-(?P<source_hash>[0-9a-f]{{40}}))?
    (?:-(?P<build>{_NUMBER}))?
    (?P<dirty>-dirty)?
    (?P<builder>-builder)?
    (?:-(?P<architecture>amd64|arm64|arm|386|ppc64le|riscv64|s390x))?
    """,
    re.ASCII | re.VERBOSE,
)


@dataclass(frozen=True)
class ImageTag:
    """One image tag, taken apart; ``str()`` puts it together again.

    Attributes:
        numbers: the kernel version's two or three numbers; empty where the tag names none.
        desktop: the Docker Desktop version that the tag names, such as ``3.3.1``.
        realtime: whether the kernel is a ``-rt`` one.
        debug: ``-dbg``, or ``_dbg`` as until August 2017.
        qualifier: ``pr`` or ``release``, of kernels that Docker built on the side.
        source_hash: 40 hexadecimal digits that name the kernel's sources.
        build: the packaging number of early tags.
        moving: whether the tag follows a line of versions (``4.9.x``).
        dirty: whether the sources were modified ones.
        builder: whether this is the compiler's image beside a kernel, no kernel.
        architecture: as in a platform; None where the tag is for all that there are.
        text: the tag as it was read, where it follows no known rule.
    """

    numbers: tuple[int, ...] = ()
    desktop: str | None = None
    realtime: bool = False
    debug: str = ""
    qualifier: str | None = None
    source_hash: str | None = None
    build: int | None = None
    moving: bool = False
    dirty: bool = False
    builder: bool = False
    architecture: str | None = None
    text: str | None = None

    @classmethod
    def parse(cls, text: str) -> ImageTag:
        """Takes a tag apart; any string gives a value, at worst one with a reason."""
        match = _TAG.fullmatch(text)
        if not match or (match["moving"] and text.count(".") != 2):
            return cls(text=text)
        numbers = match["numbers"] or ""
        return cls(
            numbers=tuple(int(number) for number in numbers.split(".") if number),
            desktop=match["desktop"],
            realtime=bool(match["realtime"]),
            debug=match["debug"] or "",
            qualifier=match["qualifier"],
            source_hash=match["source_hash"],
            build=int(match["build"]) if match["build"] else None,
            moving=bool(match["moving"]),
            dirty=bool(match["dirty"]),
            builder=bool(match["builder"]),
            architecture=match["architecture"],
        )

    def __str__(self) -> str:
        if self.text is not None:
            return self.text
        return "".join(
            (
                f"desktop-{self.desktop}" if self.desktop else ".".join(map(str, self.numbers)),
                ".x" if self.moving else "",
                "-rt" if self.realtime else "",
                self.debug,
                f"-{self.qualifier}" if self.qualifier else "",
                f"-{self.source_hash}" if self.source_hash else "",
                f"-{self.build}" if self.build is not None else "",
                "-dirty" if self.dirty else "",
                "-builder" if self.builder else "",
                f"-{self.architecture}" if self.architecture else "",
            )
        )

    @property
    def version(self) -> semver.Version | None:
        """The kernel version; the first of a line has two numbers upstream, and 0 as its third."""
        if not self.numbers:
            return None
        major, minor, *patch = self.numbers
        return semver.Version(major, minor, *patch)

    @property
    def reason(self) -> str:
        """Why nothing is built for this tag; empty for a kernel that we build for."""
        if self.text is not None:
            return "is not a kernel version"
        if self.builder:
            return "is the compiler's image, not a kernel"
        if self.moving:
            return "moves from version to version"
        if self.debug:
            return "is a debug kernel, which no Docker Desktop runs"
        if self.realtime:
            return "is a realtime kernel, which no Docker Desktop runs"
        if self.dirty:
            return "was built from a modified source tree"
        if self.architecture and self.architecture not in BUILT_ARCHITECTURES:
            return "is for an architecture that Docker Desktop does not run on"
        if self.build is not None:
            return "is numbered as kernels were before LinuxKit's first release"
        if self.desktop:
            return "names a Docker Desktop version, not a kernel version"
        return ""

    @property
    def joined(self) -> ImageTag:
        """The tag without its architecture: the kernel that all architectures share."""
        return ImageTag.parse(str(self).removesuffix(f"-{self.architecture}"))

    @property
    def order(self) -> tuple[tuple[int, ...], int]:
        """The key that sorts tags by kernel version.

        Where a tag is no semantic version: two numbers are X.Y.0; packaging numbers come after the
        version that they package; a tag without a version comes before all others.
        """
        numbers = (*self.numbers, 0, 0, 0)[:3] if self.numbers else ()
        return numbers, -1 if self.build is None else self.build

"""Compilers: what a kernel and a builder say of theirs, taken apart so that they can be compared.

The texts are the first line of ``gcc --version``, which Linux keeps as ``CONFIG_CC_VERSION_TEXT``
and since 5.8 in its banner; and the last line of ``gcc -v``, which older banners have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBERS = r"\d+(?:\.\d+)+"
_SNAPSHOT = r"(?: (?P<snapshot>\d{8}))?"
# gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0; gcc (Alpine 10.3.1_git20210424) 10.3.1 20210424
_OF_VERSION = re.compile(
    r"(?<![\w.+-])(?:[\w.+]+-)*(?P<family>gcc|cc)(?:-[\d.]+)?(?:\.exe)?"
    rf" \((?P<packager>[^()\n]*)\) (?P<numbers>{_NUMBERS}){_SNAPSHOT}",
    re.ASCII,
)
# gcc version 8.3.0 (Alpine 8.3.0)
_OF_V = re.compile(
    rf"(?<![\w.+-])(?P<family>gcc) version (?P<numbers>{_NUMBERS}){_SNAPSHOT}"
    r"(?: \((?:prerelease|experimental)\))?(?: \((?P<packager>[^()\n]*)\))?",
    re.ASCII,
)
# Debian clang version 14.0.6; clang version 17.0.6 (https://...)
_OF_CLANG = re.compile(
    r"(?:(?P<packager>[^\s()]+) )?(?P<family>clang) version "
    rf"(?P<numbers>{_NUMBERS})(?P<snapshot>)",
    re.ASCII,
)


@dataclass(frozen=True)
class Compiler:
    """A compiler, apart from the name that its program has.

    Attributes:
        family: ``gcc`` or ``clang``.
        version: with the date of a snapshot: ``12.2.0``, ``10.3.1 20210424``.
        packager: who packaged it, in his words, such as ``Debian 12.2.0-14+deb12u1``; empty
            where that is not said.
    """

    family: str
    version: str
    packager: str = ""

    @classmethod
    def parse(cls, text: str) -> Compiler | None:
        """The first compiler that ``text`` names; None where it names none."""
        found = (pattern.search(text) for pattern in (_OF_VERSION, _OF_V, _OF_CLANG))
        matches = [match for match in found if match]
        if not matches:
            return None
        match = min(matches, key=lambda match: match.start("family"))
        family = "gcc" if match["family"] == "cc" else match["family"]
        version = f"{match['numbers']} {match['snapshot'] or ''}".strip()
        packager = " ".join((match["packager"] or "").split())
        return cls(family, version, "" if packager == "GCC" else packager)

    def __str__(self) -> str:
        packager = f" ({self.packager})" if self.packager else ""
        return f"{self.family}{packager} {self.version}"

    def same(self, other: Compiler) -> bool:
        """Whether the two are one compiler, as far as both say who packaged it."""
        return self._alike(other) and (
            self.packager == other.packager or "" in (self.packager, other.packager)
        )

    def resembles(self, other: Compiler) -> bool:
        """Whether they are of one version and one packager, whatever revision of the package."""
        ours, theirs = self.packager.partition(" ")[0], other.packager.partition(" ")[0]
        return self._alike(other) and (ours == theirs or "" in (ours, theirs))

    def _alike(self, other: Compiler) -> bool:
        return (self.family, self.version) == (other.family, other.version)


def banner_compiler(banner: str) -> Compiler | None:
    """The compiler in a kernel's banner, behind who built the kernel and where."""
    return Compiler.parse(banner.partition(") (")[2])

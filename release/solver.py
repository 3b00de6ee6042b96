"""Which OpenZFS version is for a kernel. Pure: what META files say comes in by a function.

What is relied on, from OpenZFS's own repository:

- ``META`` names the kernels that a release is for, ``Linux-Minimum`` to ``Linux-Maximum``, since
  0.8.0 (commit 928046b744). The minimum is the kernel of the oldest distribution that a line still
  supports, and so stands for its compiler, too: 3.10 is RHEL 7's with gcc 4.8, 4.18 is RHEL 8's
  with gcc 8 (commits 066e825221, 2b069768ab). Nothing else in a release asks for a compiler: no
  check in ``configure``, and the modules are compiled as C99, lately C11 (commit c631f5e6c2), which
  older compilers know, too. So that the compiler of a kernel's time can compile a line means here
  that the kernel is not below the minimum.
- ``configure`` refuses a kernel below the minimum since 2.0 (commit 066e825221), and one above the
  maximum since 2.3 (commit 410287f7f8). There, only the first two numbers count.
- From one release of a line X.Y to the next, neither end of the range goes down. 2.2.7 raised the
  minimum, so the newest release of a line is not always the one for an old kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from semver import Version

from release.errors import UpstreamError

_MINIMUM_IS_ENFORCED = (2, 0)
_MAXIMUM_IS_ENFORCED = (2, 3)


class Policy(StrEnum):
    """What a newer OpenZFS release means for a kernel that has a ZFS version already.

    ``pin``: nothing. ``latest-patch``: the newest of the same line X.Y. ``latest``: the newest.
    """

    PIN = "pin"
    LATEST_PATCH = "latest-patch"
    LATEST = "latest"


@dataclass(frozen=True)
class Range:
    """The kernels that an OpenZFS release is for, both ends included, as in its META."""

    minimum: Version
    maximum: Version

    def begins_after(self, kernel: Version) -> bool:
        return kernel < self.minimum

    def ends_before(self, kernel: Version) -> bool:
        """Only the first two numbers count: a range up to 5.18 holds every 5.18.x."""
        return _series(self.maximum) < _series(kernel)

    def holds(self, kernel: Version) -> bool:
        return not self.begins_after(kernel) and not self.ends_before(kernel)

    def __str__(self) -> str:
        return f"{_short(self.minimum)} to {_short(self.maximum)}"


def parse_meta(text: str, on: str) -> Range:
    """The kernel range of a META file.

    Raises:
        UpstreamError: it names no range.
    """
    fields = dict(re.findall(r"^([\w-]+):[ \t]*(\S+)\s*?$", text, re.MULTILINE))
    try:
        found = Range(
            Version.parse(fields["Linux-Minimum"], optional_minor_and_patch=True),
            Version.parse(fields["Linux-Maximum"], optional_minor_and_patch=True),
        )
        if found.ends_before(found.minimum):
            raise ValueError("the range is empty")
    except (KeyError, ValueError) as error:
        raise UpstreamError("META names no range of kernels", on=on, detail=text[:300]) from error
    return found


Read = Callable[[Version], Range | None]
"""Looks up the range of an OpenZFS version; None where there is none, and so nothing to choose."""


@dataclass(frozen=True)
class Chosen:
    """This version. ``warning`` says what speaks against it, where it was pinned by hand."""

    version: str
    warning: str = ""

    def __str__(self) -> str:
        return self.version


@dataclass(frozen=True)
class Waiting:
    """The kernel is newer than what OpenZFS releases are for; ``nearest`` comes closest."""

    kernel: Version
    nearest: Version
    kernels: Range

    @property
    def reason(self) -> str:
        return (
            f"no OpenZFS release is for Linux {self.kernel} yet: the nearest, {self.nearest}, "
            f"is for {self.kernels}"
        )

    def __str__(self) -> str:
        return f"waiting: nearest {self.nearest} up to {_short(self.kernels.maximum)}"


@dataclass(frozen=True)
class TooOld:
    """The kernel is older than what any OpenZFS release is for; ``nearest`` comes closest."""

    kernel: Version
    nearest: Version
    kernels: Range

    @property
    def reason(self) -> str:
        return (
            f"no OpenZFS release is for a kernel as old as Linux {self.kernel}: the nearest, "
            f"{self.nearest}, is for {self.kernels}"
        )

    def __str__(self) -> str:
        return f"none: {self.nearest} begins with {_short(self.kernels.minimum)}"


@dataclass(frozen=True)
class Unread:
    """What OpenZFS has could not be looked up, so nothing is known."""

    reason: str

    def __str__(self) -> str:
        return "?"


Choice = Chosen | Waiting | TooOld | Unread


def choose(kernel: Version, versions: Iterable[Version], read: Read) -> Chosen | Waiting | TooOld:
    """The newest of ``versions`` whose range holds ``kernel``.

    Ranges are read sparingly: of each line X.Y the newest, which decides for all but those
    kernels that the line was once for and is no longer.

    Raises:
        UpstreamError: no range at all could be found, and what ``read`` raises.
    """
    seen: dict[Version, Range] = {}

    def look(version: Version) -> Range | None:
        if version not in seen and (found := read(version)):
            seen[version] = found
        return seen.get(version)

    versions = tuple(versions)
    if version := _newest(kernel, versions, look):
        return Chosen(str(version))
    if not seen:
        raise UpstreamError(
            "not one OpenZFS release has a META that names a range of kernels",
            detail=", ".join(map(str, versions[:10])),
            hint="check openzfs: in versions.yaml, or run again later",
        )
    below = [version for version in seen if seen[version].ends_before(kernel)]
    if below:
        nearest = max(below, key=lambda one: (_series(seen[one].maximum), one))
        return Waiting(kernel, nearest, seen[nearest])
    lowest = min(found.minimum for found in seen.values())
    nearest = max(version for version in seen if seen[version].minimum == lowest)
    return TooOld(kernel, nearest, seen[nearest])


def _newest(kernel: Version, versions: Iterable[Version], look: Read) -> Version | None:
    for _, line in groupby(sorted(set(versions), reverse=True), key=_series):
        if version := _newest_of_line(kernel, list(line), look):
            return version
    return None


def _newest_of_line(kernel: Version, line: list[Version], look: Read) -> Version | None:
    """The newest version of a line (newest first) that is for ``kernel``."""
    while line and not look(line[0]):
        del line[0]
    if not line or not (newest := look(line[0])) or newest.ends_before(kernel):
        return None
    if newest.holds(kernel):
        return line[0]
    while not look(line[-1]):
        del line[-1]
    # Now it is searched for the last version before the minimum rose above the kernel: it rose
    # with line[0] at the latest, and has not yet with line[-1].
    if not (oldest := look(line[-1])) or oldest.begins_after(kernel):
        return None
    while len(line) > 2:
        middle = len(line) // 2
        between = look(line[middle])
        if not between:
            del line[middle]
        elif between.begins_after(kernel):
            line = line[middle:]
        else:
            line = line[: middle + 1]
    last = look(line[-1])
    return line[-1] if last and last.holds(kernel) else None


def table(
    kernels: Iterable[Version], versions: Sequence[Version], read: Read
) -> dict[Version, Chosen | Waiting | TooOld]:
    """What each of ``kernels`` gets, newest first."""
    return {kernel: choose(kernel, versions, read) for kernel in sorted(set(kernels), reverse=True)}


def wanted(
    kernel: Version, recorded: str, policy: Policy, versions: Iterable[Version], read: Read
) -> str:
    """The version that a kernel with a ``recorded`` one is to have. Never an older one."""
    now = Version.parse(recorded)
    newer = [
        version
        for version in versions
        if version > now and (policy is Policy.LATEST or _series(version) == _series(now))
    ]
    if policy is Policy.PIN:
        return recorded
    return str(_newest(kernel, newer, read) or recorded)


def pin_warning(kernel: Version, pinned: str, kernels: Range | None) -> str:
    """What speaks against a pinned version, or nothing.

    Args:
        kernels: what its META says, None where it says nothing.
    """
    if kernels is None:
        return f"ZFS {pinned} is pinned, and no META says which kernels it is for"
    if kernels.holds(kernel):
        return ""
    line = _series(Version.parse(pinned))
    if kernels.begins_after(kernel):
        refused, end = line >= _MINIMUM_IS_ENFORCED, "below its minimum"
        otherwise = "it may not compile"
    else:
        refused, end = line >= _MAXIMUM_IS_ENFORCED, "above its maximum"
        otherwise = "it may not compile, or break later"
    return f"ZFS {pinned} is pinned and is for Linux {kernels}, not {kernel}: " + (
        f"its configure refuses a kernel {end}"
        if refused
        else f"its configure does not refuse a kernel {end}, but {otherwise}"
    )


def _series(version: Version) -> tuple[int, int]:
    return version.major, version.minor


def _short(version: Version) -> str:
    """As META writes it, without a patch level that is 0."""
    text = f"{version.major}.{version.minor}"
    return f"{text}.{version.patch}" if version.patch else text

"""The one tree of expected failures.

Each error says what failed, on which object, and what to do next. Anything that is not a
:class:`ReleaseError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What ``python -m release`` ends with."""

    OK = 0
    TARGET_FAILED = 1
    CONFIGURATION = 2
    UPSTREAM_INCOMPLETE = 3
    MISSING_HERE = 4


class ReleaseError(Exception):
    """An expected failure.

    Args:
        what: what failed, as one sentence without the object.
        on: the object that it failed on (a reference, a file with its line, a URL).
        detail: the last lines of output that explain it, shown indented.
        hint: the next thing to try, as a sentence or a command.

    Attributes:
        drawn: whether the object was looked at by lot: a run that does not fail on it need not have
            looked.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.TARGET_FAILED
    drawn = False

    def __init__(self, what: str, *, on: str = "", detail: str = "", hint: str = "") -> None:
        super().__init__(what, on, detail, hint)
        self.what = what
        self.on = on
        self.detail = detail
        self.hint = hint

    @property
    def summary(self) -> str:
        """The failure in one line."""
        return f"{self.on}: {self.what}" if self.on else self.what

    def __str__(self) -> str:
        lines = [self.summary]
        lines += [f"    {line}" for line in self.detail.strip("\n").splitlines()]
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)


class ConfigurationError(ReleaseError):
    """The command line, ``versions.yaml`` or an environment variable is wrong."""

    exit_code = ExitCode.CONFIGURATION


class UpstreamError(ReleaseError):
    """An upstream could not be read completely; nothing was assumed about what was not read."""

    exit_code = ExitCode.UPSTREAM_INCOMPLETE


class OtherBytesError(UpstreamError):
    """What came does not have the digest that was asked for."""


class NotFoundError(ReleaseError):
    """A 404: the only answer that means "not there", and only for an object of our own."""

    exit_code = ExitCode.UPSTREAM_INCOMPLETE


class PreflightError(ReleaseError):
    """Something that the work needs is missing on this machine."""

    exit_code = ExitCode.MISSING_HERE


class TargetError(ReleaseError):
    """One target failed; the others go on."""


class ResolveError(TargetError):
    """The facts that a build needs could not be found out."""


class UnbuildableError(TargetError):
    """This kernel cannot be built for, for a reason that lies upstream: it is skipped."""


class NoBuilderError(UnbuildableError):
    """No image is known that has the kernel's compiler.

    Attributes:
        looked_at: the images that might have had it, each with the digest that it had; None where
            it was not there.
    """

    def __init__(self, what: str, looked_at: Mapping[str, str | None], **more: str) -> None:
        super().__init__(what, **more)
        self.looked_at = looked_at


class LackingError(UnbuildableError):
    """The kernel image itself lacks what a build needs, which no later run will find there."""


class NotYetError(TargetError):
    """Something that others make is not there yet: the target waits, and nothing is wrong."""


class BuildError(TargetError):
    """The modules or the image could not be built."""


class SmokeError(TargetError):
    """The image did not do on its own kernel what it is for."""


class PublishError(TargetError):
    """The image or the release could not be published, or reads back differently."""


def from_os_error(error: OSError, on: str) -> TargetError:
    """A fault of this machine as an expected failure.

    Args:
        on: what was worked on, where the error names no file.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TargetError(
        error.strerror or str(error),
        on=str(error.filename or on),
        hint="free some disk space (docker buildx prune, rm -r cache) and run again"
        if full
        else "mend it on this machine and run again",
    )

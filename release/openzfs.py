"""OpenZFS releases: which there are, which kernels each is for, and their source tarballs.

Releases are those that the project publishes on GitHub as ``zfs-X.Y.Z`` with the asset
``zfs-X.Y.Z.tar.gz``; the range of kernels stands in the file ``META`` of each
(``Linux-Minimum``, ``Linux-Maximum``).
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path

import semver

from release.errors import NotFoundError, ResolveError, UpstreamError
from release.github import GitHub, Release
from release.http import file_digest
from release.reference import Digest, parse_digest

_OLDEST = semver.Version(0, 8, 0)
"""From here on one tarball has all modules; before, SPL was a project of its own."""

_GIT_TAG = re.compile(r"zfs-(?P<version>\d+\.\d+\.\d+)")
_SUM = re.compile(r"\b([0-9a-f]{64})\s+\*?(\S+)")


@dataclass(frozen=True)
class Range:
    """The kernels that an OpenZFS release is for, both ends included, as in its META."""

    minimum: semver.Version
    maximum: semver.Version

    def holds(self, kernel: semver.Version) -> bool:
        """Whether ``kernel`` is in the range; only its first two numbers count, as in OpenZFS's
        own ``configure`` (config/kernel.m4, ``ZFS_AC_KERNEL_VERSION``).
        """
        series = (kernel.major, kernel.minor)
        return (
            (self.minimum.major, self.minimum.minor)
            <= series
            <= (self.maximum.major, self.maximum.minor)
        )


def parse_meta(text: str, on: str) -> Range:
    """The kernel range of a META file.

    Raises:
        UpstreamError: it names no range.
    """
    fields = dict(re.findall(r"^([\w-]+):\s*(\S+)\s*$", text, re.MULTILINE))
    try:
        return Range(
            semver.Version.parse(fields["Linux-Minimum"], optional_minor_and_patch=True),
            semver.Version.parse(fields["Linux-Maximum"], optional_minor_and_patch=True),
        )
    except (KeyError, ValueError) as error:
        raise UpstreamError("META names no range of kernels", on=on, detail=text[:300]) from error


class OpenZFS:
    """The releases of one repository, each looked at once in a run. Safe to share by threads."""

    def __init__(self, github: GitHub, sources: Path) -> None:
        self._github = github
        self._sources = sources
        self._lock = threading.Lock()
        self._stable: dict[str, Release] | None = None
        self._ranges: dict[str, Range] = {}

    def _releases(self) -> dict[str, Release]:
        """Stable releases by version, newest first."""
        with self._lock:
            if self._stable is None:
                found = {
                    match["version"]: release
                    for release in self._github.releases()
                    if (match := _GIT_TAG.fullmatch(release.git_tag))
                    and not release.draft
                    and not release.prerelease
                    and not match["version"].endswith(".99")
                    and semver.Version.parse(match["version"]) >= _OLDEST
                }
                if not found:
                    raise UpstreamError(
                        "lists no OpenZFS release", on=str(self._github), hint="run again later"
                    )
                self._stable = dict(
                    sorted(found.items(), key=lambda item: semver.Version.parse(item[0]))[::-1]
                )
            return self._stable

    def _range(self, version: str) -> Range:
        with self._lock:
            if version not in self._ranges:
                git_tag = f"zfs-{version}"
                meta = self._github.content("META", git_tag).decode(errors="replace")
                self._ranges[version] = parse_meta(meta, f"{self._github} {git_tag} META")
            return self._ranges[version]

    def choose(self, kernel: semver.Version) -> str | None:
        """The newest stable version whose range holds ``kernel``; None where none does yet.

        Raises:
            UpstreamError: the releases could not be read completely.
        """
        for version in self._releases():
            if self._range(version).holds(kernel):
                return version
        return None

    def nearest(self) -> tuple[str, Range]:
        """The newest stable version and its range, to say how far OpenZFS has come."""
        version = next(iter(self._releases()))
        return version, self._range(version)

    def tarball(self, version: str) -> Path:
        """Downloads a release's source tarball once, checked against its published digest.

        Returns:
            The directory that holds it as ``zfs.tar.gz``.

        Raises:
            ResolveError: there is no such release, or no published digest to check against.
            UpstreamError: what was downloaded does not have the published digest.
        """
        directory = self._sources / f"zfs-{version}"
        tarball = directory / "zfs.tar.gz"
        recorded = directory / "zfs.tar.gz.sha256"
        with self._lock:
            if tarball.is_file() and recorded.is_file():
                if file_digest(tarball) == recorded.read_text().strip():
                    return directory
                tarball.unlink()
            directory.mkdir(parents=True, exist_ok=True)
            release = self._release(version)
            digest = self._published_digest(release, version)
            asset = release.asset(f"zfs-{version}.tar.gz")
            assert asset
            self._github.download(asset, tarball, digest)
            recorded.write_text(f"{digest}\n")
            return directory

    def _release(self, version: str) -> Release:
        try:
            release = self._github.release(f"zfs-{version}")
        except NotFoundError:
            release = None
        if not release or not release.asset(f"zfs-{version}.tar.gz"):
            raise ResolveError(
                f"has no release zfs-{version} with a tarball",
                on=str(self._github),
                hint="correct zfs: in versions.yaml",
            )
        return release

    def _published_digest(self, release: Release, version: str) -> Digest:
        """GitHub's own digest of the asset, or the one in the release's signed sum file.

        Assets from before June 2025 have no digest in GitHub's API.
        """
        name = f"zfs-{version}.tar.gz"
        asset = release.asset(name)
        if asset and asset.digest:
            return asset.digest
        sums = release.asset(f"zfs-{version}.sha256.asc")
        if sums:
            text = self._github.read(sums).decode(errors="replace")
            for digest, file in _SUM.findall(text):
                if file == name:
                    return parse_digest(f"sha256:{digest}")
        raise ResolveError(
            "has no published digest for its tarball", on=f"{self._github} zfs-{version}"
        )

"""OpenZFS releases: which there are, which kernels each is for, and their source tarballs.

Releases are those that the project publishes on GitHub as ``zfs-X.Y.Z`` with the asset
``zfs-X.Y.Z.tar.gz``; the range of kernels stands in the file ``META`` of each. Which of them a
kernel gets is worked out in :mod:`release.solver`.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import semver

from release.errors import NotFoundError, ReleaseError, ResolveError, UpstreamError
from release.github import GitHub, Release
from release.http import file_digest
from release.reference import Digest, parse_digest
from release.solver import Chosen, Range, TooOld, Waiting, choose, parse_meta
from release.tarballs import Tarballs

_OLDEST = semver.Version(0, 8, 0)
"""From here on one tarball has all modules; before, SPL was a project of its own."""

_DEVELOPMENT = 99
"""The patch level of tags that begin the work on the next line, and are no releases."""

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_GIT_TAG = re.compile(rf"zfs-(?P<version>{_NUMBER}\.{_NUMBER}\.{_NUMBER})")
_SUM = re.compile(r"\b([0-9a-f]{64})\s+\*?(\S+)")


@dataclass(frozen=True)
class _NoRange:
    """A git tag without a META that names a range: looked, and not there."""

    reason: str


class OpenZFS:
    """The releases of one repository, each looked at once in a run. Safe to share by threads.

    A git tag's META never changes, so those that were read are kept on disk for the next run.

    Args:
        sources: the directory for what is downloaded, which may be deleted at any time.
        tarballs: the digests that tarballs had before.
    """

    def __init__(self, github: GitHub, sources: Path, tarballs: Tarballs) -> None:
        self._github = github
        self._sources = sources
        self.tarballs = tarballs
        self._metas = sources / "meta" / github.repository.replace("/", "-")
        self._lock = threading.Lock()
        self._stable: tuple[semver.Version, ...] | ReleaseError | None = None
        self._ranges: dict[semver.Version, Range | _NoRange | UpstreamError] = {}
        self._new: dict[Path, bytes] = {}

    def versions(self) -> tuple[semver.Version, ...]:
        """Those of the stable releases, newest first; candidates and ``X.Y.99`` are none.

        Raises:
            UpstreamError: the releases could not be read completely.
            NotFoundError: there is no such repository.
        """
        with self._lock:
            if self._stable is None:
                try:
                    self._stable = self._list()
                except (UpstreamError, NotFoundError) as error:
                    # With all its retries, looking takes long enough to do it once.
                    self._stable = error
            if isinstance(self._stable, ReleaseError):
                raise self._stable
            return self._stable

    def _list(self) -> tuple[semver.Version, ...]:
        found = {
            semver.Version.parse(match["version"])
            for release in self._github.releases()
            if (match := _GIT_TAG.fullmatch(release.git_tag))
            and not release.draft
            and not release.prerelease
        }
        stable = [one for one in found if one >= _OLDEST and one.patch != _DEVELOPMENT]
        if not stable:
            raise UpstreamError(
                "lists no OpenZFS release", on=str(self._github), hint="run again later"
            )
        return tuple(sorted(stable, reverse=True))

    def read(self, version: semver.Version) -> Range | None:
        """The kernels that a version is for; None where its git tag has no META that says so.

        Raises:
            UpstreamError: it could not be looked up.
        """
        with self._lock:
            if version not in self._ranges:
                self._ranges[version] = self._look_up(version)
            found = self._ranges[version]
        if isinstance(found, UpstreamError):
            raise found
        return found if isinstance(found, Range) else None

    def _look_up(self, version: semver.Version) -> Range | _NoRange | UpstreamError:
        git_tag = f"zfs-{version}"
        file = self._metas / git_tag
        on = f"{self._github} {git_tag} META"
        if file.is_file():
            try:
                return parse_meta(file.read_text(errors="replace"), on)
            except UpstreamError:
                file.unlink()
        try:
            meta = self._github.content("META", git_tag)
        except NotFoundError:
            return _NoRange(f"{on}: is not there")
        except UpstreamError as error:
            return error
        try:
            found = parse_meta(meta.decode(errors="replace"), on)
        except UpstreamError as error:
            return _NoRange(error.summary)
        self._new[file] = meta
        return found

    def keep(self) -> None:
        """Writes what was read to disk, for the next run to ask less."""
        with self._lock:
            for file, meta in self._new.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_name(f".{file.name}.{os.getpid()}.part")
                part.write_bytes(meta)
                part.replace(file)
            self._new.clear()

    @property
    def warnings(self) -> list[str]:
        """The releases that cannot be chosen, each with the reason."""
        with self._lock:
            found = dict(self._ranges)
        return [
            f"{what.reason}; ZFS {version} is only for those who pin it"
            for version, what in found.items()
            if isinstance(what, _NoRange)
        ]

    def choose(self, kernel: semver.Version) -> Chosen | Waiting | TooOld:
        """The newest stable version whose range holds ``kernel``, or why there is none.

        Raises:
            UpstreamError: the releases could not be read completely.
        """
        return choose(kernel, self.versions(), self.read)

    def tarball(self, version: str) -> Path:
        """Downloads a release's source tarball once, checked against its published digest, and
        against the one that it had when it was first used.

        Returns:
            The directory that holds it as ``zfs.tar.gz``.

        Raises:
            ResolveError: there is no such release, no published digest to check against, or the
                tarball is another one than before.
            UpstreamError: what was downloaded does not have the published digest.
        """
        directory = self._sources / f"zfs-{version}"
        tarball = directory / "zfs.tar.gz"
        recorded = directory / "zfs.tar.gz.sha256"
        on = f"{self._github} zfs-{version}"
        with self._lock:
            if tarball.is_file() and recorded.is_file():
                digest = file_digest(tarball)
                if digest == recorded.read_text().strip():
                    self.tarballs.record(version, digest, on)
                    return directory
                tarball.unlink()
            directory.mkdir(parents=True, exist_ok=True)
            release = self._release(version)
            digest = self._published_digest(release, version)
            self.tarballs.check(version, digest, on)
            asset = release.asset(f"zfs-{version}.tar.gz")
            assert asset
            self._github.download(asset, tarball, digest)
            recorded.write_text(f"{digest}\n")
            self.tarballs.record(version, digest, on)
            return directory

    def package_url(self, version: str) -> str:
        """The package URL (package-url/purl-spec) of a tarball, with its recorded digest."""
        digest = self.tarballs.known(version)
        checksum = f"?checksum={digest}" if digest else ""
        return f"pkg:github/{self._github.repository}@zfs-{version}{checksum}"

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

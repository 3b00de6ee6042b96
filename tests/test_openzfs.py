"""Which OpenZFS release is for a kernel, and how its tarball is fetched and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import semver

from release.errors import NotFoundError, ResolveError, UpstreamError
from release.github import GitHub
from release.http import Http
from release.openzfs import OpenZFS, parse_meta
from tests.lab.github import GitHub as GitHubServer
from tests.lab.github import Repository
from tests.lab.server import Response

TARBALL = b"the sources of OpenZFS" * 1000
META = "Meta:          1\nName:          zfs\nLinux-Maximum: {}\nLinux-Minimum: {}\n"
RELEASES = {
    "2.0.7": ("5.15", "3.10"),
    "2.1.5": ("5.18", "3.10"),
    "2.1.16": ("6.7", "3.10"),
    "2.2.9": ("6.17", "4.18"),
    "2.3.0": ("6.12", "4.18"),
}


@pytest.fixture
def github() -> Iterator[GitHubServer]:
    with GitHubServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def repository(github: GitHubServer) -> Repository:
    """OpenZFS's repository, with releases in no order, and with what is no release for anybody."""
    repository = github.add(Repository("openzfs", "zfs"))
    for version, (maximum, minimum) in RELEASES.items():
        repository.add_release(f"zfs-{version}", {f"zfs-{version}.tar.gz": TARBALL})
        repository.contents[f"zfs-{version}", "META"] = META.format(maximum, minimum).encode()
    repository.add_release("zfs-2.4.0-rc1", prerelease=True)
    repository.add_release("zfs-2.5.0", prerelease=True)
    repository.add_release("zfs-2.4.99")
    repository.add_release("zfs-2.6.0", draft=True)
    repository.add_release("zfs-macos-2.2.2")
    return repository


@pytest.fixture
def openzfs(github: GitHubServer, tmp_path: Path) -> OpenZFS:
    return OpenZFS(GitHub(Http(), github.url, "openzfs/zfs", None), tmp_path)


def choose(openzfs: OpenZFS, kernel: str) -> str | None:
    return openzfs.choose(semver.Version.parse(kernel))


@pytest.mark.parametrize(
    ("kernel", "inside"),
    [
        *(("3.9.99", False), ("3.10.0", True), ("4.19.76", True)),
        *(("5.18.0", True), ("5.18.19", True), ("5.19.0", False), ("6.1.0", False)),
    ],
)
def test_both_ends_of_a_range_are_in_it_whatever_the_patch_level(kernel: str, inside: bool) -> None:
    kernels = parse_meta(META.format("5.18", "3.10"), "META")
    assert kernels.holds(semver.Version.parse(kernel)) == inside


@pytest.mark.parametrize(
    "text", ["", "Linux-Maximum: 6.2\n", META.format("six", "3.10"), "<!DOCTYPE html>"]
)
def test_a_meta_without_a_range(text: str) -> None:
    with pytest.raises(UpstreamError, match="META names no range") as caught:
        parse_meta(text, "openzfs/zfs zfs-2.1.5 META")
    assert "zfs-2.1.5" in caught.value.on


@pytest.mark.parametrize(
    ("kernel", "version"),
    [
        *(("6.12.5", "2.3.0"), ("6.13.0", "2.2.9"), ("4.19.76", "2.3.0")),
        *(("4.14.0", "2.1.16"), ("6.18.0", None), ("3.2.0", None)),
    ],
)
@pytest.mark.usefixtures("repository")
def test_the_newest_stable_release_that_holds_the_kernel(
    openzfs: OpenZFS, kernel: str, version: str | None
) -> None:
    assert choose(openzfs, kernel) == version
    newest, kernels = openzfs.nearest()
    assert (newest, str(kernels.maximum)) == ("2.3.0", "6.12.0")


@pytest.mark.usefixtures("repository")
def test_releases_and_ranges_are_read_once(openzfs: OpenZFS, github: GitHubServer) -> None:
    for kernel in ("6.12.0", "6.12.1", "6.17.0", "6.17.1"):
        choose(openzfs, kernel)
    assert [request.path.partition("/zfs/")[2] for request in github.requests] == [
        "releases",
        *("contents/META", "contents/META"),
    ]


def test_a_meta_that_cannot_be_read_is_not_passed_over(
    openzfs: OpenZFS, repository: Repository
) -> None:
    del repository.contents["zfs-2.3.0", "META"]
    with pytest.raises(NotFoundError, match="META"):
        choose(openzfs, "4.19.0")
    repository.contents["zfs-2.3.0", "META"] = b"Version: 2.3.0\n"
    with pytest.raises(UpstreamError, match=r"zfs-2\.3\.0 META"):
        choose(openzfs, "4.19.0")


@pytest.mark.parametrize("answer", [b"[]", b"{}", b"<html>", b'[{"id": 1}]'])
@pytest.mark.usefixtures("repository")
def test_a_list_of_releases_that_is_none(
    openzfs: OpenZFS, github: GitHubServer, answer: bytes
) -> None:
    github.fail("/releases", Response(200, {}, answer))
    with pytest.raises(UpstreamError):
        choose(openzfs, "6.1.0")
    assert choose(openzfs, "6.1.0") == "2.3.0"


@pytest.mark.usefixtures("repository")
def test_the_tarball_is_downloaded_once(openzfs: OpenZFS, github: GitHubServer) -> None:
    directory = openzfs.tarball("2.1.5")
    assert (directory / "zfs.tar.gz").read_bytes() == TARBALL
    asked = github.count()
    assert openzfs.tarball("2.1.5") == directory
    assert github.count() == asked


@pytest.mark.usefixtures("repository")
def test_a_cached_tarball_that_changed_is_downloaded_again(openzfs: OpenZFS) -> None:
    tarball = openzfs.tarball("2.1.5") / "zfs.tar.gz"
    tarball.write_bytes(b"changed")
    openzfs.tarball("2.1.5")
    assert tarball.read_bytes() == TARBALL


def with_old_assets(
    repository: Repository, sums: bytes | None, *, tarball: bytes = TARBALL
) -> None:
    """Makes 2.1.5 a release from before GitHub recorded digests."""
    release = repository.published("zfs-2.1.5")
    assert release
    release.put_asset("zfs-2.1.5.tar.gz", tarball)
    release.assets[0].digest = None
    if sums is not None:
        release.put_asset("zfs-2.1.5.sha256.asc", sums)


SUMS = f"""\
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

{"0" * 64}  zfs-2.1.5-kmod.tar.gz
{hashlib.sha256(TARBALL).hexdigest()}  zfs-2.1.5.tar.gz
-----BEGIN PGP SIGNATURE-----
""".encode()


def test_an_old_release_is_checked_by_its_signed_sums(
    openzfs: OpenZFS, repository: Repository
) -> None:
    with_old_assets(repository, SUMS)
    assert (openzfs.tarball("2.1.5") / "zfs.tar.gz").read_bytes() == TARBALL


@pytest.mark.parametrize("sums", [None, b"", b"no sums\n", SUMS.replace(b"-2.1.5.", b"-2.1.4.")])
def test_without_a_published_digest_nothing_is_downloaded(
    openzfs: OpenZFS, repository: Repository, sums: bytes | None
) -> None:
    with_old_assets(repository, sums)
    with pytest.raises(ResolveError, match="no published digest"):
        openzfs.tarball("2.1.5")
    assert repository.releases[1].assets[0].downloads == 0


def test_a_tarball_with_another_digest_is_refused_and_removed(
    openzfs: OpenZFS, repository: Repository, tmp_path: Path
) -> None:
    with_old_assets(repository, SUMS, tarball=b"something else")
    with pytest.raises(UpstreamError, match="other bytes than the digest names"):
        openzfs.tarball("2.1.5")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("version", ["2.1.6", "2.6.0"])
def test_a_version_that_is_not_released(
    openzfs: OpenZFS, repository: Repository, version: str
) -> None:
    repository.releases[-2].put_asset("zfs-2.6.0.tar.gz", TARBALL)
    with pytest.raises(ResolveError, match=f"no release zfs-{version}"):
        openzfs.tarball(version)

"""Which OpenZFS release is for a kernel, and how its tarball is fetched and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import semver

from release.errors import ConfigurationError, ResolveError, UpstreamError
from release.github import GitHub
from release.http import Http
from release.openzfs import OpenZFS
from release.tarballs import Tarballs
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
    return client(github, tmp_path)


def client(github: GitHubServer, directory: Path) -> OpenZFS:
    tarballs = Tarballs(directory / "openzfs.yaml")
    return OpenZFS(GitHub(Http(), github.url, "openzfs/zfs", None), directory, tarballs)


def choose(openzfs: OpenZFS, kernel: str) -> str:
    return str(openzfs.choose(semver.Version.parse(kernel)))


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        *(("6.12.5", "2.3.0"), ("6.13.0", "2.2.9"), ("4.19.76", "2.3.0"), ("4.14.0", "2.1.16")),
        ("6.18.0", "waiting: nearest 2.2.9 up to 6.17"),
        ("3.2.0", "none: 2.1.16 begins with 3.10"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_the_newest_stable_release_that_holds_the_kernel(
    openzfs: OpenZFS, kernel: str, says: str
) -> None:
    assert choose(openzfs, kernel) == says


def asked(github: GitHubServer) -> list[str]:
    """What was asked of OpenZFS's repository, METAs by their git tag."""
    return [
        request.query.removeprefix("ref=")
        if request.path.endswith("/META")
        else request.path.partition("/zfs/")[2]
        for request in github.requests
    ]


@pytest.mark.usefixtures("repository")
def test_releases_and_ranges_are_read_once_and_only_as_far_as_they_matter(
    openzfs: OpenZFS, github: GitHubServer
) -> None:
    for kernel in ("6.12.0", "6.12.1", "6.17.0", "6.17.1"):
        choose(openzfs, kernel)
    assert asked(github) == ["releases", "zfs-2.3.0", "zfs-2.2.9"]


@pytest.mark.usefixtures("repository")
def test_what_was_read_is_not_asked_again_by_the_next_run(
    github: GitHubServer, tmp_path: Path
) -> None:
    metas = [f"zfs-{version}" for version in ("2.3.0", "2.2.9", "2.1.16", "2.0.7")]
    for expected in (["releases", *metas], ["releases"]):
        github.requests.clear()
        openzfs = client(github, tmp_path)
        assert choose(openzfs, "6.18.0") == "waiting: nearest 2.2.9 up to 6.17"
        assert asked(github) == expected
        openzfs.keep()


@pytest.mark.usefixtures("repository")
def test_nothing_is_written_before_it_is_kept(openzfs: OpenZFS, tmp_path: Path) -> None:
    choose(openzfs, "6.12.0")
    assert list(tmp_path.iterdir()) == []
    openzfs.keep()
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert str(kept.relative_to(tmp_path)) == "meta/openzfs-zfs/zfs-2.3.0"


@pytest.mark.parametrize("content", [b"", b"Version: 2.3.0\n", b"\xff\0"])
@pytest.mark.usefixtures("repository")
def test_a_kept_meta_that_broke_is_read_again(
    openzfs: OpenZFS, github: GitHubServer, tmp_path: Path, content: bytes
) -> None:
    kept = tmp_path / "meta" / "openzfs-zfs" / "zfs-2.3.0"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    assert choose(openzfs, "6.12.0") == "2.3.0"
    assert asked(github) == ["releases", "zfs-2.3.0"]
    openzfs.keep()
    assert kept.read_bytes() != content


@pytest.mark.parametrize("content", [None, b"", b"Version: 2.3.0\n", b"Linux-Maximum: new\n"])
def test_a_release_whose_meta_is_missing_is_passed_over_with_a_warning(
    openzfs: OpenZFS, repository: Repository, content: bytes | None
) -> None:
    if content is None:
        del repository.contents["zfs-2.3.0", "META"]
    else:
        repository.contents["zfs-2.3.0", "META"] = content
    assert choose(openzfs, "4.19.0") == "2.2.9"
    (warning,) = openzfs.warnings
    assert "openzfs/zfs zfs-2.3.0 META" in warning
    assert warning.endswith("; ZFS 2.3.0 is only for those who pin it")


@pytest.mark.parametrize("answer", [Response(403), Response(200, {}, b"<html>"), Response(200)])
@pytest.mark.usefixtures("repository")
def test_a_meta_that_could_not_be_looked_at_is_not_passed_over(
    openzfs: OpenZFS, github: GitHubServer, answer: Response
) -> None:
    github.fail("META", answer)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            choose(openzfs, "4.19.0")
    assert openzfs.warnings == []
    assert len(asked(github)) == 2, "what failed is not asked again in the same run"


def test_tags_that_are_no_versions(openzfs: OpenZFS, repository: Repository) -> None:
    for git_tag in ("zfs-9.01.1", "zfs-9.1", "zfs-9.1.1.1", "zfs-9.1.1-1.1", "zfs-0.7.13", "9.1.1"):
        repository.add_release(git_tag)
    newest_first = sorted(map(semver.Version.parse, RELEASES), reverse=True)
    assert list(openzfs.versions()) == newest_first


@pytest.mark.parametrize("answer", [b"[]", b"{}", b"<html>", b'[{"id": 1}]'])
@pytest.mark.usefixtures("repository")
def test_a_list_of_releases_that_is_none(
    openzfs: OpenZFS, github: GitHubServer, answer: bytes
) -> None:
    github.fail("/releases", Response(200, {}, answer))
    for _ in range(2):
        with pytest.raises(UpstreamError):
            choose(openzfs, "6.1.0")
    assert len(asked(github)) == 1, "what failed is not asked again in the same run"


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


# The digests of tarballs

RECORDED = f"""\
  - version: 2.1.5
    digest: sha256:{hashlib.sha256(TARBALL).hexdigest()}
"""


@pytest.mark.usefixtures("repository")
def test_a_tarball_s_digest_is_recorded_once_and_nothing_above_is_touched(
    github: GitHubServer, tmp_path: Path
) -> None:
    file = tmp_path / "openzfs.yaml"
    client(github, tmp_path).tarball("2.1.5")
    written = file.read_text()
    assert written.startswith("# The digests of OpenZFS's source tarballs")
    assert written.endswith(f"tarballs:\n{RECORDED}")
    file.write_text(f"# mine\n{written}")
    again = client(github, tmp_path)
    again.tarball("2.1.5")
    assert file.read_text() == f"# mine\n{written}"
    again.tarball("2.3.0")
    assert file.read_text() == f"# mine\n{written}" + RECORDED.replace("2.1.5", "2.3.0")


@pytest.mark.parametrize("cached", [False, True])
def test_a_tarball_that_was_replaced_upstream_stops_that_version_alone(
    github: GitHubServer, repository: Repository, tmp_path: Path, cached: bool
) -> None:
    """Also where upstream's digest fits it; and one that is cached here is no better."""
    file = tmp_path / "openzfs.yaml"
    other = "sha256:" + "b" * 64
    if cached:
        client(github, tmp_path).tarball("2.1.5")
        file.write_text(file.read_text().replace(RECORDED[-65:-1], other[7:]))
        expected, found = other, f"sha256:{hashlib.sha256(TARBALL).hexdigest()}"
    else:
        file.write_text(f"tarballs:\n{RECORDED}")
        release = repository.published("zfs-2.1.5")
        assert release
        release.put_asset("zfs-2.1.5.tar.gz", b"replaced")
        expected, found = RECORDED.split()[-1], f"sha256:{hashlib.sha256(b'replaced').hexdigest()}"
    before = file.read_bytes()
    openzfs = client(github, tmp_path)
    with pytest.raises(ResolveError, match="another one than before") as caught:
        openzfs.tarball("2.1.5")
    assert caught.value.detail == f"recorded {expected}\nfound    {found}"
    assert "remove its entry from openzfs.yaml" in caught.value.hint
    assert file.read_bytes() == before
    openzfs.tarball("2.3.0")
    file.write_text("tarballs: []\n")
    client(github, tmp_path).tarball("2.1.5")
    assert found in file.read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"tarballs:\n{RECORDED}{RECORDED}", "line 4: ZFS 2.1.5 is there twice"),
        ("tarballs:\n  - version: 2.1.5\n    digest: x\n", "line 3: 'x' is not a digest"),
        ("tarballs:\n  - version: ../x\n    digest: x\n", "line 2: '../x' is not an OpenZFS"),
        ("tarball: []\n", "unknown key 'tarball'"),
        ("", "is empty"),
    ],
)
def test_digests_that_make_no_sense(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "openzfs.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        Tarballs(file)

"""GitHub releases: what one that is published already keeps, and what a draft loses."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from release import publish
from release.attest import provenance_name, sbom_name
from release.build import Built
from release.github import GitHub, Release
from release.http import Http, bytes_digest
from release.layout import Layout
from release.plan import SUMS, asset_name, git_tag, old_asset_name
from release.publish import Pushed
from release.reference import Platform, Reference, parse_digest
from release.registry import OCI_MANIFEST, Document
from release.versions import Entry
from tests.lab.github import GitHub as Server
from tests.lab.github import Repository

AMD64 = Platform("linux/amd64")
DIGEST = parse_digest("sha256:" + "a" * 64)
ENTRY = Entry(Reference.parse("linuxkit/kernel:5.4.39"), DIGEST, zfs="2.1.5")
NEW, OLD = asset_name(ENTRY.slug, AMD64), old_asset_name(ENTRY.slug, AMD64)


class OneImage(Built):
    """A module image of no files."""

    @property
    def digest(self) -> Any:
        return DIGEST


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.add(Repository("me", "zfs"))
        server.add_token("writer", push=["me/zfs"])
        yield server
        assert server.violations == []


def publish_release(server: Server, directory: Path, *, attested: bool = False) -> Release:
    labels = dict.fromkeys(("install-zfs.kernel-release", "install-zfs.kernel-banner"), "x")
    labels["install-zfs.kernel-image"] = labels["install-zfs.builder-image"] = "linuxkit/x:1"
    built = [OneImage(AMD64, Layout(directory), MappingProxyType(labels), directory)]
    pushed = Pushed(Document(DIGEST, OCI_MANIFEST, b"{}"), None)
    tar = directory / "a.tar"
    tar.write_bytes(b"an image" * 1000)
    publish.compress(tar, directory / NEW)
    client = GitHub(Http(), server.url, "me/zfs", "writer")
    assets = [directory / NEW]
    image = Reference.parse("me/zfs")
    if attested:
        assets += publish.attest_asset(image, built[0], assets[0])
    return publish.publish_release(client, ENTRY, image, built, pushed, assets, directory)


def test_an_asset_is_xz_with_a_check_that_busybox_knows(tmp_path: Path) -> None:
    tar, asset = tmp_path / "a.tar", tmp_path / "a.tar.xz"
    tar.write_bytes(b"an image" * 1000)
    publish.compress(tar, asset)
    decompressor = lzma.LZMADecompressor()
    assert decompressor.decompress(asset.read_bytes()) == tar.read_bytes()
    assert decompressor.check == lzma.CHECK_CRC32


def test_a_new_release_has_the_new_names(server: Server, tmp_path: Path) -> None:
    release = publish_release(server, tmp_path)
    assert {asset.name for asset in release.assets} == {NEW, SUMS}


def test_a_published_release_keeps_the_assets_that_it_has(server: Server, tmp_path: Path) -> None:
    sums = f"{'b' * 64}  {OLD}\n"
    (repository,) = (one for one in server.repositories.values() if one.name == "zfs")
    repository.add_release(git_tag(ENTRY.slug, "2.1.5"), {OLD: b"zstd", SUMS: sums.encode()})
    release = publish_release(server, tmp_path)
    assert {asset.name for asset in release.assets} == {OLD, SUMS}


ATTESTATIONS = {sbom_name(NEW), provenance_name(NEW)}


def test_a_new_release_is_attested_and_its_sums_list_that(server: Server, tmp_path: Path) -> None:
    release = publish_release(server, tmp_path, attested=True)
    assert {asset.name for asset in release.assets} == {NEW, SUMS, *ATTESTATIONS}
    listed = (tmp_path / SUMS).read_text().splitlines()
    assert {line.split("  ")[1] for line in listed} == {NEW, *ATTESTATIONS}


@pytest.mark.parametrize("immutable", [False, True])
def test_a_published_release_gets_what_attests_it_where_it_takes_more(
    server: Server, tmp_path: Path, immutable: bool
) -> None:
    before = publish_release(server, tmp_path)
    (repository,) = (one for one in server.repositories.values() if one.name == "zfs")
    repository.releases[0].immutable = immutable
    after = publish_release(server, tmp_path, attested=True)
    added = {asset.name for asset in after.assets} - {asset.name for asset in before.assets}
    assert added == (set() if immutable else ATTESTATIONS)
    assert after.id == before.id


def test_what_attests_a_published_release_stays_as_it_is(server: Server, tmp_path: Path) -> None:
    publish_release(server, tmp_path, attested=True)
    (repository,) = (one for one in server.repositories.values() if one.name == "zfs")
    mine = b"from an earlier version of the pipeline"
    repository.releases[0].body = "which left no receipt"
    repository.releases[0].put_asset(sbom_name(NEW), mine)
    # Where a receipt says what was published, another content is a damage.
    repository.releases[0].body = ""
    release = publish_release(server, tmp_path, attested=True)
    asset = release.asset(sbom_name(NEW))
    assert asset
    assert asset.digest == bytes_digest(mine)


def test_a_tar_under_its_old_name_is_not_said_to_be_another(server: Server, tmp_path: Path) -> None:
    sums = f"{hashlib.sha256(b'zstd').hexdigest()}  {OLD}\n"
    (repository,) = (one for one in server.repositories.values() if one.name == "zfs")
    repository.add_release(git_tag(ENTRY.slug, "2.1.5"), {OLD: b"zstd", SUMS: sums.encode()})
    release = publish_release(server, tmp_path, attested=True)
    assert {asset.name for asset in release.assets} == {OLD, SUMS}

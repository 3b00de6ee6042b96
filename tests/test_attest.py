"""SBOMs and provenance: what they say, how they are attached, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from release import publish
from release.attest import PROVENANCE, SPDX, Origin, Subject, attached, attest, beside
from release.build import Built
from release.errors import PublishError, UpstreamError
from release.github import GitHub
from release.http import Http, bytes_digest
from release.layout import Layout
from release.plan import SUMS
from release.reference import Digest, Platform, Reference, parse_digest
from release.registry import OCI_INDEX, OCI_MANIFEST, Registry
from release.resolve import Kernel
from release.verify import verify_image, verify_sums
from tests.lab.github import GitHub as Server
from tests.lab.github import Repository
from tests.lab.module_images import AMD64, ARM64, LAYER, LOADER, layer, userland
from tests.lab.small_registry import SmallRegistry
from tests.test_layout import put

KERNEL, BUILDER, TARBALL = ("sha256:" + digit * 64 for digit in "abc")
LABELS = {
    "install-zfs.builder-digest": BUILDER,
    "install-zfs.builder-image": "docker.io/linuxkit/alpine:2be49039",
    "install-zfs.kernel-banner": "Linux version 5.15.49-linuxkit (root@buildkitsandbox) #1 SMP",
    "install-zfs.kernel-digest": KERNEL,
    "install-zfs.kernel-image": "docker.io/docker/for-desktop-kernel:5.15.49-1342",
    "install-zfs.kernel-release": "5.15.49-linuxkit",
    "install-zfs.openzfs-tarball": f"pkg:github/openzfs/zfs@zfs-2.1.5?checksum={TARBALL}",
    "install-zfs.zfs-version": "2.1.5",
    "org.opencontainers.image.created": "2022-07-13T11:41:01+00:00",
    "org.opencontainers.image.revision": "1" * 40,
    "org.opencontainers.image.source": "https://github.com/me/install-zfs",
}
ORIGIN = Origin(Reference.parse("me/zfs"), AMD64, Digest("sha256:" + "d" * 64), LABELS)
SLUG = "docker-for-desktop-kernel-5.15.49-1342"


def predicates(blobs: tuple[bytes, ...]) -> dict[str, Any]:
    statements = [json.loads(blob) for blob in blobs[1:]]
    assert all(
        one["_type"] == "https://in-toto.io/Statement/v1"
        and one["subject"] == [{"name": "docker.io/me/zfs", "digest": {"sha256": "d" * 64}}]
        for one in statements
    )
    return {one["predicateType"]: one["predicate"] for one in statements}


def test_the_sbom_is_valid_and_names_all_that_went_in() -> None:
    sbom = predicates(attest(ORIGIN.made).blobs)[SPDX]
    document = JsonLikeDictParser().parse(sbom)
    assert validate_full_spdx_document(document) == []
    found = {
        package["name"]: (package.get("versionInfo"), checksum["checksumValue"])
        for package in sbom["packages"]
        for checksum in package.get("checksums", [{"checksumValue": ""}])
    }
    assert found == {
        "docker.io/me/zfs": ("2.1.5", "d" * 64),
        "OpenZFS": ("2.1.5", "c" * 64),
        "docker.io/docker/for-desktop-kernel:5.15.49-1342": ("5.15.49-1342", "a" * 64),
        "docker.io/linuxkit/alpine:2be49039": ("2be49039", "b" * 64),
        "install-zfs": ("1" * 40, ""),
    }
    assert sbom["creationInfo"]["created"] == "2022-07-13T11:41:01Z", "the kernel's, not now"


def test_the_provenance_names_each_digest_and_our_commit() -> None:
    about = predicates(attest(ORIGIN.made).blobs)[PROVENANCE]
    definition = about["buildDefinition"]
    assert definition["externalParameters"] == {
        "kernelImage": "docker.io/docker/for-desktop-kernel:5.15.49-1342",
        "platform": "linux/amd64",
        "zfsVersion": "2.1.5",
    }
    assert definition["internalParameters"]["SOURCE_DATE_EPOCH"] == 1657712461
    assert [one["digest"] for one in definition["resolvedDependencies"]] == [
        {"sha256": "a" * 64},
        {"sha256": "b" * 64},
        {"sha256": "c" * 64},
        {"gitCommit": "1" * 40},
    ]
    assert about["runDetails"]["builder"]["id"] == "https://github.com/me/install-zfs"
    assert not {"metadata", "startedOn"} & set(about["runDetails"]), "no times"


def test_the_same_image_is_attested_by_the_same_bytes_in_another_process() -> None:
    code = (
        "from tests.test_attest import ORIGIN, attest; print(attest(ORIGIN.made).manifest.digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )
    assert done.stdout.strip() == attest(ORIGIN.made).manifest.digest


def test_an_image_from_before_some_labels_is_attested_by_what_it_says() -> None:
    old = {name: text for name, text in LABELS.items() if "tarball" not in name}
    del old["install-zfs.builder-digest"]
    made = predicates(attest(replace(ORIGIN, labels=old).made).blobs)
    digests = [
        one.get("digest") for one in made[PROVENANCE]["buildDefinition"]["resolvedDependencies"]
    ]
    assert digests == [{"sha256": "a" * 64}, None, {"gitCommit": "1" * 40}]
    assert validate_full_spdx_document(JsonLikeDictParser().parse(made[SPDX])) == []


def test_it_is_stored_as_buildkit_stores_it() -> None:
    made = attest(ORIGIN.made)
    assert made.descriptor == {
        "mediaType": OCI_MANIFEST,
        "digest": made.manifest.digest,
        "size": len(made.manifest.raw),
        "annotations": {
            "vnd.docker.reference.digest": ORIGIN.manifest,
            "vnd.docker.reference.type": "attestation-manifest",
        },
        "platform": {"architecture": "unknown", "os": "unknown"},
    }
    content = made.manifest.content
    assert [
        (one["mediaType"], one["annotations"]["in-toto.io/predicate-type"], one["digest"])
        for one in content["layers"]
    ] == [
        ("application/vnd.in-toto+json", kind, bytes_digest(blob))
        for kind, blob in zip((SPDX, PROVENANCE), made.blobs[1:], strict=True)
    ]
    assert content["config"]["digest"] == bytes_digest(made.blobs[0])


def test_a_run_with_nothing_to_do_does_not_load_spdx() -> None:
    code = "import sys, release.cli; print([name for name in sys.modules if 'spdx' in name])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


# Published


def module_image(directory: Path, platform: Platform, *, with_userland: bool = False) -> Built:
    """A module image of a few bytes, as a build leaves it."""
    labels = {**LABELS, "install-zfs.kernel-digest": KERNEL if platform == AMD64 else BUILDER}
    layers = [LOADER, *([userland("2.1.5")] if with_userland else []), layer({"kernels/x/a": b"x"})]
    config = {
        "architecture": platform.split("/")[1],
        "os": "linux",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": put(directory, json.dumps(config).encode()),
        "layers": [{**put(directory, blob), "mediaType": LAYER} for blob, _ in layers],
    }
    index = {"manifests": [put(directory, json.dumps(manifest).encode())]}
    (directory / "index.json").write_text(json.dumps(index))
    return Built(platform, Layout(directory), MappingProxyType(labels), None)


def kernel(*platforms: Platform) -> Kernel:
    digests = {one: parse_digest(KERNEL if one == AMD64 else BUILDER) for one in platforms}
    image = Reference.parse("docker/for-desktop-kernel:5.15.49-1342")
    return Kernel(image, parse_digest(KERNEL), digests, datetime(2022, 7, 13, tzinfo=UTC), {})


@pytest.fixture
def server() -> Iterator[SmallRegistry]:
    with SmallRegistry() as server:
        yield server
        assert server.violations == []


def image_in(server: SmallRegistry) -> Reference:
    return Reference.parse(f"{server.host}/me/zfs")


def test_the_tag_points_to_the_tested_manifest_and_its_attestation(
    server: SmallRegistry, tmp_path: Path
) -> None:
    registry, image = Registry(Http(), {}), image_in(server)
    one = module_image(tmp_path, AMD64, with_userland=True)
    document = publish.push(registry, image, SLUG, kernel(AMD64), [one]).image
    for tag in (SLUG, f"{SLUG}-modules"):
        found = registry.get(image.with_tag(tag))
        assert found.media_type == OCI_INDEX
        platforms = registry.platforms(image, found)
        assert list(platforms) == [AMD64], "an attestation is no platform"
        assert set(attached(found)) == set(platforms.values())
        assert found.content["manifests"][0]["platform"]["architecture"] == "amd64"
    assert registry.head(image.with_tag(SLUG)) == document.digest
    assert registry.platforms(image, document) == {AMD64: one.digest}, "rule: what was tested"
    assert publish.published(registry, image.with_tag(SLUG), kernel(AMD64)) == {
        AMD64: one.layout.manifest
    }
    before = dict(server.manifests["me/zfs"])
    publish.push(registry, image, SLUG, kernel(AMD64), [one])
    assert server.manifests["me/zfs"] == before, "again, the same"


def test_another_machine_s_platform_keeps_its_attestation(
    server: SmallRegistry, tmp_path: Path
) -> None:
    registry, image, both = Registry(Http(), {}), image_in(server), kernel(AMD64, ARM64)
    first = module_image(tmp_path / "amd64", AMD64)
    publish.push(registry, image, SLUG, both, [first])
    second = module_image(tmp_path / "arm64", ARM64)
    document = publish.push(registry, image, SLUG, both, [second]).image
    assert registry.platforms(image, document) == {AMD64: first.digest, ARM64: second.digest}
    assert set(attached(document)) == {first.digest, second.digest}
    kinds = [one["platform"]["os"] for one in document.content["manifests"]]
    assert kinds == ["linux", "linux", "unknown", "unknown"]


def test_a_tag_from_before_there_were_attestations_gets_one(
    server: SmallRegistry, tmp_path: Path
) -> None:
    registry, image = Registry(Http(), {}), image_in(server)
    one = module_image(tmp_path, AMD64)
    for digest, blob in one.layout.blobs():
        registry.upload(image, digest, blob)
    registry.put(image.with_tag(SLUG), one.layout.manifest)
    there = publish.published(registry, image.with_tag(SLUG), kernel(AMD64))
    fetched = publish.fetch(registry, image, there[AMD64], tmp_path / "fetched")
    document = publish.push(
        registry, image, SLUG, kernel(AMD64), [Built(AMD64, fetched, fetched.labels(), None)]
    ).image
    assert registry.platforms(image, document) == {AMD64: one.digest}


def test_an_engine_s_layout_with_an_index_in_it_has_one_image(tmp_path: Path) -> None:
    one = module_image(tmp_path, AMD64)
    made = attest(replace(ORIGIN, manifest=one.digest).made)
    document = publish.index({AMD64: one.layout.manifest}, {one.digest: made.descriptor})
    outer = {**put(tmp_path, document.raw), "mediaType": OCI_INDEX}
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [outer]}))
    assert Layout(tmp_path).manifest.digest == one.digest


# Tampered with


def tamper_tag(server: SmallRegistry, one: Built) -> None:
    server.put("me/zfs", SLUG, {"mediaType": OCI_INDEX, "manifests": []}, OCI_INDEX)
    assert one


def tamper_statement(server: SmallRegistry, one: Built) -> None:
    """The same names, another content, which its digest does not fit."""
    for digest, blob in server.blobs.items():
        if blob.startswith(b'{"_type"'):
            server.blobs[digest] = blob.replace(one.digest[7:].encode(), b"e" * 64)


@pytest.mark.parametrize(
    ("tamper", "says"),
    [(tamper_tag, "is not what was pushed"), (tamper_statement, "other bytes than the digest")],
)
def test_a_tampered_image_is_refused(
    server: SmallRegistry, tmp_path: Path, tamper: Any, says: str
) -> None:
    registry, image = Registry(Http(), {}), image_in(server)
    one = module_image(tmp_path, AMD64)
    document = publish.push(registry, image, SLUG, kernel(AMD64), [one]).image
    reference = image.with_tag(SLUG)
    verify_image(registry, reference, document, {AMD64: one.digest})
    tamper(server, one)
    with pytest.raises((PublishError, UpstreamError), match=says):
        verify_image(registry, reference, document, {AMD64: one.digest})


@pytest.mark.parametrize("what", ["another image", "another subject", "no attestation", "no sbom"])
def test_an_index_that_is_about_something_else_is_refused(
    server: SmallRegistry, tmp_path: Path, what: str
) -> None:
    """Well-formed, and pushed by somebody who may."""
    registry, image = Registry(Http(), {}), image_in(server)
    one = module_image(tmp_path, AMD64)
    manifest = one.layout.manifest
    server.put("me/zfs", manifest.digest, manifest.raw)
    about = Digest("sha256:" + "e" * 64) if what == "another subject" else one.digest
    made = attest(replace(ORIGIN, manifest=about).made)
    content = made.manifest.content
    if what == "no sbom":
        content["layers"] = content["layers"][1:]
    raw = json.dumps(content).encode()
    server.put("me/zfs", "attestation", raw)
    for blob in made.blobs:
        server.put_blob(blob)
    descriptor = {**made.descriptor, "digest": bytes_digest(raw), "size": len(raw)}
    descriptor["annotations"]["vnd.docker.reference.digest"] = one.digest
    kept = {} if what == "no attestation" else {one.digest: descriptor}
    document = publish.index({AMD64: manifest}, kept)
    server.put("me/zfs", SLUG, document.raw, OCI_INDEX)
    tested = Digest("sha256:" + "f" * 64) if what == "another image" else one.digest
    with pytest.raises(PublishError) as caught:
        verify_image(registry, image.with_tag(SLUG), document, {AMD64: tested})
    assert caught.value.what in (
        "is another image for linux/amd64 than was tested",
        "is attested by a statement about another image",
        "is not attested",
        "lacks an SBOM or a provenance",
    )
    assert caught.value.hint.startswith("do not use it")


def test_an_image_that_was_changed_after_its_test_is_not_pushed(
    server: SmallRegistry, tmp_path: Path
) -> None:
    one = module_image(tmp_path, AMD64)
    blob = one.layout.layers[-1]
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(UpstreamError):
        publish.push(Registry(Http(), {}), image_in(server), SLUG, kernel(AMD64), [one])
    assert SLUG not in server.manifests.get("me/zfs", {})


def test_a_tampered_tar_is_refused_here_and_by_sha256sum(tmp_path: Path) -> None:
    tar = tmp_path / f"zfs-{SLUG}-amd64.tar.xz"
    tar.write_bytes(b"an image")
    files = beside(ORIGIN.made, Subject(tar.name, bytes_digest(b"an image")))
    assert list(files) == [
        f"zfs-{SLUG}-amd64.spdx.json",
        f"zfs-{SLUG}-amd64.intoto.jsonl",
    ]
    (line,) = files[f"zfs-{SLUG}-amd64.intoto.jsonl"].splitlines()
    assert [(one["name"], one["digest"]["sha256"]) for one in json.loads(line)["subject"]] == [
        (tar.name, bytes_digest(b"an image")[7:]),
        ("docker.io/me/zfs", "d" * 64),
    ]
    contents = {tar.name: b"an image", **files}
    sums = "".join(f"{bytes_digest(raw)[7:]}  {name}\n" for name, raw in sorted(contents.items()))
    for name, raw in {**files, SUMS: sums.encode()}.items():
        (tmp_path / name).write_bytes(raw)
    with Server() as server:
        repository = server.add(Repository("me", "zfs"))
        server.add_token("writer", push=["me/zfs"])
        release = repository.add_release("x", {**contents, SUMS: sums.encode()})
        github = GitHub(Http(), server.url, "me/zfs", "writer")
        verify_sums(github, github.release("x"))
        check = ["sha256sum", "--check", "--ignore-missing", SUMS]
        assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 0

        tar.write_bytes(b"tampered")
        release.put_asset(tar.name, b"tampered")
        with pytest.raises(PublishError, match="its assets are not those of its SHA256SUMS") as why:
            verify_sums(github, github.release("x"))
        assert why.value.detail == tar.name
        assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 1
        release.put_asset(tar.name, b"an image")
        release.put_asset("unlisted.tar.xz", b"x")
        with pytest.raises(PublishError, match="its assets are not those"):
            verify_sums(github, github.release("x"))

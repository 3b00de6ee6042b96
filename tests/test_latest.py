"""``latest`` and its catalogue: put together from what is published, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from release import latest
from release.attest import PROVENANCE, SPDX, attached
from release.errors import PublishError
from release.github import GitHub, Release
from release.http import Http, bytes_digest
from release.latest import Latest, Line, Reader, Wanted
from release.plan import Observed
from release.receipt import Part, Receipt
from release.reference import Digest, Platform, Reference
from release.registry import Registry
from release.versions import MAX_LAYERS, Entry
from tests.lab import module_images
from tests.lab.module_images import (
    AMD64,
    ARM64,
    LOADER,
    REPOSITORY,
    catalogue,
    entry,
    labels,
    layer,
    put,
    release,
    userland,
)
from tests.lab.small_registry import SmallRegistry

OLD, NEW = entry("5.4.1"), entry("5.4.2")
BOTH = entry("5.4.3", AMD64, ARM64, zfs="2.2.0")


@pytest.fixture
def server() -> Iterator[SmallRegistry]:
    with SmallRegistry() as registry:
        yield registry
        assert registry.violations == []


class Scene:
    """A registry with module images, and releases."""

    def __init__(self, server: SmallRegistry, config: Path) -> None:
        config.joinpath("config.json").write_text("{}")
        self.server = server
        self.image = Reference.parse(f"{server.host}/{REPOSITORY}")
        self.registry = Registry(Http(), {})
        self.github = GitHub(Http(), server.url, "me/zfs", None)

    def wanted(self, entries: Iterable[Entry], *, kernels: int = 100) -> Wanted:
        entries = tuple(entries)
        releases = [replace(self.release(one), id=number) for number, one in enumerate(entries)]
        observed = Observed(frozenset(one.slug for one in entries), tuple(releases))
        return Wanted.of(entries, observed, kernels)

    def release(self, one: Entry) -> Release:
        """The release of a kernel, with the receipt of what is behind its tag now."""
        reference = self.image.with_tag(one.slug)
        document = self.registry.get(reference)
        parts = {
            platform: Part(
                digest,
                labels(one, platform)["install-zfs.kernel-release"],
                labels(one, platform)["install-zfs.kernel-banner"],
            )
            for platform, digest in self.registry.platforms(reference, document).items()
        }
        return release(one, body=str(Receipt(one, document.digest, None, parts, {})))

    def build(self, wanted: Wanted) -> Latest:
        before = latest.read_before(self.registry, self.image.with_tag("latest"))
        return latest.build(wanted, Reader(self.registry, self.image, self.github, before))

    def bring(self, wanted: Wanted) -> bool:
        return latest.push(self.registry, self.image, wanted, self.build(wanted))

    def is_behind(self, wanted: Wanted) -> bool:
        there = self.registry.head(self.image.with_tag("latest"))
        return latest.is_behind(self.registry, self.image, wanted, there)


@pytest.fixture
def scene(server: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return Scene(server, tmp_path)


def manifest(made: Latest, platform: Platform = AMD64) -> Any:
    return made.images[platform].manifest.content


def layers(made: Latest, platform: Platform = AMD64) -> list[str]:
    return [item["digest"] for item in manifest(made, platform)["layers"]]


def modules(one: Entry, platform: Platform = AMD64) -> Digest:
    kernel = one.platforms[platform]
    blob, _ = layer({f"kernels/{one.image.tag}-1/zfs.ko": f"{kernel} {one.zfs}".encode()})
    return bytes_digest(blob)


def lines(made: Latest) -> list[Line]:
    return catalogue(made.catalogue)


def test_it_holds_every_kernel_s_layer_as_it_was_tested(scene: Scene) -> None:
    put(scene.server, OLD, with_userland=True)
    put(scene.server, NEW, with_userland=True)
    made = scene.build(scene.wanted([OLD, NEW]))
    assert layers(made) == [
        bytes_digest(userland("2.1.5")[0]),
        modules(OLD),
        modules(NEW),
        bytes_digest(LOADER[0]),
        bytes_digest(made.catalogue),
    ]
    config = json.loads(made.images[AMD64].config)
    assert config["rootfs"]["diff_ids"][0] == userland("2.1.5")[1]
    assert len(config["history"]) == len(layers(made)) == len(config["rootfs"]["diff_ids"])
    assert config["config"] == {
        "Entrypoint": ["/install-zfs"],
        "Labels": {
            "install-zfs.kernels": "2",
            "org.opencontainers.image.created": "2024-05-01T00:00:02+00:00",
            "org.opencontainers.image.revision": "abc",
            "org.opencontainers.image.title": latest._TITLE,
            "org.opencontainers.image.version": "2.1.5",
        },
    }
    index = made.document.content["manifests"]
    assert index[0]["digest"] == made.images[AMD64].manifest.digest


def test_the_catalogue_says_where_each_kernel_is(scene: Scene) -> None:
    for one in (OLD, BOTH):
        put(scene.server, one)
    made = scene.build(scene.wanted([OLD, BOTH], kernels=1))
    asset = release(OLD).assets[0]
    assert [(line.slug, line.architecture) for line in lines(made)] == [
        (BOTH.slug, "x86_64"),
        (BOTH.slug, "aarch64"),
        (OLD.slug, "x86_64"),
    ]
    assert str(lines(made)[-1]).split("\t") == [
        "x86_64",
        "5.4.1-linuxkit",
        "2.1.5",
        OLD.slug,
        "1000",
        str(asset.digest)[7:],
        asset.download_url,
        "Linux version 5.4.1-linuxkit (me@linux/amd64) #1 SMP",
    ]
    assert layers(made)[0] == modules(BOTH), "beyond the limit there is a line alone"
    assert len(layers(made)) == 3


def test_what_it_was_put_together_of_is_attested(scene: Scene) -> None:
    put(scene.server, OLD, with_userland=True)
    put(scene.server, BOTH)
    wanted = scene.wanted([OLD, BOTH])
    made = scene.build(wanted)
    assert [one.of for one in made.attestations] == [
        made.images[platform].manifest.digest for platform in (AMD64, ARM64)
    ]
    statements = {
        one["predicateType"]: one for one in map(json.loads, made.attestations[0].blobs[1:])
    }
    digest = made.images[AMD64].manifest.digest.removeprefix("sha256:")
    assert {one["subject"][0]["digest"]["sha256"] for one in statements.values()} == {digest}
    sbom = statements[SPDX]["predicate"]
    assert validate_full_spdx_document(JsonLikeDictParser().parse(sbom)) == []
    held = [one for one in lines(made) if one.architecture == "x86_64"]
    assert len(held) == 2
    assert {
        (one["name"], one["versionInfo"], one["checksums"][0]["checksumValue"])
        for one in sbom["packages"]
        if one["SPDXID"].startswith("SPDXRef-kernel-")
    } == {(f"{scene.image}:{one.slug}", one.zfs_version, one.sha256) for one in held}
    definition = statements[PROVENANCE]["predicate"]["buildDefinition"]
    assert definition["buildType"] == "urn:install-zfs:latest:v1"
    files = [one for one in definition["resolvedDependencies"] if "sha256" in one["digest"]]
    assert {(one["uri"], one["digest"]["sha256"]) for one in files} == {
        (one.url, one.sha256) for one in held
    }
    assert scene.build(wanted).document == made.document, "the same bytes each time"
    assert scene.bring(wanted)
    found = scene.registry.get(scene.image.with_tag("latest"))
    assert attached(found).keys() == {one.of for one in made.attestations}


def test_several_platforms_have_an_index(scene: Scene) -> None:
    for one in (OLD, BOTH):
        put(scene.server, one)
    made = scene.build(scene.wanted([OLD, BOTH]))
    assert [item["platform"] for item in made.document.content["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux"},
        *[{"architecture": "unknown", "os": "unknown"}] * 2,
    ]
    assert layers(made)[:2] == [modules(OLD), modules(BOTH)]
    assert layers(made, ARM64)[0] == modules(BOTH, ARM64)
    assert layers(made)[-1] == layers(made, ARM64)[-1], "one catalogue for both"
    assert made.bytes == sum(
        len(scene.server.blobs.get(digest, made.catalogue))
        for digest in {*layers(made), *layers(made, ARM64)}
    )


def test_it_is_behind_until_it_was_moved_and_then_costs_two_heads(scene: Scene) -> None:
    put(scene.server, OLD)
    wanted = scene.wanted([OLD])
    assert scene.is_behind(wanted)
    assert scene.bring(wanted)
    scene.server.requests.clear()
    assert not scene.is_behind(wanted)
    assert [request.method for request in scene.server.requests] == ["HEAD", "HEAD"]
    assert not scene.is_behind(Wanted((), 100)), "nothing is published"


@pytest.mark.parametrize(
    "change", ["kernel", "limit", "asset", "receipt", "moved away", "moved back"]
)
def test_whatever_changes_it_is_noticed(scene: Scene, change: str) -> None:
    put(scene.server, OLD)
    put(scene.server, NEW)
    wanted = scene.wanted([OLD])
    scene.bring(wanted)
    match change:
        case "kernel":
            wanted = scene.wanted([OLD, NEW])
        case "limit":
            wanted = scene.wanted([OLD], kernels=1)
        case "asset":
            other = release(OLD, salt="x", body=scene.release(OLD).body)
            observed = Observed(frozenset({OLD.slug}), (other,))
            wanted = Wanted.of([OLD], observed, 100)
        case "receipt":
            (member,) = wanted.members
            part = replace(member.part, kernel_banner="Linux version 5.4.1-linuxkit #2 SMP")
            assert scene.is_behind(replace(wanted, members=(replace(member, part=part),)))
            return
        case "moved away":
            scene.server.put(REPOSITORY, "latest", {"layers": []})
        case "moved back":
            scene.bring(scene.wanted([OLD, NEW]))
    assert scene.is_behind(wanted)
    scene.bring(wanted)
    assert not scene.is_behind(wanted)


def test_a_run_that_died_before_the_tag_moved_is_made_up_for(scene: Scene) -> None:
    put(scene.server, OLD)
    wanted = scene.wanted([OLD])
    scene.bring(wanted)
    before = scene.server.manifests[REPOSITORY]["latest"]
    put(scene.server, NEW)
    wanted = scene.wanted([OLD, NEW])
    scene.bring(wanted)
    after = scene.server.manifests[REPOSITORY]["latest"]
    scene.server.manifests[REPOSITORY]["latest"] = before
    assert scene.is_behind(wanted), "its record is there, but the tag is not"
    scene.bring(wanted)
    assert scene.server.manifests[REPOSITORY]["latest"] == after


def test_a_new_kernel_costs_its_own_reads_and_gives_the_same_bytes(scene: Scene) -> None:
    known = [entry(f"5.4.{n}") for n in range(9)]
    for one in known:
        put(scene.server, one, with_userland=True)
    scene.bring(scene.wanted(known))
    put(scene.server, new := entry("5.5.0"), with_userland=True)
    wanted = scene.wanted([*known, new])
    scene.server.requests.clear()
    made = scene.build(wanted)
    read = [one.path for one in scene.server.requests if "manifests" in one.path]
    (member,) = (one for one in wanted.members if one.entry == new)
    assert member.part
    assert read == [
        f"/v2/{REPOSITORY}/manifests/latest",
        *[read[1]],
        f"/v2/{REPOSITORY}/manifests/{member.part.manifest}",
    ]
    assert made.to_boot[AMD64][0].entry == new
    del scene.server.manifests[REPOSITORY]["latest"]
    assert scene.build(wanted).document == made.document


def test_what_was_built_again_is_read_again(scene: Scene) -> None:
    put(scene.server, OLD)
    scene.bring(scene.wanted([OLD]))
    new = replace(OLD, zfs="2.2.0")
    put(scene.server, new)
    made = scene.build(scene.wanted([new]))
    assert modules(new) in layers(made)
    assert modules(OLD) not in layers(made)


def test_the_image_that_was_published_is_taken_wherever_its_tag_points(scene: Scene) -> None:
    for one in (OLD, NEW):
        put(scene.server, one)
    wanted = scene.wanted([OLD, NEW])
    made = scene.build(wanted)
    put(scene.server, replace(NEW, zfs="2.2.0"))
    scene.server.manifests[REPOSITORY][OLD.slug] = scene.server.manifests[REPOSITORY][NEW.slug]
    assert scene.build(wanted).document == made.document
    assert made.left_out == ()


def test_it_is_booted_with_a_kernel_that_can_be_booted(scene: Scene) -> None:
    captured = replace(NEW, smoke="host")
    for one in (OLD, captured):
        put(scene.server, one)
    made = scene.build(scene.wanted([OLD, captured]))
    assert layers(made)[1] == modules(captured)
    assert made.to_boot[AMD64][0].entry == OLD
    assert scene.build(scene.wanted([captured])).to_boot == {}


def test_a_latest_of_somebody_else_is_read_around(scene: Scene) -> None:
    put(scene.server, OLD)
    wanted = scene.wanted([OLD])
    made = scene.build(wanted)
    about = {"install-zfs.slug": OLD.slug, "install-zfs.manifest": "x"}
    forged = manifest(made) | {
        "layers": [{**one, "annotations": about} for one in manifest(made)["layers"]]
    }
    scene.server.put_blob(made.images[AMD64].config)
    scene.server.put(REPOSITORY, "latest", forged)
    assert scene.build(wanted).document == made.document
    scene.server.put(REPOSITORY, "latest", {"config": scene.server.put_blob(b"{}"), "layers": []})
    assert layers(scene.build(scene.wanted([OLD])))[0] == modules(OLD)


def test_nothing_that_was_not_published_gets_in(scene: Scene) -> None:
    """Nor what has a release which does not say of which image it is."""
    for one in (OLD, NEW, BOTH):
        put(scene.server, one)
    lost = entry("5.4.4")
    slugs = frozenset(one.slug for one in (OLD, NEW, lost))
    releases = [
        scene.release(OLD),
        replace(scene.release(NEW), draft=True),
        scene.release(BOTH),
        release(lost),
    ]
    observed = Observed(slugs, tuple(replace(one, id=n) for n, one in enumerate(releases)))
    (member,) = Wanted.of([OLD, NEW, BOTH, lost], observed, 100).members
    assert member.entry == OLD
    assert Wanted.of([OLD], observed, 0).members == ()


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("install-zfs.kernel-banner", "Linux version 6.1.0 #1 SMP"),
        ("install-zfs.kernel-digest", "sha256:" + "0" * 64),
        ("install-zfs.kernel-release", "6.1.0"),
        ("install-zfs.zfs-version", "2.2.0"),
    ],
)
def test_an_image_that_is_not_its_release_s_is_left_out(
    scene: Scene, label: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(scene.server, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(
            module_images, "labels", lambda one, platform: labels(one, platform) | {label: wrong}
        )
        put(scene.server, NEW)
    wanted = scene.wanted([OLD, NEW])
    made = scene.build(wanted)
    (error,) = made.left_out
    assert "is the image of another kernel, or has another ZFS" in error.summary
    assert error.detail.startswith(label)
    assert modules(NEW) not in layers(made)
    scene.bring(wanted)
    assert scene.is_behind(wanted), "until the two are brought together"
    put(scene.server, NEW)
    wanted = scene.wanted([OLD, NEW])
    scene.bring(wanted)
    assert not scene.is_behind(wanted)


def test_an_image_of_another_kernel_is_refused(scene: Scene) -> None:
    put(scene.server, OLD)
    digest = scene.server.manifests[REPOSITORY].pop(OLD.slug)
    scene.server.manifests[REPOSITORY][NEW.slug] = digest
    with pytest.raises(PublishError, match="is the image of another kernel"):
        scene.build(scene.wanted([NEW]))


def test_no_more_layers_than_an_image_may_have(scene: Scene) -> None:
    many = [entry(f"5.{n}.0", zfs=f"2.1.{n}") for n in range(80)]
    for one in many:
        put(scene.server, one, with_userland=True)
    made = scene.build(scene.wanted(many))
    assert len(layers(made)) in (MAX_LAYERS - 1, MAX_LAYERS)
    assert len(lines(made)) == 80
    assert modules(many[-1]) in layers(made)
    assert modules(many[0]) not in layers(made)


def test_it_is_booted_with_what_a_guest_has_room_for(scene: Scene) -> None:
    known = [entry(f"5.4.{n}") for n in range(4)]
    for one in known:
        put(scene.server, one, with_userland=True)
    made = scene.build(scene.wanted(known))
    size = {item["digest"]: item["size"] for item in manifest(made)["layers"]}
    budget = sum(size[digest] for digest in (layers(made)[0], modules(known[3]), modules(known[2])))
    assert latest.layers_to_boot(made, AMD64, str, 1 << 20) == layers(made)
    too_many = {str(modules(one)) for one in known[:2]}
    booted = latest.layers_to_boot(made, AMD64, str, budget)
    assert booted == [digest for digest in layers(made) if digest not in too_many]
    assert modules(known[3]) in latest.layers_to_boot(made, AMD64, str, 0)

"""What was published to be signed, and was not: how that is known, found, and made good."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from release import cli
from release.attest import PROVENANCE
from release.drift import MOST_SIGNATURES, share
from release.errors import UpstreamError
from release.github import GitHub
from release.http import Http, bytes_digest
from release.receipt import Receipt
from release.record import Record
from release.reference import Digest, Reference, platform_fields
from release.registry import Registry
from release.sync import behind
from release.world import World, native_platform
from tests.lab import github as lab
from tests.lab.module_images import AMD64, ARM64
from tests.lab.server import EffectCounter, Response
from tests.lab.small_registry import INDEX, MANIFEST
from tests.recorded import IMAGES, TOKEN, Recorded

VERSION = "5.4.39"
SLUG = f"linuxkit-kernel-{VERSION}"
DIGEST = bytes_digest(b"image")
OTHER = bytes_digest(b"another")


def attestation(*subjects: tuple[str, str], predicate: str = PROVENANCE) -> lab.Attestation:
    statement = {
        "predicateType": predicate,
        "subject": [{"name": n, "digest": {"sha256": d.partition(":")[2]}} for n, d in subjects],
    }
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    return lab.Attestation({"dsseEnvelope": {"payload": payload}}, predicate, frozenset(subjects))


# Whether there is an attestation


@pytest.fixture
def server() -> Iterator[lab.GitHub]:
    with lab.GitHub() as server:
        server.add(lab.Repository("me", "zfs"))
        server.add(lab.Repository("me", "private", private=True))
        for may in ("none", "read"):
            server.add_token(may, pull=["me/private"], installation=True, attestations=may)
        yield server
        assert server.violations == []


def client(server: lab.GitHub, repository: str = "me/zfs", token: str | None = None) -> GitHub:
    return GitHub(Http(), server.url, repository, token)


def test_a_digest_is_attested_by_a_statement_of_the_type_that_is_asked_for(
    server: lab.GitHub,
) -> None:
    github, there = client(server), server.repositories["me/zfs"].attestations
    assert not github.is_attested(DIGEST, PROVENANCE)
    there.append(attestation(("image", DIGEST), predicate="https://spdx.dev/Document"))
    there.append(attestation(("image", OTHER)))
    assert not github.is_attested(DIGEST, PROVENANCE)
    there.append(attestation(("image", OTHER), ("image", DIGEST)))
    assert github.is_attested(DIGEST, PROVENANCE)
    assert len(server.requests) == 3


def test_an_empty_list_is_none_and_what_is_no_list_is_no_answer(server: lab.GitHub) -> None:
    github = client(server)
    server.fail("GET", Response(200, {}, b'{"attestations": []}'))
    assert not github.is_attested(DIGEST, PROVENANCE)
    for body in (b"[]", b"{}", b'{"attestations": null}', b"null", b"<html>"):
        server.fail("GET", Response(200, {}, body))
        with pytest.raises(UpstreamError):
            github.is_attested(DIGEST, PROVENANCE)
    for status in (403, 422):
        server.fail("GET", Response(status))
        with pytest.raises(UpstreamError):
            github.is_attested(DIGEST, PROVENANCE)


def test_what_may_not_be_read_is_not_unsigned(server: lab.GitHub) -> None:
    with pytest.raises(UpstreamError):
        client(server, "me/private", "none").is_attested(DIGEST, PROVENANCE)
    assert not client(server, "me/private", "read").is_attested(DIGEST, PROVENANCE)
    assert not client(server, "me/zfs", "none").is_attested(DIGEST, PROVENANCE)


def test_a_look_at_all_is_at_no_more_than_one_attestation_takes() -> None:
    slugs = [f"kernel-{number}" for number in range(MOST_SIGNATURES)]
    assert set(share(slugs, 1, MOST_SIGNATURES)) == set(slugs)
    assert MOST_SIGNATURES * 8 <= 1024
    assert 0 < len(share([*slugs, "one-more"], 1, MOST_SIGNATURES)) <= MOST_SIGNATURES


# Whole runs on one machine


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Recorded]:
    with Recorded(tmp_path) as setup:
        kernel = setup.push_kernel(VERSION)
        setup.write_versions(f"  - image: {kernel.reference}\n")
        yield setup
        assert setup.violations == []


def receipt(setup: Recorded) -> Receipt:
    (release,) = setup.releases.releases
    found = Receipt.find(release.body or "")
    assert found
    return found


def named(setup: Recorded, *options: str) -> set[tuple[str, str]]:
    """The subjects of kernels that a run names, with the digests that they are to be signed by."""
    return subjects(setup, *options) - {latest(setup)}


def subjects(setup: Recorded, *options: str) -> set[tuple[str, str]]:
    """All subjects that a run names."""
    file = setup.path.parent / "subjects.txt"
    file.unlink(missing_ok=True)
    run = setup.run("sync", "--subjects", str(file), *options)
    assert run.exit_code == 0, run
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.split("  ") for line in lines)
    found = [(name, f"sha256:{digest}") for digest, name in pairs]
    assert len(set(found)) == len(found)
    return set(found)


def looks(setup: Recorded) -> int:
    """How often it was asked whether a kernel's image is signed."""
    receipts = [Receipt.find(one.body or "") for one in setup.releases.releases]
    return sum(setup.github.count(f"/attestations/{one.image}") for one in receipts if one)


def latest(setup: Recorded) -> tuple[str, str]:
    return setup.image, setup.tags()["latest"]


def test_latest_is_named_where_it_moved(setup: Recorded) -> None:
    first = subjects(setup)
    assert latest(setup) in first
    setup.releases.attestations.append(attestation(*first))
    assert subjects(setup, "--verify") == set()


def test_what_was_never_signed_is_named_again_until_it_is(setup: Recorded) -> None:
    first = named(setup)
    (release,) = setup.releases.releases
    files = {(one.name, one.digest) for one in release.assets if one.name != "SHA256SUMS"}
    tags = setup.tags()
    indexes = {(setup.image, tags[name]) for name in (SLUG, f"{SLUG}-modules")}
    assert first == files | indexes
    assert receipt(setup).to_sign == receipt(setup).platforms.keys()
    builds, body = setup.builds, release.body
    assert named(setup, "--verify") == first
    plan = setup.run("plan", "--verify", "--hand-over", "plan")
    assert "to repair: it was not signed" in plan.stdout
    (setup.path.parent / "none").mkdir()
    assert named(setup, "--delivered", "none", "--expected", "plan") == first
    setup.releases.attestations.append(attestation(*first))
    assert named(setup, "--verify") == set()
    assert named(setup, "--delivered", "none", "--expected", "plan") == set()
    assert (setup.builds, release.body, setup.tags()) == (builds, body, tags)


def test_the_newest_are_asked_for_until_one_is_signed(setup: Recorded) -> None:
    first = named(setup)
    setup.push_kernel("5.4.40")
    # A run that publishes is not idle, and looks whosever turn it is.
    second = named(setup) - first
    assert second
    setup.releases.attestations.append(attestation(*second))
    setup.push_kernel("5.4.41")
    third = named(setup)
    assert third
    assert not third & (first | second), "the first is behind one that is signed"
    assert looks(setup) == 1 + 1
    setup.push_kernel("5.4.42")
    assert named(setup) > third
    assert looks(setup) == 1 + 1 + 2
    assert named(setup, "--verify", "--only", SLUG) == first
    everything = named(setup, "--verify")
    assert everything > first | third
    assert not everything & second


def test_what_a_machine_built_that_signs_nothing_is_never_named(setup: Recorded) -> None:
    assert setup.run("sync").exit_code == 0
    assert receipt(setup).to_sign == set()
    assert "to_sign" not in (setup.releases.releases[0].body or "")
    assert named(setup, "--verify") == set()
    (setup.path.parent / "none").mkdir()
    assert setup.run("plan", "--hand-over", "plan").exit_code == 0
    assert named(setup, "--delivered", "none", "--expected", "plan") == set()
    del setup.registry.manifests["me/install-zfs"][SLUG]
    assert named(setup) == set(), "it was only brought back"
    assert receipt(setup).to_sign == set()
    assert named(setup, "--verify") == set()
    assert looks(setup) == 0


def test_what_is_to_be_signed_still_is_when_another_machine_brought_it_back(
    setup: Recorded,
) -> None:
    first = named(setup)
    body = setup.releases.releases[0].body
    del setup.registry.manifests["me/install-zfs"][SLUG]
    run = setup.run("sync")
    assert "repaired: the image was missing" in run.stdout, run
    assert setup.releases.releases[0].body == body
    assert named(setup, "--verify") == first


def test_what_could_not_be_looked_at_is_told_and_not_named(setup: Recorded) -> None:
    named(setup)
    file = setup.path.parent / "subjects.txt"
    file.unlink()
    setup.github.fail("GET .*/attestations/", Response(403), times=None)
    run = setup.run("sync", "--verify", "--subjects", str(file))
    assert run.exit_code == 3, run
    assert "/attestations/sha256:" in run.stderr
    assert not file.exists()


def test_what_somebody_put_into_a_release_is_not_signed(setup: Recorded) -> None:
    """Who may write there need not be able to push images."""
    first = named(setup)
    (release,) = setup.releases.releases
    (tar,) = (one for one in release.assets if one.name.endswith(".tar.xz"))
    release.put_asset(tar.name, b"another tar")
    forged = release.asset(tar.name)
    assert forged
    assert forged.digest
    assert release.body
    assert tar.digest
    assert isinstance(tar.content, bytes)
    release.body = release.body.replace(tar.digest, forged.digest).replace(
        f'"size":{len(tar.content)},', '"size":11,'
    )
    again = named(setup, "--verify")
    assert (tar.name, forged.digest) not in again
    assert again == first
    # Nor is what the registry does not have.
    setup.releases.attestations.clear()
    setup.registry.delete("me/install-zfs")
    assert named(setup, "--verify") == set()
    assert named(setup, "--verify") == first, "now it has it"


def test_latest_is_named_again_until_it_is_signed(setup: Recorded) -> None:
    first, tags = subjects(setup), setup.tags()
    setup.releases.attestations.append(attestation(*(first - {latest(setup)})))
    plan = setup.run("plan", "--verify", "--hand-over", "plan")
    assert f"{setup.image}:latest was not signed; it is made again\n" in plan.stdout
    (setup.path.parent / "none").mkdir()
    delivered = ("--delivered", "none", "--expected", "plan")
    assert subjects(setup, *delivered) == {latest(setup)}
    assert "; repaired: latest was not signed" in setup.path.with_name("stderr").read_text()
    assert subjects(setup, "--verify") == {latest(setup)}
    setup.releases.attestations.append(attestation(latest(setup)))
    assert subjects(setup, "--verify") == set()
    assert subjects(setup, *delivered) == set()
    assert setup.tags() == tags


@pytest.mark.parametrize("record", [True, False])
def test_a_registry_s_word_for_latest_is_not_signed(setup: Recorded, record: bool) -> None:
    """Who may push images need not be able to write releases."""
    first, tags = subjects(setup), setup.tags()
    setup.releases.attestations.append(attestation(*first))
    forged = forge(setup, "latest", record=record)
    assert setup.tags()["latest"] == forged != tags["latest"]
    assert is_evil(setup, "latest")
    assert subjects(setup, "--verify") == {latest(setup)}
    assert setup.tags() == tags
    # What others found and made of it is what these releases give.
    setup.push_kernel("5.4.40")
    forge(setup, "latest", record=record)
    again = subjects(setup)
    assert latest(setup) in again
    assert not is_evil(setup, "latest")


EVIL = b"evil"


def parts(setup: Recorded, tag: str) -> list[Any]:
    """The manifests of the images behind a tag, as they are."""
    manifests = setup.small.manifests[IMAGES]
    index = json.loads(manifests[tag][1])
    found = [one["digest"] for one in index["manifests"] if one["platform"]["os"] == "linux"]
    return [json.loads(manifests[digest][1]) for digest in found]


def layers(setup: Recorded, tag: str) -> list[str]:
    return [layer["digest"] for one in parts(setup, tag) for layer in one["layers"]]


def replaced(setup: Recorded, index: Any, number: int, manifest: Any) -> None:
    """Puts a manifest into the place of another one in an index."""
    held = setup.small.manifests[IMAGES]
    digest = setup.small.put(IMAGES, "replaced", manifest)
    index["manifests"][number] |= {"digest": digest, "size": len(held.pop("replaced")[1])}


def forge(setup: Recorded, tag: str, *, record: bool = False) -> str:
    """Somebody pushes an image with modules of theirs.

    Args:
        record: whether they say that it was made from what the right one was made from.
    """
    there = setup.tags()[tag]
    index = json.loads(setup.small.manifests[IMAGES][tag][1])
    (manifest,) = parts(setup, tag)
    # Those of a kernel in ``latest``; of a kernel's own image they are the last layer.
    marked = [one for one in manifest["layers"] if "install-zfs.slug" in one.get("annotations", {})]
    layer = [*manifest["layers"], *marked][-1]
    layer |= setup.small.put_blob(setup.small.blobs[layer["digest"]] + EVIL, IMAGES)
    mine = index["manifests"][0]["digest"]
    replaced(setup, index, 0, manifest)
    forged = setup.small.put(IMAGES, tag, index, INDEX)
    if record:
        say(setup, forged, there)
        say(setup, index["manifests"][0]["digest"], mine)
    return forged


def say(setup: Recorded, forged: str, there: str) -> None:
    """Somebody says that an image was made from what another one was made from."""
    for _, content in list(setup.small.manifests[IMAGES].values()):
        said = json.loads(content).get("annotations", {})
        if said.get("install-zfs.image") == there:
            made = Record(Digest(forged), said["install-zfs.made-from"])
            made.put(Registry(Http(), {}), Reference.parse(setup.image))


def is_evil(setup: Recorded, tag: str) -> bool:
    """Whether something of theirs is behind a tag."""
    held = setup.small.manifests[IMAGES]
    index = json.loads(held[tag][1])
    manifests = [json.loads(held[one["digest"]][1]) for one in index["manifests"]]
    blobs = [setup.small.blobs[one["digest"]] for them in manifests for one in them["layers"]]
    return any(EVIL in blob for blob in blobs)


# What only the registry says of a kernel


@pytest.mark.parametrize("workflow", [True, False])
def test_an_image_that_only_the_registry_has_is_not_signed(setup: Recorded, workflow: bool) -> None:
    text = setup.path.read_text()
    assert setup.run("sync").exit_code == 0
    setup.releases.releases.clear()
    setup.path.write_text(text)
    forge(setup, SLUG)
    assert is_evil(setup, SLUG)
    options: tuple[str, ...] = ()
    if workflow:
        assert setup.run("plan", "--hand-over", "plan").exit_code == 0
        job = (SLUG, str(native_platform()), "--plan", "plan", "--to", "delivered")
        assert setup.run("hand-over", *job).exit_code == 0
        options = ("--delivered", "delivered", "--expected", "plan")
    first = subjects(setup, *options)
    tags = setup.tags()
    assert {(setup.image, tags[tag]) for tag in (SLUG, f"{SLUG}-modules", "latest")} <= first
    assert not any(is_evil(setup, tag) for tag in tags)


def test_a_lost_release_is_made_again_of_the_image_that_was_signed(setup: Recorded) -> None:
    first, tags, builds = subjects(setup), setup.tags(), setup.builds
    setup.releases.attestations.append(attestation(*first))
    setup.releases.releases.clear()
    setup.change_builds("other")
    setup.forget()
    assert setup.run("plan", "--hand-over", "plan").exit_code == 0
    job = (SLUG, str(native_platform()), "--plan", "plan", "--to", "delivered")
    assert setup.run("hand-over", *job).exit_code == 0
    subjects(setup, "--delivered", "delivered", "--expected", "plan")
    assert (setup.tags(), setup.builds) == (tags, builds)


def test_a_machine_that_signs_nothing_takes_over_nothing_where_work_is_signed(
    setup: Recorded,
) -> None:
    subjects(setup)
    kernel = setup.push_kernel("5.4.40")
    text, releases = setup.path.read_text(), list(setup.releases.releases)
    assert setup.run("sync").exit_code == 0
    setup.releases.releases[:] = releases
    setup.path.write_text(text)
    forge(setup, kernel.slug)
    setup.forget()
    assert setup.run("sync").exit_code == 0
    assert not is_evil(setup, kernel.slug)


def two_platforms(setup: Recorded) -> str:
    """A kernel of two platforms takes the place of the one; returns its slug."""
    kernel = setup.push_kernel("5.4.40", [AMD64, ARM64])
    setup.write_versions(f"  - image: {kernel.reference}\n", top="latest: {kernels: 0}\n")
    setup.hub.repository("linuxkit", "kernel").tags.pop(VERSION, None)
    return kernel.slug


def sync_on_arm64(setup: Recorded, *options: str) -> None:
    here, setup.machine = setup.machine, "aarch64"
    assert setup.run("sync", *options).exit_code == 0
    setup.machine = here
    setup.forget()


@pytest.mark.parametrize("released", [True, False])
def test_another_platform_is_kept_where_a_release_says_so(setup: Recorded, released: bool) -> None:
    slug = two_platforms(setup)
    text = setup.path.read_text()
    sync_on_arm64(setup)
    assert len(parts(setup, slug)) == 1
    if not released:
        setup.releases.releases.clear()
        setup.path.write_text(text)
    signed = subjects(setup)
    for tag in (slug, f"{slug}-modules"):
        assert (setup.image, setup.tags()[tag]) in signed
        assert len(parts(setup, tag)) == 1 + released


@pytest.mark.parametrize("notes", [True, False])
def test_another_platform_is_kept_where_the_index_was_signed(setup: Recorded, notes: bool) -> None:
    slug, both = two_platforms(setup), ("--platform", AMD64, "--platform", ARM64)
    first, tags = subjects(setup, *both), setup.tags()
    setup.releases.attestations.append(attestation(*first))
    if notes:
        setup.releases.releases[0].body = "damaged"
    else:
        setup.releases.releases.clear()
    setup.forget()
    builds = setup.builds
    for options in ((), both):
        assert setup.run("sync", *options).exit_code == 0
        assert len(parts(setup, slug)) == 2
    assert (setup.tags(), setup.builds) == (tags, builds)


def test_another_platform_that_is_published_meanwhile_is_kept(tmp_path: Path) -> None:
    effects = EffectCounter()
    with Recorded(tmp_path, effects=effects) as setup:
        slug = two_platforms(setup)
        text = setup.path.read_text()
        sync_on_arm64(setup)
        held, releases = setup.small.manifests[IMAGES], list(setup.releases.releases)
        images = dict(held)
        held.clear()
        setup.releases.releases.clear()
        setup.path.write_text(text)

        def publish(_effect: object) -> None:
            if not setup.releases.releases:
                held.update(images)
                setup.releases.releases.extend(releases)

        effects.on_effect = publish
        subjects(setup)
        assert [len(parts(setup, tag)) for tag in (slug, f"{slug}-modules")] == [2, 2]
        assert receipt(setup).platforms.keys() == {AMD64, ARM64}
        assert setup.violations == []


@pytest.mark.parametrize("tag", ["", "-modules"])
def test_a_word_on_a_platform_that_is_kept_is_not_signed(setup: Recorded, tag: str) -> None:
    """The other platform stays with an older ZFS, and what attests it with what was said of it."""
    slug = two_platforms(setup)
    assert setup.run("sync", "--platform", AMD64, "--platform", ARM64).exit_code == 0
    held = setup.small.manifests[IMAGES]
    index = json.loads(held[f"{slug}{tag}"][1])
    for item in index["manifests"]:
        if item["platform"]["os"] == "unknown":
            item["urls"] = ["https://evil"]
    setup.small.put(IMAGES, f"{slug}{tag}", index, INDEX)
    setup.follow_newest_zfs()
    setup.release_openzfs("2.1.17", "3.10", "6.8")
    setup.forget()
    # The tag that is looked at in this run is mended first.
    signed = subjects(setup) | subjects(setup)
    assert (setup.image, setup.tags()[f"{slug}{tag}"]) in signed
    assert len(parts(setup, f"{slug}{tag}")) == 2
    assert b"evil" not in held[f"{slug}{tag}"][1]


def test_what_a_machine_kept_that_signs_nothing_is_not_signed(setup: Recorded) -> None:
    """A receipt lists all that the tags lead to; a release names but its platforms' images."""
    slug = two_platforms(setup)
    text = setup.path.read_text()
    sync_on_arm64(setup)
    setup.releases.releases.clear()
    setup.path.write_text(text)
    forge(setup, slug)
    assert setup.run("sync").exit_code == 0
    assert is_evil(setup, slug)
    setup.follow_newest_zfs()
    setup.release_openzfs("2.1.17", "3.10", "6.8")
    setup.forget()
    assert (setup.image, setup.tags()[slug]) not in subjects(setup)
    assert not is_evil(setup, slug)
    assert len(parts(setup, f"{slug}-modules")) == 1


# The image that builds where it runs


@pytest.fixture
def on_the_spot(setup: Recorded) -> Recorded:
    setup.write_versions(top="latest: {kernels: 0}\n", on_the_spot=True)
    return setup


def build(setup: Recorded) -> set[tuple[str, str]]:
    """What there is to sign of it: the index, and the image for this machine."""
    index = json.loads(setup.small.manifests[IMAGES]["build"][1])
    (mine,) = (
        one["digest"]
        for one in index["manifests"]
        if one["platform"] == platform_fields(native_platform())
    )
    return {(setup.image, setup.tags()["build"]), (setup.image, mine)}


def test_build_is_made_and_named_again_until_it_is_signed(on_the_spot: Recorded) -> None:
    setup = on_the_spot
    first, tags = subjects(setup), setup.tags()
    assert first >= build(setup)
    setup.releases.attestations.append(attestation(*(first - build(setup))))
    plan = setup.run("plan", "--verify", "--hand-over", "plan")
    assert f"{setup.image}:build was not signed; it is made again\n" in plan.stdout
    assert subjects(setup, "--verify") == build(setup)
    assert "; repaired: build was not signed" in setup.path.with_name("stderr").read_text()
    assert setup.tags() == tags
    setup.releases.attestations.append(attestation(*build(setup)))
    assert subjects(setup, "--verify") == set()


def forge_attestation(setup: Recorded) -> None:
    """Somebody pushes an index with the right image, and their word on it."""
    registry = setup.small
    held = registry.manifests[IMAGES]
    index = json.loads(held["build"][1])
    manifest = json.loads(held[index["manifests"][1]["digest"]][1])
    for layer in manifest["layers"]:
        statement = json.loads(registry.blobs[layer["digest"]])
        statement["predicate"] = EVIL.decode()
        layer |= registry.put_blob(json.dumps(statement).encode(), IMAGES)
    replaced(setup, index, 1, manifest)
    registry.put(IMAGES, "build", index, INDEX)


def nest(setup: Recorded) -> None:
    """Somebody says that something else which was signed is the image."""
    there, other = setup.tags()["build"], setup.tags()[SLUG]
    held = setup.small.manifests[IMAGES]
    index = json.loads(held["build"][1])
    replaced(setup, index, 0, json.loads(held[other][1]))
    say(setup, setup.small.put(IMAGES, "build", index, INDEX), there)


def put_a_manifest(setup: Recorded) -> None:
    """Somebody pushes what is no index, and names nothing that there is."""
    there = setup.tags()["build"]
    missing = {"digest": bytes_digest(b"nothing"), "size": 7, "mediaType": MANIFEST}
    content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": missing, "layers": []}
    say(setup, setup.small.put(IMAGES, "build", content), there)


@pytest.mark.parametrize(
    "forgery", [forge_attestation, nest, put_a_manifest, partial(forge, tag="build", record=True)]
)
def test_a_registry_s_word_for_build_is_not_signed(
    on_the_spot: Recorded, forgery: Callable[[Recorded], object]
) -> None:
    setup = on_the_spot
    first, tags = subjects(setup), setup.tags()
    setup.releases.attestations.append(attestation(*first))
    forgery(setup)
    assert setup.tags() != tags
    assert subjects(setup, "--verify") == build(setup)
    assert setup.tags() == tags


def test_an_index_with_what_another_machine_made_is_not_signed(on_the_spot: Recorded) -> None:
    setup = on_the_spot
    signed = subjects(setup)
    setup.releases.attestations.append(attestation(*signed))
    sync_on_arm64(setup)
    index = (setup.image, setup.tags()["build"])
    assert index not in signed
    assert build(setup) & signed, "the other machine kept what is ours"
    assert subjects(setup, "--verify") == build(setup) - {index}
    assert subjects(setup, "--verify") == set(), "ours is signed"
    setup.release_openzfs("2.1.17", "3.10", "6.8")
    again = subjects(setup)
    assert (setup.image, setup.tags()["build"]) != index
    assert again == build(setup) - {(setup.image, setup.tags()["build"])}
    # Once it is lost, there is nothing in the index that keeps it from being signed.
    setup.releases.attestations.append(attestation(*again))
    held = setup.small.manifests[IMAGES]
    for one in json.loads(held["build"][1])["manifests"]:
        if one["platform"]["architecture"] == "arm64":
            del held[one["digest"]]
    assert subjects(setup, "--verify") == build(setup)
    assert subjects(setup, "--verify") == build(setup), "until it is"


def test_a_latest_is_left_alone_where_nothing_is_published(on_the_spot: Recorded) -> None:
    setup = on_the_spot
    kernel = f"  - image: {setup.host}/linuxkit/kernel:{VERSION}\n    skip: not ours\n"
    setup.write_versions(kernel, on_the_spot=True)
    there = setup.small.put_image(IMAGES, "latest", {})
    assert subjects(setup) == build(setup)
    assert setup.tags()["latest"] == there


def test_another_index_that_was_signed_is_no_build(on_the_spot: Recorded) -> None:
    setup = on_the_spot
    slug = setup.push_kernel("5.4.40", [AMD64, ARM64]).slug
    both = ("--platform", AMD64, "--platform", ARM64)
    first = subjects(setup, *both)
    setup.releases.attestations.append(attestation(*first))
    held = setup.small.manifests[IMAGES]
    assert (setup.image, setup.tags()[slug]) in first
    held["build"] = held[slug]
    again = subjects(setup, *both)
    assert len(parts(setup, "build")) == 2
    assert again == build(setup) - {(setup.image, setup.tags()["build"])}


def test_without_a_repository_nothing_is_asked(on_the_spot: Recorded) -> None:
    setup = on_the_spot
    subjects(setup)
    run = setup.run("plan", "--verify", "--hand-over", "plan", GITHUB_REPOSITORY="")
    assert run.exit_code == 0, run
    assert setup.github.count("/attestations/") == 0


# Where it cannot be found out


@pytest.fixture
def unreadable(setup: Recorded) -> Recorded:
    """A private repository, and a token that may not read attestations."""
    setup.releases.private = True
    names = [setup.releases.full_name]
    setup.github.add_token(TOKEN, push=names, installation=True, attestations="none")
    return setup


def test_what_cannot_be_looked_at_keeps_no_tag_where_it_is(unreadable: Recorded) -> None:
    setup = unreadable
    setup.write_versions(on_the_spot=True)
    file = setup.path.with_name("subjects.txt")
    setup.run("sync", "--subjects", str(file))
    before = setup.tags()
    kernel = setup.push_kernel("5.4.40")
    setup.release_openzfs("2.1.17", "3.10", "6.8")
    forge(setup, "latest")
    run = setup.run("sync", "--subjects", str(file))
    assert run.exit_code == 3, run
    assert "/attestations/sha256:" in run.stderr
    assert "whether latest was signed is not known" in run.stderr
    tags = setup.tags()
    assert kernel.slug in tags
    assert tags["build"] != before["build"]
    assert tags["latest"] != before["latest"]
    assert f"{tags['latest'].removeprefix('sha256:')}  {setup.image}\n" in file.read_text()
    assert not is_evil(setup, "latest"), "what is not known to be signed is not believed"


def test_what_cannot_be_looked_at_is_built(unreadable: Recorded) -> None:
    setup = unreadable
    text = setup.path.read_text()
    assert setup.run("sync").exit_code == 0
    setup.releases.releases.clear()
    setup.path.write_text(text)
    forge(setup, SLUG)
    setup.run("plan", "--hand-over", "plan")
    job = (SLUG, str(native_platform()), "--plan", "plan", "--to", "delivered")
    run = setup.run("hand-over", *job)
    assert run.exit_code == 0, run
    assert f"{setup.image}:{SLUG} is not taken over" in run.stderr
    assert len(setup.builds) == 2


# Runs with nothing to do


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_an_idle_run_looks_at_one_of_all_in_turn(
    setup: Recorded, signed: bool, alone: bool
) -> None:
    setup.write_versions(top="latest: {kernels: 0}\n" if alone else "", on_the_spot=not alone)
    first = subjects(setup)
    if signed:
        # Of ``build`` it is the part that this machine made.
        sync_on_arm64(setup)
        setup.releases.attestations.append(attestation(*(first | subjects(setup))))
    found: Counter[str] = Counter()
    requests: dict[bool, set[int]] = {True: set(), False: set()}
    for minute in range(29_000_000, 29_000_060):
        world = World(setup.load(), setup.environment)
        world.minute = minute
        seen = cli._look(world, (), verify=False, turns=True)
        assert not seen.failures
        targets, _ = seen.plan(world, seen.entries)
        tags = behind(world, seen.entries, seen.observed)
        unsigned = seen.unsigned(world, targets, tags)
        names = [*unsigned.slugs, *unsigned.tags]
        assert len(names) == (seen.turn and not signed)
        requests[seen.turn].add(sum(world.http.requests.values()))
        found.update(names)
    assert setup.github.count("/attestations/")
    all_there = {SLUG} if alone else {SLUG, "latest", "build"}
    assert found.keys() == (set() if signed else all_there)
    assert signed or 10 < found.total() < 50
    assert max(requests[True]) <= max(requests[False]) <= 10, "no lot costs more than a tag's"

"""What was published to be signed, and was not: how that is known, found, and made good."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
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
from tests.lab.server import Response
from tests.lab.small_registry import INDEX
from tests.recorded import IMAGES, Recorded

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


def test_latest_is_named_again_until_it_is_signed(setup: Recorded) -> None:
    first, tags = subjects(setup), setup.tags()
    setup.releases.attestations.append(attestation(*(first - {latest(setup)})))
    plan = setup.run("plan", "--verify", "--hand-over", "plan")
    assert f"{setup.image}:latest is behind" in plan.stdout
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
    assert subjects(setup, "--verify") == {latest(setup)}
    assert setup.tags() == tags
    # What others found and made of it is what these releases give.
    setup.push_kernel("5.4.40")
    forge(setup, "latest", record=record)
    again = subjects(setup)
    assert latest(setup) in again
    assert EVIL not in layers(setup, "latest")


EVIL = bytes_digest(b"evil")


def parts(setup: Recorded, tag: str) -> list[Any]:
    """The manifests behind a tag, as they are."""
    manifests = setup.small.manifests[IMAGES]
    index = json.loads(manifests[tag][1])
    found = [one["digest"] for one in index["manifests"] if one["platform"]["os"] == "linux"]
    return [json.loads(manifests[digest][1]) for digest in found]


def layers(setup: Recorded, tag: str) -> list[str]:
    return [layer["digest"] for one in parts(setup, tag) for layer in one["layers"]]


def forge(setup: Recorded, tag: str, *, record: bool) -> str:
    """Somebody pushes another image, whose first layer is theirs, and says that it is ours."""
    registry = setup.small
    there = setup.tags()[tag]
    (manifest,) = parts(setup, tag)
    blob = registry.put_blob(b"evil", IMAGES)
    manifest["layers"][0] |= {"digest": blob["digest"], "size": blob["size"]}
    digest = registry.put(IMAGES, "forged", manifest)
    del registry.manifests[IMAGES]["forged"]
    index = json.loads(registry.manifests[IMAGES][tag][1])
    index["manifests"][0]["digest"] = digest
    forged = registry.put(IMAGES, tag, index, INDEX)
    for _, content in list(registry.manifests[IMAGES].values()) if record else ():
        said = json.loads(content).get("annotations", {})
        if said.get("install-zfs.image") == there:
            made = Record(Digest(forged), said["install-zfs.made-from"])
            made.put(Registry(Http(), {}), Reference.parse(setup.image))
    return forged


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
    assert f"{setup.image}:build is behind" in plan.stdout
    assert subjects(setup, "--verify") == build(setup)
    assert "; repaired: build was not signed" in setup.path.with_name("stderr").read_text()
    assert setup.tags() == tags
    setup.releases.attestations.append(attestation(*build(setup)))
    assert subjects(setup, "--verify") == set()


def test_a_registry_s_word_for_build_is_not_signed(on_the_spot: Recorded) -> None:
    setup = on_the_spot
    first, tags = subjects(setup), setup.tags()
    setup.releases.attestations.append(attestation(*first))
    forge(setup, "build", record=True)
    assert EVIL in layers(setup, "build")
    assert subjects(setup, "--verify") == build(setup)
    assert setup.tags() == tags


def test_an_index_with_what_another_machine_made_is_not_signed(on_the_spot: Recorded) -> None:
    setup = on_the_spot
    signed = subjects(setup)
    setup.releases.attestations.append(attestation(*signed))
    here, setup.machine = setup.machine, "aarch64"
    assert setup.run("sync").exit_code == 0
    setup.machine = here
    assert (setup.image, setup.tags()["build"]) not in signed
    assert build(setup) & signed, "the other machine kept what is ours"
    assert subjects(setup, "--verify") == set(), "ours is signed"
    setup.release_openzfs("2.1.17", "3.10", "6.8")
    before = setup.tags()["build"]
    again = subjects(setup)
    index = setup.tags()["build"]
    assert index != before
    assert again == build(setup) - {(setup.image, index)}


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


# Runs with nothing to do


def test_an_idle_run_looks_at_one_of_all_in_turn(setup: Recorded) -> None:
    setup.write_versions(on_the_spot=True)
    subjects(setup)
    found: Counter[str] = Counter()
    for minute in range(29_000_000, 29_000_060):
        world = World(setup.load(), setup.environment)
        world.minute = minute
        seen = cli._look(world, (), verify=False, turns=True)
        assert not seen.failures
        targets, _ = seen.plan(world, seen.entries)
        late, _ = behind(world, seen.entries, seen.observed)
        unsigned = seen.unsigned(world, targets, late)
        names = [*unsigned.slugs, *unsigned.tags]
        assert len(names) == seen.turn
        assert sum(world.http.requests.values()) <= 10
        found.update(names)
    assert found.keys() == {SLUG, "latest", "build"}
    assert 10 < found.total() < 50

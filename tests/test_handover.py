"""What one machine hands to another arrives as it was, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from release import handover
from release.errors import ConfigurationError
from release.handover import (
    MOST_JOBS,
    Delivery,
    Job,
    Plan,
    deliver,
    jobs_of,
    matrix,
    read_plan,
    receive,
)
from release.http import file_digest
from release.plan import SUMS, Target
from release.reference import Reference, parse_digest
from release.report import Status
from release.state import Inputs
from release.versions import SMOKE_HOST, Entry
from tests.lab.module_images import AMD64, ARM64, built

DIGEST = parse_digest("sha256:" + "a" * 64)
SLUG = "linuxkit-kernel-5.4.39"
JOB = Job(SLUG, "docker.io/linuxkit/kernel:5.4.39", AMD64, there=False, zfs="2.1.5")


@pytest.fixture
def passed(tmp_path: Path) -> Delivery:
    image = built(tmp_path / "image", AMD64, {"install-zfs.zfs-version": "2.1.5"})
    return Delivery(SLUG, AMD64, Status.UNCHANGED, "loaded", 1.5, image=image)


def test_what_passed_arrives_with_its_digest(passed: Delivery, tmp_path: Path) -> None:
    # As artifacts come, each in a directory of its own.
    deliver(passed, JOB.name, tmp_path / "delivered" / "artifact")
    found = receive(tmp_path / "delivered", [JOB])[JOB.key]
    assert passed.image
    assert found.image
    assert replace(found, image=None) == replace(passed, image=None)
    assert found.built().digest == passed.image.manifest.digest
    assert found.built().zfs_version == "2.1.5"


@pytest.mark.parametrize("inputs", [None, Inputs(DIGEST, "2.1.5", "code", "builder", "words")])
def test_what_failed_arrives_with_its_reason(tmp_path: Path, inputs: Inputs | None) -> None:
    failed = Delivery(SLUG, AMD64, Status.FAILED, "the build failed", 2.0, inputs, lacking=True)
    deliver(failed, JOB.name, tmp_path)
    assert receive(tmp_path, [JOB]) == {JOB.key: failed}


def test_what_nobody_asked_for_is_not_taken(passed: Delivery, tmp_path: Path) -> None:
    deliver(passed, JOB.name, tmp_path)
    assert receive(tmp_path, []) == {}
    other = replace(JOB, platform=ARM64)
    found = receive(tmp_path, [other])[other.key]
    assert (found.status, found.image) == (Status.FAILED, None)
    assert receive(tmp_path / "nowhere", [JOB])[JOB.key].reason.startswith("its job delivered")


def summed(directory: Path) -> None:
    """Writes the checksums anew, as who wants to deceive would."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != SUMS)
    lines = (f"{file_digest(path)[7:]}  {path.relative_to(directory)}\n" for path in files)
    (directory / SUMS).write_text("".join(lines))


def a_blob(directory: Path) -> Path:
    return max(directory.glob("image/blobs/sha256/*"), key=lambda path: path.stat().st_size)


def bent(directory: Path) -> None:
    a_blob(directory).write_bytes(b"other")
    summed(directory)


def emptied(directory: Path) -> None:
    (directory / "image" / "index.json").unlink()
    summed(directory)


def facts(directory: Path, **changes: object) -> None:
    path = directory / "delivery.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    summed(directory)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no checksums": (lambda at: (at / SUMS).unlink(), f"has no {SUMS}"),
    "a file more": (lambda at: (at / "x").write_text(""), "x does not have its checksum"),
    "a file less": (lambda at: a_blob(at).unlink(), "does not have its checksum"),
    "a byte more": (lambda at: a_blob(at).open("ab").write(b"x"), "does not have its checksum"),
    "a blob of other bytes": (bent, "does not have its digest"),
    "another digest": (lambda at: facts(at, digest=DIGEST), "another image than was tested"),
    "another kernel": (lambda at: facts(at, slug="other"), "delivers other for linux/amd64"),
    "another platform": (lambda at: facts(at, platform="linux/arm64"), "for linux/arm64"),
    "no status": (lambda at: facts(at, status="fine"), "is not understood"),
    "no layout": (emptied, "no image that is whole"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_what_was_damaged_or_changed_is_not_used(
    passed: Delivery, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(deliver(passed, JOB.name, tmp_path / "delivered"))
    found = receive(tmp_path / "delivered", [JOB])[JOB.key]
    assert (found.status, found.image) == (Status.FAILED, None)
    assert says in found.reason


# Plans


def target(number: int, **changes: object) -> Target:
    platforms = MappingProxyType({AMD64: DIGEST, ARM64: DIGEST})
    one = Entry(Reference.parse(f"linuxkit/kernel:5.4.{number}"), DIGEST, platforms, zfs="2.1.5")
    entry = replace(one, **changes)  # type: ignore[arg-type]
    return Target(entry, (AMD64, ARM64), ("image",))


def test_a_matrix_is_no_larger_than_actions_takes_and_has_the_newest() -> None:
    jobs = jobs_of(map(target, range(1000, 0, -1)), ["linuxkit-kernel-5.4.999"])
    assert len(jobs) == MOST_JOBS
    assert jobs[0].slug == "linuxkit-kernel-5.4.1000"
    assert [job.there for job in jobs[:4]] == [False, False, True, True]
    text = matrix(jobs)
    assert len(json.loads(text)["include"]) == MOST_JOBS
    # An output may have 1 MB (docs.github.com, "Passing information between jobs").
    assert len(text) < 100_000
    assert "\n" not in text


def test_jobs_are_of_what_is_to_be_done_and_can_be() -> None:
    waiting = replace(target(1), left_out="waits")
    elsewhere, unknown = target(2, smoke=SMOKE_HOST), replace(target(3), platforms=())
    assert jobs_of([waiting, elsewhere, unknown], []) == []


def test_a_plan_takes_along_what_it_was_made_from(tmp_path: Path) -> None:
    versions = tmp_path / "mine.yaml"
    versions.write_text("image: me/zfs\nbuilders: tables/b.yaml\nkernels:\n")
    (tmp_path / "tables").mkdir()
    for name in ("desktop.yaml", "state.json", "openzfs.yaml", "tables/b.yaml"):
        (tmp_path / name).write_text(name)
    to = tmp_path / "plan"
    for _ in range(2):
        assert handover.copy(versions, to).read_text() == versions.read_text()
        for name in ("desktop.yaml", "state.json", "openzfs.yaml", "tables/b.yaml"):
            assert (to / name).read_text() == name
        assert read_plan(to).jobs == ()
    handover.write_plan(Plan((JOB,), 29_400_000), to)
    assert read_plan(to) == Plan((JOB,), 29_400_000)
    # A directory of something else is not emptied.
    with pytest.raises(ConfigurationError, match="is not empty, and no plan"):
        handover.copy(versions, tmp_path)
    (to / "plan.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is not a plan"):
        read_plan(to)

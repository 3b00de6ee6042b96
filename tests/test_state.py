"""What the pipeline remembers of its runs, what waits for it, and what stops it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest

from release import attempts, plan, state
from release.budget import Requests, share
from release.build import PROJECT
from release.errors import ConfigurationError
from release.github import Release
from release.plan import Observed, Target
from release.reference import Digest, Platform, Reference, parse_digest
from release.report import Status
from release.solver import Chosen, Policy
from release.state import MOST_ATTEMPTS, Inputs, State
from release.versions import Entry
from release.world import native_platform
from tests.test_cli import Desk, desk

__all__ = ["desk"]

AMD64, ARM64 = Platform("linux/amd64"), Platform("linux/arm64")
TODAY = date(2026, 3, 9)
KERNEL = parse_digest("sha256:" + "a" * 64)
BUILDER = parse_digest("sha256:" + "b" * 64)
OTHER = parse_digest("sha256:" + "c" * 64)
ENTRY = Entry(
    Reference.parse("linuxkit/kernel:5.4.39"),
    KERNEL,
    MappingProxyType({AMD64: KERNEL, ARM64: KERNEL}),
    zfs="2.1.5",
)
KEY = (ENTRY.slug, AMD64)
INPUTS = Inputs(KERNEL, "2.1.5", "sha256:code", f"docker.io/linuxkit/alpine:1@{BUILDER}")


def failing(times: int, inputs: Inputs = INPUTS) -> State:
    one = State()
    for _ in range(times):
        one = one.failed(KEY, inputs, "the build failed")
    return one


def test_what_is_written_is_read_and_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / state.NAME
    assert state.load(path) == State()
    one = failing(2).failed((ENTRY.slug, ARM64), INPUTS, 'words: "of others"').looked_on(TODAY)
    state.save(one, path)
    assert state.load(path) == one
    written = path.read_bytes()
    turned = replace(one, attempts=MappingProxyType(dict(reversed(list(one.attempts.items())))))
    state.save(turned, path)
    assert path.read_bytes() == written
    assert one.without(one.of(KEY)).attempts.keys() == {(ENTRY.slug, ARM64, INPUTS.zfs)}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"looked": 1, "attempts": {}}', '{"looked": null, "attempts": {"a": 1}}'],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / state.NAME
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="restore it from git"):
        state.load(path)


def test_a_look_is_recorded_once_a_week_and_missed_after_two() -> None:
    seen = State().looked_on(TODAY)
    assert seen.looked == TODAY
    for days, due, old in (
        (0, False, False),
        (6, False, False),
        (7, True, False),
        (15, True, True),
    ):
        later = TODAY + timedelta(days=days)
        assert (seen.is_due(later), seen.is_too_old(later)) == (due, old)
        assert seen.looked_on(later).looked == (later if due else TODAY)
    assert seen.age(TODAY + timedelta(days=1)).endswith("2026-03-09 (1 day ago)")


def times(one: State) -> dict[str, int]:
    """By ZFS version."""
    return {zfs: attempt.times for (*_, zfs), attempt in one.attempts.items()}


def test_other_inputs_begin_anew() -> None:
    assert times(failing(2)) == {"2.1.5": 2}
    assert times(failing(9)) == {"2.1.5": MOST_ATTEMPTS}
    other = failing(2).failed(KEY, replace(INPUTS, builder=""), "the build failed")
    assert times(other) == {"2.1.5": 1}


def test_each_zfs_version_has_its_own_count() -> None:
    newer = replace(INPUTS, zfs="2.1.6")
    both = failing(2).failed(KEY, newer, "the build failed")
    assert times(both) == {"2.1.5": 2, "2.1.6": 1}
    assert times(both.succeeded(KEY, "2.1.5")) == {"2.1.6": 1}
    for zfs in ("2.1.6", "2.1.10", None):
        assert times(both.succeeded(KEY, zfs)) == {}
    # With other code, all that is known of the older ones is of no use.
    assert times(both.failed(KEY, replace(newer, code="sha256:other"), "no")) == {"2.1.6": 1}


def test_a_file_of_before_versions_had_their_own_counts_is_read(tmp_path: Path) -> None:
    path = tmp_path / state.NAME
    state.save(failing(2), path)
    content = json.loads(path.read_text())
    (platforms,) = content["attempts"].values()
    (platforms[AMD64],) = platforms[AMD64]
    path.write_text(json.dumps(content))
    assert state.load(path) == failing(2)


def targets(entry: Entry = ENTRY, held: Mapping[Platform, str] | None = None) -> list[Target]:
    nothing = Observed(frozenset(), ())
    why = {(entry.slug, entry.zfs): held} if held else {}
    return plan.plan([entry], nothing, platforms=frozenset({AMD64, ARM64}), held=why)


ALPINE = Reference.parse("linuxkit/alpine:1")
IS_THERE: Mapping[Reference, Digest | None] = MappingProxyType({ALPINE: BUILDER})


def held(
    one: State,
    entry: Entry = ENTRY,
    code: str = INPUTS.code,
    there: Mapping[Reference, Digest | None] = IS_THERE,
) -> bool:
    """Whether the kernel waits; ``there`` is what is seen of images, no others may be asked for."""

    def look(images: Collection[Reference]) -> Mapping[Reference, Digest | None]:
        assert set(images) <= {*there, *IS_THERE}
        return there

    return (ENTRY.slug, entry.zfs) in attempts.held(targets(entry), one, code, look)


def test_three_failures_wait_until_an_input_changes() -> None:
    assert not held(failing(MOST_ATTEMPTS - 1))
    assert held(failing(MOST_ATTEMPTS))
    changed = failing(MOST_ATTEMPTS)
    kernels = MappingProxyType({AMD64: OTHER, ARM64: KERNEL})
    assert not held(changed, replace(ENTRY, platforms=kernels))
    assert not held(changed, replace(ENTRY, zfs="2.1.6"))
    assert not held(changed, code="sha256:other")
    assert not held(changed, there={ALPINE: OTHER})
    assert not held(changed, there={ALPINE: None})
    # What was not looked at in this run has not changed.
    assert held(changed, there={})
    builder = Reference.parse("linuxkit/alpine:2")
    assert not held(changed, replace(ENTRY, builder=builder))
    assert not held(changed, replace(ENTRY, headers_from=builder))
    # What another platform's publication wrote into the entry is what failed here.
    assert held(changed, replace(ENTRY, builder=Reference.parse("linuxkit/alpine:1")))
    # Without a builder there is none to ask.
    assert held(failing(MOST_ATTEMPTS, replace(INPUTS, builder="")))


def test_a_kernel_without_a_builder_waits_until_one_appears() -> None:
    beside, wrong = Reference.parse("linuxkit/kernel:5.4.39-builder"), ALPINE
    looked_at = attempts.as_text({str(beside): None, str(wrong): OTHER})
    waits = failing(MOST_ATTEMPTS, replace(INPUTS, builder="", looked_at=looked_at))
    assert held(waits, there={beside: None, wrong: OTHER})
    assert not held(waits, there={beside: BUILDER, wrong: OTHER})
    assert not held(waits, there={beside: None, wrong: BUILDER})
    assert not held(waits, there={beside: None, wrong: None})
    assert not held(waits, replace(ENTRY, builder=ALPINE), there={beside: None, wrong: OTHER})


def test_one_platform_that_waits_holds_up_no_other() -> None:
    (target,) = targets(held={AMD64: "failed 3 times"})
    assert target.to_do
    assert target.platforms == (ARM64,)
    both = {AMD64: "failed 3 times", ARM64: "failed too"}
    (target,) = targets(held=both)
    assert (target.to_do, target.status) == (False, Status.WAITING)
    assert target.reason == "linux/amd64: failed 3 times; linux/arm64: failed too"


def test_a_version_that_cannot_be_mended_holds_up_no_newer_one() -> None:
    released = Release(
        1, plan.git_tag(ENTRY.slug, "2.1.5"), "", False, False, False, "", "", "", None, ()
    )
    entry = replace(ENTRY, builder=ALPINE)
    draw = partial(
        plan.plan,
        [entry],
        Observed(frozenset(), (released,)),
        platforms=frozenset({AMD64}),
        policy=Policy.LATEST,
        choices={entry.slug: Chosen("2.1.6")},
    )
    (target,) = draw()
    assert (target.zfs, bool(target.repairs)) == ("2.1.5", True)
    (target,) = draw(held={(entry.slug, "2.1.5"): {AMD64: "failed 3 times"}})
    assert (target.zfs, target.to_do) == ("2.1.6", True)
    (target,) = draw(held={(entry.slug, "2.1.6"): {AMD64: "failed 3 times"}})
    assert (target.zfs, target.to_do) == ("2.1.5", True)


def test_what_waits_takes_nobody_s_place() -> None:
    older = replace(ENTRY, image=Reference.parse("linuxkit/kernel:4.19.1"))
    nothing = Observed(frozenset(), ())
    targets = plan.plan(
        [older, ENTRY],
        nothing,
        platforms=frozenset({AMD64}),
        held={(ENTRY.slug, ENTRY.zfs): {AMD64: "failed 3 times"}},
    )
    plenty = Requests(1000, 1000, 1000)
    first, second = share(targets, older.image.name, 0, plenty, plenty, limit=1).targets
    assert (first.entry, first.to_do) == (ENTRY, False)
    assert (second.entry, second.to_do) == (older, True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    copy = tmp_path / "project"
    for name in ("image", "loader", "release"):
        shutil.copytree(PROJECT / name, copy / name)
    for name in ("Dockerfile", "builders.yaml", "README.md", "versions.yaml"):
        shutil.copy(PROJECT / name, copy)
    return copy


@pytest.mark.parametrize("name", ["Dockerfile", "image/modules.sh", "release/smoke.py"])
def test_our_own_code_is_an_input(project: Path, name: str) -> None:
    before = attempts.code_digest(project)
    assert before == attempts.code_digest(PROJECT)
    for other in ("README.md", "versions.yaml"):
        (project / other).write_text("changed")
    assert attempts.code_digest(project) == before
    (project / name).write_text("changed")
    assert attempts.code_digest(project) != before


# The command line


def failed_before(desk: Desk, times: int = MOST_ATTEMPTS, looked_at: str = "") -> None:
    """The kernel that the Desk's list names failed before, with what is so now."""
    platform = native_platform()
    desk.path.write_text(
        desk.head + desk.entry + f"  platforms: {{{platform}: {desk.digest}}}\n  zfs: 0.8.4\n"
    )
    inputs = Inputs(desk.digest, "0.8.4", attempts.code_digest(PROJECT), looked_at=looked_at)
    one = State()
    for _ in range(times):
        one = one.failed(("linuxkit-kernel-5.4.39", platform), inputs, "the build failed")
    state.save(one.looked_on(datetime.now(UTC).date()), desk.path.with_name(state.NAME))


def test_plan_and_status_say_what_waits_and_force_overrides(desk: Desk) -> None:
    failed_before(desk)
    said = "failed 3 times with the same inputs (the build failed); waits until"
    plan_run, status_run = desk.run("plan"), desk.run("status")
    for run in (plan_run, status_run):
        (line,) = (line for line in run.stdout.splitlines() if "linuxkit/kernel:5.4.39" in line)
        assert said in line
        assert line.split()[0] == "wait" or " waiting " in line
    run = desk.run("plan", "--force-rebuild")
    assert said not in run.stdout
    failed_before(desk, MOST_ATTEMPTS - 1)
    assert said not in desk.run("plan").stdout


WAITS = "failed 3 times with the same inputs"


def test_a_builder_that_upstream_pushes_later_is_noticed(desk: Desk) -> None:
    failed_before(desk, looked_at=f"{desk.registry.host}/linuxkit/kernel:5.4.39-builder -")
    assert WAITS in desk.run("plan").stdout
    desk.registry.put("linuxkit/kernel", "5.4.39-builder", {})
    run = desk.run("plan")
    (line,) = (line for line in run.stdout.splitlines() if "linuxkit/kernel:5.4.39" in line)
    assert line.split()[0] == "publish"


def test_a_builder_that_cannot_be_looked_at_has_not_changed(desk: Desk) -> None:
    failed_before(desk, looked_at="127.0.0.1:1/linuxkit/alpine:1 -")
    run = desk.run("plan")
    assert WAITS in run.stdout
    assert run.exit_code == 3
    assert "127.0.0.1:1" in run.stderr


def test_builders_have_their_turns(desk: Desk) -> None:
    names = [f"{desk.registry.host}/builders/kernel:{number}" for number in range(20)]
    failed_before(desk, looked_at=attempts.as_text(dict.fromkeys(names)))
    for arguments, looks in ((["plan"], 1), (["plan", "--verify"], 20)):
        before = desk.registry.count("HEAD /v2/builders/kernel/manifests/")
        assert WAITS in desk.run(*arguments).stdout
        assert desk.registry.count("HEAD /v2/builders/kernel/manifests/") - before == looks


def test_an_old_look_is_told_of(desk: Desk) -> None:
    desk.complete()
    long_ago = datetime.now(UTC).date() - timedelta(days=40)
    path = desk.path.with_name(state.NAME)
    state.save(State(long_ago), path)
    for command in ("status", "plan"):
        run = desk.run(command)
        assert f"upstream: {long_ago} (40 days ago)" in run.stdout + run.stderr
        assert "runs in between were dropped" in run.stderr
    run = desk.run("sync")
    assert "runs in between were dropped" in run.stderr
    assert "runs in between were dropped" not in desk.run("sync").stderr
    assert state.load(path).looked == datetime.now(UTC).date()


def test_an_incomplete_look_is_none(desk: Desk) -> None:
    desk.complete()
    desk.hub.repositories.clear()
    assert desk.run("sync").exit_code == 3
    assert not desk.path.with_name(state.NAME).exists()


def test_an_idle_sync_writes_nothing_again(desk: Desk) -> None:
    desk.complete()
    path = desk.path.with_name(state.NAME)
    assert desk.run("sync").exit_code == 0
    written = path.stat().st_mtime_ns
    assert json.loads(path.read_text())["attempts"] == {}
    assert desk.run("sync").exit_code == 0
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("command", [["sync"], ["publish", "all"]])
def test_the_stop_variable_stops_before_anything_is_asked(desk: Desk, command: list[str]) -> None:
    run = desk.run(*command, INSTALL_ZFS_STOP="2.1.15 eats data")
    assert run.exit_code == 4
    assert "publishing is stopped: INSTALL_ZFS_STOP is set to '2.1.15 eats data'" in run.stderr
    assert desk.requests == 0
    said = desk.run("status", INSTALL_ZFS_STOP="2.1.15 eats data").stdout
    assert "publishing is stopped" in said
    run = desk.run("status", INSTALL_ZFS_STOP="")
    assert run.exit_code == 0
    assert "publishing is stopped" not in run.stdout

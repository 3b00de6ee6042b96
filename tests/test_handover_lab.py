"""From a plan over a build on another machine to publication, on real parts."""

from __future__ import annotations

import json
import shutil

import pytest

from release import state
from release.world import native_platform
from tests.lab.setup import Setup
from tests.lab.world import NEWER, LabKernel, World

pytestmark = pytest.mark.lab


def test_what_was_built_and_tested_elsewhere_is_what_is_published(
    setup: Setup, desktop_kernel: LabKernel
) -> None:
    setup.push(desktop_kernel)
    setup.write_versions(f"  - image: {desktop_kernel.reference}\n    desktop: [4.13.0]\n")
    written = setup.path.read_bytes()
    planned = setup.run("plan", "--hand-over", "plan")
    assert planned.exit_code == 0, planned
    (job,) = json.loads((setup.directory / "plan" / "plan.json").read_text())["jobs"]
    assert setup.path.read_bytes() == written

    # Another machine, with the plan alone and without any secret.
    nobody = {"GITHUB_TOKEN": None, "GITHUB_REPOSITORY": None}
    arguments = (job["slug"], native_platform(), "--plan", "plan", "--to", "delivered")
    handed = setup.run("hand-over", *arguments, environment=nobody)
    assert handed.exit_code == 0, handed
    (facts,) = (setup.directory / "delivered").rglob("delivery.json")
    delivered = json.loads(facts.read_text())
    assert "loaded and tried with a pool on its own kernel" in delivered["reason"]
    assert setup.tags() == {}
    shutil.rmtree(setup.directory / "cache")

    run = setup.run("sync", "--delivered", "delivered", "--expected", "plan")

    assert run.exit_code == 0, run
    (outcome,) = run.outcomes
    assert (outcome["status"], outcome["digest"]) == ("published", delivered["digest"])
    tags = setup.tags()
    assert tags["desktop-4.13.0"] == tags[job["slug"]]
    assert setup.manifest(job["slug"]) == delivered["digest"]
    assert "latest" in tags
    assert [one["status"] for one in setup.run("sync").outcomes] == ["unchanged"]


def test_a_build_that_failed_three_times_waits(setup: Setup, world: World) -> None:
    """ZFS 2.1.11 refuses Linux 6.12, which its configure says itself."""
    world.up([NEWER])
    newer = world.kernel(NEWER)
    setup.push(newer)
    setup.write_versions(f"  - image: {newer.reference}\n    zfs: 2.1.11\n")
    failed = setup.run("sync")
    assert [one["status"] for one in failed.outcomes] == ["failed"], failed
    path = setup.path.with_name(state.NAME)
    content = json.loads(path.read_text())
    ((attempt,),) = (one for each in content["attempts"].values() for one in each.values())
    assert attempt["times"] == 1
    assert attempt["inputs"]["builder"].startswith(f"{newer.builder}@sha256:")
    # What was noted down then is what counts now.
    path.write_text(json.dumps(content).replace('"times": 1', f'"times": {state.MOST_ATTEMPTS}'))
    run = setup.run("sync")
    assert [one["status"] for one in run.outcomes] == ["waiting"], run
    assert "failed 3 times with the same inputs" in run.stdout

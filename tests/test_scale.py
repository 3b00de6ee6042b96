"""A thousand kernels and ten thousand tags: nothing in a run with nothing to do grows faster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from release import versions
from release.handover import MOST_JOBS, Job, matrix
from tests.lab.scale import KERNELS_THERE, PLATFORMS, Figures, Scale, scale
from tests.recorded import KERNELS

CPU_SECONDS = 10.0
MEMORY_MIB = 200.0
# docs.github.com, "Actions limits" and "Workflow syntax": an output of a job, a step's summary.
OUTPUT_BYTES, SUMMARY_BYTES = 1_000_000, 1 << 20
# execve(2), MAX_ARG_STRLEN: one argument or variable of a program.
ARGUMENT_BYTES = 128 << 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scale]:
    with scale(tmp_path_factory.mktemp("scale")) as world:
        yield world
        assert world.setup.violations == []


def cheap(figures: Figures) -> None:
    assert figures.exit_code == 0, figures.stderr
    assert figures.cpu < CPU_SECONDS, figures
    assert figures.memory < MEMORY_MIB, figures


def test_a_plan_with_all_to_do_stays_below_the_limits_of_actions(
    world: Scale, tmp_path: Path
) -> None:
    output, summary = tmp_path / "output", tmp_path / "summary"
    figures = world.measure(
        *("plan", "--hand-over", "plan", "--limit", "1000"),
        GITHUB_ACTIONS="true",
        GITHUB_OUTPUT=str(output),
        GITHUB_STEP_SUMMARY=str(summary),
    )
    cheap(figures)
    said = dict(line.split("=", 1) for line in output.read_text().splitlines())
    jobs = json.loads(said["matrix"])["include"]
    assert (
        f"{KERNELS_THERE} kernels are to be published: {len(jobs) // 2} in this run"
        in figures.stdout
    )
    assert 0 < len(jobs) <= MOST_JOBS
    assert output.stat().st_size < OUTPUT_BYTES
    assert 0 < summary.stat().st_size < SUMMARY_BYTES


def test_a_matrix_of_the_longest_names_is_no_too_long_variable() -> None:
    # The image tag SLUG-modules has 128 characters at most.
    slug = "s" * (128 - len(versions.modules_tag("")))
    jobs = [Job(slug, "k", PLATFORMS[n % 2], False, None) for n in range(MOST_JOBS)]
    needs = {"plan": {"result": "success", "outputs": {"matrix": matrix(jobs)}}}
    assert len(json.dumps(needs, indent=2)) < ARGUMENT_BYTES


def test_with_nothing_to_do_it_is_cheap(world: Scale) -> None:
    world.publish()
    for arguments in (("plan",), ("status",), ("plan", "--hand-over", "plan")):
        figures = world.measure(*arguments)
        cheap(figures)
        assert "publish " not in figures.stdout
        assert figures.stdout.count(f"/{KERNELS}:") >= KERNELS_THERE
    before = world.setup.path.read_bytes()
    figures = world.measure("sync")
    cheap(figures)
    assert figures.stdout.count("unchanged") == KERNELS_THERE
    assert figures.requests["hub"] == 1
    # Ten pages of releases, ten of upstream's tags, four of ours, and a few looks.
    assert figures.requests["github"] == 10
    assert figures.requests["registry"] < 25
    assert world.setup.path.read_bytes() == before


def test_thousands_of_changes_are_written_at_once(world: Scale, tmp_path: Path) -> None:
    path = tmp_path / "versions.yaml"
    path.write_bytes(world.setup.path.read_bytes())
    was = versions.load(path)
    changes = [
        (one, replace(one, zfs="2.1.17", desktop=(f"4.{number}.0",)))
        for number, one in enumerate(was.kernels)
    ]
    now = versions.revise_all(was, changes)
    assert now.kernels == tuple(entry for _, entry in changes)
    assert now == versions.load(path)

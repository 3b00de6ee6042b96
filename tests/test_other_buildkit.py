"""BuildKit builds wherever ``docker buildx`` points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recorded import Recorded

REMOTE = "Name:   far\nDriver: remote\n\nNodes:\nName: far0\nStatus: running\n"


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Recorded]:
    with Recorded(tmp_path) as setup:
        (setup.results / "builders").mkdir()
        (setup.results / "builders" / "far").write_text(REMOTE)
        setup.write_versions(f"  - image: {setup.push_kernel('5.4.39').reference}\n")
        yield setup
        assert setup.violations == []


def test_the_builder_that_is_named_builds(setup: Recorded) -> None:
    run = setup.run("sync", "--builder", "far")
    assert [one["status"] for one in run.outcomes] == ["published"], run
    assert (setup.results / "used").read_text() == "far\n"


def test_docker_s_own_variable_names_it_too(setup: Recorded) -> None:
    assert setup.run("publish", "all", BUILDX_BUILDER="far").exit_code == 0
    assert (setup.results / "used").read_text() == "far\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [("near", "there is no such builder"), ("mute", "the builder does not answer")],
)
def test_a_builder_that_cannot_build_is_told_before_any_work(
    setup: Recorded, name: str, says: str
) -> None:
    (setup.results / "builders" / "mute").write_text(f"{REMOTE}Error: connection refused\n")
    run = setup.run("sync", "--builder", name)
    assert run.exit_code == 4, run
    assert says in run.stderr
    assert f"docker buildx, {name}" in run.stderr
    assert f"inspect --bootstrap {name}" in run.stderr or f"--name {name}" in run.stderr
    assert setup.builds == []

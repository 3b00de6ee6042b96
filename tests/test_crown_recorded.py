"""The crown test at every outside effect: builds and boots are recorded, all else is real.

``test_crown.py`` is the same on real parts, at some of the points.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal

import pytest

from tests.lab.server import Effect, EffectCounter
from tests.published import Published
from tests.recorded import IMAGES, Kernel, Recorded, kill

PHASES: tuple[Literal["before", "after"], ...] = ("before", "after")


@pytest.fixture
def effects() -> EffectCounter:
    return EffectCounter()


@pytest.fixture
def setup(tmp_path: Path, effects: EffectCounter) -> Iterator[Recorded]:
    with Recorded(tmp_path, effects=effects) as setup:
        yield setup
        assert setup.violations == []


def empty(setup: Recorded, kernel: Kernel) -> None:
    """Nothing was ever published, and upstream has a kernel."""
    setup.registry.manifests.pop(IMAGES, None)
    setup.registry.blobs = {
        digest: blob for digest, blob in setup.registry.blobs.items() if digest in setup.upstream
    }
    setup.releases.releases.clear()
    setup.releases.git_tags.clear()
    setup.write_versions(f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n")
    forget(setup)


def forget(setup: Recorded) -> None:
    """The next run is on a machine that knows nothing of the one before."""
    shutil.rmtree(setup.path.parent / "cache", ignore_errors=True)


def test_killed_at_every_effect_and_run_again_is_as_if_never_killed(
    setup: Recorded, effects: EffectCounter
) -> None:
    kernel = setup.push_kernel("5.4.39")
    every_point(setup, effects, partial(empty, setup, kernel))
    assert len(setup.releases.releases) == 1


def every_point(setup: Recorded, effects: EffectCounter, begin: Callable[[], None]) -> None:
    """Kills a run that starts from ``begin`` at each of its effects, before and after."""
    begin()
    effects.resume()
    run = setup.run("sync")
    assert run.exit_code == 0, run
    total = len(effects.effects)
    whole = Published.by(setup)
    for n in range(1, total + 1):
        for phase in PHASES:
            effects.resume()
            begin()
            with setup.start("sync") as process:
                effects.stop_at(n, phase, then=killing(process))
                process.join(60)
            assert process.exitcode == -9, f"the run ended before effect {n} of {total}"
            effects.resume()
            if n % 2:
                forget(setup)
            again = setup.run("sync")
            where = f"after a kill {phase} effect {n} of {total}"
            assert again.exit_code == 0, f"{where}: {again}"
            assert Published.by(setup) == whole, where
            assert {one["status"] for one in setup.run("sync").outcomes} == {"unchanged"}, where


def killing(process: ForkServerProcess) -> Callable[[Effect], None]:
    def then(_: Effect) -> None:
        kill(process)

    return then

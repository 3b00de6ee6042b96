"""The crown test at every outside effect: builds and boots are recorded, all else is real.

``test_crown.py`` is the same on real parts, at some of the points.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.lab.github import Release
from tests.lab.server import Effect, EffectCounter, Phase
from tests.published import Published
from tests.recorded import IMAGES, Kernel, Recorded, kill

PHASES: tuple[Phase, ...] = ("before", "after")


@dataclass(frozen=True)
class State:
    """What is out there, to be brought back."""

    manifests: dict[str, dict[str, tuple[str, bytes]]]
    blobs: dict[str, bytes]
    releases: list[Release]
    git_tags: dict[str, str]
    versions: str

    @classmethod
    def of(cls, setup: Recorded) -> State:
        return cls(
            copy.deepcopy(setup.small.manifests),
            dict(setup.small.blobs),
            copy.deepcopy(setup.releases.releases),
            dict(setup.releases.git_tags),
            setup.path.read_text(),
        )

    def bring_back(self, setup: Recorded) -> None:
        setup.small.manifests = copy.deepcopy(self.manifests)
        setup.small.blobs = dict(self.blobs)
        setup.releases.releases[:] = copy.deepcopy(self.releases)
        setup.releases.git_tags = dict(self.git_tags)
        setup.releases.burned.clear()
        setup.releases.immutable_releases = False
        setup.path.write_text(self.versions)


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
    if IMAGES in setup.registry.manifests:
        setup.registry.delete(IMAGES)
    setup.releases.releases.clear()
    setup.releases.git_tags.clear()
    entry = f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n"
    setup.write_versions(entry, on_the_spot=True)
    setup.forget()


def test_killed_at_every_effect_and_run_again_is_as_if_never_killed(
    setup: Recorded, effects: EffectCounter
) -> None:
    kernel = setup.push_kernel("5.4.39")
    every_point(setup, effects, partial(empty, setup, kernel))
    assert len(setup.releases.releases) == 1
    assert {"desktop-4.13.0", "latest", "build"} <= setup.tags().keys()


def every_point(
    setup: Recorded,
    effects: EffectCounter,
    begin: Callable[[], None],
    phases: Sequence[Phase] = PHASES,
) -> None:
    """Kills a run that starts from ``begin`` at each of its effects."""
    begin()
    effects.resume()
    run = setup.run("sync")
    assert run.exit_code == 0, run
    total = len(effects.effects)
    whole = Published.by(setup)
    assert setup.engine.containers == {}
    effects.resume()
    assert {one["status"] for one in setup.run("sync").outcomes} == {"unchanged"}
    assert effects.effects == [], "nothing was left to do"
    for n in range(1, total + 1):
        for phase in phases:
            effects.resume()
            begin()
            with setup.start("sync") as process:
                effects.stop_at(n, phase, then=killing(process))
                process.join(60)
            assert process.exitcode == -9, f"the run ended before effect {n} of {total}"
            effects.resume()
            if n % 2:
                setup.forget()
            again = setup.run("sync")
            assert again.exit_code == 0, f"after a kill {phase} effect {n} of {total}: {again}"
            assert Published.by(setup) == whole, f"after a kill {phase} effect {n} of {total}"
    effects.resume()
    assert setup.run("sync").exit_code == 0
    assert effects.effects == [], "nothing was left to do"


def killing(process: ForkServerProcess) -> Callable[[Effect], None]:
    def then(_: Effect) -> None:
        kill(process)

    return then


def lose_images(setup: Recorded) -> None:
    setup.registry.delete(IMAGES)


def lose_release(setup: Recorded) -> None:
    setup.releases.releases.clear()


def make_immutable_and_wrong(setup: Recorded) -> None:
    setup.releases.immutable_releases = True
    (release,) = setup.releases.releases
    setup.releases.publish(release)
    release.put_asset("SHA256SUMS", b"wrong")


@pytest.mark.parametrize("damage", [lose_images, lose_release, make_immutable_and_wrong])
def test_a_repair_killed_at_every_effect_is_repaired(
    setup: Recorded, effects: EffectCounter, damage: Callable[[Recorded], None]
) -> None:
    kernel = setup.push_kernel("5.4.39")
    empty(setup, kernel)
    assert setup.run("sync").exit_code == 0
    sound = State.of(setup)

    def begin() -> None:
        sound.bring_back(setup)
        setup.forget()
        damage(setup)

    # What is out there before an effect is what was there after the one before it.
    every_point(setup, effects, begin, ["before"])

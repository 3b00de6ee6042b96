"""The crown test: a run that is killed at its n-th outside effect is repaired by the next run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.lab.server import Effect, EffectCounter
from tests.lab.setup import Setup, kill
from tests.lab.world import LabKernel

pytestmark = pytest.mark.lab

# Spread over the effects of one kernel: 1 and 2 are the preflight's (an upload opened and
# cancelled), 3 to 10 the blobs, 11 and 12 the manifest and its tag, 13 to 16 the configuration, the
# manifest and the tag of the modules alone, 17 the draft, 18 and 19 its assets, 20 its publication,
# 21 the tag for the Desktop version; then `latest`: 22 to 25 its blobs, 26 its manifest, 27 and 28
# the blob of its record, 29 the record, 30 the tag. "before" is killed without the effect, "after"
# with it.
POINTS: tuple[tuple[int, Literal["before", "after"]], ...] = (
    (1, "after"),
    (6, "before"),
    (10, "after"),
    (11, "after"),
    (12, "after"),
    (14, "after"),
    (16, "after"),
    (17, "after"),
    (19, "after"),
    (20, "before"),
    (20, "after"),
    (21, "after"),
    (26, "before"),
    (29, "after"),
    (30, "before"),
    (30, "after"),
)
LAST = 30


@dataclass(frozen=True)
class Published:
    """All that is out there, as far as anybody can tell."""

    tags: dict[str, str]
    releases: list[tuple[str, bool, dict[str, bytes]]]
    git_tags: frozenset[str]
    versions: str


def _published(setup: Setup) -> Published:
    return Published(
        setup.tags(),
        [
            (
                release.tag_name,
                release.draft,
                {asset.name: bytes(asset.content or b"") for asset in release.assets},
            )
            for release in setup.releases.releases
        ],
        frozenset(setup.releases.git_tags),
        setup.path.read_text(),
    )


@pytest.fixture
def scene(setup: Setup, desktop_kernel: LabKernel, linuxkit_kernel: LabKernel) -> Setup:
    setup.push(linuxkit_kernel)
    setup.push(desktop_kernel)
    return setup


def _reset(setup: Setup, effects: EffectCounter, kernel: LabKernel) -> None:
    effects.resume()
    setup.empty()
    setup.releases.releases.clear()
    setup.releases.git_tags.clear()
    setup.write_versions(f"  - image: {kernel.reference}\n    desktop: [4.13.0]\n")
    shutil.rmtree(setup.directory / "cache", ignore_errors=True)


def _killing(process: subprocess.Popen[str]) -> Callable[[Effect], None]:
    def then(_: Effect) -> None:
        kill(process)

    return then


def test_killed_anywhere_and_run_again_is_as_if_never_killed(
    scene: Setup, effects: EffectCounter, desktop_kernel: LabKernel
) -> None:
    choice = ("sync", "--only", desktop_kernel.reference)
    _reset(scene, effects, desktop_kernel)
    assert scene.run(*choice).exit_code == 0
    total = len({effect.number for effect in effects.effects})
    whole = _published(scene)
    assert len(whole.releases) == 1
    assert total == LAST

    for number, (n, phase) in enumerate(POINTS):
        _reset(scene, effects, desktop_kernel)
        with scene.start(*choice) as process:
            effects.stop_at(n, phase, then=_killing(process))
            process.wait(timeout=600)
        assert process.returncode == -9, f"the run ended before effect {n}"
        effects.resume()
        if number % 2:
            # The next run may be on a machine that knows nothing of the first.
            shutil.rmtree(scene.directory / "cache", ignore_errors=True)
        again = scene.run(*choice)
        assert again.exit_code == 0, f"after a kill {phase} effect {n}: {again}"
        assert _published(scene) == whole, f"after a kill {phase} effect {n}"

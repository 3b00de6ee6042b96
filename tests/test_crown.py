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
# cancelled), 3 to 8 the blobs, 9 and 10 the manifest and its tag, 11 the draft, 12 and 13 its
# assets, 14 its publication, 15 the tag for the Desktop version; then `latest`: 16 to 19 its
# blobs, 20 its manifest, 21 and 22 the blob of its record, 23 the record, 24 the tag. "before" is
# killed without the effect, "after" with it.
POINTS: tuple[tuple[int, Literal["before", "after"]], ...] = (
    (1, "after"),
    (4, "after"),
    (6, "before"),
    (8, "after"),
    (9, "after"),
    (10, "after"),
    (11, "after"),
    (12, "after"),
    (13, "after"),
    (14, "before"),
    (14, "after"),
    (15, "after"),
    (17, "after"),
    (20, "before"),
    (23, "after"),
    (24, "before"),
    (24, "after"),
)
LAST = 24


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

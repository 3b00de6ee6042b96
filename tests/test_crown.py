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
# cancelled), 3 to 10 the blobs, 11 the manifest, 12 to 17 the blobs of its attestation, 18 and 19
# the attestation and the tag; 20 to 22 the configuration and the manifest of the modules alone, 23
# to 30 its attestation and its tag; 31 the draft, 32 to 35 its assets, 36 its publication, 37 the
# tag for the Desktop version; then `latest`: 38 to 41 its blobs, 42 its manifest, 43 to 49 its
# attestation, 50 and 51 the blob of its record, 52 the record, 53 the tag. "before" is killed
# without the effect, "after" with it. Every effect has its turn in test_crown_recorded.py, where
# nothing is really built and booted.
POINTS: tuple[tuple[int, Literal["before", "after"]], ...] = (
    (11, "after"),
    (19, "before"),
    (36, "before"),
    (52, "after"),
)
LAST = 53


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

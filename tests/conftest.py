"""The lab, for the tests that need real parts. What is built once is used by all of them.

Tests run by files in several processes, and each of them uses the one lab.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import release.build
from release.kernel import KernelFiles
from release.layout import Layout
from release.reference import Platform, Reference, parse_digest
from release.world import World as PipelineWorld
from tests.lab.built import Built
from tests.lab.server import EffectCounter
from tests.lab.setup import Setup
from tests.lab.world import DESKTOP, LINUXKIT, LabKernel, World

AMD64 = Platform("linux/amd64")

# How long an example takes says how busy the machine is.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that need the lab first: they take long, the others fill what they leave."""
    lab = {item.path for item in items if item.get_closest_marker("lab")}
    items.sort(key=lambda item: item.path not in lab)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with World() as world:
        yield world.up([DESKTOP, LINUXKIT])


@pytest.fixture(scope="session")
def desktop_kernel(world: World) -> LabKernel:
    return world.kernel(DESKTOP)


@pytest.fixture(scope="session")
def linuxkit_kernel(world: World) -> LabKernel:
    """Another kernel of the same version, with another release."""
    return world.kernel(LINUXKIT)


@pytest.fixture
def effects() -> EffectCounter:
    return EffectCounter()


@pytest.fixture
def setup(
    world: World, tmp_path: Path, effects: EffectCounter, request: pytest.FixtureRequest
) -> Iterator[Setup]:
    """A maintainer's setup of the test's own; whatever happened in it was understood."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    with Setup(world, tmp_path, namespace=f"test-{name}", effects=effects) as setup:
        yield setup
        for server in (setup.hub, setup.github, setup.gateway):
            assert server.violations == []


@pytest.fixture(scope="session")
def built_in(
    world: World, desktop_kernel: LabKernel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    """A setup in which the module image of the Desktop kernel was built."""
    with Setup(world, tmp_path_factory.mktemp("built"), namespace="built") as setup:
        setup.push(desktop_kernel)
        setup.write_versions(f"  - image: {desktop_kernel.reference}\n    desktop: [4.13.0]\n")
        run = setup.run("build", "all")
        assert run.exit_code == 0, run
        yield setup


@pytest.fixture(scope="session")
def built(built_in: Setup, desktop_kernel: LabKernel) -> Built:
    (entry,) = built_in.load().kernels
    layout = Layout(built_in.directory / "cache" / "images" / f"{entry.slug}-amd64")
    files = _kernel_files(built_in, desktop_kernel)
    assert files.kernel
    facts = release.build.Built(AMD64, layout, layout.labels(), files.kernel)
    return Built(files.kernel, layout.layers, facts)


@pytest.fixture(scope="session")
def other_kernel(built_in: Setup, linuxkit_kernel: LabKernel) -> Path:
    """The kernel of another release than the one of ``built``."""
    kernel = _kernel_files(built_in, linuxkit_kernel).kernel
    assert kernel
    return kernel


def _kernel_files(setup: Setup, kernel: LabKernel) -> KernelFiles:
    pipeline = PipelineWorld(setup.load(), setup.environment, setup.directory / "cache")
    return pipeline.builder.kernel_files(
        Reference.parse(kernel.reference),
        parse_digest(kernel.manifest),
        AMD64,
    )

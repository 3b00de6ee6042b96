"""A second BuildKit on this machine builds from what is here, to files here."""

from __future__ import annotations

import os

import pytest

from release.build import BUILDX_BUILDER, Builder
from release.engine import Engine
from release.reference import Platform, Reference, parse_digest
from tests.lab.second_engine import NAME, second_builder, used
from tests.lab.setup import Setup
from tests.lab.world import LabKernel


@pytest.mark.lab
def test_files_come_back_from_the_builder_that_is_named(
    setup: Setup, desktop_kernel: LabKernel
) -> None:
    reference = Reference.parse(desktop_kernel.reference)
    with second_builder(setup.world, {**os.environ, **setup.environment}) as environment:
        before = used(environment)
        environment[BUILDX_BUILDER] = NAME
        Engine(environment).preflight()
        builder = Builder(setup.directory / "cache", environment)
        files = builder.kernel_files(
            reference, parse_digest(desktop_kernel.manifest), Platform("linux/amd64")
        )
        assert files.kernel
        assert files.headers
        if os.geteuid() == 0:
            assert (before, used(environment) != before) == ("0B", True)

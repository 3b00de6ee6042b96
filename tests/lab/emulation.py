"""Programs for linux/arm64 on a machine of another kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from docker.models.containers import Container

from tests.lab.buildx import IMAGES
from tests.lab.debian import BOOKWORM
from tests.lab.registry import LABEL
from tests.lab.steps import LabError, step
from tests.lab.world import World

_WAS_THERE = 3


@contextmanager
def emulated(world: World) -> Iterator[None]:
    """Has the engine's kernel run programs for linux/arm64, unless it does already."""
    image = "install-zfs-lab/emulation"
    if not world.client.images.list(name=image):
        with step("emulation, image"):
            world.buildx.build(
                "emulation, image",
                IMAGES / "emulation.Dockerfile",
                output=f"type=docker,name={image}",
                args={"BASE": world.base(BOOKWORM)},
            )

    # Since Linux 6.7 what was registered goes with the last mount of binfmt_misc; where the machine
    # has none, that is the one of this container, which stays until the end.
    container = world.client.containers.run(
        image,
        ["infinity"],
        entrypoint=["sleep"],
        privileged=True,
        detach=True,
        labels={LABEL: str(world.directory)},
    )
    try:
        with _registered(container):
            yield
    finally:
        container.remove(force=True)


@contextmanager
def _registered(container: Container) -> Iterator[None]:
    status = _emulate(container, "start")
    try:
        yield
    finally:
        if status != _WAS_THERE:
            _emulate(container, "stop")


def _emulate(container: Container, command: str) -> int:
    status, output = container.exec_run(["emulate", command])
    if status not in (0, _WAS_THERE):
        raise LabError(
            f"emulate {command} ended with {status}",
            on="linux/arm64",
            detail=cast("bytes", output).decode(errors="replace"),
            hint="see tests/lab/images/emulate",
        )
    return int(status)

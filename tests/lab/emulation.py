"""Programs for linux/arm64 on a machine of another kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from docker.errors import ContainerError

from tests.lab.buildx import IMAGES
from tests.lab.debian import BOOKWORM
from tests.lab.registry import LABEL
from tests.lab.steps import step
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

    def emulate(command: str) -> None:
        labels = {LABEL: str(world.directory)}
        world.client.containers.run(image, command, privileged=True, remove=True, labels=labels)

    try:
        emulate("start")
    except ContainerError as error:
        if error.exit_status != _WAS_THERE:
            raise
        yield
        return
    try:
        yield
    finally:
        emulate("stop")

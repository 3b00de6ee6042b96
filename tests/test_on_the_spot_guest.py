"""Builds on the spot in a guest, from the first start to the second, as a user would.

The compiler is slow under software emulation, so this is a part of ``make test-guest``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from release import guest
from release.boot import Emulator
from release.guest import Command
from tests.lab.spot import MOUNTS, Spot, in_container
from tests.lab.world import LabKernel, World

pytestmark = [pytest.mark.lab, pytest.mark.guest]

MEMORY_MIB = 6144
TIMEOUT_SECONDS = 4 * 60 * 60

START = in_container("load", mounts=MOUNTS, volume="/empty")


def test_first_and_second_start(world: World, desktop_kernel: LabKernel, tmp_path: Path) -> None:
    spot = Spot(world, desktop_kernel)
    transcript = guest.run(
        (
            # The serial console shows how far it is.
            Command(
                "first-start", f"{START} 2>/dev/console; code=$?; cat /proc/uptime; exit $code"
            ),
            Command("unload", in_container("unload")),
            Command("second-start", START),
            Command("state", "cat /proc/filesystems; ls /dev/zfs"),
        ),
        kernel=spot.kernel,
        layers=spot.layers,
        architecture="amd64",
        log=tmp_path / "serial.log",
        emulator=Emulator(),
        files=spot.machine(),
        memory_mib=MEMORY_MIB,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    for name in ("first-start", "unload", "second-start"):
        assert transcript[name].exit_code == 0, transcript[name].output
    assert f"ZFS {spot.zfs} is loaded into {spot.release}" in transcript["second-start"].output
    assert {"zfs", "/dev/zfs"} <= set(transcript["state"].output.split())

"""Builds on the spot on a machine with a real Docker engine, from the first start to the second, as
a user would.

The compiler is slow under software emulation, so this is a part of ``make test-guest``.
"""

from __future__ import annotations

import pytest

from release import initramfs
from tests.lab.debian import BOOKWORM
from tests.lab.machine import machine
from tests.lab.spot import NAME, Spot
from tests.lab.world import LabKernel, World

pytestmark = [pytest.mark.lab, pytest.mark.guest]

MEMORY_MIB = 8192
TIMEOUT_SECONDS = 5 * 60 * 60

PLAIN = f"docker run --rm --privileged {NAME}"
START = (
    "docker run --rm --privileged -v /machine/modules:/lib/modules:ro"
    f" -v /machine/src:/usr/src:ro -v install-zfs:/var/cache/install-zfs {NAME}"
)
COMMANDS = {
    "image": "docker load -i /spot.tar && rm /spot.tar",
    # The serial console shows how far it is.
    "first-start": f"{START} 2>/dev/console",
    "pool": f"truncate -s 128M /tmp/disk && {PLAIN.replace(' --rm', ' --rm -v /tmp:/tmp')}"
    " zpool create tank /tmp/disk && "
    f"{PLAIN} zpool list -H -o name,health && {PLAIN} zpool destroy tank",
    "unload": f"{PLAIN} unload; code=$?; cat /proc/filesystems; exit $code",
    "second-start": START,
    "state": "cat /proc/filesystems; ls /dev/zfs",
    "left-behind": "docker ps --all --quiet; docker volume ls --quiet",
}


def test_first_and_second_start(world: World, desktop_kernel: LabKernel) -> None:
    spot = Spot(world, desktop_kernel)
    results, boot = machine(world, BOOKWORM).run(
        COMMANDS,
        world.directory / "logs" / "on-the-spot-guest.log",
        # Headers in one piece, as Desktop has them, and all modules, in place of Debian's.
        files=[*spot.machine(), initramfs.regular_file("spot.tar", spot.tar.read_bytes())],
        without=("usr/src", "usr/lib/linux-kbuild"),
        memory_mib=MEMORY_MIB,
        timeout_seconds=TIMEOUT_SECONDS,
        command_seconds=TIMEOUT_SECONDS,
    )
    for name, result in results.items():
        print(f"{name}: {result.seconds:.1f} s, exit code {result.exit_code}")
        print(result.output)
    print(f"guest: {boot.seconds:.1f} s under {boot.accelerator}")
    assert {name: one.exit_code for name, one in results.items()} == dict.fromkeys(COMMANDS, 0)
    assert results["pool"].output.split() == ["tank", "ONLINE"]
    assert "zfs" not in results["unload"].output.split()
    assert f"ZFS {spot.zfs} is loaded into {spot.release}" in results["second-start"].output
    assert {"zfs", "/dev/zfs"} <= set(results["state"].output.split())
    assert results["left-behind"].output.split() == ["install-zfs"]

"""Building on the spot for a real kernel, and loading the result on it.

The modules are compiled in a container on this machine's engine, which sees of the running kernel
what it would see on the lab's; all else is done in a guest with that kernel.
``make test-guest`` compiles in the guest, too.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from release import guest
from release.attest import attached
from release.boot import Emulator
from release.guest import Command, Transcript
from release.http import Http
from release.record import Record
from release.reference import Reference, parse_digest
from release.registry import Registry
from tests.lab.setup import Setup
from tests.lab.spot import MOUNTS, Spot, in_container
from tests.lab.world import LabKernel, World

pytestmark = pytest.mark.lab

MEMORY_MIB = 3072
TIMEOUT_SECONDS = 600

SCENARIOS = (
    Command("first-check", in_container("check", mounts=MOUNTS, volume="/empty")),
    Command("no-options", in_container("load")),
    Command("first-info", in_container("info", volume="/empty")),
    Command("check", in_container("check", mounts=MOUNTS, volume="/volume")),
    Command("modules", "cut -d' ' -f1 /proc/modules"),
    Command(
        "second-start",
        "read begun rest </proc/uptime; "
        + in_container("", mounts=MOUNTS, volume="/volume")
        + "; code=$?; read ended rest </proc/uptime; echo $begun $ended; exit $code",
    ),
    Command("loaded", "cut -d' ' -f1 /proc/modules; cat /proc/filesystems; ls /dev/zfs"),
    Command("load-again", in_container("load", mounts=MOUNTS, volume="/volume")),
    Command("load-again-without-volume", in_container("load", mounts=MOUNTS)),
    Command("zpool", in_container("zpool version")),
    Command("info", in_container("info", volume="/volume")),
    Command("info-json", in_container("info --json", volume="/volume")),
    Command("unload", in_container("unload")),
    Command("build-again", in_container("build", mounts=MOUNTS, volume="/volume")),
    Command("volume-alone", in_container("load", volume="/volume")),
    Command("unload-at-last", in_container("unload")),
    Command("damaged", "for m in /volume/kernels/*/zfs.ko; do echo >>$m; done"),
    Command("check-damaged", in_container("check", mounts=MOUNTS, volume="/volume")),
)

EXIT_CODES = {
    "first-check": 0,
    "no-options": 2,
    "first-info": 0,
    "check": 0,
    "second-start": 0,
    "load-again": 0,
    "zpool": 0,
    "load-again-without-volume": 0,
    "info": 0,
    "info-json": 0,
    "unload": 0,
    "build-again": 0,
    "volume-alone": 0,
    "unload-at-last": 0,
    "check-damaged": 0,
}


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    pytest.fail(f"it ended without {text!r}: {seen}")


def _build(spot: Spot) -> None:
    """Builds into the volume, beside one that has begun and is killed on its way."""
    spot.make_volume()
    first = spot.start(f"{spot.volume}-1", "build")
    second = None
    try:
        assert _read_until(first, "[3/5] configure").startswith(
            f"install-zfs: building ZFS {spot.zfs} for {spot.release}"
        )
        second = spot.start(f"{spot.volume}-2", "build")
        _read_until(second, "another container builds at this moment; waiting for it")
        subprocess.run(["docker", "kill", f"{spot.volume}-1"], check=True, capture_output=True)
        first.wait(60)
        output, _ = second.communicate(timeout=60 * 60)
        assert second.returncode == 0, output
    except BaseException:
        for number in (1, 2):
            subprocess.run(
                ["docker", "rm", "-f", f"{spot.volume}-{number}"], check=False, capture_output=True
            )
        spot.forget()
        raise
    finally:
        for process in (first, second):
            if process and process.stdout:
                process.stdout.close()
    percents = [int(percent) for percent in re.findall(r": (\d+) % \(", output)]
    assert percents == sorted(percents)
    assert len(set(percents)) > 5
    assert re.search(r"\[4/5\] compile: \d+ % \(\d+:\d\d, about \d+:\d\d left\)", output)
    assert f"ZFS {spot.zfs} was built in " in output
    print(output)


@pytest.fixture(scope="module")
def spot(world: World, desktop_kernel: LabKernel) -> Spot:
    return Spot(world, desktop_kernel)


@pytest.fixture(scope="module")
def built_spot(spot: Spot) -> Spot:
    if not spot.is_kept():
        _build(spot)
    return spot


@pytest.fixture(scope="module")
def transcript(built_spot: Spot, tmp_path_factory: pytest.TempPathFactory) -> Transcript:
    return guest.run(
        SCENARIOS,
        kernel=built_spot.kernel,
        layers=built_spot.layers,
        architecture="amd64",
        log=tmp_path_factory.mktemp("spot") / "serial.log",
        emulator=Emulator(),
        files=[*built_spot.machine(), *built_spot.volume_in_guest()],
        memory_mib=MEMORY_MIB,
        timeout_seconds=TIMEOUT_SECONDS,
    )


@pytest.mark.parametrize("name", EXIT_CODES)
def test_exit_code(name: str, transcript: Transcript) -> None:
    assert transcript[name].exit_code == EXIT_CODES[name], transcript[name].output


def test_nothing_is_loaded_by_a_check(transcript: Transcript) -> None:
    assert "zfs" not in transcript["modules"].output.split()
    for name in ("first-check", "check-damaged"):
        assert "can be built for this kernel" in transcript[name].output
    assert "load would insert: spl" in transcript["check"].output


def test_the_second_start_loads_what_was_built(transcript: Transcript, spot: Spot) -> None:
    output = transcript["second-start"].output
    assert output.startswith(f"ZFS {spot.zfs} is loaded into {spot.release}")
    assert "building" not in output
    loaded = transcript["loaded"].output
    assert {"zfs", "spl", "/dev/zfs"} <= set(loaded.split())
    for name in ("load-again", "load-again-without-volume"):
        assert transcript[name].output == f"ZFS {spot.zfs} is already loaded."
    assert transcript["unload"].output == "ZFS is unloaded."


def test_it_has_the_commands_of_zfs(transcript: Transcript, spot: Spot) -> None:
    own, modules = transcript["zpool"].output.splitlines()
    assert own.startswith(f"zfs-{spot.zfs}")
    assert modules.startswith(f"zfs-kmod-{spot.zfs}")


def test_the_volume_alone_is_enough(transcript: Transcript, spot: Spot) -> None:
    loaded = f"ZFS {spot.zfs} is loaded into {spot.release}"
    assert transcript["volume-alone"].output.startswith(loaded)
    assert "is already built for this kernel" in transcript["build-again"].output


def test_without_options_it_says_which(transcript: Transcript) -> None:
    for option in ("-v /lib/modules:/lib/modules:ro", "-v /usr/src:/usr/src:ro"):
        assert option in transcript["no-options"].output


def test_info_says_what_there_is(transcript: Transcript, spot: Spot) -> None:
    assert f"ZFS {spot.zfs} for Linux" in transcript["first-info"].output
    assert f"for {spot.release} (x86_64), the running kernel" in transcript["info"].output
    assert f'"kernel_banner":"{spot.banner}"' in transcript["info-json"].output


def test_the_pipeline_makes_the_image(setup: Setup, spot: Spot, desktop_kernel: LabKernel) -> None:
    setup.write_versions()
    run = setup.run("on-the-spot", "--builder", desktop_kernel.builder)
    assert run.exit_code == 0, run
    assert f"install-zfs:build: built, with the sources of ZFS {spot.zfs}" in run.stdout
    assert (setup.directory / "cache/zfs-build.tar").is_file()
    said = subprocess.run(
        ["docker", "run", "--rm", "install-zfs:build", "help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{setup.image}:build [load|" in said.stdout


def test_sync_publishes_it_once_and_repairs_its_tag(setup: Setup, spot: Spot) -> None:
    table = setup.directory / "builders.yaml"
    table.write_text(
        f"builders:\n  - compiler: gcc (Debian 12.2.0) 12.2.0\n    image: {spot.builder}\n"
    )
    setup.write_versions(on_the_spot=True)
    setup.path.write_text(f"builders: {table.name}\n{setup.path.read_text()}")
    assert f"{setup.image}:build is behind" in setup.run("plan").stdout
    run = setup.run("sync")
    assert run.exit_code == 0, run
    assert f"build: builds ZFS {spot.zfs} where it runs" in run.stderr
    (name,) = (tags := setup.tags())
    assert name == "build"
    client = setup.world.client
    pulled = client.images.pull(f"{setup.image}:build")
    try:
        said = client.containers.run(pulled, ["info"], remove=True)
    finally:
        client.images.remove(f"{setup.image}:build", force=True)
    assert f"ZFS {spot.zfs} for Linux" in said.decode()
    registry, image = Registry(Http(), {}), Reference.parse(f"{setup.image}:build")
    index = registry.get(image)
    assert set(attached(index)) == set(registry.platforms(image, index).values())

    idle = setup.run("sync", environment={"DOCKER_HOST": "unix:///nowhere"})
    assert idle.exit_code == 0, idle
    assert "behind" not in setup.run("status").stdout
    # Something else under the tag: ours is put there again.
    other = Record(parse_digest(tags["build"]), "nothing that anybody wants")
    other.put(registry, image)
    registry.put(image, other.document)
    assert setup.tags() != tags
    repair = setup.run("sync")
    assert repair.exit_code == 0, repair
    assert setup.tags() == tags


def test_a_builder_that_is_not_there(setup: Setup) -> None:
    setup.write_versions()
    missing = f"{setup.registry_host}/linuxkit/alpine:missing"
    run = setup.run("on-the-spot", "--builder", missing)
    assert run.exit_code == 1, run
    assert "is not there" in run.stderr

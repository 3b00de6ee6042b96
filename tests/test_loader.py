"""What the module image's entrypoint does and says, on a real kernel.

Every message is compared with a file below golden/loader; ``UPDATE_GOLDEN=1`` writes them anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from release import guest, initramfs
from release.boot import Emulator
from release.guest import Command, Outcome, Transcript
from tests.lab.built import Built

pytestmark = pytest.mark.lab

GOLDEN = Path(__file__).parent / "golden" / "loader"

MODULES = Command("modules", "cut -d' ' -f1 /proc/modules")


def _inside(script: str) -> str:
    """Runs a script in the container, where it may change what the loader sees."""
    return f"container /bin/busybox sh -c '{script}'"


def _seeing(content: str, path: str, command: str) -> str:
    """Lets the loader see other content at a path: for what no kernel of the lab says by itself."""
    return _inside(
        f'/bin/busybox echo "{content}" >/dev/seen; /bin/busybox mount --bind /dev/seen {path};'
        f" exec /install-zfs {command}"
    )


# One after the other in one boot, so that each finds what those before it have left.
SCENARIOS = (
    Command("info", "container /install-zfs info"),
    Command("info-json", "container /install-zfs info --json"),
    Command("help", "container /install-zfs --help"),
    Command("usage-unknown-command", "container /install-zfs frobnicate"),
    Command("usage-load-with-argument", "container /install-zfs load zfs_arc_max=1"),
    Command("usage-zpool", "container /install-zfs zpool status"),
    Command("architecture", "container /bin/busybox linux32 /install-zfs check"),
    Command(
        "not-privileged",
        "mkdir /image/etc; echo nobody:x:65534:65534:::/ >/image/etc/passwd;"
        " container /bin/busybox start-stop-daemon -S -c nobody -x /install-zfs -- load",
    ),
    Command("user-namespace", "container /bin/busybox unshare -U -r /install-zfs load"),
    Command(
        "wsl2", _seeing("5.15.90.1-microsoft-standard-WSL2", "/proc/sys/kernel/osrelease", "check")
    ),
    Command("built-in", _seeing("nodev zfs", "/proc/filesystems", "load")),
    Command("unload-without-zfs", "container /install-zfs unload"),
    Command("modules-untouched", MODULES.script),
    Command("check", "container /install-zfs check"),
    Command("modules-after-check", MODULES.script),
    Command(
        "refused",
        "cd /image/kernels/*; mv zfs.ko /tmp; head -c 100000 /tmp/zfs.ko >zfs.ko;"
        " container /install-zfs; code=$?; mv /tmp/zfs.ko .; exit $code",
    ),
    Command("modules-after-refusal", MODULES.script),
    Command("load", "container /install-zfs"),
    Command("modules-loaded", MODULES.script),
    Command("load-again", "container /install-zfs load"),
    Command("modules-after-load-again", MODULES.script),
    Command("check-loaded", "container /install-zfs check"),
    Command("info-loaded", "container /install-zfs info"),
    Command("unload-in-use", "container /install-zfs unload 3</dev/zfs"),
    Command(
        "other-version",
        "sed -i.saved s/^zfs_version=.*/zfs_version=0.6.5/ /image/kernels/*/kernel.env;"
        " container /install-zfs",
    ),
    Command("other-version-in-use", "container /install-zfs check 3</dev/zfs"),
    Command(
        "modules-after-refusals",
        f"cd /image/kernels/*; mv kernel.env.saved kernel.env; {MODULES.script}",
    ),
    Command("unload", "container /install-zfs unload"),
    Command("modules-after-unload", MODULES.script),
    Command("load-the-rest", "insmod /image/kernels/*/spl.ko; container /install-zfs"),
    Command("unload-the-rest", "container /install-zfs unload"),
    Command("device", _inside("/install-zfs && [ -c /dev/zfs ] && /bin/busybox echo there")),
    Command("unload-at-last", "container /install-zfs unload"),
    # From here on the kernel takes nothing more: these can be turned on, but not off.
    Command(
        "signatures",
        "echo Y >/sys/module/module/parameters/sig_enforce; container /install-zfs",
    ),
    Command(
        "signatures-unseen",
        _seeing("N", "/sys/module/module/parameters/sig_enforce", "load"),
    ),
    Command(
        "modules-disabled", "echo 1 >/proc/sys/kernel/modules_disabled; container /install-zfs"
    ),
    Command("unload-modules-disabled", "container /install-zfs unload"),
    Command(
        "lockdown",
        "mount -t securityfs securityfs /sys/kernel/security;"
        " echo integrity >/sys/kernel/security/lockdown; container /install-zfs",
    ),
    Command("modules-at-last", MODULES.script),
)

EXIT_CODES = {
    "info": 0,
    "info-json": 0,
    "help": 0,
    "usage-unknown-command": 2,
    "usage-load-with-argument": 2,
    "usage-zpool": 2,
    "architecture": 3,
    "not-privileged": 4,
    "user-namespace": 4,
    "wsl2": 3,
    "built-in": 0,
    "unload-without-zfs": 0,
    "check": 0,
    "refused": 1,
    "load": 0,
    "load-again": 0,
    "check-loaded": 0,
    "info-loaded": 0,
    "unload-in-use": 5,
    "other-version": 5,
    "other-version-in-use": 5,
    "unload": 0,
    "load-the-rest": 0,
    "device": 0,
    "signatures": 4,
    "signatures-unseen": 4,
    "modules-disabled": 4,
    "unload-modules-disabled": 4,
    "lockdown": 4,
}

ON_ANOTHER_KERNEL = (
    MODULES,
    Command("other-kernel", "container /install-zfs"),
    Command("other-kernel-check", "container /install-zfs check"),
    Command("other-kernel-info", "container /install-zfs info"),
    Command("modules-afterwards", MODULES.script),
    Command("banner", "cat /proc/version"),
)

EXIT_CODES_ON_ANOTHER_KERNEL = {
    "other-kernel": 3,
    "other-kernel-check": 3,
    "other-kernel-info": 0,
}


def _run(commands: Sequence[Command], kernel: Path, built: Built, log: Path) -> Transcript:
    return guest.run(
        commands,
        kernel=kernel,
        layers=built.layers,
        architecture="amd64",
        log=log,
        emulator=Emulator(),
    )


@pytest.fixture(scope="module")
def transcript(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Transcript:
    return _run(SCENARIOS, built.kernel, built, tmp_path_factory.mktemp("loader") / "serial.log")


@pytest.fixture(scope="module")
def elsewhere(
    built: Built, other_kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Transcript:
    log = tmp_path_factory.mktemp("loader") / "serial.log"
    return _run(ON_ANOTHER_KERNEL, other_kernel, built, log)


@pytest.fixture(scope="module")
def facts(built: Built) -> dict[str, str]:
    """The facts in the image."""
    (env,) = (
        entry.data.decode()
        for entry in initramfs.from_layers(built.layers, under="image")
        if entry.path.endswith("/kernel.env")
    )
    pairs = (line.partition("=") for line in env.splitlines())
    return {key: value for key, _, value in pairs}


def _neutral(text: str, facts: dict[str, str], other_banner: str = "") -> str:
    """The text without what differs from one kernel, image and run to the next."""
    host, _, path = facts["kernel_image"].partition("/")
    replacements = {
        facts["kernel_banner"]: "<banner>",
        facts["kernel_image"]: "<kernel image>",
        re.sub("[/:]", "-", path if re.search("[.:]|^localhost$", host) else f"{host}/{path}"): (
            "<slug>"
        ),
    }
    if facts["image"]:
        replacements[facts["image"]] = "<image>"
    if other_banner:
        other_release = other_banner.split()[2]
        replacements |= {
            other_banner: "<other banner>",
            other_release: "<other release>",
            other_release.partition("-")[0]: "<other version>",
        }
    replacements |= {
        facts["kernel_release"]: "<release>",
        facts["zfs_version"]: "<zfs>",
    }
    for value, name in replacements.items():
        text = text.replace(value, name)
    text = re.sub(r"<release>-[0-9a-f]{12}", "<id>", text)
    return re.sub(r"( *\[ *[0-9]+\.[0-9]+\] .*\n)+", "            <kernel log>\n", text)


def _compare(outcome: Outcome, facts: dict[str, str], other_banner: str = "") -> None:
    golden = GOLDEN / f"{outcome.name}.txt"
    text = f"{_neutral(outcome.output, facts, other_banner)}\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", EXIT_CODES)
def test_exit_code_and_message(name: str, transcript: Transcript, facts: dict[str, str]) -> None:
    assert transcript[name].exit_code == EXIT_CODES[name], transcript[name].output
    _compare(transcript[name], facts)


@pytest.mark.parametrize("name", EXIT_CODES_ON_ANOTHER_KERNEL)
def test_exit_code_and_message_on_another_kernel(
    name: str, elsewhere: Transcript, facts: dict[str, str]
) -> None:
    assert elsewhere[name].exit_code == EXIT_CODES_ON_ANOTHER_KERNEL[name], elsewhere[name].output
    _compare(elsewhere[name], facts, elsewhere["banner"].output)


def test_another_kernel_is_left_alone(elsewhere: Transcript) -> None:
    assert elsewhere["modules"].output == elsewhere["modules-afterwards"].output
    assert "install-zfs" not in elsewhere["other-kernel"].kernel_log


@pytest.mark.parametrize(
    "name", ["modules-after-check", "modules-after-refusal", "modules-after-unload"]
)
def test_nothing_stays_loaded(name: str, transcript: Transcript) -> None:
    assert transcript[name].output == transcript["modules-untouched"].output


@pytest.mark.parametrize("name", ["modules-after-load-again", "modules-after-refusals"])
def test_what_is_loaded_stays_as_it_is(name: str, transcript: Transcript) -> None:
    assert "zfs" in transcript["modules-loaded"].output.split()
    assert transcript[name].output == transcript["modules-loaded"].output


def test_nothing_is_loaded_where_it_is_not_allowed(transcript: Transcript) -> None:
    assert transcript["modules-at-last"].output == transcript["modules-untouched"].output


def test_the_kernel_log_says_who_loaded_zfs(transcript: Transcript, facts: dict[str, str]) -> None:
    assert f"install-zfs: loading ZFS {facts['zfs_version']}" in transcript["load"].kernel_log

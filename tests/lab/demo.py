"""``make demo``: the whole pipeline on real kernels, told as it happens, without any account."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from pathlib import Path

import docker
import requests
from rich.console import Console

from release import bounded, guest
from release.boot import Emulator
from release.guest import Command
from release.layout import Layout
from tests.lab.setup import Setup
from tests.lab.world import DESKTOP, LINUXKIT, LabKernel, World

DESKTOP_VERSION = "4.13.0"

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """Something did not go as the demo says."""


def main() -> None:
    """Plays maintainer, user and sideload user, one after the other."""
    started = time.monotonic()
    _title("The lab")
    _say("A registry, a stand-in for Docker Hub and one for GitHub, all on this machine; kernels,")
    _say("headers, compilers and OpenZFS sources from Debian. The first time takes minutes.")
    with World() as world:
        world.up([DESKTOP, LINUXKIT])
        directory = world.directory / "demo"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        with Setup(world, directory) as setup:
            desktop, linuxkit = world.kernel(DESKTOP), world.kernel(LINUXKIT)
            _maintainer(setup, desktop, linuxkit)
            _user(setup, desktop)
            _sideload(setup, desktop)
            _idle(setup)
            minutes = (time.monotonic() - started) / 60
            _title(f"Done in {minutes:.1f} minutes")
            _say(f"What the pipeline left: {directory} (versions.yaml, cache/logs, cache/images).")
            _say("Everything that was started is stopped again now. Run `make demo` once more: it")
            _say("takes a minute, because nothing is compiled twice. `make clean` removes it all.")


def _maintainer(setup: Setup, desktop: LabKernel, linuxkit: LabKernel) -> None:
    _title("The maintainer: python -m release sync")
    setup.push(desktop)
    setup.push(linuxkit)
    setup.write_versions(f"  - image: {desktop.reference}\n    desktop: [{DESKTOP_VERSION}]\n")
    _say(f"versions.yaml lists {desktop.reference}")
    _say(
        f"for Docker Desktop {DESKTOP_VERSION}. Docker Hub has a kernel more, which sync will find:"
    )
    _say(f"{linuxkit.reference}")
    _sync(setup)
    _say("")
    _say("In the registry:")
    for tag, digest in sorted(setup.tags().items()):
        _say(f"  {setup.image}:{tag}  {digest[:19]}...")
    _say("GitHub releases:")
    for release in setup.releases.releases:
        _say(f"  {release.tag_name}: {', '.join(asset.name for asset in release.assets)}")


def _user(setup: Setup, kernel: LabKernel) -> None:
    reference = f"{setup.image}:desktop-{DESKTOP_VERSION}"
    _title(f"The user: docker run --rm --privileged {reference}")
    client = docker.from_env()
    image = client.images.pull(reference)
    try:
        labels = image.labels
        _expect(
            "the label names the kernel release",
            kernel.release,
            labels["install-zfs.kernel-release"],
        )
        _expect(
            "the label names the kernel image", kernel.reference, labels["install-zfs.kernel-image"]
        )
        exported = setup.directory / "pulled"
        with (exported.with_suffix(".tar")).open("wb") as file:
            file.writelines(image.save())
    finally:
        client.images.remove(reference, force=True)
    bounded.unpack(exported.with_suffix(".tar"), exported)
    _say(f"Pulled. Now that very kernel, {kernel.release}, boots in QEMU and runs the image there:")
    boot = guest.run(
        [
            Command("load", "container /install-zfs"),
            Command("lsmod", "cut -d' ' -f1,2 /proc/modules; grep zfs /proc/filesystems"),
        ],
        kernel=_kernel(setup, kernel),
        layers=Layout(exported).layers,
        architecture="amd64",
        log=setup.directory / "user.log",
        emulator=Emulator(),
    )
    for line in boot["load"].output.splitlines():
        _say(f"  {line}")
    _expect("the load ends with exit code", 0, boot["load"].exit_code)
    _say("  lsmod: " + ", ".join(boot["lsmod"].output.splitlines()))
    if "zfs" not in boot["lsmod"].output:
        raise DemoError("zfs is not loaded")


def _sideload(setup: Setup, kernel: LabKernel) -> None:
    _title("The user without a registry: a release asset and docker load")
    entry = next(one for one in setup.load().kernels if str(one.image) == kernel.reference)
    repository = setup.releases.full_name
    base = f"{setup.github.url}/{repository}/releases/download/{entry.slug}-zfs-{entry.zfs}"
    name = f"zfs-{entry.slug}-amd64.tar.xz"
    _say(f"Downloads {base}/{name}")
    asset = _download(f"{base}/{name}")
    sums = {
        line.split()[1]: line.split()[0]
        for line in _download(f"{base}/SHA256SUMS").decode().splitlines()
    }
    _expect("SHA256SUMS has its digest", sums[name], hashlib.sha256(asset).hexdigest())
    client = docker.from_env()
    client.images.load(asset)
    local = f"install-zfs:{entry.slug}"
    _say(f"docker load; docker run --rm {local} info")
    for line in client.containers.run(local, "info", remove=True).decode().splitlines():
        _say(f"  {line}")


def _idle(setup: Setup) -> None:
    _title("The maintainer again: a second sync finds nothing to do")
    _sync(setup)


def _sync(setup: Setup) -> None:
    started = time.monotonic()
    with setup.start("sync") as process:
        process.wait()
    if process.returncode:
        raise DemoError(f"sync ended with exit code {process.returncode}")
    _say(f"({time.monotonic() - started:.1f} s)")


def _kernel(setup: Setup, kernel: LabKernel) -> Path:
    """Fetches the bootable kernel of a kernel image, as the user's machine has it."""
    to = setup.directory / "kernel"
    client = docker.from_env()
    client.images.pull(kernel.reference)
    container = client.containers.create(kernel.reference, command="none")
    try:
        stream, _ = container.get_archive("/kernel")
        with (setup.directory / "kernel.tar").open("wb") as file:
            file.writelines(stream)
    finally:
        container.remove()
        client.images.remove(kernel.reference)
    bounded.unpack(setup.directory / "kernel.tar", to.parent)
    return to


def _download(url: str) -> bytes:
    answer = requests.get(url, timeout=60)
    answer.raise_for_status()
    return answer.content


def _expect(what: str, wanted: object, found: object) -> None:
    if wanted != found:
        raise DemoError(f"{what}: expected {wanted}, found {found}")
    _say(f"ok: {what} {found}")


def _title(text: str) -> None:
    console.print(f"\n== {text}", style="bold")


def _say(text: str) -> None:
    console.print(text, markup=False)


if __name__ == "__main__":
    try:
        main()
    except DemoError as error:
        sys.exit(f"demo: {error}")

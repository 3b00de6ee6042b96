"""What to type next, in plain words: after builds, and after the files for LinuxKit."""

from __future__ import annotations

from collections.abc import Sequence

from release.reference import Reference

MEMORY_MIB = 2048
_HYPERVISORS = {"linux": ("qemu",), "darwin": ("virtualization", "hyperkit")}


def after_build(slug: str, tar: str, image: Reference, *, tested: bool) -> str:
    """How to use a module image that lies on this machine.

    Args:
        tar: the sideload tar.
        image: where module images are published.
    """
    local = f"install-zfs:{slug}"
    remote = str(image.with_tag(slug)).removeprefix("docker.io/")
    name = tar.rpartition("/")[2]
    lines = [
        f"{slug}: built",
        "  load it into the Docker on this machine:",
        f"    docker run --rm --privileged {local}",
        "  into another one, without a registry:",
        f"    scp {tar} HOST:",
        f"    ssh HOST 'docker load < {name} && docker run --rm --privileged {local}'",
        "  or by a registry:",
        f"    docker tag {local} {remote}",
        f"    docker push {remote}",
        f"    docker run --rm --privileged {remote}",
    ]
    if not tested:
        lines += [
            "  it was not booted yet; to load it in QEMU first:",
            f"    python -m release smoke {slug}",
        ]
    return "\n".join(lines)


def on_the_spot_line(image: Reference | str) -> str:
    """The command that builds ZFS where it runs, with the image of a repository."""
    mounts = "-v /lib/modules:/lib/modules:ro -v /usr/src:/usr/src:ro"
    volume = "-v install-zfs:/var/cache/install-zfs"
    name = str(image).removeprefix("docker.io/")
    return f"docker run --rm --privileged {mounts} {volume} {name}:build"


def after_on_the_spot(zfs: Sequence[str], tar: str, image: Reference) -> str:
    """How to use the image that builds where it runs, which lies on this machine.

    Args:
        tar: the sideload tar.
        image: where images are published.
    """
    remote = str(image.with_tag("build")).removeprefix("docker.io/")
    return "\n".join(
        [
            f"install-zfs:build: built, with the sources of ZFS {', '.join(zfs)}",
            "  build ZFS for the kernel of this machine, and load it:",
            f"    {on_the_spot_line('install-zfs')}",
            "  on another one, without a registry:",
            f"    scp {tar} HOST:",
            f"    ssh HOST 'docker load < {tar.rpartition('/')[2]}', then the same command",
            "  or by a registry:",
            f"    docker tag install-zfs:build {remote}",
            f"    docker push {remote}",
        ]
    )


def after_linuxkit(slug: str, tar: str, boot: str, docker: str, *, built: bool, system: str) -> str:
    """How to see the modules at work in LinuxKit's VMs.

    Args:
        tar: the sideload tar.
        boot, docker: the two VMs, as their files are called without an ending.
        built: whether the VM images are there, and not their configuration alone.
        system: this machine's, as ``sys.platform`` calls it.
    """
    lines = [f"{slug}: {'VMs built' if built else 'files for LinuxKit written'}"]
    if not built:
        directory = boot.rpartition("/")[0]
        lines += [
            "  linuxkit is not installed here; where it and Docker are, make the VMs with:",
            f"    docker load < {tar}",
            *(f"    {build_line(vm, directory)}" for vm in (boot, docker)),
        ]
    lines += [
        "  a VM that loads ZFS on boot:",
        *_run(boot, system),
        "    lsmod",
        "  a VM with Docker in it:",
        *_run(docker, system),
        "    ctr -n services.linuxkit t exec --tty --exec-id=999 docker sh",
        "    docker load < /images/zfs.tar",
        f"    docker run --rm --privileged install-zfs:{slug}",
        "    lsmod",
    ]
    return "\n".join(lines)


def build_command(vm: str, directory: str) -> Sequence[str]:
    """What makes a VM's images: kernel and initrd."""
    # Two dashes: LinuxKit's command takes them in every version, and one no longer since it uses
    # cobra (2022-12-29).
    return ("linuxkit", "build", "--docker", "--dir", directory, f"{vm}.yml")


def build_line(vm: str, directory: str) -> str:
    return " ".join(build_command(vm, directory))


def _run(vm: str, system: str) -> list[str]:
    first, *others = (
        f"linuxkit run {hypervisor} --mem {MEMORY_MIB} {vm}"
        for hypervisor in _HYPERVISORS.get(system, _HYPERVISORS["linux"])
    )
    return [
        f"    {first}",
        *(f"    # or, on a Mac with Intel's processor: {line}" for line in others),
    ]

"""Debian as the lab needs it: suites, this machine's mirrors, and base images."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import docker

from tests.lab.buildx import IMAGES, Buildx
from tests.lab.steps import LabError, log, run

PULL_SECONDS = 60
AMD64, ARM64 = "linux/amd64", "linux/arm64"


@dataclass(frozen=True)
class Suite:
    """A Debian release: a compiler and the kernels that it built.

    Attributes:
        name: the codename.
        kernels: a regular expression of image package names, to choose the newest from.
        count: how many of them the lab has.
        source: the package of the sources that the lab compiles kernels of its own from.
        platform: of its programs and kernels.
    """

    name: str
    kernels: str
    count: int
    source: str = ""
    platform: str = AMD64

    @property
    def key(self) -> str:
        """Its name in files and tags."""
        return self.name if self.platform == AMD64 else f"{self.name}-{self.architecture}"

    @property
    def architecture(self) -> str:
        """As Debian and OCI name it."""
        return self.platform.partition("/")[2]


BOOKWORM = Suite("bookworm", r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$", 2, "linux-source-6.1")
BOOKWORM_ARM64 = Suite("bookworm", r"^linux-image-6\.1\.0-[0-9]+-cloud-arm64$", 1, platform=ARM64)
TRIXIE = Suite("trixie", r"^linux-image-6\.12\.[0-9]+[+]deb13-cloud-amd64$", 1)


@dataclass(frozen=True)
class Mirrors:
    """Where this machine's apt gets Debian from; empty where that is not configured."""

    archive: str = ""
    security: str = ""


def mirrors() -> Mirrors:
    """Reads apt's configuration; a machine that is not Debian has no mirrors."""
    if shutil.which("apt-get") is None:
        return Mirrors()
    release = platform.freedesktop_os_release()
    if release["ID"] != "debian":
        return Mirrors()
    command = ["apt-get", "indextargets", "--no-release-info", "--format", "$(RELEASE) $(SITE)"]
    command += ["Component: main"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    sites = dict(line.split(maxsplit=1) for line in reversed(lines))
    codename = release["VERSION_CODENAME"]
    return Mirrors(sites.get(codename, ""), sites.get(f"{codename}-security", ""))


def base_image(suite: Suite, client: docker.DockerClient, buildx: Buildx, logs: Path) -> str:
    """Makes ``install-zfs-lab/debian:KEY``, unless the engine has it.

    Its root is Docker Hub's image or, without Docker Hub, made here by debootstrap.

    Returns:
        The image's name.

    Raises:
        LabError: there is no way to a Debian here.
    """
    name = f"install-zfs-lab/debian:{suite.key}"
    if client.images.list(name=name):
        return name
    here = mirrors()
    buildx.build(
        f"Debian {suite.key}, sources",
        IMAGES / "base.Dockerfile",
        output=f"type=docker,name={name}",
        args={
            "ROOT": _root_image(suite, here, logs),
            "SUITE": suite.name,
            "ARCHIVE": here.archive,
            "SECURITY": here.security,
        },
        platform=suite.platform,
    )
    return name


def _root_image(suite: Suite, here: Mirrors, logs: Path) -> str:
    hub = f"debian:{suite.name}-slim"
    pull = ["timeout", str(PULL_SECONDS), "docker", "pull", "--quiet"]
    pull += ["--platform", suite.platform, hub]
    try:
        run(f"Debian {suite.key}, pull", pull, logs=logs)
    except LabError as error:
        if not here.archive or shutil.which("debootstrap") is None:
            raise LabError(
                "the image cannot be pulled, and there is no debootstrap to make one",
                on=hub,
                detail=error.detail,
                hint="on Debian, as root: apt-get install debootstrap",
            ) from error
    else:
        return hub
    log.info("%s cannot be pulled, made by debootstrap", hub)
    name = f"install-zfs-lab/root:{suite.key}"
    with tempfile.TemporaryDirectory(prefix="install-zfs-lab.") as work:
        tree, tar, wgetrc = Path(work, "root"), Path(work, "root.tar"), Path(work, "wgetrc")
        # debootstrap downloads with wget, which gives up at the first name that is not resolved.
        wgetrc.write_text("retry_on_host_error = on\nretry_connrefused = on\n")
        debootstrap: list[str | Path] = ["debootstrap", "--variant=minbase"]
        debootstrap += [f"--arch={suite.architecture}"]
        if here.archive.startswith("https:"):
            debootstrap += ["--include=ca-certificates"]
        run(
            f"Debian {suite.key}, debootstrap",
            [*debootstrap, suite.name, tree, here.archive],
            logs=logs,
            env={"WGETRC": str(wgetrc)},
        )
        kept_out = ["./dev/*", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/log/*"]
        run(
            f"Debian {suite.key}, tar",
            ["tar", "-C", tree, *(f"--exclude={path}" for path in kept_out), "-cf", tar, "."],
            logs=logs,
        )
        run(
            f"Debian {suite.key}, import",
            ["docker", "import", "--platform", suite.platform, tar, name],
            logs=logs,
        )
    return name

"""The image that builds on the spot, and a kernel of the lab that it builds for."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from release import bounded, initramfs
from release.build import Builder
from release.engine import Engine
from release.kernel import banner_release, read_banner
from release.layout import Layout
from release.reference import Platform, Reference, parse_digest
from release.resolve import BuilderImage, BuilderSource
from tests.lab.registry import LABEL
from tests.lab.world import LabKernel, World

NAME = Reference("docker.io", "install-zfs-lab/on-the-spot").with_tag("latest")
ENTRYPOINT = "/build/on-the-spot.sh"

# The container runs on another kernel than the one that is built for, and sees of that one what a
# container on it would.
_AS_IF_THERE = f"""
mount --bind /facts/version /proc/version
mount --bind /facts/osrelease /proc/sys/kernel/osrelease
exec {ENTRYPOINT} "$@"
"""


class Spot:
    """Builds the image and lays out the kernel's files as a machine that runs it has them.

    Attributes:
        layers: the image's.
        builder: the image with the kernel's compiler.
        kernel: bootable.
        tar: the image for ``docker load``.
        zfs: the version whose sources the image carries.
    """

    def __init__(self, world: World, lab_kernel: LabKernel) -> None:
        self._world = world
        self._directory = world.directory / "on-the-spot"
        platform = Platform("linux/amd64")
        builder = Builder(self._directory, os.environ)
        files = builder.kernel_files(
            Reference.parse(lab_kernel.reference), parse_digest(lab_kernel.manifest), platform
        )
        assert files.kernel
        assert files.modules
        assert files.headers
        self.kernel = files.kernel
        self.banner = read_banner(files.kernel)
        self.release = banner_release(self.banner)
        self._unpack(files.modules, files.headers)
        self.zfs = min(world.openzfs)
        self.builder = lab_kernel.builder
        layout = self._build(builder, Reference.parse(lab_kernel.builder))
        self.layers = layout.layers
        self.bytes = sum(layer.stat().st_size for layer in self.layers)
        name = hashlib.sha256(f"{layout.manifest.digest} {self.banner}".encode()).hexdigest()
        self.volume = f"{LABEL}-spot-{name[:12]}"
        """Named by all that goes into what is kept in it; so it need not be made again."""

    def _unpack(self, *tars: Path) -> None:
        self._root = self._directory / "root"
        if not self._root.is_dir():
            part = self._root.with_name(".root.part")
            shutil.rmtree(part, ignore_errors=True)
            for tar in tars:
                bounded.unpack(tar, part, how="tar")
            part.rename(self._root)
        facts = self._directory / "facts"
        facts.mkdir(exist_ok=True)
        (facts / "version").write_text(f"{self.banner}\n")
        (facts / "osrelease").write_text(f"{self.release}\n")

    def _build(self, builder: Builder, image: Reference) -> Layout:
        assert image.tag
        digest = self._world.registry().digest(image.repository, image.tag)
        assert digest
        sources = self._directory / "openzfs"
        shutil.rmtree(sources, ignore_errors=True)
        sources.mkdir()
        shutil.copy(self._world.openzfs[self.zfs], sources)
        layout = builder.on_the_spot(
            BuilderImage(image, parse_digest(digest), BuilderSource.FILE),
            sources,
            Reference("docker.io", "myname/install-zfs"),
            "https://github.com/myname/install-zfs",
            "",
        )
        self.tar = self._directory / "image.tar"
        layout.save(self.tar, (NAME,))
        Engine(os.environ).load(self.tar)
        return layout

    def is_kept(self) -> bool:
        """Whether an earlier run of the tests has built the modules."""
        return bool(self._world.client.volumes.list(filters={"name": self.volume}))

    def make_volume(self) -> None:
        labels = {LABEL: str(self._world.directory)}
        self._world.client.volumes.create(self.volume, labels=labels)

    def forget(self) -> None:
        self._world.client.volumes.get(self.volume).remove(force=True)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """``docker run`` of the image as the README has it, on this machine's engine.

        Only ``build``, which loads nothing, is for this.
        """
        assert arguments == ("build",)
        return subprocess.Popen(
            [
                *("docker", "run", "--rm", "--privileged", "--name", name),
                *("--label", f"{LABEL}={self._world.directory}"),
                *("-v", f"{self._root}/lib/modules:/lib/modules:ro"),
                *("-v", f"{self._root}/usr/src:/usr/src:ro"),
                *("-v", f"{self.volume}:/var/cache/install-zfs"),
                *("-v", f"{self._directory}/facts:/facts:ro"),
                *("--entrypoint", "sh", str(NAME), "-c", _AS_IF_THERE, "sh", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kept(self) -> bytes:
        """The volume's content, as a tar archive."""
        command = ["docker", "run", "--rm", "-v", f"{self.volume}:/v:ro"]
        command += ["--entrypoint", "tar", str(NAME), "-C", "/v", "-cf", "-", "kernels"]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def machine(self) -> Iterator[initramfs.Entry]:
        """The kernel's modules and headers and an empty directory ``/empty``, for a guest."""
        yield initramfs.directory("empty")
        yield from _tree(self._root / "lib/modules", "machine/modules")
        yield from _tree(self._root / "usr/src", "machine/src")

    def volume_in_guest(self) -> Iterator[initramfs.Entry]:
        """What is kept, below ``/volume``."""
        with tarfile.open(fileobj=io.BytesIO(self.kept())) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file:
                    yield initramfs.regular_file(f"volume/{member.name}", file.read())


def _tree(source: Path, under: str) -> Iterator[initramfs.Entry]:
    for path in sorted(source.rglob("*")):
        name = f"{under}/{path.relative_to(source)}"
        mode = path.lstat().st_mode
        if path.is_symlink():
            yield initramfs.symlink(name, str(path.readlink()))
        elif path.is_dir():
            yield initramfs.directory(name)
        else:
            executable = bool(mode & stat.S_IXUSR)
            yield initramfs.regular_file(name, path.read_bytes(), executable=executable)


def in_container(arguments: str, *, mounts: str = "", volume: str = "") -> str:
    """The guest's command for ``docker run`` of the image."""
    options = mounts
    if volume:
        options += f" -v {volume}:/var/cache/install-zfs"
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return f"container {options} /bin/busybox env {path} {ENTRYPOINT} {arguments}"


MOUNTS = "-v /machine/modules:/lib/modules -v /machine/src:/usr/src"

"""A maintainer's setup whose builds and boots are recorded: whole runs in a second, no engine.

All that is ours is real, and so are the registry, Docker Hub and GitHub as far as
:class:`~tests.lab.small_registry.SmallRegistry` and the stand-ins are. Replaced are, at the edge of
the process, the programs ``docker`` and ``qemu-system-…`` on the PATH
(:mod:`tests.recorded_programs`) and the engine behind ``DOCKER_HOST``
(:mod:`tests.recorded_engine`). A "build" makes an OCI layout of a loader, a userland and a module
with the kernel's vermagic; the same arguments give the same bytes.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self

from release import cli, versions
from release.reference import Platform, Reference, architecture
from release.world import native_platform
from tests import recorded_programs
from tests.elf import GLOBAL, UNDEFINED, elf
from tests.lab.github import GitHub, Repository
from tests.lab.hub import Hub
from tests.lab.real_registry import RealRegistry
from tests.lab.server import EffectCounter
from tests.lab.small_registry import INDEX, MANIFEST, SmallRegistry, image_manifest
from tests.recorded_engine import RecordedEngine

KERNELS = "linuxkit/kernel"
IMAGES = "me/install-zfs"
BUILDER = "linuxkit/alpine"
TOKEN = "writer"
GCC = "gcc (Alpine 10.2.1) 10.2.1"
OPENZFS = {"2.1.16": ("3.10", "6.7")}
TIMEOUT_SECONDS = 120
_DAY = datetime(2024, 5, 1, tzinfo=UTC)
# One process has the pipeline's modules imported, and each run is a fork of it.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.recorded", "release.engine"])


@dataclass(frozen=True)
class Kernel:
    """A kernel image that upstream has: ``HOST/linuxkit/kernel:VERSION``."""

    reference: str
    digest: str
    platforms: Mapping[Platform, str]

    @property
    def slug(self) -> str:
        return versions.slug(Reference.parse(self.reference))


@dataclass(frozen=True)
class Run:
    """A finished ``python -m release``; a negative exit code is the signal that ended it."""

    exit_code: int
    stdout: str
    stderr: str
    outcomes: list[dict[str, Any]]

    def __str__(self) -> str:
        return f"exit code {self.exit_code}\n{self.stdout}\n{self.stderr}"


class Recorded:
    """One maintainer; a context manager.

    Args:
        directory: where the pipeline runs.
        effects: numbers the outside effects over registry and GitHub.
        registry: in place of a small one that numbers its effects.

    Attributes:
        registry: holds upstream's kernels and our images, as seen in its ``manifests``.
        releases: our repository at the GitHub stand-in.
        path: ``versions.yaml``.
        machine: what ``uname -m`` says where the pipeline runs; another one plays another machine.
    """

    def __init__(
        self,
        directory: Path,
        *,
        effects: EffectCounter | None = None,
        registry: SmallRegistry | RealRegistry | None = None,
    ) -> None:
        self.directory = directory
        self.path = directory / "work" / "versions.yaml"
        self.results = directory / "recorded"
        self.machine = os.uname().machine
        for new in (self.path.parent, self.results, directory / "home"):
            new.mkdir(parents=True)
        self.hub, self.github = Hub(effects=effects), GitHub(effects=effects)
        self.registry = registry or SmallRegistry(effects=effects)
        self.releases = self.github.add(Repository("me", "install-zfs"))
        self.openzfs = self.github.add(Repository("openzfs", "zfs"))
        self.github.add_token(TOKEN, push=[self.releases.full_name])
        for version, (low, high) in OPENZFS.items():
            self.release_openzfs(version, low, high)
        self._provide_programs()
        self.engine = RecordedEngine()
        self.host = self.registry.host
        self.image = f"{self.host}/{IMAGES}"

    @property
    def small(self) -> SmallRegistry:
        """The registry, where it is one that holds all in memory."""
        assert isinstance(self.registry, SmallRegistry)
        return self.registry

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (self.hub, self.registry, self.github, self.engine):
                stack.enter_context(server)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def violations(self) -> list[str]:
        """What no client should have sent."""
        servers = (self.hub, self.registry, self.github, self.engine)
        return [violation for server in servers for violation in server.violations]

    def _provide_programs(self) -> None:
        (self.results / "gcc").write_text(f"{GCC}\n")
        (self.results / "platforms").write_text("Platforms: linux/amd64*, linux/arm64\n")
        (self.directory / "bin").mkdir()
        for name in ("docker", "qemu-system-x86_64", "qemu-system-aarch64"):
            program = self.directory / "bin" / name
            kind = name.partition("-")[0]
            words = (sys.executable, "-I", "-S", recorded_programs.__file__, self.results, kind)
            program.write_text(f'#!/bin/sh\nexec {" ".join(map(str, words))} "$@"\n')
            program.chmod(0o755)

    # Upstream

    def release_openzfs(self, version: str, low: str, high: str) -> None:
        """OpenZFS publishes a release, for the kernels from ``low`` to ``high``."""
        git_tag = f"zfs-{version}"
        self.openzfs.add_release(git_tag, {f"{git_tag}.tar.gz": version.encode()})
        meta = f"Linux-Maximum: {high}\nLinux-Minimum: {low}\n"
        self.openzfs.contents[git_tag, "META"] = meta.encode()

    def push_kernel(self, version: str, platforms: Iterable[Platform] = ()) -> Kernel:
        """Upstream pushes a kernel, and Docker Hub lists it; without ``platforms`` one for this
        machine. Each kernel is a minute newer than the one before it.
        """
        builder = f"{self.host}/{BUILDER}:1"
        repository = self.hub.repository(*KERNELS.split("/"))
        wanted = tuple(platforms) or (native_platform(),)
        manifests = {}
        for platform in wanted:
            arch = architecture(platform)
            if BUILDER not in self.registry.manifests:
                self._put_builder()
            config = {"Labels": {"org.mobyproject.linuxkit.kernel.buildimage": builder}}
            created = (_DAY + timedelta(minutes=len(repository.tags))).isoformat()
            raw = {"os": "linux", "architecture": arch, "created": created, "config": config}
            blob = self.registry.put_blob(json.dumps(raw).encode(), KERNELS)
            manifests[platform] = self.registry.put(KERNELS, version, image_manifest(blob))
            self._record(manifests[platform], f"{version}-linuxkit", arch)
        digest = manifests[wanted[0]]
        if len(wanted) > 1:
            digest = self.registry.put(KERNELS, version, _index(manifests), INDEX)
        listed = [
            ("linux", architecture(platform), None, manifest, 1)
            for platform, manifest in manifests.items()
        ]
        pushed = _DAY + timedelta(minutes=len(repository.tags))
        repository.push(version, digest, listed, pushed, INDEX if len(wanted) > 1 else MANIFEST)
        return Kernel(f"{self.host}/{KERNELS}:{version}", digest, manifests)

    def _put_builder(self) -> None:
        manifests = {}
        for arch in ("amd64", "arm64"):
            digest = self.registry.put_image(BUILDER, arch, {}, arch)
            manifests[Platform(f"linux/{arch}")] = digest
        self.registry.put(BUILDER, "1", _index(manifests), INDEX)

    def _record(self, manifest: str, release: str, arch: str) -> None:
        """What a build for this kernel is to find and to give."""
        files = self.results / manifest.replace(":", "-") / "files"
        files.mkdir(parents=True)
        banner = f"Linux version {release} (me@lab) ({GCC}) #1 SMP {arch}\n"
        (files / "kernel").write_text(banner)
        machine = "aarch64" if arch == "arm64" else ""
        headers = {
            "include/generated/utsrelease.h": f'#define UTS_RELEASE "{release}"\n',
            "include/config/auto.conf": "CONFIG_SMP=y\nCONFIG_MODULE_UNLOAD=y\n",
            "Module.symvers": "0x00000000\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n",
        }
        with tarfile.open(files / "kernel-dev.tar", "w") as tar:
            for name, text in headers.items():
                member = tarfile.TarInfo(f"usr/src/linux-headers-{release}/{name}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        magic = f"\0vermagic={release} SMP mod_unload {machine}".rstrip().encode() + b"\0"
        module = elf({".modinfo": magic}, [("kfree", GLOBAL, UNDEFINED, 0)])
        (files.parent / "zfs.ko").write_bytes(module)

    def change_builds(self, salt: str) -> None:
        """From now on the same arguments give another image, as with another engine version."""
        (self.results / "salt").write_text(salt)

    @property
    def builds(self) -> list[str]:
        """The kernel images for which runs have built a module image, one each time."""
        built = self.results / "built"
        return built.read_text().split() if built.exists() else []

    # The maintainer

    def write_versions(
        self, kernels: str = "", top: str = "", *, on_the_spot: bool = False
    ) -> None:
        """Writes the file that a maintainer starts with.

        Args:
            kernels: YAML lines of entries.
            top: YAML lines of what else is set.
            on_the_spot: whether to publish the image that builds on the spot, too.
        """
        if on_the_spot:
            table = self.path.with_name("builders.yaml")
            row = f"  - compiler: {GCC}\n    image: {self.host}/{BUILDER}:1\n"
            table.write_text(f"builders:\n{row}")
            top += f"builders: {table.name}\n"
        self.path.write_text(
            f"# The kernels that we build for.\nimage: {self.image}\n{top}"
            f"sources:\n  - repository: {self.host}/{KERNELS}\n    hub: {self.hub.url}\n"
            f"openzfs:\n  api: {self.github.url}\non_the_spot: {str(on_the_spot).lower()}\n"
            f"kernels:\n{kernels}"
        )

    def follow_newest_zfs(self) -> None:
        """The maintainer lets a newer ZFS take the place of what is published."""
        text = self.path.read_text()
        self.path.write_text(text.replace("openzfs:\n", "openzfs:\n  policy: latest\n"))

    def forget(self) -> None:
        """The next run is on a machine that knows nothing of the one before."""
        shutil.rmtree(self.path.with_name("cache"), ignore_errors=True)
        self.engine.images.clear()
        self.engine.containers.clear()

    def load(self) -> versions.Versions:
        return versions.load(self.path)

    def tags(self) -> dict[str, str]:
        """The module image's tags with their digests."""
        return {
            tag: recorded_programs.digest_of(content)
            for tag, (_, content) in self.registry.manifests.get(IMAGES, {}).items()
            if ":" not in tag
        }

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.directory}/bin:{os.environ['PATH']}",
            "HOME": str(self.directory / "home"),
            "DOCKER_HOST": self.engine.host,
            "GITHUB_API_URL": self.github.url,
            "GITHUB_REPOSITORY": self.releases.full_name,
            "GITHUB_TOKEN": TOKEN,
        }

    @contextmanager
    def start(self, *arguments: str, **environment: str) -> Iterator[ForkServerProcess]:
        """``python -m release ARGUMENTS``, in a process group of its own, ended on exit."""
        (self.results / "machine").write_text(self.machine)
        merged = {**self.environment, **environment}
        run = partial(_release, self.path.parent, merged, self.machine, arguments)
        process = _forks.Process(target=run)
        process.start()
        try:
            yield process
        finally:
            if process.is_alive():
                process.kill()
                kill(process)
            process.join()

    def run(self, *arguments: str, **environment: str) -> Run:
        """Runs it to its end."""
        json_file = self.path.parent / "outcomes.json"
        json_file.unlink(missing_ok=True)
        if arguments[0] in ("sync", "publish", "plan", "status"):
            arguments = (*arguments, "--json", str(json_file))
        with self.start(*arguments, **environment) as process:
            process.join(TIMEOUT_SECONDS)
            assert process.exitcode is not None, f"did not end: {arguments}"
            code = process.exitcode
        stdout, stderr = (self.path.with_name(name).read_text() for name in ("stdout", "stderr"))
        outcomes = json.loads(json_file.read_text())["outcomes"] if json_file.exists() else []
        assert "Traceback" not in stderr, stderr
        return Run(code, stdout, stderr, outcomes)


def kill(process: ForkServerProcess) -> None:
    """Kills a run and all that it started, at once and without a chance to clean up; from any
    thread, so nobody waits for its end here.
    """
    assert process.pid
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _release(
    directory: Path, environment: Mapping[str, str], machine: str, arguments: tuple[str, ...]
) -> None:
    """The body of a run's process."""
    os.setsid()
    said = os.uname_result((*os.uname()[:4], machine))
    os.uname = lambda: said
    os.chdir(directory)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["release", *arguments]
    cli.main()


def _index(manifests: Mapping[Platform, str]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            {
                "mediaType": MANIFEST,
                "digest": digest,
                "size": 1,
                "platform": {"os": "linux", "architecture": architecture(platform)},
            }
            for platform, digest in manifests.items()
        ],
    }

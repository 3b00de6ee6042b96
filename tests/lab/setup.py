"""A maintainer's setup on the lab: Docker Hub, GitHub, a registry, a directory, ``versions.yaml``.

The pipeline runs in it as it does for anybody, as a process of its own: the lab is reached
through public settings alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
import semver

from release import versions
from release.registry import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.lab.gateway import Gateway
from tests.lab.github import GitHub
from tests.lab.github import Repository as GitHubRepository
from tests.lab.hub import Hub
from tests.lab.server import EffectCounter
from tests.lab.world import LabKernel, World

PROJECT = Path(__file__).resolve().parents[2]
TOKEN = "lab-github-token"
TIMEOUT_SECONDS = 30 * 60
ACCEPT = {"Accept": ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))}


@dataclass(frozen=True)
class Run:
    """A finished ``python -m release``."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    outcomes: list[dict[str, Any]]

    def __str__(self) -> str:
        return f"exit code {self.exit_code}\n{self.stdout}\n{self.stderr}"


class Setup:
    """One maintainer; a context manager.

    Args:
        directory: where the pipeline runs: ``versions.yaml`` and ``cache`` are in it.
        namespace: of the module images in the lab's registry; emptied first.
    """

    def __init__(
        self,
        world: World,
        directory: Path,
        *,
        namespace: str = "myname",
        effects: EffectCounter | None = None,
    ) -> None:
        self.world = world
        self.directory = directory
        self.registry_host = world.registry().host
        self.hub = Hub(effects=effects)
        self.github = GitHub(effects=effects)
        self.gateway = Gateway(f"http://{self.registry_host}", effects=effects)
        self.releases = self.github.add(GitHubRepository(namespace, "install-zfs"))
        self.openzfs = self.github.add(GitHubRepository("openzfs", "zfs"))
        self.github.add_token(TOKEN, push=[self.releases.full_name])
        self.release_openzfs(min(world.openzfs, key=semver.Version.parse))
        self.repository = f"{namespace}/install-zfs"
        self.path = directory / "versions.yaml"
        # The OCI empty descriptor's: what has no tag is not found again.
        self._blobs = {f"sha256:{hashlib.sha256(b'{}').hexdigest()}"}
        self.empty()

    @property
    def image(self) -> str:
        """The repository of the module images, as users name it."""
        return f"127.0.0.1:{self.gateway.port}/{self.repository}"

    def __enter__(self) -> Self:
        for server in (self.hub, self.github, self.gateway):
            server.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in (self.gateway, self.github, self.hub):
            server.__exit__(kind, error, trace)

    # The outside world

    def release_openzfs(self, version: str) -> None:
        """OpenZFS publishes a release; at first there is the oldest that the lab has."""
        tarball = self.world.openzfs[version]
        git_tag = f"zfs-{version}"
        self.openzfs.add_release(git_tag, {f"{git_tag}.tar.gz": tarball})
        with tarfile.open(tarball) as tar:
            meta = next(
                member
                for member in tar
                if member.name.count("/") == 1 and member.name.endswith("/META")
            )
            file = tar.extractfile(meta)
            assert file
            self.openzfs.contents[git_tag, "META"] = file.read()

    def push(self, kernel: LabKernel, when: datetime | None = None) -> str:
        """Upstream pushes a kernel: Docker Hub lists it from now on. Returns the reference."""
        name, _, image_tag = kernel.reference.rpartition(":")
        namespace, repository = name.split("/")[1:]
        self.hub.repository(namespace, repository).push(
            image_tag,
            kernel.digest,
            [
                ("linux", architecture, None, digest, 1)
                for architecture, digest in (("amd64", kernel.manifest), ("arm64", kernel.arm64))
                if digest
            ],
            when or kernel.created,
            OCI_INDEX if kernel.digest != kernel.manifest else OCI_MANIFEST,
        )
        return kernel.reference

    def tags(self) -> dict[str, str]:
        """The module image's tags with their digests, asked of the registry itself."""
        root = f"http://{self.registry_host}/v2/{self.repository}"
        listed = requests.get(f"{root}/tags/list", timeout=30)
        names = listed.json().get("tags") or [] if listed.status_code == 200 else []
        return {
            name: requests.head(f"{root}/manifests/{name}", headers=ACCEPT, timeout=30).headers[
                "Docker-Content-Digest"
            ]
            for name in names
        }

    def manifest(self, tag: str) -> str:
        """The digest of the one manifest that can be run behind a tag."""
        url = f"http://{self.registry_host}/v2/{self.repository}/manifests/{tag}"
        index = requests.get(url, headers=ACCEPT, timeout=30).json()
        (digest,) = (
            one["digest"] for one in index["manifests"] if one["platform"]["os"] != "unknown"
        )
        return str(digest)

    def empty(self) -> None:
        """Removes every module image from the registry, and every blob that one ever had."""
        root = f"http://{self.registry_host}/v2/{self.repository}"
        digests = list(set(self.tags().values()))
        for digest in digests:
            found = requests.get(f"{root}/manifests/{digest}", headers=ACCEPT, timeout=30).json()
            digests += [one["digest"] for one in found.get("manifests", ())]
            for blob in (*filter(None, [found.get("config")]), *found.get("layers", ())):
                self._blobs.add(blob["digest"])
            requests.delete(f"{root}/manifests/{digest}", timeout=30)
        for blob in self._blobs:
            requests.delete(f"{root}/blobs/{blob}", timeout=30)

    # The maintainer

    def write_versions(
        self, kernels: str = "", *, sources: str | None = None, on_the_spot: bool = False
    ) -> None:
        """Writes the file that a maintainer starts with; ``kernels`` are YAML lines of entries.

        Args:
            on_the_spot: whether to publish the image that builds on the spot, which is large.
        """
        if sources is None:
            sources = "".join(
                f"  - repository: {self.registry_host}/{name}\n    hub: {self.hub.url}\n"
                for name in sorted("/".join(key) for key in self.hub.repositories)
            )
        self.path.write_text(
            f"# The kernels that we build for.\nimage: {self.image}\n"
            f"sources:\n{sources}"
            f"openzfs:\n  api: {self.github.url}\n"
            f"on_the_spot: {str(on_the_spot).lower()}\n"
            f"kernels:\n{kernels}"
        )

    def load(self) -> versions.Versions:
        return versions.load(self.path)

    @property
    def environment(self) -> dict[str, str]:
        kept = ("PATH", "HOME", "DOCKER_HOST", "LANG", "TMPDIR")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PYTHONPATH": str(PROJECT),
            "GITHUB_API_URL": self.github.url,
            "GITHUB_REPOSITORY": self.releases.full_name,
            "GITHUB_TOKEN": TOKEN,
        }

    @contextmanager
    def start(
        self, *arguments: str, environment: Mapping[str, str | None] | None = None, **options: Any
    ) -> Iterator[subprocess.Popen[str]]:
        """``python -m release ARGUMENTS``, in a process group of its own, ended on exit.

        Args:
            environment: changes to what the setup sets; None takes a variable away.
        """
        merged = {**self.environment, **(environment or {})}
        process = subprocess.Popen(
            [sys.executable, "-m", "release", *arguments],
            cwd=self.directory,
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **options,
        )
        try:
            yield process
        finally:
            kill(process)

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str | None] | None = None,
        timeout_seconds: int = TIMEOUT_SECONDS,
    ) -> Run:
        """Runs it to its end."""
        json_file = self.directory / "outcomes.json"
        json_file.unlink(missing_ok=True)
        if arguments[0] in ("sync", "build", "smoke", "publish"):
            arguments = (*arguments, "--json", str(json_file))
        started = time.monotonic()
        with self.start(
            *arguments, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            stdout, stderr = process.communicate(timeout=timeout_seconds)
        outcomes = json.loads(json_file.read_text())["outcomes"] if json_file.exists() else []
        seconds = time.monotonic() - started
        return Run(process.returncode, stdout, stderr, seconds, outcomes)


def kill(process: subprocess.Popen[str]) -> None:
    """Kills a process and all that it started, at once and without a chance to clean up."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def requests_by_host(stderr: str) -> int:
    """How many HTTP requests a run says that it made."""
    match = re.search(r"^requests: (\d+) ", stderr, re.MULTILINE)
    return int(match.group(1)) if match else 0

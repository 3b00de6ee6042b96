"""The Docker engine at hand, through its SDK, and whether it can do what a build needs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import docker
from docker.context import ContextAPI
from docker.errors import DockerException

from release.errors import BuildError, PreflightError
from release.http import redact

TIMEOUT_SECONDS = 120
_CONTAINERD_STORE = ["driver-type", "io.containerd.snapshotter.v1"]


class Engine:
    """A connection to the engine that the ``docker`` command would use.

    Raises:
        PreflightError: there is none, or it does not answer.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        try:
            host = self._environment.get("DOCKER_HOST")
            if not host and (context := ContextAPI.get_current_context()):
                host = context.Host
            self._client = docker.DockerClient(base_url=host, timeout=TIMEOUT_SECONDS)
            self._client.ping()
        except (DockerException, OSError) as error:
            raise PreflightError(
                "no Docker engine answers",
                on=self._environment.get("DOCKER_HOST", "the default Docker socket"),
                detail=redact(str(error)),
                hint="start it (systemctl start docker), or set DOCKER_HOST",
            ) from error

    def preflight(self) -> None:
        """Makes sure that ``docker buildx`` is there and can give back an image as files.

        Raises:
            PreflightError: it is not, or it cannot, with what to install or switch on.
        """
        if not self._buildx("version"):
            raise PreflightError(
                "docker buildx is not installed",
                hint="apt-get install docker-buildx (Debian), or docker-buildx-plugin (Docker)",
            )
        status = self._client.info().get("DriverStatus") or []
        if _CONTAINERD_STORE in [list(pair) for pair in status]:
            return
        about = self._buildx("inspect")
        if "Driver:" in about and "docker\n" not in about.partition("Driver:")[2].lstrip()[:7]:
            return
        raise PreflightError(
            "this builder cannot export OCI images",
            on="docker buildx",
            hint='set "features": {"containerd-snapshotter": true} in /etc/docker/daemon.json, '
            "or run: docker buildx create --use",
        )

    def _buildx(self, *arguments: str) -> str:
        """What ``docker buildx`` prints, or nothing where it fails."""
        try:
            done = subprocess.run(
                ["docker", "buildx", *arguments],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                env=self._environment,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""

    def load(self, tar: Path) -> None:
        """Loads a sideload tar, as ``docker load`` does.

        Raises:
            BuildError: the engine refuses it.
        """
        try:
            with tar.open("rb") as file:
                self._client.images.load(file)
        except DockerException as error:
            raise BuildError(
                "the engine does not load it", on=str(tar), detail=redact(str(error))
            ) from error

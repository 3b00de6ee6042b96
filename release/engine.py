"""The Docker engine at hand, through its SDK, and whether it can do what a build needs."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import docker
import requests
from docker.context import ContextAPI
from docker.errors import DockerException
from docker.models.containers import Container

from release.build import BUILDX_BUILDER
from release.errors import BuildError, PreflightError, TargetError
from release.http import redact, without_secrets
from release.reference import Platform

TIMEOUT_SECONDS = 120
COMMAND_SECONDS = 10 * 60
"""How long a command in a container may take."""
_LIFE_SECONDS = 60 * 60
_FAULTS = (DockerException, requests.RequestException, OSError)
_CONTAINERD_STORE = ["driver-type", "io.containerd.snapshotter.v1"]


@dataclass(frozen=True)
class Ran:
    """What a command in a container did.

    Attributes:
        output: standard output and error, each in its own order.
    """

    exit_code: int
    output: str


class Session:
    """A running container, in which commands are run one after the other."""

    def __init__(self, client: docker.DockerClient, container: Container) -> None:
        self._api = client.api
        self._container = container

    def run(self, *command: str) -> Ran:
        """Runs a command to its end, without a shell.

        Raises:
            TargetError: the engine failed, or the command did not end in time.
        """
        code, parts = self._exec(command, stderr=True)
        return Ran(code, b"".join(parts).decode(errors="replace"))

    def write(self, to: IO[bytes], *command: str) -> int:
        """Writes what a command prints, byte for byte; returns its exit code.

        Raises:
            TargetError: the engine failed, or the command did not end in time.
        """
        code, _ = self._exec(command, stderr=False, to=to)
        return code

    def _exec(
        self, command: Sequence[str], *, stderr: bool, to: IO[bytes] | None = None
    ) -> tuple[int, list[bytes]]:
        started = time.monotonic()
        parts: list[bytes] = []
        try:
            created = self._api.exec_create(self._container.id, list(command), stderr=stderr)
            for part in self._api.exec_start(created["Id"], stream=True):
                if to:
                    to.write(part)
                else:
                    parts.append(part)
                if time.monotonic() - started > COMMAND_SECONDS:
                    raise TargetError(
                        f"did not end in {COMMAND_SECONDS / 60:.0f} minutes",
                        on=shlex.join(command),
                    )
            code = self._api.exec_inspect(created["Id"])["ExitCode"]
        except _FAULTS as error:
            raise TargetError(
                "could not be run in a container",
                on=shlex.join(command),
                detail=redact(str(error)),
                hint="look at the engine's log, and run again",
            ) from error
        return (-1 if code is None else int(code)), parts


@dataclass(frozen=True)
class Volume:
    """A volume.

    Attributes:
        path: where it is on the machine of the engine.
    """

    name: str
    path: str


class Engine:
    """A connection to the engine that the ``docker`` command would use.

    Raises:
        PreflightError: there is none, or it does not answer.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = without_secrets(environment)
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

    def preflight(self, emulated: Collection[Platform] = ()) -> None:
        """Makes sure that ``docker buildx`` is there and can give back an image as files.

        Args:
            emulated: platforms that it has to be able to build for beside its own.

        Raises:
            PreflightError: it is not, or it cannot, with what to install or switch on.
        """
        if not self._buildx("version"):
            raise PreflightError(
                "docker buildx is not installed",
                hint="apt-get install docker-buildx (Debian), or docker-buildx-plugin (Docker)",
            )
        named = self._environment.get(BUILDX_BUILDER)
        if named:
            self._check_builder(named)
        else:
            self._check_own()
        if emulated:
            self._check_platforms(named or "", emulated)

    def _check_own(self) -> None:
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

    def _check_builder(self, name: str) -> None:
        """Raises:
        PreflightError: there is no such instance of BuildKit, or it does not answer.
        """
        about = self._buildx("inspect", "--bootstrap", name)
        if not about:
            raise PreflightError(
                "there is no such builder, or it does not start",
                on=f"docker buildx, {name}",
                hint="name one that `docker buildx ls` lists, or make it: "
                f"docker buildx create --name {name} --driver remote|kubernetes ...",
            )
        if wrong := [line for line in about.splitlines() if line.startswith("Error:")]:
            raise PreflightError(
                "the builder does not answer",
                on=f"docker buildx, {name}",
                detail=redact("\n".join(wrong)),
                hint=f"try: docker buildx inspect --bootstrap {name}",
            )

    def _check_platforms(self, name: str, platforms: Collection[Platform]) -> None:
        """Raises:
        PreflightError: programs of one of them cannot be run where images are built.
        """
        about = self._buildx("inspect", "--bootstrap", *filter(None, [name]))
        listed = re.findall(r"^Platforms: *(.*)$", about, re.MULTILINE)
        for platform in sorted(set(platforms).difference(re.split(r"[*, ]+", " ".join(listed)))):
            raise PreflightError(
                f"the builder cannot run programs for {platform}",
                on=f"docker buildx, {name or 'the default builder'}",
                hint="install an emulator: docker run --privileged --rm tonistiigi/binfmt "
                f"--install {platform.partition('/')[2]}",
            )

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the engine says of itself: its answers to ``/info`` and ``/version``.

        Raises:
            PreflightError: it does not answer.
        """
        try:
            return dict(self._client.info()), dict(self._client.version())
        except _FAULTS as error:
            raise PreflightError(
                "the Docker engine does not say what it is",
                detail=redact(str(error)),
                hint="try: docker info",
            ) from error

    @contextmanager
    def session(self, image: str, command: Sequence[str], **options: Any) -> Iterator[Session]:
        """A container of ``image`` (pulled where the engine has none), removed afterwards.

        Args:
            command: keeps the container alive for as long as its argument, which is added, says.
            options: what else the SDK's ``containers.run`` is to be given.

        Raises:
            PreflightError: the image cannot be had, or the engine refuses the container.
        """
        try:
            if not self._has(image):
                self._client.images.pull(image)
        except _FAULTS as error:
            raise PreflightError(
                "the engine cannot pull it",
                on=image,
                detail=_words(error),
                hint="name an image that it has, with sh in it: --probe-image IMAGE",
            ) from error
        try:
            container = self._client.containers.create(
                image,
                entrypoint=[*command, str(_LIFE_SECONDS)],
                command=[],
                network_mode="none",
                **options,
            )
        except _FAULTS as error:
            raise PreflightError(
                "the engine refuses this container", on=image, detail=_words(error)
            ) from error
        try:
            try:
                container.start()
            except _FAULTS as error:
                raise PreflightError(
                    "the engine cannot start this container", on=image, detail=_words(error)
                ) from error
            yield Session(self._client, container)
        finally:
            with suppress(*_FAULTS):
                container.remove(force=True)

    def run(self, image: str, *command: str, **options: Any) -> Ran:
        """``docker run --rm`` of an image that the engine has, to its end.

        Args:
            options: what else the SDK's ``containers.create`` is to be given.

        Raises:
            TargetError: the engine fails, or the command does not end in time.
        """
        try:
            container = self._client.containers.create(
                image, list(command), network_mode="none", **options
            )
            try:
                container.start()
                code = container.wait(timeout=COMMAND_SECONDS)["StatusCode"]
                return Ran(int(code), container.logs().decode(errors="replace"))
            finally:
                with suppress(*_FAULTS):
                    container.remove(force=True)
        except _FAULTS as error:
            raise TargetError(
                f"could not be run: {shlex.join(command)}",
                on=image,
                detail=_words(error),
                hint="look at the engine's log, and run again",
            ) from error

    @contextmanager
    def volume(self) -> Iterator[Volume]:
        """An empty volume, which is removed in the end.

        Raises:
            TargetError: the engine fails.
        """
        try:
            volume = self._client.volumes.create()
        except _FAULTS as error:
            raise TargetError(
                "made no volume",
                on="the Docker engine",
                detail=_words(error),
                hint="look at the engine's log, and run again",
            ) from error
        try:
            yield Volume(volume.name, volume.attrs["Mountpoint"])
        finally:
            with suppress(*_FAULTS):
                volume.remove(force=True)

    def holds(self, image: str, *digests: str) -> bool:
        """Whether the engine's image of that name has one of the digests."""
        try:
            return self._client.images.get(image).id in digests
        except docker.errors.ImageNotFound:
            return False

    def _has(self, image: str) -> bool:
        try:
            self._client.images.get(image)
        except docker.errors.ImageNotFound:
            return False
        return True

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
        except _FAULTS as error:
            raise BuildError(
                "the engine does not load it",
                on=str(tar),
                detail=_words(error),
                hint="look at the engine's log, and run again",
            ) from error


def _words(error: Exception) -> str:
    """What the engine says, without the request that it says it to."""
    return redact(str(getattr(error, "explanation", None) or error))

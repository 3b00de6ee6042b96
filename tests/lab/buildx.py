"""Image builds for the lab, by the builder that belongs to the engine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.lab.steps import run

IMAGES = Path(__file__).parent / "images"


class Buildx:
    """``docker buildx build`` on the Dockerfiles beside this module.

    The engine's own builder is named, because another one that somebody chose by
    ``docker buildx use`` may not see the engine's images.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._builder = subprocess.run(
            ["docker", "context", "show"], capture_output=True, text=True, check=True
        ).stdout.strip()

    def build(
        self,
        name: str,
        dockerfile: Path,
        *,
        output: str,
        target: str = "",
        args: Mapping[str, str] | None = None,
        contexts: Mapping[str, Path] | None = None,
        epoch: int = 0,
        platform: str = "",
    ) -> None:
        """Builds one image or directory.

        Args:
            name: for people, and of the log.
            output: where it goes, in the words of ``--output``.
            contexts: build contexts beside the Dockerfile's directory.
            epoch: the image's creation time, in seconds since 1970.
            platform: whose image it is; this machine's own without it.

        Raises:
            LabError: with the last lines of the build.
        """
        command: list[str | Path] = ["docker", "buildx", "build", "--builder", self._builder]
        command += ["--progress", "plain", "--provenance", "false", "--output", output]
        command += ["--file", dockerfile]
        if platform:
            command += ["--platform", platform]
        if target:
            command += ["--target", target]
        for key, value in (args or {}).items():
            command += ["--build-arg", f"{key}={value}"]
        for key, path in (contexts or {}).items():
            command += ["--build-context", f"{key}={path}"]
        run(
            name,
            [*command, dockerfile.parent],
            logs=self._logs,
            env={"SOURCE_DATE_EPOCH": str(epoch)},
        )

"""A stand-in for a container that sees a machine: commands run here, in a directory of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

from release.engine import Ran, Session


class LocalSession(Session):
    """Runs what would run in the container as a process here.

    Args:
        proc: stands in for the files of ``/proc`` and ``/sys``, by path.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = proc

    def run(self, *command: str) -> Ran:
        done = subprocess.run(
            self._moved(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        return Ran(done.returncode, done.stdout.decode(errors="replace"))

    def write(self, to: IO[bytes], *command: str) -> int:
        done = subprocess.run(self._moved(command), stdout=subprocess.PIPE, check=False)
        to.write(done.stdout)
        return done.returncode

    def _moved(self, command: tuple[str, ...]) -> list[str]:
        return [
            f"{self._proc}{word}" if word.startswith(("/proc/", "/sys/")) else word
            for word in command
        ]

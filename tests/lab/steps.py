"""Commands, timed steps and things made once: what every part of the lab is written with."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import ParamSpec, TypeVar

from release.errors import ReleaseError

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("lab")


class LabError(ReleaseError):
    """The lab could not be set up."""


@contextmanager
def step(name: str) -> Iterator[None]:
    """Logs what was done and the seconds it took."""
    began = time.monotonic()
    yield
    log.info("%s: %.1f s", name, time.monotonic() - began)


def run(
    name: str,
    command: Sequence[str | Path],
    *,
    logs: Path,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a command, its output in ``logs/NAME.log``.

    Args:
        name: what the command does, for people.
        env: variables beside those of this process.

    Raises:
        LabError: with the last lines of the output.
    """
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{re.sub(r'[^a-z0-9.+]+', '-', name.lower())}.log"
    with path.open("wb") as output:
        status = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            check=False,
        ).returncode
    if status != 0:
        lines = path.read_text(errors="replace").splitlines()
        raise LabError(
            f"{command[0]} ended with {status}",
            on=name,
            detail="\n".join(lines[-30:]),
            hint=f"the whole output is in {path}",
        )


def once(make: Callable[P, T]) -> Callable[P, T]:
    """Decorates a maker: the same arguments are made once, also when several threads want them.

    A maker that failed fails the same way again.
    """
    made: dict[Hashable, Future[T]] = {}
    lock = Lock()

    @wraps(make)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        key = (args, tuple(sorted(kwargs.items())))
        with lock:
            if key not in made:
                made[key] = ThreadPoolExecutor(1).submit(make, *args, **kwargs)
        return made[key].result()

    return wrapper

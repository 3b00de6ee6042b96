"""Commands, timed steps and things made once: what every part of the lab is written with."""

from __future__ import annotations

import fcntl
import hashlib
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
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from release.errors import ReleaseError

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound="Keeper")

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


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Of all threads and processes that name this file, one at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Keeper(Protocol):
    """Who keeps in a directory what was made."""

    @property
    def directory(self) -> Path: ...


def once(make: Callable[Concatenate[K, P], T]) -> Callable[Concatenate[K, P], T]:
    """Decorates a maker: the same arguments are made once, also when several threads want them.

    A maker that failed fails the same way again. Of the processes that share a directory one makes
    it while the others wait; the maker, which they call then, is to find what was made.
    """
    made: dict[Hashable, Future[T]] = {}
    lock = Lock()

    def make_alone(keeper: K, *args: P.args, **kwargs: P.kwargs) -> T:
        locks = keeper.directory / "locks"
        locks.mkdir(exist_ok=True)
        which = hashlib.sha256(repr((args, sorted(kwargs.items()))).encode()).hexdigest()
        with alone(locks / f"{make.__name__}-{which[:12]}"):
            return make(keeper, *args, **kwargs)

    @wraps(make)
    def wrapper(keeper: K, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (keeper, args, tuple(sorted(kwargs.items())))
        with lock:
            if key not in made:
                made[key] = ThreadPoolExecutor(1).submit(make_alone, keeper, *args, **kwargs)
        return made[key].result()

    return wrapper

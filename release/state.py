"""``state.json``, beside ``versions.yaml``: what the pipeline knows of its own runs.

Small and committed with the rest: when upstream was last looked at completely, and what failed how
often with the same inputs. Without the file nothing is lost but these two. The same facts give the
same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import semver

from release.errors import ConfigurationError
from release.reference import Platform, parse_platform
from release.yamlfile import write

NAME = "state.json"
MOST_ATTEMPTS = 3
"""After so many failures with the same inputs, a kernel waits until one of them changes."""

RENEWED_AFTER = timedelta(days=7)
"""How old the recorded look becomes before a run without news records one. An idle run commits
nothing otherwise; GitHub turns off the schedule of a repository without commits after 60 days
(docs.github.com, "Disabling and enabling a workflow")."""

TOO_OLD = timedelta(days=14)
"""From when on a recorded look is a sign that runs were dropped: twice what is to be expected."""


@dataclass(frozen=True)
class Inputs:
    """What the result of a build and its test depends on.

    Attributes:
        kernel: the digest of the kernel image's manifest.
        zfs: the OpenZFS version.
        code: of our own files that have a say in it, see :func:`release.attempts.code_digest`.
        builder: the image with the compiler, by tag and digest; empty where none was found.
        settings: the entry's own words on how to build and test.
        looked_at: where no builder was found, the images that might have been one, each with the
            digest that it had, or ``-`` where it was not there.
    """

    kernel: str
    zfs: str
    code: str
    builder: str = ""
    settings: str = ""
    looked_at: str = ""


@dataclass(frozen=True)
class Attempt:
    """What failed, and how often in a row with these very inputs."""

    inputs: Inputs
    times: int
    reason: str


Key = tuple[str, Platform]
"""A slug and a platform."""

Trial = tuple[str, Platform, str]
"""A slug, a platform and an OpenZFS version: two that are tried in turns are counted each."""


@dataclass(frozen=True)
class State:
    """All of ``state.json``.

    Attributes:
        looked: the day (UTC) of the last complete look at upstream that was recorded.
        attempts: of what failed last.
    """

    looked: date | None = None
    attempts: Mapping[Trial, Attempt] = field(default_factory=lambda: MappingProxyType({}))

    def failed(self, key: Key, inputs: Inputs, reason: str) -> State:
        """After a failure; with other inputs than the last one's, the count begins anew."""
        trial = (*key, inputs.zfs)
        before = self.attempts.get(trial)
        times = before.times if before and before.inputs == inputs else 0
        attempt = Attempt(inputs, min(times + 1, MOST_ATTEMPTS), reason)
        # Nobody asks any more for what failed with another kernel or with other code.
        outdated = {
            other
            for other, one in self.of(key).items()
            if (one.inputs.kernel, one.inputs.code) != (inputs.kernel, inputs.code)
        }
        known = self.without(outdated).attempts
        return replace(self, attempts=MappingProxyType({**known, trial: attempt}))

    def succeeded(self, key: Key, zfs: str | None) -> State:
        """After a success with that version, which nobody will give up for an older one."""
        return self.without(
            trial for trial in self.of(key) if zfs is None or not _is_newer(trial[2], zfs)
        )

    def without(self, trials: Iterable[Trial]) -> State:
        """Where nobody is to ask for them any more."""
        gone = set(trials)
        kept = {trial: one for trial, one in self.attempts.items() if trial not in gone}
        return replace(self, attempts=MappingProxyType(kept))

    def of(self, key: Key, zfs: str | None = None) -> dict[Trial, Attempt]:
        """What failed of a kernel on a platform; without ``zfs`` with whatever version."""
        return {
            trial: attempt
            for trial, attempt in self.attempts.items()
            if trial[:2] == key and zfs in (None, trial[2])
        }

    def is_due(self, today: date) -> bool:
        """Whether a complete look on this day is to be recorded."""
        return self.looked is None or today - self.looked >= RENEWED_AFTER

    def looked_on(self, today: date) -> State:
        """After a complete look."""
        return replace(self, looked=today) if self.is_due(today) else self

    def age(self, today: date) -> str:
        """How long ago the recorded look was, for people."""
        if self.looked is None:
            return "no complete look at upstream is recorded yet"
        days = (today - self.looked).days
        ago = "today" if days <= 0 else f"{days} day{'s' * (days > 1)} ago"
        return f"last recorded complete look at upstream: {self.looked} ({ago})"

    def is_too_old(self, today: date) -> bool:
        """Whether runs must have been missing since the recorded look."""
        return self.looked is not None and today - self.looked > TOO_OLD


def _is_newer(zfs: str, than: str) -> bool:
    try:
        return semver.Version.parse(zfs) > than
    except ValueError:
        return False


def load(path: Path) -> State:
    """Reads the file; a missing one is the state before the first run.

    Raises:
        ConfigurationError: it is something else.
    """
    try:
        return _parse(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return State()
    except (ValueError, KeyError, TypeError, AttributeError, ConfigurationError) as error:
        raise ConfigurationError(
            "is not what the pipeline writes there",
            on=str(path),
            detail=f"{type(error).__name__}: {error}",
            hint="restore it from git, or remove it: failures are then counted anew",
        ) from error


def save(state: State, path: Path) -> None:
    """Writes the file, as a whole or not at all."""
    attempts: dict[str, dict[str, list[Any]]] = {}
    for (slug, platform, _), attempt in sorted(state.attempts.items()):
        attempts.setdefault(slug, {}).setdefault(platform, []).append(asdict(attempt))
    content = {
        "looked": state.looked.isoformat() if state.looked else None,
        "attempts": attempts,
    }
    write(path, json.dumps(content, indent=2) + "\n")


def _parse(content: Any) -> State:
    attempts: dict[Trial, Attempt] = {}
    for slug, platforms in content["attempts"].items():
        for platform, found in platforms.items():
            # Before there was a list there was one of them.
            for one in found if isinstance(found, list) else [found]:
                inputs = Inputs(**{name: _text(value) for name, value in one["inputs"].items()})
                attempt = Attempt(inputs, int(one["times"]), _text(one["reason"]))
                attempts[slug, parse_platform(platform), inputs.zfs] = attempt
    looked = date.fromisoformat(content["looked"]) if content["looked"] is not None else None
    return State(looked, MappingProxyType(attempts))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value

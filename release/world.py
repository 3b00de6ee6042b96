"""The outside worlds, each with its client, and how a run was set up."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import IntEnum
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from release import attempts, budget, desktop, drift, latest, versions
from release.attest import PROVENANCE
from release.boot import Emulator, preflight
from release.build import PROJECT, Builder
from release.desktop import PolledNotes, Verdict
from release.errors import (
    NotFoundError,
    PreflightError,
    ReleaseError,
    UpstreamError,
)
from release.github import API, GitHub
from release.http import Http
from release.openzfs import OpenZFS
from release.plan import (
    Held,
    Observed,
    Target,
    digests_to_be,
    images_to_be,
    open_questions,
    plan,
    receipts_to_sign,
)
from release.poll import Polled, poll
from release.recollect import recollect
from release.reference import DOCKER_HUB, Digest, Platform, Reference, architecture, parse_platform
from release.registry import Registry
from release.resolve import (
    find_digests,
    settle_zfs,
)
from release.restore import Restorer
from release.solver import Choice, Unread
from release.state import NAME as STATE
from release.state import Key
from release.state import load as load_state
from release.state import save as save_state
from release.tarballs import NAME as TARBALLS
from release.tarballs import Tarballs
from release.versions import Entry, Versions

_LOOKS_AT_ONCE = 8
_MOST_UNREAD = 8
"""How many looks may fail before no more are made: a registry that answers nothing is not asked
for thousands of tags."""

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


STOP = "INSTALL_ZFS_STOP"
"""The variable that stops publishing wherever it is set to anything."""


_VARIABLES = {
    "GITHUB_REPOSITORY": "set it to owner/name of the repository for the releases",
    "GITHUB_TOKEN": "set it to a token with the permission contents: write",
}


def require_ours(environment: Mapping[str, str]) -> None:
    """Raises:
    PreflightError: a variable that names our repository, or lets us write there, is not set.
    """
    for name, hint in _VARIABLES.items():
        if not environment.get(name):
            raise PreflightError(f"{name} is not set", hint=hint)


def github_of(http: Http, environment: Mapping[str, str]) -> GitHub | None:
    """Our own repository; None where no variable names one."""
    repository = environment.get("GITHUB_REPOSITORY")
    token = environment.get("GITHUB_TOKEN")
    return GitHub(http, _api(environment), repository, token) if repository else None


def source_of(environment: Mapping[str, str]) -> str:
    """The URL of our own repository; empty where no variable names one."""
    server = environment.get("GITHUB_SERVER_URL", "https://github.com")
    repository = environment.get("GITHUB_REPOSITORY")
    return f"{server}/{repository}" if repository else ""


def _api(environment: Mapping[str, str]) -> str:
    return environment.get("GITHUB_API_URL", API).rstrip("/")


class Step(IntEnum):
    """How far a command goes with a kernel."""

    BUILD = 1
    SMOKE = 2
    PUBLISH = 3


def native_platform() -> Platform:
    """The platform that this machine builds and boots natively."""
    return platform_of(os.uname().machine)


def platform_of(machine: str) -> Platform:
    """The platform of a machine whose ``uname -m`` this is."""
    return parse_platform(f"linux/{_MACHINES.get(machine, machine)}")


@dataclass(frozen=True)
class News:
    """What is known beyond what is recorded: what upstream says of kernels, and of which Desktop
    runs which; and which kernels, published and lost from the record, were found again.
    """

    kernels: Polled
    desktops: PolledNotes
    found: frozenset[str] = frozenset()

    @property
    def failures(self) -> tuple[ReleaseError, ...]:
        return (*self.kernels.failures, *self.desktops.failures)

    @property
    def worth_recording(self) -> bool:
        return bool(self.kernels.new or self.kernels.changes.revised or self.desktops.new)


class World:
    """The outside worlds, each reached through one client, and how this run was set up.

    Attributes:
        github: our own repository; None where GITHUB_REPOSITORY does not name one.
        here: the platforms that this machine builds and boots: its own, unless it is told others.
        platforms: those that this run is for; the same, unless other machines build, too.
        state: what earlier runs left to this one.
    """

    def __init__(
        self,
        versions: Versions,
        environment: Mapping[str, str],
        cache: Path = Path("cache"),
        *,
        here: Iterable[Platform] = (),
        platforms: Iterable[Platform] = (),
    ) -> None:
        self.versions = versions
        self.here = frozenset(here or {native_platform()})
        self.platforms = frozenset(platforms or self.here)
        self.state = load_state(versions.path.with_name(STATE))
        self.desktop_map = desktop.load(versions.path.with_name(desktop.NAME))
        self.environment = environment
        self._seen_builders: dict[Reference, Digest | None] = {}
        self.cache = cache
        self.http = Http()
        self.registry = Registry(self.http, environment)
        self.builder = Builder(cache, environment)
        self.emulator = Emulator()
        self.github = github_of(self.http, environment)
        token = environment.get("GITHUB_TOKEN")
        openzfs = versions.openzfs
        self.openzfs = OpenZFS(
            GitHub(
                self.http,
                openzfs.api,
                openzfs.repository,
                # A token is for one API and goes to no other.
                token if openzfs.api == _api(environment) else None,
            ),
            cache / "sources",
            Tarballs(versions.path.with_name(TARBALLS)),
        )

    @cached_property
    def revision(self) -> str:
        """The project's commit."""
        if sha := self.environment.get("GITHUB_SHA"):
            return sha
        if not shutil.which("git"):
            return ""
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout.strip()

    @cached_property
    def source(self) -> str:
        return source_of(self.environment)

    @cached_property
    def code(self) -> str:
        """Tells apart our own code, as far as it has a say in how a build ends."""
        return attempts.code_digest(PROJECT)

    @cached_property
    def minute(self) -> int:
        """Of this run, or of the plan that it publishes for, since 1970."""
        return int(time.time() // 60)

    @property
    def today(self) -> date:
        return datetime.now(UTC).date()

    def poll(self, *, whole: bool = False) -> News:
        """Asks the sources, and side by side with them Docker's release notes.

        Args:
            whole: read every list of tags to its end.
        """
        with ThreadPoolExecutor(1) as pool:
            notes = pool.submit(self.poll_notes)
            polled = poll(self.versions, self.http, self.registry, self.environment, whole=whole)
            return News(polled, notes.result())

    def poll_notes(self) -> PolledNotes:
        """Asks Docker's release notes alone."""
        return desktop.poll_notes(self.versions.release_notes, self.http, self.desktop_map)

    def observe(self) -> Observed:
        """Looks at what is published: one list of tags, and one of releases."""
        tags = self.registry.tags(self.versions.image, ours=True)
        releases = tuple(self.github.releases()) if self.github else None
        return Observed(tags, releases)

    def inspect(
        self,
        entries: Iterable[Entry],
        observed: Observed,
        desktop: Mapping[str, Sequence[str]],
        *,
        none: bool = False,
        whole: bool = False,
    ) -> tuple[Observed, list[ReleaseError]]:
        """Looks, without a pull, at what no list tells: the digests behind the tags of kernels.

        Args:
            none: look at none of them in this run, unless it is ``whole``.
            whole: look at all of them, and at the images that they hold, and not at this run's
                share.

        Returns:
            Also why some could not be looked at, of which nothing is known.
        """
        wanted = (
            {}
            if none and not whole
            else digests_to_be(entries, observed, desktop, self.versions.platforms)
        )
        image = self.versions.image
        names = {name: image.with_tag(name) for name in wanted}
        if whole:
            held = images_to_be(entries, observed, self.versions.platforms)
            names |= {digest: image.at(digest) for digest in held}
        else:
            names = {name: names[name] for name in drift.share(names, self.minute)}
        found, failures = self._digests(names.values())
        seen = {name: found[one] for name, one in names.items() if one in found}
        return observed.with_digests(seen), failures

    def _digests(
        self, images: Collection[Reference]
    ) -> tuple[dict[Reference, Digest | None], list[ReleaseError]]:
        """What is behind each image, looked at without a pull, and why some could not be."""
        found: dict[Reference, Digest | None] = {}
        failures: list[ReleaseError] = []

        def look(image: Reference) -> None:
            if len(failures) < _MOST_UNREAD:
                try:
                    found[image] = self.registry.head(image)
                except ReleaseError as error:
                    failures.append(error)

        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            list(pool.map(look, images))
        if left := len(images) - len(found) - len(failures):
            why = f"no further {left} images were looked at, after {len(failures)} failures"
            failures.append(UpstreamError(why, on=str(self.versions.image), hint="run again"))
        for failure in failures:
            failure.drawn = True
        return found, failures

    def unsigned(
        self,
        entries: Iterable[Entry],
        observed: Observed,
        *,
        chosen: frozenset[str] | None = None,
        whole: bool = False,
    ) -> tuple[frozenset[str], list[ReleaseError]]:
        """What was published to be signed, and was not, because the run that was to see to it died
        in between: the newest first, no further than to the first one that is signed.

        Args:
            chosen: slugs to ask for, None for all.
            whole: ask for all of them, as far as one run can.

        Returns:
            The slugs, and why it could not be found out.
        """
        if not self.github:
            return frozenset(), []
        receipts = {
            receipt.entry.slug: receipt
            for receipt in receipts_to_sign(entries, observed)
            if chosen is None or receipt.entry.slug in chosen
        }
        slugs: Iterable[str] = receipts
        if whole:
            slugs = drift.share(receipts, self.minute, drift.MOST_SIGNATURES)
        found: set[str] = set()
        try:
            for slug in islice(slugs, drift.MOST_SIGNATURES):
                if not self.is_signed(receipts[slug].image):
                    found.add(slug)
                elif not whole:
                    break
        except UpstreamError as error:
            error.drawn = True
            return frozenset(found), [error]
        return frozenset(found), []

    def is_signed(self, digest: Digest) -> bool:
        """Whether GitHub has a signed provenance of this digest; not where there is no repository.

        Raises:
            UpstreamError: it could not be found out.
        """
        return self.github is not None and self.github.is_attested(digest, PROVENANCE)

    def look(self, *, whole: bool = False) -> tuple[News, Observed]:
        """Polls and observes side by side."""
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self.observe)
            news = self.poll(whole=whole)
            observed = pending.result()
        again = recollect(self.versions.kernels, news.kernels.changes, observed)
        polled = replace(news.kernels, changes=again.changes)
        return replace(news, kernels=polled, found=again.kernels), observed

    def desktops(
        self, entries: Sequence[Entry], news: News | None = None
    ) -> dict[str, tuple[str, ...]]:
        """By slug, the Docker Desktop versions that run a kernel, as the evidence says."""
        known = self.desktop_map
        if news:
            known = replace(known, rows=(*known.rows, *news.desktops.new))
        return desktop.publishable(known, entries)

    def verdicts(self, entries: Sequence[Entry]) -> tuple[Verdict, ...]:
        """What the recorded evidence says of each Docker Desktop version."""
        return desktop.judge(self.desktop_map, entries)

    def plan(
        self,
        entries: Sequence[Entry],
        observed: Observed,
        *,
        desktop: Mapping[str, Sequence[str]],
        chosen: frozenset[str] | None = None,
        force: bool = False,
        tried: Mapping[Key, str | None] = MappingProxyType({}),
        unsigned: Collection[str] = (),
        whole: bool = False,
    ) -> tuple[list[Target], list[ReleaseError]]:
        """What is to be done, with the ZFS version of each kernel for which that matters.

        Args:
            force: try again what failed too often with the same inputs.
            unsigned: slugs of what is published and was to be signed.
            tried: what was tried again already, in this run, and with which ZFS version, as far as
                that was known: it counts whatever came of that version before.
            whole: look at all builders of what failed too often, and not at this run's share.

        Returns:
            The targets, and why ZFS versions or builders could not be looked up.
        """
        policy = self.versions.openzfs.policy
        draw = partial(
            plan,
            entries,
            observed,
            platforms=self.platforms,
            wanted=self.versions.platforms,
            chosen=chosen,
            desktop=desktop,
            unsigned=unsigned,
        )
        draft = draw()
        choices: dict[str, Choice] = {}
        failures: dict[str, ReleaseError] = {}
        for entry in open_questions(draft, policy):
            try:
                choice = settle_zfs(self.openzfs, entry, entry.policy or policy)
            except (UpstreamError, NotFoundError) as error:
                failures[str(error)] = error
                choice = Unread(f"which ZFS it is to have could not be found out: {error.summary}")
            if choice:
                choices[entry.slug] = choice
        draw = partial(draw, policy=policy, choices=choices)
        held: Held = {}
        if self.state.attempts and not force:
            again = (trial for key, zfs in tried.items() for trial in self.state.of(key, zfs))
            state = self.state.without(again)
            look = partial(self._builders, failures=failures, whole=whole)
            held = attempts.held((*draw(), *draw(mend=False)), state, self.code, look)
        return draw(held=held), list(failures.values())

    def _builders(
        self, images: Collection[Reference], *, failures: dict[str, ReleaseError], whole: bool
    ) -> dict[Reference, Digest | None]:
        """The digests of builders, as far as they are looked at in this run.

        Args:
            failures: takes why one could not be looked at, which changes nothing of it.
        """
        names = {str(image): image for image in images}
        drawn = sorted(names) if whole else drift.share(names, self.minute)
        # A run plans more than once.
        wanted = [names[name] for name in drawn if names[name] not in self._seen_builders]
        found, unread = self._digests(wanted)
        self._seen_builders |= found
        failures |= {str(error): error for error in unread}
        return self._seen_builders

    @cached_property
    def restorer(self) -> Restorer:
        """Brings back what was published."""
        assert self.github
        return Restorer(self.registry, self.versions.image, self.github, self.cache)

    def share(
        self, targets: Sequence[Target], observed: Observed, *, limit: int | None = None
    ) -> budget.Share:
        """Leaves to later runs what the requests that this one may make are too few for."""
        if not any(target.to_do for target in targets):
            return budget.Share(list(targets), ())
        return budget.share(
            targets,
            self.versions.image,
            len(observed.releases or ()),
            self._allowance(left=True),
            self._allowance(left=False),
            limit,
        )

    def _allowance(self, *, left: bool) -> budget.Requests:
        """What a run may ask: of what is left now, or of what there is at first."""
        hub = Reference(DOCKER_HUB, self.versions.image.repository)
        used = (self.versions.image, *(source.repository for source in self.versions.sources))
        return budget.allowance(
            signed_in=any(one.registry == DOCKER_HUB for one in used)
            and self.registry.signs_in(DOCKER_HUB),
            github_left=self.github.requests_left if left and self.github else None,
            pulls_left=self.registry.pulls_left(hub) if left else None,
        )

    def has_requests_for(self, target: Target, observed: Observed) -> bool:
        """Whether enough is left, after all that this run asked, to publish one more kernel."""
        left = self.github.requests_left if self.github else None
        releases = len(observed.releases or ())
        return left is None or left >= budget.cost(target, self.versions.image, releases).github

    def without_builds(
        self, targets: Iterable[Target]
    ) -> tuple[frozenset[Key], list[ReleaseError]]:
        """What is to be done and needs no build, because it can be brought back.

        Returns:
            Also why that could not be found out of some; they are left for a run that can.
        """
        found: set[Key] = set()
        failures: dict[str, ReleaseError] = {}
        for target in targets:
            slug, receipt, release = target.entry.slug, target.receipt, target.release
            if target.to_do and receipt and release:
                try:
                    platforms = tuple(self.restorer.restorable(slug, receipt, release))
                except UpstreamError as error:
                    failures[str(error)] = error
                    platforms = target.platforms
                found |= {(slug, platform) for platform in platforms}
        return frozenset(found), list(failures.values())

    def wanted_latest(self, entries: Iterable[Entry], observed: Observed) -> latest.Wanted:
        """What ``latest`` has to hold; nothing where it is turned off."""
        held, platforms = self.versions.latest, self.versions.platforms
        return latest.Wanted.of(entries, observed, held, platforms)

    def record(self, news: News) -> None:
        """Writes down what a poll found."""
        self.versions = versions.revise_all(self.versions, news.kernels.changes.revised)
        self.versions = versions.append(self.versions, news.kernels.new)
        if news.desktops.new:
            self.desktop_map = desktop.append(self.desktop_map, news.desktops.new)

    def know(self, directory: Path, slugs: Iterable[str], entries: Iterable[Entry]) -> list[Entry]:
        """Writes down the kernels that others built and upstream, which could not be read a second
        time, did not name; those.

        Args:
            directory: of the plan, which knew them. Their second names come with upstream's next
                list.
            slugs: of what others built.
            entries: all others.
        """
        entries = tuple(entries)
        tags = {tag for entry in entries for tag in entry.image_tags}
        digests = {entry.digest for entry in entries}
        unknown = set(slugs) - tags
        if not unknown:
            return []
        planned = versions.load(directory / versions.NAME).kernels
        new = [
            replace(entry, aliases=(), desktop=())
            for entry in planned
            if entry.slug in unknown and entry.digest not in digests
        ]
        self.versions = versions.append(self.versions, new)
        return new

    def find_platforms(self, targets: Iterable[Target]) -> list[ReleaseError]:
        """Looks at the kernels that are to be done and of which no platform is known, and writes
        down what it finds.

        Returns:
            Why some could not be looked at.
        """
        failures: list[ReleaseError] = []
        found: list[tuple[Entry, Entry]] = []
        for target in targets:
            if target.to_do and not target.entry.platforms:
                try:
                    found.append((target.entry, find_digests(self.registry, target.entry)))
                except ReleaseError as error:
                    failures.append(error)
        self.versions = versions.revise_all(self.versions, found)
        return failures

    def keep_state(self, *, complete: bool) -> None:
        """Writes down what the next run is to know of this one.

        Args:
            complete: whether all of upstream was read.
        """
        path = self.versions.path.with_name(STATE)
        state = self.state.looked_on(self.today) if complete else self.state
        known = {entry.slug for entry in self.versions.kernels}
        state = state.without(trial for trial in state.attempts if trial[0] not in known)
        if state != load_state(path):
            save_state(state, path)
        self.state = state

    @property
    def stopped(self) -> str:
        """Why nothing is to be published, in a maintainer's words; empty where all is to go on."""
        return self.environment.get(STOP, "")

    def check_credentials(self) -> None:
        """Raises:
        PreflightError: publishing is stopped, or a variable that it needs is not set; nothing is
            asked outside.
        """
        if self.stopped:
            raise PreflightError(
                f"publishing is stopped: {STOP} is set to {self.stopped!r}",
                hint=f"unset it to go on; in GitHub's settings: Actions, Variables, {STOP}",
            )
        require_ours(self.environment)

    def preflight(self, until: Step, *, builds: bool = True) -> None:
        """Makes sure, before an hour of building, that all of it can be done here.

        Args:
            builds: whether anything is to be built or booted here.

        Raises:
            PreflightError: the first thing that is missing.
        """
        # Imported here, because a run with nothing to do needs no engine.
        from release.engine import Engine

        if builds and until >= Step.SMOKE:
            for platform in sorted(self.here):
                preflight(architecture(platform))
        if builds:
            Engine(self.environment).preflight(self.here - {native_platform()})
        if until >= Step.PUBLISH:
            self.check_credentials()
            assert self.github
            try:
                writable = self.github.may_write()
            except NotFoundError:
                writable = False
            if not writable:
                raise PreflightError(
                    "GITHUB_TOKEN may not write there",
                    on=str(self.github),
                    hint="give it the permission contents: write, or correct GITHUB_REPOSITORY",
                )
            self.registry.check_push(self.versions.image)

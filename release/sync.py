"""The order of the steps, and what comes out of each kernel.

``sync`` reconciles what is wanted with what is really out there, not with a memory of what it
did: a run that dies anywhere is repaired by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from enum import IntEnum
from functools import cached_property, partial
from pathlib import Path

from release import attempts, budget, child, desktop, drift, latest, publish, versions
from release.attest import Subject, tarball_of
from release.boot import Emulator, preflight
from release.build import PROJECT, Builder, Built, Recipe
from release.builders import choose_builder
from release.desktop import PolledNotes, Verdict
from release.errors import (
    BuildError,
    LackingError,
    NotFoundError,
    NotYetError,
    PreflightError,
    PublishError,
    ReleaseError,
    SmokeError,
    UnbuildableError,
    UpstreamError,
    from_os_error,
)
from release.github import API, GitHub
from release.handover import Delivery
from release.http import Http, bytes_digest, file_digest, redact
from release.openzfs import OpenZFS
from release.plan import (
    Observed,
    Target,
    asset_name,
    desktop_tag,
    digests_to_be,
    not_here,
    open_questions,
    plan,
)
from release.poll import Polled, poll
from release.recollect import recollect
from release.reference import (
    DOCKER_HUB,
    Digest,
    Platform,
    Reference,
    architecture,
    parse_platform,
)
from release.registry import Document, Registry
from release.report import Outcome, Report, Status
from release.resolve import (
    BuilderImage,
    Kernel,
    choose_zfs,
    find_digests,
    known_kernel,
    read_kernel,
    settle_zfs,
)
from release.restore import Restorer
from release.smoke import SmokeResult, smoke
from release.solver import Choice, Unread
from release.state import NAME as STATE
from release.state import Inputs, Key
from release.state import load as load_state
from release.state import save as save_state
from release.tarballs import NAME as TARBALLS
from release.tarballs import Tarballs
from release.versions import SMOKE_HOST, Entry, Versions

_BOOT_BYTES = 24 << 20
"""How many bytes of layers ``latest`` is booted with; a guest has them unpacked in memory."""

_LOOKS_AT_ONCE = 8

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


STOP = "INSTALL_ZFS_STOP"
"""The variable that stops publishing wherever it is set to anything."""


_VARIABLES = {
    "GITHUB_REPOSITORY": "set it to owner/name of the repository for the releases",
    "GITHUB_TOKEN": "set it to a token with the permission contents: write",
}


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
        platforms: those that this run is for; this machine's own unless others build, too.
        state: what earlier runs left to this one.
    """

    def __init__(
        self,
        versions: Versions,
        environment: Mapping[str, str],
        cache: Path = Path("cache"),
        *,
        platforms: Iterable[Platform] = (),
    ) -> None:
        self.versions = versions
        self.platforms = frozenset(platforms or {native_platform()})
        self.state = load_state(versions.path.with_name(STATE))
        self.desktop_map = desktop.load(versions.path.with_name(desktop.NAME))
        self.environment = environment
        self.cache = cache
        self.http = Http()
        self.registry = Registry(self.http, environment)
        self.builder = Builder(cache, environment)
        self.emulator = Emulator()
        self.github: GitHub | None = None
        api = environment.get("GITHUB_API_URL", API).rstrip("/")
        token = environment.get("GITHUB_TOKEN")
        if repository := environment.get("GITHUB_REPOSITORY"):
            self.github = GitHub(self.http, api, repository, token)
        openzfs = versions.openzfs
        self.openzfs = OpenZFS(
            GitHub(
                self.http,
                openzfs.api,
                openzfs.repository,
                # A token is for one API and goes to no other.
                token if openzfs.api == api else None,
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
        server = self.environment.get("GITHUB_SERVER_URL", "https://github.com")
        repository = self.environment.get("GITHUB_REPOSITORY")
        return f"{server}/{repository}" if repository else ""

    @cached_property
    def code(self) -> str:
        """Tells apart our own code, as far as it has a say in how a build ends."""
        return attempts.code_digest(PROJECT)

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
        whole: bool = False,
    ) -> Observed:
        """Looks, without a pull, at what no list tells: the digests behind the tags of kernels.

        Args:
            whole: look at all of them, and not at this run's share.
        """
        wanted = digests_to_be(entries, observed, desktop)
        names = tuple(wanted) if whole else drift.share(wanted, int(time.time() // 60))
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            found = pool.map(
                lambda name: self.registry.head(self.versions.image.with_tag(name)), names
            )
            return observed.with_digests(dict(zip(names, found, strict=True)))

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
        tried: Collection[Key] = (),
    ) -> tuple[list[Target], list[ReleaseError]]:
        """What is to be done, with the ZFS version of each kernel for which that matters.

        Args:
            force: try again what failed too often with the same inputs.
            tried: what was tried again already, in this run, and counts whatever came before.

        Returns:
            The targets, and why ZFS versions could not be looked up.
        """
        policy = self.versions.openzfs.policy
        draft = plan(entries, observed, platforms=self.platforms, chosen=chosen, desktop=desktop)
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
        draw = partial(
            plan,
            entries,
            observed,
            platforms=self.platforms,
            chosen=chosen,
            policy=policy,
            choices=choices,
            desktop=desktop,
        )
        held: dict[str, Mapping[Platform, str]] = {}
        if self.state.attempts and not force:
            state = self.state.succeeded(tried)
            held = attempts.held(draw(), state, self.code, self.registry.head)
        return draw(held=held), list(failures.values())

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

    @cached_property
    def restorer(self) -> Restorer:
        """Brings back what was published."""
        assert self.github
        return Restorer(self.registry, self.versions.image, self.github, self.cache)

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
        return latest.Wanted.of(entries, observed, self.versions.latest)

    def latest_is_behind(self, entries: Iterable[Entry], observed: Observed) -> bool:
        """Whether ``latest`` is not what is published; two HEADs."""
        wanted = self.wanted_latest(entries, observed)
        return latest.is_behind(self.registry, self.versions.image, wanted)

    def record(self, news: News) -> None:
        """Writes down what a poll found."""
        self.versions = versions.revise_all(self.versions, news.kernels.changes.revised)
        self.versions = versions.append(self.versions, news.kernels.new)
        if news.desktops.new:
            self.desktop_map = desktop.append(self.desktop_map, news.desktops.new)

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
        state = state.succeeded(key for key in state.attempts if key[0] not in known)
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
        self.require(*_VARIABLES)

    def require(self, *variables: str) -> None:
        """Raises:
        PreflightError: one of these variables is not set.
        """
        for name in variables:
            if not self.environment.get(name):
                raise PreflightError(f"{name} is not set", hint=_VARIABLES[name])

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
            preflight(architecture(native_platform()))
        if builds:
            Engine(self.environment).preflight()
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


class _Places:
    """How many kernels a run may work on (``--limit``).

    A kernel that turns out to be none to work on, because it is skipped or waits, gives its place
    to the next one: otherwise a few of those would keep all others from ever being reached.
    """

    def __init__(self, limit: int | None) -> None:
        self._left = sys.maxsize if limit is None else limit
        self._undecided = 0
        self._changed = threading.Condition()

    def take(self) -> bool:
        """Waits for a place while one may still come back; False where there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or not self._undecided)
            if not self._left:
                return False
            self._left -= 1
            self._undecided += 1
            return True

    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """Keeps a place that was taken, or gives it back."""
        used = any(one.status not in (Status.SKIPPED, Status.WAITING) for one in outcomes)
        with self._changed:
            self._undecided -= 1
            self._left += not used
            self._changed.notify_all()


@dataclass(frozen=True)
class Work:
    """Takes one kernel through the steps. Side by side with others of its kind."""

    world: World
    observed: Observed
    until: Step
    report: Report
    lock: threading.Lock
    places: _Places
    delivered: Mapping[Key, Delivery] | None = None
    """What others built and tested, where nothing is built here."""
    hand_over: Callable[[Built], object] | None = None
    """Takes what passed, in place of this machine's engine."""
    sign: Callable[[Subject], object] | None = None
    """Takes what was built now and is published, for others to sign."""
    tried: dict[Key, Inputs] = field(default_factory=dict)
    """What was built or tested last of each kernel, in this order."""

    def run(self, target: Target) -> list[Outcome]:
        """Works on one target, if there is a place for it and enough may be asked."""
        world = self.world
        if self.until >= Step.PUBLISH and not world.has_requests_for(target, self.observed):
            target = replace(target, left_out=budget.USED_UP, waits=True)
            return settled(target, world.versions.image)
        if not self.places.take():
            target = replace(target, left_out="beyond --limit; the next run goes on")
            return settled(target, self.world.versions.image)
        outcomes: list[Outcome] = []
        try:
            outcomes = self._work(target)
        finally:
            self.places.settle(outcomes)
        return outcomes

    def _work(self, target: Target) -> list[Outcome]:
        """The outcomes of one target; its expected failures are its own."""
        started = time.monotonic()
        slug = target.entry.slug
        status, reason = Status.FAILED, ""
        try:
            kept = self._restore(target)
            outcomes = self._bring_back(target, kept, started) or (
                self._run(target, kept, started)
                if self.delivered is None
                else self._take(target, kept, started)
            )
        except NotYetError as error:
            status, reason = Status.WAITING, error.what
        except LackingError as error:
            status, reason = Status.SKIPPED, error.what
            self._count(slug, reason)
            if self.until >= Step.PUBLISH or self.hand_over:
                skipped = replace(target.entry, skip=error.what)
                with self.lock:
                    world = self.world
                    world.versions = versions.revise(world.versions, target.entry, skipped)
        except UnbuildableError as error:
            status, reason = Status.SKIPPED, error.what
            # Another machine may be able to test it.
            if not target.entry.smoke:
                self._count(slug, reason)
        except ReleaseError as error:
            self.report.fail(error)
            reason = error.summary
            if isinstance(error, BuildError | SmokeError):
                self._count(slug, reason)
        except OSError as error:
            failure = from_os_error(error, str(target.entry.image))
            self.report.fail(failure)
            reason = failure.summary
        else:
            done = {
                (slug, parse_platform(one.platform))
                for one in outcomes
                if one.status in (Status.PUBLISHED, Status.UNCHANGED)
            }
            with self.lock:
                self.world.state = self.world.state.succeeded(done)
            return outcomes
        finally:
            self.report.step(slug, "")
        return [
            Outcome(
                str(target.entry.image),
                platform,
                status,
                reason,
                seconds=round(time.monotonic() - started, 1),
            )
            for platform in target.platforms or (native_platform(),)
        ]

    def _count(self, slug: str, reason: str) -> None:
        """A failure that the same inputs will bring about again."""
        tried = [key for key in self.tried if key[0] == slug]
        if tried:
            key = tried[-1]
            with self.lock:
                self.world.state = self.world.state.failed(key, self.tried[key], redact(reason))

    def _try(
        self, entry: Entry, kernel: Kernel, platform: Platform, builder: BuilderImage | None
    ) -> None:
        """Notes down what is about to be built and tested."""
        image = replace(builder.image, digest=builder.digest) if builder else ""
        self.tried.pop((entry.slug, platform), None)
        self.tried[entry.slug, platform] = Inputs(
            kernel.platforms[platform],
            entry.zfs or "",
            self.world.code,
            str(image),
            attempts.settings(entry),
        )

    def _take(
        self, target: Target, kept: Mapping[Platform, Built], started: float
    ) -> list[Outcome]:
        """Publishes what others built and tested of a kernel, beside what was brought back of it,
        and tells what they did not.
        """
        world, image = self.world, self.world.versions.image
        assert self.delivered is not None
        entry = find_digests(world.registry, replace(target.entry, desktop=target.desktop))
        platforms = sorted(set(entry.platforms) & world.platforms)
        found = {
            p: one
            for p in platforms
            if p not in kept and (one := self.delivered.get((entry.slug, p)))
        }
        for one in found.values():
            if one.inputs:
                with self.lock:
                    world.state = world.state.failed(one.key, one.inputs, one.reason)
        others = [
            Outcome(str(entry.image), p, one.status, one.reason, seconds=one.seconds)
            for p, one in found.items()
            if not one.passed
        ]
        others += [
            Outcome(
                str(entry.image), p, Status.WAITING, "not built in this run; a later one goes on"
            )
            for p in platforms
            if p not in found and p not in kept
        ]
        others += _elsewhere(entry, set(entry.platforms) - world.platforms)
        passed = {p: one for p, one in found.items() if one.passed}
        if found.keys() == set(platforms) and all(one.lacking for one in found.values()):
            raise LackingError("; ".join(one.reason for one in found.values()), on=others[0].kernel)
        whole = target.receipt and kept.keys() >= target.receipt.platforms.keys()
        if not passed and not whole:
            others += [
                Outcome(str(entry.image), p, Status.WAITING, "is brought back with the others")
                for p in platforms
                if p in kept
            ]
            with self.lock:
                known = replace(entry, desktop=target.entry.desktop)
                world.versions = versions.revise(world.versions, target.entry, known)
            return others
        kernel = read_kernel(world.registry, entry)
        built = [*kept.values(), *(one.built() for one in passed.values())]
        for each in built:
            entry = _accept(entry, each, target.zfs)
            tarball = tarball_of(each.labels)
            if tarball and each.platform in passed:
                world.openzfs.tarballs.record(each.zfs_version, tarball, str(entry.image))
        release = self._publish(target, entry, kernel, built, kept)
        reports = {p: (one.reason, one.seconds) for p, one in passed.items()}
        done = [
            Outcome(
                str(entry.image),
                each.platform,
                Status.PUBLISHED,
                "; ".join(filter(None, (_repaired(target, [each]), reason))),
                image=str(image.with_tag(entry.slug)),
                digest=each.digest,
                github_release=release,
                seconds=round(seconds + time.monotonic() - started, 1),
            )
            for each in built
            if each.platform in platforms
            for reason, seconds in [reports.get(each.platform, ("", 0.0))]
        ]
        return done + others

    def _restore(self, target: Target) -> Mapping[Platform, Built]:
        """What was published and tested before, byte for byte, of every platform that still has it
        somewhere.
        """
        world = self.world
        if not target.receipt or not target.release or self.until < Step.PUBLISH:
            return {}
        self.report.step(target.entry.slug, "look for what was published")
        found = world.restorer.restore(target.entry.slug, target.receipt, target.release)
        return {one.platform: one for one in found}

    def _bring_back(
        self, target: Target, kept: Mapping[Platform, Built], started: float
    ) -> list[Outcome]:
        """Publishes again what was published, where nothing has to be built for it; no outcomes
        where something has.
        """
        if not target.platforms or not kept.keys() >= set(target.platforms):
            return []
        assert target.receipt
        entry = replace(target.entry, zfs=target.zfs, desktop=target.desktop)
        entry = replace(entry, builder=entry.builder or target.receipt.entry.builder)
        release = self._publish(target, entry, known_kernel(entry), list(kept.values()), kept)
        built = [kept[platform] for platform in target.platforms]
        reason = _repaired(target, built)
        return self._done(entry, built, Status.PUBLISHED, reason, release, started)

    def _run(self, target: Target, kept: Mapping[Platform, Built], started: float) -> list[Outcome]:
        world, image = self.world, self.world.versions.image
        self.report.step(target.entry.slug, "resolve")
        entry = find_digests(world.registry, replace(target.entry, desktop=target.desktop))
        if entry.zfs:
            entry = replace(entry, zfs=target.zfs)
        kernel = read_kernel(world.registry, entry)
        platforms = tuple(sorted(set(entry.platforms) & world.platforms))
        if not platforms:
            raise UnbuildableError(
                f"upstream has it for {', '.join(sorted(entry.platforms))} only, which this "
                "machine cannot boot",
                on=str(entry.image),
            )
        there: dict[Platform, Document] = {}
        if entry.slug in self.observed.image_tags:
            there = publish.published(world.registry, image.with_tag(entry.slug), kernel)
            # Where it is known what was published, nothing else is taken for it.
            known = target.receipt.platforms if target.receipt else {}
            there = {platform: one for platform, one in there.items() if platform not in known}
            entry, there = self._adopt(entry, image, there)
        entry = replace(entry, zfs=choose_zfs(world.openzfs, entry))
        built = []
        for platform in platforms:
            if entry.smoke == SMOKE_HOST and self.until >= Step.SMOKE:
                self._check_machine(entry, kernel, platform)
            self._try(entry, kernel, platform, None)
            if platform in there:
                built.append(self._fetch(entry, kernel, platform, there[platform]))
                continue
            builder = self._builder(entry, kernel, platform)
            self._try(entry, kernel, platform, builder)
            built.append(self._build(entry, kernel, platform, builder))
            entry = replace(entry, builder=entry.builder or builder.image)
        tried = [self._smoke(entry, one) for one in built if self.until >= Step.SMOKE]
        if self.until >= Step.PUBLISH:
            others = [one for platform, one in kept.items() if platform not in platforms]
            status = Status.PUBLISHED
            release = self._publish(
                target, entry, kernel, [*built, *others], [one.platform for one in others]
            )
            reason = "; ".join(filter(None, (_repaired(target, built), *tried)))
        elif self.hand_over:
            status, release, reason = Status.UNCHANGED, "", "; ".join(tried)
            for one in built:
                self.hand_over(one)
        else:
            status, release = Status.UNCHANGED, ""
            reason = "; ".join((*tried, self._keep(entry, built)))
        return self._done(entry, built, status, reason, release, started)

    def _done(
        self,
        entry: Entry,
        built: Iterable[Built],
        status: Status,
        reason: str,
        release: str,
        started: float,
    ) -> list[Outcome]:
        world = self.world
        done = [
            Outcome(
                str(entry.image),
                one.platform,
                status,
                reason,
                image=str(world.versions.image.with_tag(entry.slug)),
                digest=one.digest,
                github_release=release,
                seconds=round(time.monotonic() - started, 1),
            )
            for one in built
        ]
        return done + _elsewhere(entry, set(entry.platforms) - world.platforms)

    def _check_machine(self, entry: Entry, kernel: Kernel, platform: Platform) -> None:
        """Makes sure that this machine can test what is to be built."""
        from release.engine import Engine
        from release.smoke_host import check_machine

        world = self.world
        files = world.builder.usable_files(kernel, platform, smoke=entry.smoke)
        check_machine(Engine(world.environment), files.banner or "", str(entry.image))

    def _adopt(
        self, entry: Entry, image: Reference, there: dict[Platform, Document]
    ) -> tuple[Entry, dict[Platform, Document]]:
        """What an earlier run pushed and did not live to record is taken over as it is."""
        for document in there.values():
            labels = self.world.registry.labels(image, document.digest)
            zfs = labels["install-zfs.zfs-version"]
            if entry.zfs not in (None, zfs):
                return entry, {}
            builder = Reference.parse(labels["install-zfs.builder-image"])
            entry = replace(entry, zfs=zfs, builder=entry.builder or builder)
        return entry, there

    def _builder(self, entry: Entry, kernel: Kernel, platform: Platform) -> BuilderImage:
        """The image with the kernel's compiler; says which it is, and what named it."""
        world = self.world
        self.report.step(entry.slug, f"find the compiler's image for {platform}")
        choice = choose_builder(
            world.registry, world.builder, entry, kernel, platform, world.versions.builders
        )
        self.report.say(f"{entry.slug}: builder {choice}")
        return choice.builder

    def _fetch(self, entry: Entry, kernel: Kernel, platform: Platform, there: Document) -> Built:
        """The module image that is pushed already, as files."""
        world = self.world
        name = f"{entry.slug}-{architecture(platform)}"
        self.report.step(entry.slug, f"fetch what is pushed for {platform}")
        layout = publish.fetch(
            world.registry, world.versions.image, there, world.cache / "published" / name
        )
        files = world.builder.usable_files(kernel, platform, smoke=entry.smoke)
        return Built(platform, layout, layout.labels(), files.kernel)

    def _build(
        self, entry: Entry, kernel: Kernel, platform: Platform, builder: BuilderImage
    ) -> Built:
        """The module image as files, newly built."""
        world = self.world
        assert entry.zfs
        self.report.step(entry.slug, f"build ZFS {entry.zfs} for {platform}")
        openzfs = world.openzfs.tarball(entry.zfs)
        return world.builder.build(
            Recipe(
                slug=entry.slug,
                image=world.versions.image,
                kernel=kernel,
                platform=platform,
                builder=builder,
                zfs=entry.zfs,
                openzfs=openzfs,
                openzfs_url=world.openzfs.package_url(entry.zfs),
                source=world.source,
                revision=world.revision,
                smoke=entry.smoke,
                headers=self._headers(entry, platform),
            )
        )

    def _headers(self, entry: Entry, platform: Platform) -> Reference | None:
        """The image that ``headers_from`` names, by the digest of its manifest."""
        image = entry.headers_from
        if not image:
            return None
        found = find_digests(self.world.registry, Entry(image, image.digest))
        if platform not in found.platforms:
            raise UnbuildableError(
                f"the image in headers_from, {image}, is not for {platform}", on=str(entry.image)
            )
        return image.at(found.platforms[platform])

    def _smoke(self, entry: Entry, built: Built) -> str:
        """Boots the kernel with exactly these bytes, unless these very bytes passed before; what it
        took.
        """
        cache = self.world.cache
        if figures := _passed(cache, built.digest):
            return figures
        log = cache / "logs" / f"{entry.slug}-{architecture(built.platform)}.smoke.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if entry.smoke == SMOKE_HOST:
            result = self._smoke_host(entry, built, log)
        else:
            assert built.kernel
            self.report.step(entry.slug, f"boot and load on {built.platform}")
            result = smoke(
                kernel=built.kernel,
                layers=built.layout.layers,
                expected=built,
                architecture=architecture(built.platform),
                log=log,
                emulator=self.world.emulator,
            )
        _write_passed(cache, built.digest, built.kernel_banner, result)
        return str(result)

    def _smoke_host(self, entry: Entry, built: Built, log: Path) -> SmokeResult:
        """Loads exactly these bytes on this machine, which runs their kernel."""
        from release.engine import Engine
        from release.smoke_host import smoke_host

        self.report.step(entry.slug, f"load on this machine, {built.platform}")
        engine = Engine(self.world.environment)
        engine.load(save_tar(self.world, entry, built))
        image, manifest = f"install-zfs:{entry.slug}", built.layout.manifest
        if not engine.holds(image, manifest.digest, manifest.content["config"]["digest"]):
            raise SmokeError("is not the image that was just loaded", on=image, hint="run again")
        return smoke_host(
            engine=engine, image=image, layers=built.layout.layers, expected=built, log=log
        )

    def _keep(self, entry: Entry, built: Sequence[Built]) -> str:
        """Leaves the sideload tar, and the image in the engine at hand."""
        from release.engine import Engine

        tars = [save_tar(self.world, entry, one) for one in built]
        Engine(self.world.environment).load(tars[0])
        tested = " and smoke-tested" if self.until >= Step.SMOKE else ""
        return f"built{tested}, not published"

    def _publish(
        self,
        target: Target,
        entry: Entry,
        kernel: Kernel,
        built: Sequence[Built],
        kept: Collection[Platform],
    ) -> str:
        """Publishes a kernel; the git tag of its release.

        Args:
            kept: the platforms of which nothing was built now.
        """
        world, image = self.world, self.world.versions.image
        assert world.github
        assert entry.zfs
        self.report.step(entry.slug, "push")
        receipt = target.receipt
        pushed = publish.push(world.registry, image, entry.slug, kernel, built, receipt)
        self.report.step(entry.slug, "release")
        directory = world.cache / "release" / entry.slug
        directory.mkdir(parents=True, exist_ok=True)
        assets: list[Path] = []
        standing: dict[str, Digest] = {}
        for one in built:
            if publish.stands(target.release, receipt, entry.slug, one):
                assert receipt
                names = publish.asset_names(entry.slug, one.platform)
                standing |= {name: receipt.files[name].digest for name in names}
                continue
            tar = save_tar(world, entry, one)
            asset = directory / asset_name(entry.slug, one.platform)
            publish.compress(tar, asset)
            assets += [asset, *publish.attest_asset(image, one, asset)]
        release = publish.publish_release(
            world.github, entry, image, built, pushed, assets, directory, receipt
        )
        publish.tag(world.registry, image, entry.image_tags[1:], pushed.image)
        # Who types desktop-X may be on any platform that this run is for.
        wanted = set(entry.platforms) & world.platforms
        if wanted <= set(world.registry.platforms(image, pushed.image)):
            publish.tag(world.registry, image, map(desktop_tag, entry.desktop), pushed.image)
        with self.lock:
            world.versions = versions.revise(world.versions, target.entry, entry)
            if self.sign:
                files = standing | {path.name: file_digest(path) for path in assets}
                new = [one.platform for one in built if one.platform not in kept]
                for subject in publish.subjects(image, entry.slug, new, pushed, files):
                    self.sign(subject)
        return release.git_tag


def _repaired(target: Target, built: Iterable[Built]) -> str:
    """What was repaired of a kernel, and whether that took other bytes than were published."""
    said = [drift.as_sentence(target.repairs)] if target.repairs else []
    for one in built:
        part = target.receipt.platforms.get(one.platform) if target.receipt else None
        if part and part.manifest != one.digest:
            said.append(
                "what was published is nowhere any more, and a new build gave another digest: "
                f"{one.digest} in place of {part.manifest}"
            )
    return "; ".join(said)


def _accept(entry: Entry, built: Built, zfs: str | None) -> Entry:
    """``entry`` with what a delivered image says of itself, after a look at what it is for."""
    labels = built.labels
    said = labels.get("install-zfs.kernel-digest"), labels.get("install-zfs.zfs-version")
    if said != (entry.platforms[built.platform], zfs or said[1]) or not said[1]:
        raise PublishError(
            "what was delivered is for another kernel, or of another ZFS",
            on=f"{entry.image} for {built.platform}",
            detail=f"expected {entry.platforms[built.platform]}, ZFS {zfs}\n"
            f"found    {said[0]}, ZFS {said[1]}",
            hint="run again",
        )
    builder = Reference.parse(labels.get("install-zfs.builder-image", ""))
    return replace(entry, zfs=said[1], builder=entry.builder or builder)


def move_latest(world: World, observed: Observed, report: Report) -> bool:
    """Brings ``latest`` to what is published: last of all, and only where something changed.

    Returns:
        Whether the tag moved.

    Raises:
        ReleaseError: it stays as it was.
    """
    image = world.versions.image
    wanted = world.wanted_latest(world.versions.kernels, observed)
    if not latest.is_behind(world.registry, image, wanted):
        return False
    assert world.github
    report.step(latest.TAG, "put together")
    before = latest.read_before(world.registry, image)
    made = latest.build(wanted, latest.Reader(world.registry, image, world.github, before))
    for error in made.left_out:
        report.warn(f"{latest.TAG} lacks what is published: {error.summary}")
    for platform in sorted(set(made.to_boot) & {native_platform()}):
        _smoke_latest(world, made, platform, report)
    report.step(latest.TAG, "push")
    moved = latest.push(world.registry, image, wanted, made)
    kernels = len({part.slug for parts in made.held.values() for part in parts})
    all_kernels = len({one.entry.slug for one in wanted.members})
    report.say(
        f"{latest.TAG}: the modules of {kernels} kernels, {made.bytes / 1e6:.1f} MB, "
        f"and a catalogue of {all_kernels}"
    )
    return moved


def _smoke_latest(world: World, made: latest.Latest, platform: Platform, report: Report) -> None:
    """Boots the newest kernel that ``latest`` did not have before with its very layers, unless
    they passed before.
    """
    digest = made.images[platform].manifest.digest
    if _passed(world.cache, digest):
        return
    member, line = made.to_boot[platform]
    entry = member.entry
    report.step(latest.TAG, f"boot {entry.slug} with it on {platform}")
    directory = world.cache / latest.TAG
    directory.mkdir(parents=True, exist_ok=True)
    catalogue = bytes_digest(made.catalogue)

    def fetch(digest: Digest) -> Path:
        blob = directory / digest.replace(":", "-")
        if digest == catalogue:
            blob.write_bytes(made.catalogue)
        elif not blob.is_file():
            world.registry.download(world.versions.image, digest, blob)
        return blob

    layers = latest.layers_to_boot(made, platform, fetch, _BOOT_BYTES)
    files = world.builder.kernel_files(entry.image, entry.platforms[platform], platform)
    if not files.kernel:
        raise LackingError("the kernel image has no /kernel", on=str(entry.image))
    log = world.cache / "logs" / f"{latest.TAG}-{architecture(platform)}.smoke.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    result = smoke(
        kernel=files.kernel,
        layers=layers,
        expected=line,
        architecture=architecture(platform),
        log=log,
        emulator=world.emulator,
    )
    _write_passed(world.cache, digest, line.kernel_banner, result)


def _record_of_test(cache: Path, digest: Digest) -> Path:
    return cache / "smoke" / f"{digest.replace(':', '-')}.json"


def _passed(cache: Path, digest: Digest) -> str:
    """The figures of the smoke test that the image of a manifest passed; empty where it did not."""
    record = _record_of_test(cache, digest)
    # What passed an easier test, before there were figures of a pool, has not passed this one.
    return str(json.loads(record.read_text()).get("figures", "")) if record.is_file() else ""


def _write_passed(cache: Path, digest: Digest, banner: str, result: SmokeResult) -> None:
    record = _record_of_test(cache, digest)
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_suffix(".part")
    part.write_text(
        json.dumps(
            {
                "digest": digest,
                "kernel_banner": banner,
                "modules": result.modules,
                "accelerator": result.accelerator,
                "seconds": round(result.seconds, 1),
                "pool_seconds": dict(result.pool_seconds),
                "peak_memory_mib": round(result.peak_memory_mib),
                "figures": str(result),
            }
        )
    )
    part.replace(record)


def save_tar(world: World, entry: Entry, built: Built) -> Path:
    """Writes the sideload tar of a module image.

    It has the published name beside the local one: the image's own messages name that.
    """
    tar = sideload_tar(world.cache, entry.slug, built.platform)
    local = Reference("docker.io", "library/install-zfs").with_tag(entry.slug)
    built.layout.save(tar, (local, world.versions.image.with_tag(entry.slug)))
    return tar


def sideload_tar(cache: Path, slug: str, platform: Platform) -> Path:
    """Where the sideload tar of a module image is: ``cache/zfs-SLUG.tar``, for another platform
    than this machine's with the architecture behind it.
    """
    suffix = "" if platform == native_platform() else f"-{architecture(platform)}"
    return cache / f"zfs-{slug}{suffix}.tar"


def run(
    world: World,
    targets: Sequence[Target],
    observed: Observed,
    until: Step,
    *,
    jobs: int,
    report: Report,
    limit: int | None = None,
    delivered: Mapping[Key, Delivery] | None = None,
    hand_over: Callable[[Built], object] | None = None,
    sign: Callable[[Subject], object] | None = None,
) -> list[Outcome]:
    """Works on what is to be done, ``jobs`` kernels side by side, newest first.

    Args:
        limit: how many kernels to work on at most.
        delivered: publish what others built and tested, and build nothing.
        hand_over: takes what passed, in place of this machine's engine.
        sign: takes what was built now and is published, for others to sign.
    """
    world.openzfs.keep()
    work = Work(
        world,
        observed,
        until,
        report,
        threading.Lock(),
        _Places(limit),
        delivered,
        hand_over,
        sign,
    )
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(max(1, jobs)) as pool, ExitStack() as interrupted:
        interrupted.callback(pool.shutdown, wait=False, cancel_futures=True)
        interrupted.callback(child.interrupt)
        futures = [
            (target, pool.submit(work.run, target) if target.to_do else None) for target in targets
        ]
        for target, future in futures:
            outcomes += future.result() if future else settled(target, world.versions.image)
        interrupted.pop_all()
    return outcomes


def settled(target: Target, image: Reference) -> list[Outcome]:
    """The outcomes of a target that this run does not work on."""
    entry = target.entry
    slug_image = str(image.with_tag(entry.slug))
    release = target.release.git_tag if target.release else ""
    if target.left_out:
        platforms = target.platforms or target.elsewhere or (native_platform(),)
        return [
            Outcome(str(entry.image), platform, target.status, target.left_out)
            for platform in platforms
        ]
    unchanged = [
        Outcome(
            str(entry.image),
            platform,
            Status.UNCHANGED,
            image=slug_image,
            github_release=release,
        )
        for platform in target.platforms
    ]
    return unchanged + _elsewhere(entry, target.elsewhere)


def _elsewhere(entry: Entry, platforms: Iterable[Platform]) -> list[Outcome]:
    return [
        Outcome(str(entry.image), platform, Status.SKIPPED, not_here(platform))
        for platform in sorted(platforms)
    ]

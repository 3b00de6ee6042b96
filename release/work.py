"""One kernel on its way through the steps, side by side with others of its kind."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from release import attempts, budget, drift, publish, versions
from release.attest import Subject, tarball_of
from release.build import Built, Recipe
from release.builders import choose_builder
from release.errors import (
    BuildError,
    LackingError,
    NoBuilderError,
    NotFoundError,
    NotYetError,
    PublishError,
    ReleaseError,
    SmokeError,
    UnbuildableError,
    UpstreamError,
    from_os_error,
)
from release.github import Release
from release.handover import Delivery
from release.http import file_digest, redact
from release.keep import passed_before, save_tar, write_passed
from release.outcomes import elsewhere, settled, untouched
from release.plan import (
    Observed,
    Standing,
    Target,
    asset_name,
    desktop_tag,
)
from release.receipt import Receipt
from release.reference import Digest, Platform, Reference, architecture, parse_platform
from release.registry import Document
from release.report import Outcome, Report, Status
from release.resolve import (
    BuilderImage,
    Kernel,
    choose_zfs,
    find_digests,
    known_kernel,
    read_kernel,
)
from release.smoke import SmokeResult, smoke
from release.state import Inputs, Key
from release.versions import SMOKE_HOST, Entry
from release.world import Step, World, native_platform


class Places:
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
    places: Places
    delivered: Mapping[Key, Delivery] | None = None
    """What others built and tested, where nothing is built here."""
    hand_over: Callable[[Built], object] | None = None
    """Takes what passed, in place of this machine's engine."""
    sign: Callable[[Subject], object] | None = None
    """Takes what was built now and is published, for others to sign."""
    others: dict[str, Sequence[Built]] = field(default_factory=dict)
    """By slug, what was brought back of platforms that have an older ZFS still."""
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
            return settled(target, world.versions.image)
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
        try:
            gone = self._mend_standing(target)
            if gone:
                target = replace(target, standing_repairs=())
            kept = self._restore(target)
            if gone and not target.to_do:
                outcomes = [
                    *untouched(target, target.platforms),
                    *self._elsewhere(target, target.entry),
                ]
            else:
                outcomes = self._bring_back(target, kept, started) or (
                    self._run(target, kept, started)
                    if self.delivered is None
                    else self._take(target, kept, started)
                )
            outcomes = [
                replace(one, status=Status.FAILED, reason=gone[parse_platform(one.platform)])
                if one.platform in gone and one.status is not Status.PUBLISHED
                else one
                for one in outcomes
            ]
        except (ReleaseError, OSError) as error:
            tried = [key for key in self.tried if key[0] == slug]
            status, reason = self._failed(target.entry, error, tried[-1] if tried else None)
            lacks = isinstance(error, LackingError)
            if lacks and (self.until >= Step.PUBLISH or self.hand_over):
                skipped = replace(target.entry, skip=reason)
                self._revise(target.entry, skipped)
        else:
            done = [
                (slug, parse_platform(one.platform))
                for one in outcomes
                if one.status in (Status.PUBLISHED, Status.UNCHANGED)
            ]
            with self.lock:
                for key in done:
                    zfs = self._zfs(target, key)
                    self.world.state = self.world.state.succeeded(key, zfs)
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

    def _zfs(self, target: Target, key: Key) -> str | None:
        """The version that a platform was built with, or what others built it with."""
        return self.tried[key].zfs if key in self.tried else target.zfs

    def _failed(
        self, entry: Entry, error: ReleaseError | OSError, key: Key | None
    ) -> tuple[Status, str]:
        """Tells of what went wrong with a kernel, or with one platform of it, and counts what the
        same inputs will bring about again.

        Args:
            key: what was tried.

        Returns:
            How it ended, and why.
        """
        if isinstance(error, OSError):
            error = from_os_error(error, str(entry.image))
        match error:
            case NotYetError():
                return Status.WAITING, error.what
            case UnbuildableError():
                status, reason = Status.SKIPPED, error.what
                # Another machine may be able to test it.
                counts = isinstance(error, LackingError) or not entry.smoke
            case _:
                self.report.fail(error)
                status, reason = Status.FAILED, error.summary
                counts = isinstance(error, BuildError | SmokeError)
        if counts and key in self.tried:
            with self.lock:
                self.world.state = self.world.state.failed(key, self.tried[key], redact(reason))
        return status, reason

    def _revise(self, was: Entry, now: Entry) -> None:
        """Writes down what became known of a kernel, beside the others that do so."""
        with self.lock:
            self.world.versions = versions.revise(self.world.versions, was, now)

    def _try(
        self,
        entry: Entry,
        kernel: Kernel,
        platform: Platform,
        builder: BuilderImage | None = None,
        looked_at: str = "",
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
            looked_at,
        )

    def _take(
        self, target: Target, kept: Mapping[Platform, Built], started: float
    ) -> list[Outcome]:
        """Publishes what others built and tested of a kernel, beside what was brought back of it,
        and tells what they did not.
        """
        world = self.world
        assert self.delivered is not None
        entry = find_digests(world.registry, replace(target.entry, desktop=target.desktop))
        wanted = entry.wanted(world.versions.platforms)
        platforms = sorted(wanted & world.platforms)
        found = {
            p: one
            for p in platforms
            if p not in kept and (one := self.delivered.get((entry.slug, p)))
        }
        lacking = {p: one for p, one in found.items() if one.lacking}
        lacks_all = bool(lacking) and lacking.keys() >= wanted
        if not lacks_all:
            found |= {p: replace(one, reason=_in_part(one.reason, p)) for p, one in lacking.items()}
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
                str(entry.image),
                p,
                Status.WAITING,
                target.held.get(p, "not built in this run; a later one goes on"),
            )
            for p in platforms
            if p not in found and p not in kept
        ]
        others += elsewhere(entry, wanted - world.platforms)
        passed = {p: one for p, one in found.items() if one.passed}
        if lacks_all:
            why = "; ".join(one.reason for one in lacking.values())
            raise LackingError(why, on=str(entry.image))
        if not passed and not _is_to_bring_back(target, kept):
            others += untouched(target, {p: kept[p] for p in platforms if p in kept})
            self._revise(target.entry, replace(entry, desktop=target.entry.desktop))
            return others
        kernel = read_kernel(world.registry, entry)
        built = [*kept.values(), *(one.built() for one in passed.values())]
        for each in built:
            entry = _accept(entry, each, target.zfs)
            tarball = tarball_of(each.labels)
            if tarball and each.platform in passed:
                world.openzfs.tarballs.record(each.zfs_version, tarball, str(entry.image))
        release = self._publish(target, entry, kernel, built, kept)
        reasons = {p: one.reason for p, one in passed.items()}
        done = self._done(target, entry, built, Status.PUBLISHED, reasons, release, started)
        took = {p: one.seconds for p, one in passed.items()}
        return [
            replace(one, seconds=round(one.seconds + took.get(parse_platform(one.platform), 0), 1))
            for one in done
        ] + others

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

    def _mend_standing(self, target: Target) -> dict[Platform, str]:
        """Brings back what platforms that have no newer ZFS have, and what ``desktop-X`` stays
        with.

        Returns:
            The platforms of which that cannot be had, and why.
        """
        world, slug = self.world, target.entry.slug
        if not target.older or not target.all_repairs or self.until < Step.PUBLISH:
            return {}
        self.report.step(slug, "look for what other platforms have")
        restorer = replace(world.restorer, cache=world.cache / "older")
        found: list[Built] = []
        gone: dict[Platform, str] = {}
        for platform, one in target.older.items():
            if restored := list(restorer.restore(slug, one.receipt, one.release)):
                found += restored
            else:
                gone[platform] = _lost(one)
        self.others[slug] = found
        if not target.standing or not target.standing_repairs:
            return gone
        try:
            return gone | self._restand(target, target.standing)
        except (PublishError, NotFoundError) as error:
            # What is newer does not wait for it.
            self.report.fail(error)
            return dict.fromkeys(target.older, error.summary)

    def _restand(self, target: Target, standing: Standing) -> dict[Platform, str]:
        """Publishes again what ``desktop-X`` stays with, and points it there."""
        world, receipt = self.world, standing.receipt
        restorer = replace(world.restorer, cache=world.cache / "standing")
        found = list(restorer.restore(target.entry.slug, receipt, standing.release))
        if gone := receipt.platforms.keys() - {one.platform for one in found}:
            return dict.fromkeys(gone, _lost(standing))
        entry = replace(receipt.entry, platforms=target.entry.platforms)
        before = replace(
            target, entry=entry, receipt=receipt, release=standing.release, unsigned=False
        )
        _, pushed = self._put_out(before, entry, known_kernel(entry), found, (), tags=False)
        due = [desktop_tag(one) for one in target.desktop if one in receipt.entry.desktop]
        publish.tag(world.registry, world.versions.image, due, pushed.image)
        return {}

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
        done = self._done(target, entry, built, Status.PUBLISHED, {}, release, started)
        return done + self._elsewhere(target, entry)

    def _run(self, target: Target, kept: Mapping[Platform, Built], started: float) -> list[Outcome]:
        world, image = self.world, self.world.versions.image
        self.report.step(target.entry.slug, "resolve")
        entry = find_digests(world.registry, replace(target.entry, desktop=target.desktop))
        if entry.zfs:
            entry = replace(entry, zfs=target.zfs)
        kernel = read_kernel(world.registry, entry)
        platforms = target.platforms or tuple(
            sorted(entry.wanted(world.versions.platforms) & world.platforms)
        )
        if not platforms:
            raise UnbuildableError(
                f"upstream has it for {', '.join(sorted(entry.platforms))} only, which is not "
                "what this run is for; see --platform",
                on=str(entry.image),
            )
        there: dict[Platform, Document] = {}
        # Where it is known what was published, nothing else is taken for it.
        known = target.receipt.platforms if target.receipt else {}
        # Where its own tag is lost, or somebody else's, a tag for Docker Desktop leads to it still.
        for name in (entry.slug, *map(desktop_tag, target.desktop)):
            unfound = set(platforms) - there.keys() - known.keys()
            if unfound and name in self.observed.image_tags and (at := self._believed(name)):
                there = publish.published(world.registry, at, kernel) | there
        if there:
            there = {platform: one for platform, one in there.items() if platform not in known}
            entry, there = self._adopt(entry, image, there)
        entry = replace(entry, zfs=choose_zfs(world.openzfs, entry))
        made: list[Built] = []
        said: dict[Platform, str] = {}
        errors: dict[Platform, ReleaseError | OSError] = {}
        for platform in platforms:
            if platform in kept:
                continue
            try:
                one, builder = self._make(entry, kernel, platform, there.get(platform))
                said[platform] = self._smoke(entry, one) if self.until >= Step.SMOKE else ""
            except (ReleaseError, OSError) as error:
                errors[platform] = error
                continue
            made.append(one)
            entry = replace(entry, builder=entry.builder or builder)
        lacking = {p: error for p, error in errors.items() if isinstance(error, LackingError)}
        # Whoever publishes what is handed over knows of the other platforms.
        needed = platforms if self.hand_over else entry.wanted(world.versions.platforms)
        if lacking and lacking.keys() >= set(needed):
            raise LackingError(
                "; ".join(error.what for error in lacking.values()), on=str(entry.image)
            )
        errors |= {p: LackingError(_in_part(error.what, p)) for p, error in lacking.items()}
        lost = [
            Outcome(
                str(entry.image),
                platform,
                *self._failed(entry, error, (entry.slug, platform)),
                seconds=round(time.monotonic() - started, 1),
            )
            for platform, error in errors.items()
        ]
        counted = any(world.state.of((entry.slug, platform)) for platform in errors)
        if counted and not target.entry.platforms and self.until >= Step.PUBLISH:
            # By its digests it is known again as what failed.
            found = replace(target.entry, digest=entry.digest, platforms=entry.platforms)
            self._revise(target.entry, found)
        done = self._deliver(target, entry, kernel, made, kept, said, started)
        return [*done, *lost, *self._elsewhere(target, entry)]

    def _deliver(
        self,
        target: Target,
        entry: Entry,
        kernel: Kernel,
        made: Sequence[Built],
        kept: Mapping[Platform, Built],
        said: dict[Platform, str],
        started: float,
    ) -> list[Outcome]:
        """Takes what was made to where it belongs, with what was brought back of other platforms.

        Args:
            said: what is to be told of each platform.
        """
        if not made and not _is_to_bring_back(target, kept):
            return untouched(target, kept)
        status, release = Status.UNCHANGED, ""
        built = [*made, *kept.values()]
        if self.until >= Step.PUBLISH:
            status = Status.PUBLISHED
            release = self._publish(target, entry, kernel, built, kept)
        elif self.hand_over:
            for one in made:
                self.hand_over(one)
        else:
            where = self._keep(entry, made)
            said = {p: "; ".join(filter(None, (text, where))) for p, text in said.items()}
        return self._done(target, entry, built, status, said, release, started)

    def _make(
        self, entry: Entry, kernel: Kernel, platform: Platform, there: Document | None
    ) -> tuple[Built, Reference | None]:
        """The module image of one platform, built or fetched, and what it was built with."""
        if entry.smoke == SMOKE_HOST and self.until >= Step.SMOKE:
            self._check_machine(entry, kernel, platform)
        self._try(entry, kernel, platform)
        if there:
            return self._fetch(entry, kernel, platform, there), None
        try:
            builder = self._builder(entry, kernel, platform)
        except NoBuilderError as error:
            self._try(entry, kernel, platform, looked_at=attempts.as_text(error.looked_at))
            raise
        self._try(entry, kernel, platform, builder)
        return self._build(entry, kernel, platform, builder), builder.image

    def _done(
        self,
        target: Target,
        entry: Entry,
        built: Iterable[Built],
        status: Status,
        said: Mapping[Platform, str],
        release: str,
        started: float,
    ) -> list[Outcome]:
        """The outcomes of what was made.

        Args:
            said: what is to be told of a platform.
        """
        return [
            Outcome(
                str(entry.image),
                one.platform,
                status,
                "; ".join(filter(None, (_repaired(target, [one]), said.get(one.platform)))),
                image=str(self.world.versions.image.with_tag(entry.slug)),
                digest=one.digest,
                github_release=release,
                seconds=round(time.monotonic() - started, 1),
            )
            for one in built
            if one.platform in self.world.platforms
        ]

    def _elsewhere(self, target: Target, entry: Entry) -> list[Outcome]:
        """The outcomes of the platforms that this run is not for, or not now."""
        world, wanted = self.world, entry.wanted(self.world.versions.platforms)
        held = [
            Outcome(str(entry.image), platform, Status.WAITING, why)
            for platform, why in sorted(target.held.items())
        ]
        return held + elsewhere(entry, wanted - world.platforms)

    def _check_machine(self, entry: Entry, kernel: Kernel, platform: Platform) -> None:
        """Makes sure that this machine can test what is to be built."""
        from release.engine import Engine
        from release.smoke_host import check_machine

        world = self.world
        files = world.builder.usable_files(kernel, platform, smoke=entry.smoke)
        check_machine(Engine(world.environment), files.banner or "", str(entry.image))

    @property
    def _signs(self) -> bool:
        """Whether this work is signed, here or by whom it is handed over to, or that of others on
        the same kernels is: then nothing is ours only because the registry says so.
        """
        receipts = self.observed.receipts.values()
        return bool(self.sign or self.hand_over or any(one.to_sign for one in receipts))

    def _believed(self, image_tag: str) -> Reference | None:
        """What a tag points to, where that may be ours though no release names it."""
        reference = self.world.versions.image.with_tag(image_tag)
        if not self._signs:
            return reference
        there = self.world.registry.head(reference)
        try:
            return reference.at(there) if there and self.world.is_signed(there) else None
        except UpstreamError as error:
            self.report.warn(f"{reference} is not taken over: {error.summary}")
            return None

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
        if figures := passed_before(cache, built.digest):
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
        write_passed(cache, built.digest, built.kernel_banner, result)
        return str(result)

    def _smoke_host(self, entry: Entry, built: Built, log: Path) -> SmokeResult:
        """Loads exactly these bytes on this machine, which runs their kernel."""
        from release.engine import Engine
        from release.smoke_host import smoke_host

        self.report.step(entry.slug, f"load on this machine, {built.platform}")
        engine = Engine(self.world.environment)
        engine.load(save_tar(self.world.cache, self.world.versions.image, entry, built))
        image, manifest = f"install-zfs:{entry.slug}", built.layout.manifest
        if not engine.holds(image, manifest.digest, manifest.content["config"]["digest"]):
            raise SmokeError("is not the image that was just loaded", on=image, hint="run again")
        return smoke_host(
            engine=engine, image=image, layers=built.layout.layers, expected=built, log=log
        )

    def _keep(self, entry: Entry, built: Sequence[Built]) -> str:
        """Leaves the sideload tar, and the image in the engine at hand."""
        from release.engine import Engine

        tars = {
            one.platform: save_tar(self.world.cache, self.world.versions.image, entry, one)
            for one in built
        }
        own = native_platform()
        Engine(self.world.environment).load(tars[own if own in tars else min(tars)])
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
        new = [one.platform for one in built if one.platform not in kept]
        release, pushed = self._put_out(target, entry, kernel, built, new)
        publish.tag(world.registry, image, entry.image_tags[1:], pushed.image)
        # Who types desktop-X may be on any platform that upstream has. Of one that could not be
        # brought to this version of ZFS, the tag SLUG keeps what there was.
        now = Receipt.find(release.body)
        if now and entry.wanted(world.versions.platforms) <= now.platforms.keys():
            publish.tag(world.registry, image, map(desktop_tag, entry.desktop), pushed.image)
        with self.lock:
            world.versions = versions.revise(world.versions, target.entry, entry)
        return release.git_tag

    def _put_out(
        self,
        target: Target,
        entry: Entry,
        kernel: Kernel,
        built: Sequence[Built],
        new: Sequence[Platform],
        *,
        tags: bool = True,
    ) -> tuple[Release, publish.Pushed]:
        """Pushes the image and brings the release to where it has to be, and names what is new of
        them to be signed.

        Args:
            new: the platforms of which something was built now.
            tags: whether the tags of the kernel itself are moved.
        """
        world, image = self.world, self.world.versions.image
        assert world.github
        assert entry.zfs
        again = self._signed_late(target)
        new = [one.platform for one in built if one.platform in new or one.platform in again]
        self.report.step(entry.slug, "push")
        receipt = target.receipt
        others = self.others.get(entry.slug, ()) if tags else ()
        pushed = publish.push(
            world.registry,
            image,
            entry.slug,
            kernel,
            built,
            receipt,
            others,
            tags=tags,
            named=partial(self._named, entry.slug) if self._signs else None,
        )
        self.report.step(entry.slug, "release")
        directory = world.cache / "release" / entry.slug
        directory.mkdir(parents=True, exist_ok=True)
        assets: list[Path] = []
        standing: dict[str, Digest] = {}
        for one in built:
            stands = publish.stands(target.release, receipt, entry.slug, one)
            if receipt and stands and one.platform not in again:
                names = publish.asset_names(entry.slug, one.platform)
                standing |= {name: receipt.files[name].digest for name in names}
                continue
            tar = save_tar(world.cache, image, entry, one)
            asset = directory / asset_name(entry.slug, one.platform)
            publish.compress(tar, asset)
            assets += [asset, *publish.attest_asset(image, one, asset)]
        release = publish.publish_release(
            world.github,
            entry,
            image,
            built,
            pushed,
            assets,
            directory,
            receipt,
            new if self.sign else (),
        )
        with self.lock:
            if self.sign:
                files = standing | {path.name: file_digest(path) for path in assets}
                indexes = (pushed.image.digest, pushed.modules.digest if pushed.modules else None)
                for subject in publish.subjects(image, entry.slug, new, indexes, files):
                    self.sign(subject)
        return release, pushed

    def _named(self, slug: str) -> frozenset[Digest]:
        """The images of a kernel that its releases name by now, and those of an index that was
        signed.
        """
        world = self.world
        assert world.github
        receipts = (Receipt.find(release.body) for release in world.github.releases())
        named = {
            part.manifest
            for receipt in receipts
            if receipt and receipt.entry.slug == slug
            for part in receipt.platforms.values()
        }
        if (at := self._believed(slug)) and (document := world.registry.find(at)):
            named.update(world.registry.platforms(at, document).values())
        return frozenset(named)

    def _signed_late(self, target: Target) -> frozenset[Platform]:
        """The platforms of which an earlier run did not live to have signed what it published.

        A release can be changed by many. So they are only those whose images the registry has, and
        their tars are made of these once more.
        """
        receipt, world = target.receipt, self.world
        if not self.sign or not target.unsigned or not receipt:
            return frozenset()
        return frozenset(
            platform
            for platform in receipt.to_sign
            if world.restorer.is_whole(receipt.platforms[platform].manifest)
        )


def _lost(standing: Standing) -> str:
    return (
        f"nothing is left of ZFS {standing.receipt.entry.zfs}, which {standing.release.git_tag} "
        "had; a newer one that can be built takes its place"
    )


def _is_to_bring_back(target: Target, kept: Mapping[Platform, Built]) -> bool:
    """Whether what was brought back is to be published, though nothing was made: what is nowhere
    any more, and could not be built, holds back nothing else.
    """
    return bool(target.all_repairs and kept)


def _in_part(reason: str, platform: Platform) -> str:
    """Why one platform of a kernel, to which its image lacks something, is left out."""
    return f"{reason}; `without: [{platform}]` in its entry lets desktop-X do without it"


def _repaired(target: Target, built: Iterable[Built]) -> str:
    """What was repaired of a kernel, and whether that took other bytes than were published."""
    said = [drift.as_sentence(target.all_repairs)] if target.all_repairs else []
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

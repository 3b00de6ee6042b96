"""The order of the steps, and what comes out of each kernel.

``sync`` reconciles what is wanted with what is really out there, not with a memory of what it
did: a run that dies anywhere is repaired by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from release import child, latest, onthespot
from release.attest import Subject
from release.boot import can_boot
from release.build import Built
from release.errors import (
    LackingError,
    NotFoundError,
    PreflightError,
    ReleaseError,
    UpstreamError,
    from_os_error,
)
from release.handover import Delivery
from release.http import bytes_digest
from release.keep import passed_before, write_passed
from release.outcomes import settled
from release.plan import (
    Observed,
    Target,
    receipts_to_sign,
)
from release.record import Record, repair
from release.reference import Digest, Platform, architecture
from release.registry import Document
from release.report import Outcome, Report, Status
from release.smoke import smoke
from release.state import Key
from release.versions import Entry
from release.work import Places, Work
from release.world import Step, World

KERNELS = "kernels"
_BOOT_BYTES = 24 << 20
"""How many bytes of layers ``latest`` is booted with; a guest has them unpacked in memory."""


def move_latest(
    world: World, observed: Observed, report: Report, *, late: bool = False, signs: bool = False
) -> list[Subject]:
    """Brings ``latest`` to what is published: last of all, and only where something changed.

    Args:
        late: whether it is known to be behind, or not signed.
        signs: whether it is signed then. What the present one says of itself is believed only
            where that was signed, too; all is read from the images that the releases name else.

    Returns:
        What there is to sign; nothing where the tag did not move, and is signed.

    Raises:
        ReleaseError: it stays as it was.
    """
    image = world.versions.image
    wanted = world.wanted_latest(world.versions.kernels, observed)
    if not wanted.members:
        return []
    there = world.registry.head(image.with_tag(latest.TAG))
    signed: bool | None = None
    if signs and there:
        try:
            signed = world.is_signed(there)
        except UpstreamError as unread:
            report.warn(f"whether {latest.TAG} was signed is not known: {unread.summary}")
    unsigned = signed is False
    if not (late or unsigned or latest.is_behind(world.registry, image, wanted, there)):
        return []
    assert world.github
    report.step(latest.TAG, "put together")
    readable = image.at(there) if there and (signed or not signs) else None
    before = latest.read_before(world.registry, readable) if readable else {}
    made = latest.build(wanted, latest.Reader(world.registry, image, world.github, before))
    for error in made.left_out:
        report.warn(f"{latest.TAG} lacks what is published: {error.summary}")
    for platform in sorted(made.to_boot):
        # Others built and tested its kernels; what was put together of them is new.
        if platform in world.here or can_boot(architecture(platform)):
            _smoke_latest(world, made, platform, report)
    report.step(latest.TAG, "push")
    record = Record(made.document.digest, wanted.fingerprint)
    repaired = repair(world.registry, image.with_tag(latest.TAG), record, unsigned=unsigned)
    moved = latest.push(world.registry, image, wanted, made)
    kernels = len({part.slug for parts in made.held.values() for part in parts})
    all_kernels = len({one.entry.slug for one in wanted.members})
    report.say(
        f"{latest.TAG}: the modules of {kernels} kernels, {made.bytes / 1e6:.1f} MB, "
        f"and a catalogue of {all_kernels}" + (f"; {repaired}" if repaired else "")
    )
    return [Subject(str(image.name), made.document.digest)] if moved or unsigned else []


def _smoke_latest(world: World, made: latest.Latest, platform: Platform, report: Report) -> None:
    """Boots the newest kernel that ``latest`` did not have before with its very layers, unless
    they passed before.
    """
    digest = made.images[platform].manifest.digest
    if passed_before(world.cache, digest):
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
    write_passed(world.cache, digest, line.kernel_banner, result)


@dataclass(frozen=True)
class Behind:
    """What is known of the tags that are no kernel's, ``latest`` and ``build``.

    Attributes:
        late: those that are not what they have to be.
        latest: what that tag points to, if it is to be there, and is.
        build: the same.
        failures: why that could not be found out of some.
    """

    late: tuple[str, ...] = ()
    latest: Digest | None = None
    build: Document | None = None
    failures: tuple[ReleaseError, ...] = ()


def behind(
    world: World, entries: Iterable[Entry], observed: Observed, *, whole: bool = False
) -> Behind:
    """Looks at the tags that are no kernel's; two requests for each.

    Args:
        whole: look at all that their indexes hold, too.
    """
    wanted = world.wanted_latest(entries, observed)
    registry, image = world.registry, world.versions.image
    late: list[str] = []
    failures: list[ReleaseError] = []
    there = document = None
    with _told(failures):
        if wanted.members:
            there = registry.head(image.with_tag(latest.TAG))
            if latest.is_behind(registry, image, wanted, there, whole=whole):
                late.append(latest.TAG)
    with _told(failures):
        if world.versions.on_the_spot:
            document = registry.find(image.with_tag(onthespot.IMAGE_TAG))
            if onthespot.is_behind(world, document, whole=whole):
                late.append(onthespot.IMAGE_TAG)
    return Behind(tuple(late), there, document, tuple(failures))


def signable(world: World, entries: Sequence[Entry], observed: Observed) -> tuple[str, ...]:
    """What there is whose signature can be looked at: kernels, and tags that are no kernel's."""
    if not world.github:
        return ()
    there = {
        KERNELS: bool(receipts_to_sign(entries, observed)),
        latest.TAG: latest.TAG in observed.image_tags
        and bool(world.wanted_latest(entries, observed).members),
        onthespot.IMAGE_TAG: onthespot.IMAGE_TAG in observed.image_tags
        and world.versions.on_the_spot,
    }
    return tuple(name for name, is_there in there.items() if is_there)


def unsigned_tags(
    world: World, tags: Behind, asked: Collection[str]
) -> tuple[tuple[str, ...], list[ReleaseError]]:
    """Which tags that are no kernel's point to what the run that published it did not live to have
    signed; and why that could not be found out of some.

    Args:
        tags: what they point to; what is late is made again anyway.
        asked: the tags to ask for.
    """
    asked = set(asked) - set(tags.late)
    found: list[str] = []
    failures: list[ReleaseError] = []
    with _told(failures):
        if latest.TAG in asked and tags.latest and not world.is_signed(tags.latest):
            found.append(latest.TAG)
    with _told(failures):
        there = tags.build if onthespot.IMAGE_TAG in asked else None
        if there and onthespot.is_unsigned(world, there):
            found.append(onthespot.IMAGE_TAG)
    for error in failures:
        if isinstance(error, UpstreamError):
            error.drawn = True
    return tuple(found), failures


@contextmanager
def _told(failures: list[ReleaseError]) -> Iterator[None]:
    """What cannot be found out is told, and stops nothing else."""
    try:
        yield
    except (UpstreamError, NotFoundError, PreflightError) as error:
        failures.append(error)


def move_tags(
    world: World,
    late: Collection[str],
    outcomes: Sequence[Outcome],
    observed: Observed,
    report: Report,
    sign: Callable[[Subject], object] | None = None,
) -> dict[str, ReleaseError]:
    """Brings ``latest`` to what is published now, and ``build`` if it is behind.

    What goes wrong with one is told, and takes nothing from the kernels that are published.

    Args:
        late: those that :func:`behind`, or :func:`unsigned_tags`, names.
        sign: takes what is published now, for others to sign.

    Returns:
        Why tags stay as they were.
    """
    published = any(one.status is Status.PUBLISHED for one in outcomes)
    steps: dict[str, Callable[[], list[Subject]]] = {
        latest.TAG: lambda: move_latest(
            world,
            world.observe() if published else observed,
            report,
            late=latest.TAG in late,
            signs=bool(sign),
        )
    }
    if onthespot.IMAGE_TAG in late:
        steps[onthespot.IMAGE_TAG] = lambda: onthespot.bring_up_to_date(
            world, report, signs=bool(sign)
        )
    failures: dict[str, ReleaseError] = {}
    for image_tag, step in steps.items():
        try:
            for subject in step():
                if sign:
                    sign(subject)
        except ReleaseError as error:
            failures[image_tag] = error
        except OSError as error:
            failures[image_tag] = from_os_error(error, f"{world.versions.image}:{image_tag}")
        finally:
            report.step(image_tag, "")
    for failure in failures.values():
        report.fail(failure)
    return failures


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
        Places(limit),
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

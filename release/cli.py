"""The command line: arguments in, one exit code out."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, NoReturn

import click

from release import (
    __version__,
    capture,
    child,
    commit,
    detect,
    drift,
    handover,
    issues,
    onthespot,
    probe,
    recollect,
    versions,
)
from release.advice import after_build, after_linuxkit, after_on_the_spot
from release.attest import Subject
from release.build import BUILDX_BUILDER, Built
from release.components import Components, pin
from release.desktop import NAME as DESKTOP
from release.desktop import judge, show
from release.errors import (
    ConfigurationError,
    ExitCode,
    ReleaseError,
    from_os_error,
)
from release.http import Http, checksums
from release.keep import sideload_tar
from release.linuxkit import VARIANTS
from release.outcomes import outlook
from release.plan import Observed, Target, choose, newest_first, plan
from release.poll import Polled
from release.probe import PROBE_IMAGE
from release.reference import Platform, Reference, parse_platform
from release.report import (
    Outcome,
    Report,
    Status,
    as_data,
    shown,
    table,
    without_commands,
    write_json,
)
from release.state import NAME as STATE
from release.state import Key, State
from release.sync import KERNELS, Behind, behind, move_tags, run, signable, unsigned_tags
from release.tarballs import NAME as TARBALLS
from release.versions import Entry
from release.vm import COMPONENTS, Workshop
from release.world import (
    STOP,
    News,
    Step,
    World,
    github_of,
    native_platform,
    platform_of,
    require_ours,
    source_of,
)

_INTERRUPTED = 130

_versions_option = click.option(
    "--versions",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("versions.yaml"),
    show_default=True,
    help="The file that lists the kernels.",
)
_json_option = click.option(
    "--json",
    "json_to",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the outcomes to this file.",
)
_jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="the number of processors",
    help="How many kernels to work on side by side.",
)
_verify_option = click.option(
    "--verify",
    is_flag=True,
    envvar="INSTALL_ZFS_VERIFY",
    help="Look behind every published tag, and at every signature, and not at a share of them.",
)
_only_option = click.option(
    "--only",
    multiple=True,
    metavar="REF",
    envvar="INSTALL_ZFS_ONLY",
    help="Work on this kernel only (repeatable).",
)
_limit_option = click.option(
    "--limit",
    type=click.IntRange(min=0),
    envvar="INSTALL_ZFS_LIMIT",
    help="Work on at most so many kernels.",
)
_force_option = click.option(
    "--force-rebuild",
    "force",
    is_flag=True,
    envvar="INSTALL_ZFS_FORCE_REBUILD",
    help="Try again what failed too often as it is.",
)


def _point_buildx(_context: click.Context, _option: click.Parameter, name: str | None) -> None:
    """Lets ``docker buildx`` build there, whoever calls it, by its own variable."""
    if name:
        os.environ[BUILDX_BUILDER] = name


_builder_option = click.option(
    "--builder",
    metavar="NAME",
    envvar=BUILDX_BUILDER,
    expose_value=False,
    callback=_point_buildx,
    help="Build with this instance of BuildKit; see docker buildx ls.",
)


def _platforms(
    _context: click.Context, _option: click.Parameter, names: tuple[str, ...]
) -> tuple[Platform, ...]:
    return tuple(map(parse_platform, names))


_platform_option = click.option(
    "--platform",
    "here",
    multiple=True,
    metavar="OS/ARCH",
    callback=_platforms,
    show_default="this machine's own",
    help="Build and test for this platform, emulated where the machine is another (repeatable).",
)
_refs = click.argument("refs", nargs=-1, required=True, metavar="REF...|all")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="REF is a kernel image (docker/for-desktop-kernel:5.15.49-...), a slug, or "
    "desktop-4.13.0.",
)
@click.version_option(__version__)
@click.option(
    "--log-level",
    type=click.Choice(["info", "debug"]),
    default="info",
    show_default=True,
    envvar="INSTALL_ZFS_LOG_LEVEL",
    help="debug: also a line for each request.",
)
def cli(log_level: str) -> None:
    """Builds, tests and publishes ZFS module images for the kernels of Docker Desktop."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("release").setLevel(log_level.upper())


@cli.command()
@_versions_option
@_json_option
@_jobs_option
@_only_option
@_limit_option
@_verify_option
@_force_option
@_builder_option
@_platform_option
@click.option(
    "--delivered",
    type=click.Path(path_type=Path, file_okay=False),
    help="Build nothing: publish what `hand-over` left below this directory.",
)
@click.option(
    "--expected",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="With --delivered: the plan's directory, which says what was to be delivered.",
)
@click.option(
    "--subjects",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the checksums of what was built and published to this file, to be signed. What an "
    "earlier run published so and did not live to have signed is named again.",
)
def sync(
    path: Path,
    json_to: Path | None,
    jobs: int,
    only: tuple[str, ...],
    limit: int | None,
    verify: bool,
    force: bool,
    here: tuple[Platform, ...],
    delivered: Path | None,
    expected: Path | None,
    subjects: Path | None,
) -> int:
    """Do everything: poll, append, build, smoke, push, publish; newest kernels first."""
    if (delivered is None) != (expected is None):
        raise click.UsageError("--delivered and --expected belong together")
    with _report() as report:
        world = _world(path, here, handover.RUNNERS if delivered else ())
        world.check_credentials()
        received = planned = None
        if delivered and expected:
            planned = handover.read_plan(expected)
            received = handover.receive(delivered, planned.jobs)
            world.minute = planned.minute
        seen = _look(world, only, verify=verify, turns=bool(subjects))
        if planned and expected:
            made = world.know(expected, (job.slug for job in planned.jobs), seen.entries)
            seen = replace(seen, entries=(*seen.entries, *made), chosen=planned.chosen)
        news, observed, entries = seen.news, seen.observed, seen.entries
        tried = {job.key: job.zfs for job in planned.jobs} if planned else {}
        draw = partial(seen.plan, world, entries, force=force, tried=tried)
        targets, unread = draw()
        tags = behind(world, entries, observed, whole=verify)
        late, unseen = tags.late, tags.failures
        if subjects:
            # Who publishes for a plan is not idle, or was called by one that found something.
            unsigned = seen.unsigned(world, targets, tags, idle=not expected)
            unseen += unsigned.failures
            late += unsigned.tags
            if unsigned.slugs:
                targets, unread = draw(unsigned=unsigned.slugs)
        targets = world.share(targets, observed).targets
        to_do = any(target.to_do for target in targets)
        failures = (*news.failures, *seen.failures, *unread, *unseen)
        if limit != 0 and (to_do or late):
            # `latest`, which follows what is published, is booted.
            builds = received is None or bool(late or world.versions.latest)
            world.preflight(Step.PUBLISH, builds=builds)
            to_do = True
        world.record(news)
        _tell(report, news)
        _tell_age(report, world)
        _warn(report, world, targets)
        signed: list[Subject] = []
        outcomes = run(
            world,
            targets,
            observed,
            Step.PUBLISH,
            jobs=jobs,
            report=report,
            limit=limit,
            delivered=received,
            sign=signed.append if subjects else None,
        )
        outcomes = recollect.tell(outcomes, news.found)
        world.keep_state(complete=not failures)
        unmoved: dict[str, ReleaseError] = {}
        if to_do and limit != 0:
            sign = signed.append if subjects else None
            unmoved = move_tags(world, late, outcomes, observed, report, sign)
        if subjects and signed:
            subjects.parent.mkdir(parents=True, exist_ok=True)
            named = dict.fromkeys((one.name, one.digest) for one in signed)
            subjects.write_text(checksums(named))
            report.output(subjects=str(subjects))
        for error in failures:
            report.fail(error)
        report.requests(world.http.requests, world.versions.request_budget)
    report.outcomes(outcomes, json_to, failures, whole=verify, unmoved=unmoved)
    return _exit_code(outcomes, failures, unmoved)


@dataclass(frozen=True)
class _Unsigned:
    """What was to be signed, and is not: kernels, and tags that are no kernel's; and why that could
    not be found out of others.
    """

    slugs: frozenset[str] = frozenset()
    tags: tuple[str, ...] = ()
    failures: tuple[ReleaseError, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What ``sync`` and ``plan`` go by.

    Attributes:
        entries: the recorded ones, and what is new upstream.
        chosen: slugs to work on, None for all.
        signable: what there is whose signature can be looked at.
        turn: whether one of those is looked at in place of a tag in this run.
        verify: whether all of both are.
        failures: why some tags could not be looked at.
    """

    news: News
    observed: Observed
    entries: Sequence[Entry]
    desktop: Mapping[str, Sequence[str]]
    chosen: frozenset[str] | None
    signable: tuple[str, ...]
    turn: bool
    verify: bool
    failures: Sequence[ReleaseError]

    def plan(
        self, world: World, entries: Sequence[Entry], **how: Any
    ) -> tuple[list[Target], list[ReleaseError]]:
        """:meth:`World.plan` of these entries."""
        return world.plan(
            entries,
            self.observed,
            desktop=self.desktop,
            chosen=self.chosen,
            whole=self.verify,
            **how,
        )

    def unsigned(
        self, world: World, targets: Iterable[Target], tags: Behind, *, idle: bool = True
    ) -> _Unsigned:
        """What was to be signed, and is not. A run with nothing to do looks at one thing, drawn by
        lot, and that in turn with tags only.

        Args:
            idle: whether the run may be one with nothing to do.
        """
        asked = self.signable
        to_do = any(target.to_do for target in targets)
        if idle and not (self.verify or to_do or tags.late or self.news.worth_recording):
            asked = drift.share(asked, world.minute) if self.turn else ()
        slugs: frozenset[str] = frozenset()
        failures: list[ReleaseError] = []
        if KERNELS in asked:
            slugs, failures = world.unsigned(
                self.entries, self.observed, chosen=self.chosen, whole=self.verify
            )
        found, unread = unsigned_tags(world, tags, asked)
        return _Unsigned(slugs, found, (*failures, *unread))


def _look(
    world: World, only: Sequence[str], *, verify: bool, turns: bool, whole: bool = False
) -> _Seen:
    """Looks at the outside worlds.

    Args:
        turns: whether signatures are looked at in turn with tags.
        whole: read every list of tags to its end.
    """
    news, observed = world.look(whole=whole)
    entries = news.kernels.merge(world.versions.kernels)
    desktop = world.desktops(entries, news)
    can_look = signable(world, entries, observed)
    turn = turns and bool(can_look) and drift.is_turn_of_signatures(world.minute)
    observed, unread = world.inspect(entries, observed, desktop, none=turn, whole=verify)
    chosen = choose(entries, only, desktop) if only else None
    return _Seen(news, observed, entries, desktop, chosen, can_look, turn, verify, unread)


def _tell_behind(world: World, late: Iterable[str], unsigned: Iterable[str] = ()) -> None:
    for image_tag in late:
        click.echo(f"{world.versions.image}:{image_tag} is behind; sync brings it up to date")
    for image_tag in unsigned:
        click.echo(f"{world.versions.image}:{image_tag} was not signed; it is made again")


@cli.command("poll")
@_versions_option
@_json_option
def poll_(path: Path, json_to: Path | None) -> int:
    """Look for new kernels and append them to the file; build nothing."""
    with _report() as report:
        world = _world(path)
        news = world.poll()
        world.record(news)
        _tell(report, news)
        for error in news.failures:
            report.fail(error)
        report.requests(world.http.requests, world.versions.request_budget)
    found = news.kernels.new
    for entry in found:
        click.echo(f"new: {entry.image} {entry.digest}")
    for row in news.desktops.new:
        click.echo(f"new: Docker Desktop {row.desktop} runs Linux {row.kernel} ({row.grade})")
    click.echo(f"{len(found)} new kernels, {len(world.versions.kernels)} in {path}")
    new = plan(found, Observed(frozenset(), None), platforms=world.platforms)
    write_json(outlook(new, world.versions.image), json_to)
    return _exit_code((), news.failures)


@cli.command("plan")
@_versions_option
@_json_option
@_only_option
@_limit_option
@_verify_option
@_force_option
@_platform_option
@click.option(
    "--hand-over",
    "to",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write this directory, from which other machines build (see hand-over).",
)
def plan_(
    path: Path,
    json_to: Path | None,
    only: tuple[str, ...],
    limit: int | None,
    verify: bool,
    force: bool,
    here: tuple[Platform, ...],
    to: Path | None,
) -> int:
    """Print what sync would do and why; write nothing else. Needs no Docker engine."""
    with _report() as report:
        file = handover.copy(path, to) if to else path
        world = _world(file, here, handover.RUNNERS if to else ())
        seen = _look(world, only, verify=verify, turns=bool(to), whole=not to)
        news, observed, entries = seen.news, seen.observed, seen.entries
        draw = partial(seen.plan, world, force=force)
        targets, unread = draw(entries)
        unfound: list[ReleaseError] = []
        kept: frozenset[Key] = frozenset()
        tags = behind(world, entries, observed, whole=verify)
        unsigned = _Unsigned()
        if to:
            unsigned = seen.unsigned(world, targets, tags)
            unfound += unsigned.failures
            world.record(news)
            unfound += world.find_platforms(world.share(targets, observed, limit=limit).targets)
            targets, unread = draw(world.versions.kernels, unsigned=unsigned.slugs)
        share = world.share(targets, observed, limit=limit)
        targets = share.targets
        if to:
            kept, unsure = world.without_builds(targets)
            unfound += unsure
        failures = (*news.failures, *seen.failures, *unread, *tags.failures, *unfound)
        late = (*tags.late, *unsigned.tags)
        for error in failures:
            report.fail(error)
        _tell(report, news)
        _tell_age(report, world)
        _warn(report, world)
        if to:
            due = not failures and world.state.is_due(world.today)
            worth = bool(late) or news.worth_recording or due
            jobs = handover.jobs_of(targets, observed.image_tags, kept)
            # What has no platform could not be looked at, and that is told as often as it fails.
            unknown = any(target.to_do and not target.platforms for target in targets)
            worth = worth or bool(jobs or kept) or unknown
            _hand_over_plan(report, world, jobs, to, worth=worth, chosen=seen.chosen)
    new = {(entry.image, entry.digest) for entry in news.kernels.new}
    rows = []
    for target in targets:
        action = "publish" if target.to_do else _left_out(target, "wait", "skip", "nothing")
        why = "new upstream; " if (target.entry.image, target.entry.digest) in new else ""
        platforms = " ".join(target.platforms or target.elsewhere) or "not resolved yet"
        rows.append((action, target.entry.image, platforms, why + target.reason))
    table(("ACTION", "KERNEL", "PLATFORMS", "REASON"), rows)
    if said := str(share):
        click.echo(said)
    _tell_behind(world, tags.late, unsigned.tags)
    _show_left_out(news.kernels)
    stands = outlook(targets, world.versions.image)
    write_json(stands, json_to, failures=as_data(failures), whole=verify, behind=late)
    if to:
        report.summary([one for one in stands if one.status is not Status.UNCHANGED])
    return _exit_code((), failures)


def _hand_over_plan(
    report: Report,
    world: World,
    jobs: Sequence[handover.Job],
    to: Path,
    *,
    worth: bool,
    chosen: frozenset[str] | None,
) -> None:
    """Writes the jobs down, and tells a workflow which of its own jobs have something to do.

    Args:
        worth: whether there is something to publish or to record.
        chosen: slugs to work on, None for all.
    """
    if world.stopped:
        report.warn(f"publishing is stopped: {STOP} is set to {world.stopped!r}")
        jobs, worth = [], False
    handover.write_plan(handover.Plan(tuple(jobs), world.minute, chosen), to)
    report.output(
        matrix=handover.matrix(jobs),
        build=str(bool(jobs)).lower(),
        publish=str(worth).lower(),
    )


@cli.command("hand-over")
@click.argument("slug")
@click.argument("platform_name", metavar="PLATFORM")
@click.option(
    "--plan",
    "planned",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    help="The directory that `plan --hand-over` wrote.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Leave the result in a directory below this one.",
)
@_builder_option
@_json_option
def hand_over(slug: str, platform_name: str, planned: Path, to: Path, json_to: Path | None) -> int:
    """Build and test one kernel of a plan on this machine, for `sync --delivered` on another.

    What failed is handed over, too, with the reason.
    """
    platform = parse_platform(platform_name)
    jobs = {job.key: job for job in handover.read_plan(planned).jobs}
    job = jobs.get((slug, platform))
    if not job:
        raise ConfigurationError("is not in the plan", on=f"{slug} {platform}", hint="plan again")
    with _report() as report:
        world = _world(planned / versions.NAME, (platform,))
        world.state = State()
        (entry,) = (one for one in world.versions.kernels if one.slug == slug)
        world.preflight(Step.SMOKE)
        passed: list[Built] = []
        target = Target(replace(entry, zfs=job.zfs), (platform,), (Step.SMOKE.name.lower(),))
        observed = Observed(frozenset({slug} if job.there else ()), None)
        outcomes = run(
            world, [target], observed, Step.SMOKE, jobs=1, report=report, hand_over=passed.append
        )
        (outcome,) = (one for one in outcomes if one.platform == platform)
        attempt = next(iter(world.state.of(job.key).values()), None)
        (now,) = (one for one in world.versions.kernels if one.slug == slug)
        delivery = handover.Delivery(
            slug,
            platform,
            outcome.status,
            outcome.reason,
            outcome.seconds,
            attempt.inputs if attempt else None,
            bool(now.skip),
            passed[0].layout if passed else None,
        )
        place = handover.deliver(delivery, job.name, to)
    report.outcomes([outcome], json_to)
    click.echo(f"left in {place}")
    return _exit_code(outcomes, ())


@cli.command("record")
@_versions_option
def record_(path: Path) -> int:
    """Commit and push what sync wrote down beside FILE, the file itself included."""
    done = commit.commit(
        path.parent,
        (path.name, DESKTOP, STATE, TARBALLS, COMPONENTS.name),
        "Record what is published",
        os.environ,
    )
    click.echo(f"pushed {done}" if done else "nothing to record")
    return ExitCode.OK


@cli.command("issues")
@_versions_option
@click.option("--jobs", required=True, metavar="JSON", help="How each of the jobs ended.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def issues_(path: Path, jobs: str, files: tuple[Path, ...]) -> int:
    """Open an issue for each cause of failure, and close those whose cause is gone.

    FILES are what --json wrote in each job of a run, in their order; those of jobs that did not run
    may be missing.
    """
    require_ours(os.environ)
    github = github_of(Http(), os.environ)
    assert github
    unreadable: ConfigurationError | None = None
    kernels: tuple[Entry, ...] = ()
    try:
        kernels = versions.load(path).kernels
    except ConfigurationError as error:
        unreadable = error  # which is what kept the other jobs from running
    given_up = (str(entry.image) for entry in kernels if entry.skip)
    results = issues.read(files, jobs, given_up)
    run_id = os.environ.get("GITHUB_RUN_ID")
    run = f"{source_of(os.environ)}/actions/runs/{run_id}" if run_id else "a run by hand"
    for line in issues.tell(github, results, run):
        click.echo(line)
    if unreadable:
        raise unreadable
    return ExitCode.OK


def _step_command(step: Step, text: str) -> None:
    @cli.command(step.name.lower(), help=text)
    @_refs
    @_versions_option
    @_json_option
    @_jobs_option
    @_builder_option
    @_platform_option
    def command(**options: Any) -> int:
        return _work(step, **options)


_step_command(Step.BUILD, "Build module images; leaves cache/zfs-SLUG.tar and install-zfs:SLUG.")
_step_command(Step.SMOKE, "Build what is not built, boot its kernel, try modules and a pool there.")
_step_command(Step.PUBLISH, "Build and smoke-test what is not there yet, and publish it.")


@cli.command()
@_versions_option
@_json_option
@click.option(
    "--all", "all_tags", is_flag=True, help="Also list upstream's tags that are left out."
)
@click.option("--desktop", "desktops", is_flag=True, help="Which Docker Desktop runs which kernel.")
def status(path: Path, json_to: Path | None, all_tags: bool, desktops: bool) -> int:
    """Print a table: kernel, Desktop versions, ZFS, platforms, state, reason."""
    if desktops:
        return _status_of_desktops(path)
    with _report() as report:
        # Other machines' platforms, too, have a say in whether a kernel is out.
        world = _world(path, platforms=versions.PLATFORMS)
        news = None
        if all_tags:
            news, observed = world.look(whole=True)
        else:
            observed = world.observe()
        entries = world.versions.kernels
        targets, unread = world.plan(entries, observed, desktop=world.desktops(entries))
        tags = behind(world, entries, observed)
        unread += [*(news.failures if news else ()), *tags.failures]
        for error in unread:
            report.fail(error)
        _warn(report, world)
        _tell_age(report, world)
    table(
        ("KERNEL", "DESKTOP", "ZFS", "PLATFORMS", "STATE", "REASON"),
        [
            (
                target.entry.image,
                " ".join(target.desktop) or "-",
                target.entry.zfs or target.choice or "-",
                " ".join(sorted(target.entry.platforms)) or "-",
                "to do" if target.to_do else _left_out(target, "waiting", "skipped", "published"),
                target.reason,
            )
            for target in targets
        ],
    )
    _tell_behind(world, tags.late)
    click.echo(world.state.age(world.today))
    if world.stopped:
        click.echo(f"publishing is stopped: {STOP} is set to {world.stopped!r}")
    for verdict in world.verdicts(entries):
        if not verdict.entry:
            click.echo(f"Docker Desktop {verdict.desktop}: {verdict.finding}: {verdict.why}")
    if news:
        _show_left_out(news.kernels)
    write_json(outlook(targets, world.versions.image), json_to)
    return _exit_code((), unread)


def _status_of_desktops(path: Path) -> int:
    with _report() as report:
        world = _world(path)
        notes = world.poll_notes()
        for error in notes.failures:
            report.fail(error)
    known = replace(world.desktop_map, rows=(*world.desktop_map.rows, *notes.new))
    show(known, judge(known, world.versions.kernels), notes.not_understood)
    return _exit_code((), notes.failures)


_probe_option = click.option(
    "--probe-image",
    metavar="IMAGE",
    help="Of the container that looks at the machine, in place of probe: in versions.yaml "
    f"and of {PROBE_IMAGE}.",
)


@cli.command("detect")
@_versions_option
@_json_option
@_probe_option
def detect_(path: Path, json_to: Path | None, probe_image: str | None) -> int:
    """Ask the Docker engine at hand which kernel it runs, and print what fits."""
    from release.engine import Engine

    with _report() as report:
        world = _world(path)
        image = _probe_image(world, probe_image)
        report.say(f"looking at the machine with a container of {image}")
        machine = probe.look(Engine(os.environ), image)
        entries, known = world.versions.kernels, world.desktop_map
        probable = detect.candidates(machine, known, entries)
        found = detect.look_up(
            world.registry, world.versions.image, probable, platform_of(machine.architecture)
        )
        told = detect.answer(
            machine,
            known,
            entries,
            world.versions.image,
            found,
            hosts=detect.host_platform(),
        )
        failures = tuple(one.failure for one in found.values() if one.failure and not told.image)
        for error in {str(error): error for error in failures}.values():
            report.fail(error)
    click.echo(shown(detect.show(told)), nl=False)
    status = Status.SKIPPED if not told.waiting else Status.WAITING
    outcome = Outcome(
        told.kernel_image.value if told.kernel_image else "",
        platform_of(machine.architecture),
        Status.PUBLISHED if told.image else status,
        told.why,
        image=told.image.value if told.image else "",
    )
    write_json([outcome], json_to, detected=detect.as_data(told))
    return _exit_code((), failures)


@cli.command("capture")
@click.argument("name", metavar="IMAGE")
@_versions_option
@_json_option
@_probe_option
@click.option("--builder", "builder_name", metavar="IMAGE", help="Has the kernel's own compiler.")
@click.option("--push", is_flag=True, help="Push the image to its registry.")
def capture_(
    name: str,
    path: Path,
    json_to: Path | None,
    probe_image: str | None,
    builder_name: str | None,
    push: bool,
) -> int:
    """Make the kernel image IMAGE of the kernel that the Docker engine at hand runs."""
    from release.engine import Engine

    image = Reference.parse(name)
    capture.check_name(image)
    builder = Reference.parse(builder_name) if builder_name else None
    started = time.monotonic()
    with _report() as report, tempfile.TemporaryDirectory(prefix="install-zfs-capture-") as work:
        world = _world(path)
        if push:
            world.registry.check_push(image)
        engine = Engine(os.environ)
        step = image.tag or ""
        report.step(step, "look at the machine")
        with probe.looking(engine, _probe_image(world, probe_image)) as (machine, here):
            platform = platform_of(machine.architecture)
            report.step(step, f"copy what {machine.release} has on its machine")
            captured = capture.capture(machine, here, platform, Path(work))
        report.step(step, "pack the image")
        layout = capture.pack(captured, Path(work, "image"), builder)
        digest = layout.manifest.digest
        tar = Path(work, "image.tar")
        layout.save(tar, (image,))
        engine.load(tar)
        if push:
            report.step(step, "push")
            capture.push(world.registry, image, layout)
        report.step(step, "")
    click.echo(shown(capture.show(captured, image, digest, pushed=push, builder=builder)), nl=False)
    outcome = Outcome(
        str(image),
        platform,
        Status.PUBLISHED if push else Status.UNCHANGED,
        "" if push else "captured, not pushed",
        digest=digest,
        seconds=round(time.monotonic() - started, 1),
    )
    write_json([outcome], json_to)
    return ExitCode.OK


def _probe_image(world: World, wanted: str | None) -> str:
    """The image of the container that looks at a machine."""
    return str(Reference.parse(wanted or world.versions.probe or PROBE_IMAGE))


@cli.command("on-the-spot")
@_versions_option
@click.option("--builder", metavar="IMAGE", help="The image with the compiler.")
@click.option("--zfs", multiple=True, metavar="VERSION", help="A ZFS to take along (repeatable).")
def on_the_spot(path: Path, builder: str | None, zfs: tuple[str, ...]) -> None:
    """Build the image that builds ZFS where it runs; leaves install-zfs:build.

    Without --builder it has the newest compiler of the table of builders, without --zfs the newest
    stable ZFS.
    """
    with _report() as report:
        world = _world(path)
        world.preflight(Step.BUILD)
        wanted = onthespot.recipe(world, builder=builder, zfs=zfs)
        onthespot.build(world, report, wanted)
    tar = onthespot.tar(world.cache).as_posix()
    click.echo(after_on_the_spot(wanted.zfs, tar, world.versions.image))


def _show_left_out(polled: Polled) -> None:
    if polled.left_out:
        click.echo(f"{len(polled.left_out)} tags are not kernels to build for:")
        for tag in polled.left_out:
            click.echo(without_commands(shown(f"  {tag.image_tag}: {tag.reason}")))


def _tell(report: Report, news: News) -> None:
    """Tells of tags that moved and of other names of known kernels."""
    for note in news.kernels.changes.notes:
        report.say(f"note: {note}")


def _tell_age(report: Report, world: World) -> None:
    """Tells of runs that must have been missing: nobody else would."""
    if world.state.is_too_old(world.today):
        report.warn(
            f"{world.state.age(world.today)}: runs in between were dropped or failed, or the "
            "schedule is switched off; see the repository's Actions"
        )


def _left_out(target: Target, waiting: str, skipped: str, no: str) -> str:
    """One of three words for a target that is not to be worked on."""
    if not target.left_out:
        return no
    return waiting if target.status is Status.WAITING else skipped


def _warn(report: Report, world: World, targets: Iterable[Target] = ()) -> None:
    """Tells what speaks against ZFS versions that were pinned or passed over."""
    for warning in world.openzfs.warnings:
        report.warn(warning)
    for target in targets:
        if target.to_do and target.warning:
            report.warn(f"{target.entry.image}: {target.warning}")


def _work(
    step: Step,
    refs: tuple[str, ...],
    path: Path,
    json_to: Path | None,
    jobs: int,
    here: tuple[Platform, ...],
) -> int:
    """``build``, ``smoke`` and ``publish``: the step, and those before it that are not done."""
    with _report() as report:
        world = _world(path, here)
        entries = world.versions.kernels
        desktop = world.desktops(entries)
        chosen = None if refs == ("all",) else choose(entries, refs, desktop)
        if step is Step.PUBLISH:
            world.check_credentials()
        # To build and to test leaves something on this machine, whatever is published already.
        observed = world.observe() if step is Step.PUBLISH else Observed(frozenset(), None)
        targets, unread = world.plan(entries, observed, desktop=desktop, chosen=chosen)
        if step is Step.PUBLISH:
            targets = world.share(targets, observed).targets
        else:
            targets = [replace(target, missing=(step.name.lower(),)) for target in targets]
        to_do = any(target.to_do for target in targets)
        tags = behind(world, entries, observed) if step is Step.PUBLISH else Behind()
        if to_do or tags.late:
            world.preflight(step)
            to_do = True
        _warn(report, world, targets)
        outcomes = run(world, targets, observed, step, jobs=jobs, report=report)
        unmoved: dict[str, ReleaseError] = {}
        if step is Step.PUBLISH and to_do:
            unmoved = move_tags(world, tags.late, outcomes, observed, report)
        unread += tags.failures
        for error in unread:
            report.fail(error)
        report.requests(world.http.requests)
    report.outcomes(outcomes, json_to, unmoved=unmoved)
    if step < Step.PUBLISH:
        built = {one.kernel for one in outcomes if one.status is Status.UNCHANGED}
        for target in targets:
            if str(target.entry.image) in built:
                own = native_platform()
                platform = own if own in world.here else min(world.here)
                tar = sideload_tar(world.cache, target.entry.slug, platform)
                tested = step >= Step.SMOKE
                image = world.versions.image
                click.echo()
                click.echo(after_build(target.entry.slug, tar.as_posix(), image, tested=tested))
    return _exit_code(outcomes, unread, unmoved)


@cli.command("linuxkit")
@click.argument("refs", nargs=-1, metavar="REF...|all")
@_versions_option
@_json_option
@_jobs_option
@click.option(
    "--pin", "to_pin", is_flag=True, help="First, or only, pin linuxkit.yaml's images by digest."
)
def linuxkit_(
    refs: tuple[str, ...], path: Path, json_to: Path | None, jobs: int, to_pin: bool
) -> int:
    """Write files for LinuxKit VMs that load ZFS on boot, and in Docker.

    Builds what is not built, and the VMs where the linuxkit command is installed. Of the parts of a
    VM it takes the linuxkit.yaml beside FILE, or the project's own.
    """
    if not refs and not to_pin:
        raise click.UsageError("name a kernel, or --pin")
    beside = path.with_name(COMPONENTS.name)
    parts = beside if beside.is_file() else COMPONENTS
    with _report() as report:
        world = _world(path)
        if to_pin:
            for image in pin(parts, world.registry.head):
                report.say(f"pinned {image}")
        if not refs:
            return ExitCode.OK
        components = Components.load(parts, world.versions.linuxkit)
        workshop = Workshop(world.cache, components, os.environ)
        entries = newest_first(world.versions.kernels)
        desktop = world.desktops(entries)
        slugs = frozenset(entry.slug for entry in entries)
        chosen = slugs if refs == ("all",) else choose(entries, refs, desktop)
        ready = {entry.slug for entry in entries if workshop.has_modules(entry)} & chosen
        nothing = Observed(frozenset(), None)
        targets, unread = world.plan(entries, nothing, desktop=desktop, chosen=chosen - ready)
        targets = [
            replace(target, missing=("build",))
            for target in targets
            if target.entry.slug not in ready
        ]
        if any(target.to_do for target in targets):
            world.preflight(Step.BUILD)
        workshop.preflight()
        _warn(report, world, targets)
        outcomes = run(world, targets, nothing, Step.BUILD, jobs=jobs, report=report)
        outcomes = [one for one in outcomes if one.status is not Status.UNCHANGED]
        made = []
        for entry in entries:
            if entry.slug in chosen and workshop.has_modules(entry):
                outcome = workshop.make(entry, report)
                outcomes.append(outcome)
                made += [entry] if outcome.status is Status.UNCHANGED else []
        for error in unread:
            report.fail(error)
    report.outcomes(outcomes, json_to)
    for entry in made:
        tar = workshop.tar(entry).as_posix()
        boot, docker = (workshop.path(entry, variant).as_posix() for variant in VARIANTS)
        built, system = workshop.can_build, sys.platform
        click.echo()
        click.echo(after_linuxkit(entry.slug, tar, boot, docker, built=built, system=system))
    return _exit_code(outcomes, unread)


def _exit_code(
    outcomes: Sequence[Outcome],
    failures: Sequence[ReleaseError],
    unmoved: Mapping[str, ReleaseError] = MappingProxyType({}),
) -> ExitCode:
    if any(one.status is Status.FAILED for one in outcomes):
        return ExitCode.TARGET_FAILED
    if failures:
        return ExitCode.UPSTREAM_INCOMPLETE
    return next((error.exit_code for error in unmoved.values()), ExitCode.OK)


def _report() -> Report:
    return Report(os.environ)


def _world(path: Path, here: Iterable[Platform] = (), platforms: Iterable[Platform] = ()) -> World:
    loaded = versions.load(path)
    for platform in here:
        if platform not in loaded.platforms:
            raise ConfigurationError(
                f"is for {', '.join(loaded.platforms)} alone",
                on=str(path),
                hint=f"add {platform} to platforms: there, or name another by --platform",
            )
    return World(loaded, os.environ, here=here, platforms=platforms)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    child.stop()
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    # Where it is ignored, as for a job in the background, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = cli.main(prog_name="python -m release", standalone_mode=False)
    except ReleaseError as error:
        Report(os.environ).fail(error)
        code = error.exit_code
    except OSError as error:
        failure = from_os_error(error, "this machine")
        Report(os.environ).fail(failure)
        code = failure.exit_code
    except click.exceptions.Abort:
        click.echo("interrupted; what was finished is recorded, run again to go on", err=True)
        code = _INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = ExitCode.CONFIGURATION
    sys.exit(int(code or 0))

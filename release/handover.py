"""What one machine hands to another: which kernels to build, and module images that passed there.

A plan is a directory with ``versions.yaml`` as the poll left it and ``plan.json``, which names the
builds. A delivery is a directory with ``delivery.json``, the image as an OCI layout where the
build and the test passed, and the checksums of both. The digest that was tested is the digest that
is handed on: whoever takes a delivery compares every byte of it first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from release.attest import tarball_of
from release.build import Built
from release.desktop import NAME as DESKTOP
from release.errors import ConfigurationError, PublishError, ReleaseError
from release.http import checksums, file_digest, redact
from release.layout import Layout
from release.plan import SUMS, Target
from release.reference import Digest, Platform, architecture, parse_digest, parse_platform
from release.report import Status
from release.state import NAME as STATE
from release.state import Inputs, Key
from release.tarballs import NAME as TARBALLS
from release.versions import NAME, load


@dataclass(frozen=True)
class Runner:
    """A machine of GitHub's that builds and boots a platform natively (docs.github.com,
    "GitHub-hosted runners reference"), and the package that boots it.
    """

    label: str
    qemu: str


RUNNERS: Mapping[Platform, Runner] = MappingProxyType(
    {
        Platform("linux/amd64"): Runner("ubuntu-24.04", "qemu-system-x86"),
        Platform("linux/arm64"): Runner("ubuntu-24.04-arm", "qemu-system-arm"),
    }
)

MOST_JOBS = 256
"""As many jobs as a matrix may generate in a run (docs.github.com, "Actions limits")."""

_PLAN = "plan.json"
_FACTS = "delivery.json"
_IMAGE = "image"


# From plan to build


@dataclass(frozen=True)
class Job:
    """One kernel to build and to test on one platform.

    Attributes:
        there: whether something is published under the slug, which is then looked at first.
        zfs: the version that was chosen; None where it is chosen with the kernel at hand.
    """

    slug: str
    kernel: str
    platform: Platform
    there: bool
    zfs: str | None

    @property
    def key(self) -> Key:
        return self.slug, self.platform

    @property
    def name(self) -> str:
        """Of the directory that it delivers, and of the artifact."""
        return f"{self.slug}-{architecture(self.platform)}"


@dataclass(frozen=True)
class Plan:
    """What a plan hands over.

    Attributes:
        minute: by which its lots were drawn, see :func:`release.drift.share`: who publishes for it
            looks at what it saw, and at nothing else.
        chosen: slugs of what the run is for, None for all.
    """

    jobs: tuple[Job, ...]
    minute: int
    chosen: frozenset[str] | None = None


def jobs_of(
    targets: Iterable[Target], image_tags: Iterable[str], leave_out: Collection[Key] = ()
) -> list[Job]:
    """The jobs of what is to be done, newest kernels first and no more than a matrix may have;
    what is beyond is left to the next run.

    Args:
        leave_out: what needs no build.
    """
    tags = frozenset(image_tags)
    jobs = [
        Job(
            target.entry.slug,
            str(target.entry.image),
            platform,
            target.entry.slug in tags,
            target.zfs,
        )
        for target in targets
        # Another machine tests those, and publishes them itself.
        if target.to_do and not target.entry.smoke
        for platform in target.platforms
        if platform in RUNNERS and (target.entry.slug, platform) not in leave_out
    ]
    return jobs[:MOST_JOBS]


def matrix(jobs: Iterable[Job]) -> str:
    """The matrix of a workflow's job, in one line of JSON."""
    include = [
        {
            "name": job.name,
            "slug": job.slug,
            "platform": job.platform,
            "runner": RUNNERS[job.platform].label,
            "qemu": RUNNERS[job.platform].qemu,
        }
        for job in jobs
    ]
    return json.dumps({"include": include}, separators=(",", ":"))


def copy(versions: Path, to: Path) -> Path:
    """Begins a plan's directory with copies of ``versions.yaml`` and what lies beside it.

    Returns:
        The copy of ``versions.yaml``.

    Raises:
        ConfigurationError: the file is not there, or wrong; or ``to`` is something else.
    """
    table = load(versions).builders
    if to.exists() and any(to.iterdir()) and not (to / _PLAN).is_file():
        raise ConfigurationError(
            "is not empty, and no plan", on=str(to), hint="name a new directory"
        )
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    write_plan(Plan((), 0), to)
    shutil.copyfile(versions, to / NAME)
    for name in (DESKTOP, STATE, TARBALLS):
        if (file := versions.with_name(name)).is_file():
            shutil.copyfile(file, to / name)
    if table:
        place = to / table.relative_to(versions.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(table, place)
    return to / NAME


def write_plan(plan: Plan, directory: Path) -> None:
    """Adds a plan to its directory."""
    (directory / _PLAN).write_text(json.dumps(asdict(plan), indent=2, default=sorted) + "\n")


def read_plan(directory: Path) -> Plan:
    """What ``plan`` wrote.

    Raises:
        ConfigurationError: there is none.
    """
    path = directory / _PLAN
    try:
        content = json.loads(path.read_bytes())
        jobs = (
            Job(**{**item, "platform": parse_platform(item["platform"])})
            for item in content["jobs"]
        )
        chosen = None if content["chosen"] is None else frozenset(map(str, content["chosen"]))
        return Plan(tuple(jobs), int(content["minute"]), chosen)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            "is not a plan",
            on=str(path),
            detail=f"{type(error).__name__}: {error}",
            hint="make one with: python -m release plan --hand-over DIRECTORY",
        ) from error


# From build to publish


@dataclass(frozen=True)
class Delivery:
    """How a build and its test ended on another machine.

    Attributes:
        status: ``published`` is never among them; ``unchanged`` means that it passed.
        reason: why it did not pass, or what the test took.
        inputs: what a failure that will repeat itself depends on; None for any other end.
        lacking: whether the kernel image itself lacks something, for good.
        image: of what passed: checked, and with the digest that was tested.
    """

    slug: str
    platform: Platform
    status: Status
    reason: str
    seconds: float = 0.0
    inputs: Inputs | None = None
    lacking: bool = False
    image: Layout | None = None

    @property
    def key(self) -> Key:
        return self.slug, self.platform

    @property
    def passed(self) -> bool:
        return self.image is not None

    def built(self) -> Built:
        """What passed, ready to be published."""
        assert self.image
        return Built(self.platform, self.image, self.image.labels(), None)


def deliver(delivery: Delivery, name: str, to: Path) -> Path:
    """Writes a delivery to ``to/name``, in place of what was there."""
    directory = to / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    facts = {
        "slug": delivery.slug,
        "platform": delivery.platform,
        "status": delivery.status,
        "reason": redact(delivery.reason),
        "seconds": delivery.seconds,
        "inputs": asdict(delivery.inputs) if delivery.inputs else None,
        "lacking": delivery.lacking,
        "digest": delivery.image.manifest.digest if delivery.image else None,
    }
    (directory / _FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    if delivery.image:
        shutil.copytree(delivery.image.path, directory / _IMAGE)
    files = sorted(_files(directory).items())
    (directory / SUMS).write_text(checksums((name, file_digest(path)) for name, path in files))
    return directory


def receive(directory: Path, expected: Sequence[Job]) -> dict[Key, Delivery]:
    """What was delivered of what a plan named, below ``directory``, at any depth.

    What is missing, damaged or something else than was asked for has failed, and says so; nothing
    of it is used.
    """
    found: dict[Key, Delivery] = {}
    jobs = {job.name: job for job in expected}
    for job in expected:
        found[job.key] = _failure(job, "its job delivered nothing; see the job's log")
    for facts in sorted(directory.rglob(_FACTS)):
        if one := jobs.get(facts.parent.name):
            try:
                found[one.key] = _read(facts.parent, one)
            except ReleaseError as error:
                found[one.key] = _failure(one, error.summary)
    return found | {job.key: _failure(job, why) for job, why in _contradictions(expected, found)}


def _contradictions(
    jobs: Sequence[Job], found: Mapping[Key, Delivery]
) -> Iterator[tuple[Job, str]]:
    """The builds that had different tarballs of one version of OpenZFS, each with what they had:
    which of them is the right one nobody can tell.
    """
    passed = [(job, found[job.key].built()) for job in jobs if found[job.key].passed]
    seen: dict[str, dict[str, list[str]]] = {}
    for job, built in passed:
        if digest := tarball_of(built.labels):
            seen.setdefault(built.zfs_version, {}).setdefault(digest, []).append(job.name)
    for job, built in passed:
        if len(tarballs := seen.get(built.zfs_version, {})) > 1:
            had = "; ".join(f"{digest}: {', '.join(who)}" for digest, who in tarballs.items())
            yield job, f"two tarballs of ZFS {built.zfs_version} were downloaded: {had}"


def _failure(job: Job, reason: str) -> Delivery:
    return Delivery(job.slug, job.platform, Status.FAILED, reason)


def _read(directory: Path, job: Job) -> Delivery:
    _compare(directory)
    try:
        facts: dict[str, Any] = json.loads((directory / _FACTS).read_bytes())
        delivery = Delivery(
            str(facts["slug"]),
            parse_platform(facts["platform"]),
            Status(facts["status"]),
            str(facts["reason"]),
            float(facts["seconds"]),
            Inputs(**facts["inputs"]) if facts["inputs"] else None,
            bool(facts["lacking"]),
        )
        digest = parse_digest(facts["digest"]) if facts["digest"] else None
    except (ValueError, TypeError, KeyError) as error:
        raise PublishError("the delivery is not understood", on=str(directory)) from error
    if delivery.key != job.key:
        raise PublishError(f"delivers {delivery.slug} for {delivery.platform}", on=job.name)
    return replace(delivery, image=_image(directory / _IMAGE, digest)) if digest else delivery


def _image(directory: Path, digest: Digest) -> Layout:
    """The layout of the image that was tested, every byte of it compared."""
    image = Layout(directory)
    try:
        if image.manifest.digest != digest:
            raise PublishError("holds another image than was tested", on=str(directory))
        for blob, path in image.blobs():
            if file_digest(path) != blob:
                raise PublishError("a blob does not have its digest", on=f"{directory} {blob}")
        # What cannot be compared with others' is not taken.
        tarball_of(image.labels())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PublishError("holds no image that is whole", on=str(directory)) from error
    return image


def _compare(directory: Path) -> None:
    """Makes sure that a delivery has the files that its checksums name, and no others."""
    try:
        lines = (directory / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PublishError(f"has no {SUMS}", on=str(directory)) from error
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {
        name: file_digest(path).removeprefix("sha256:") for name, path in _files(directory).items()
    }
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise PublishError(f"{name} does not have its checksum", on=str(directory))


def _files(directory: Path) -> dict[str, Path]:
    return {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if not path.is_dir() and path != directory / SUMS
    }

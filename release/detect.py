"""Which kernel the Docker engine at hand runs, and which published image is for it.

:mod:`release.probe` looks at the machine, :func:`look_up` asks the registry for the labels of the
images that may fit, and :func:`answer` weighs what both say, without asking anybody. Each claim
carries how sure it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from release.advice import on_the_spot_line
from release.desktop import DesktopMap, Grade, Row, as_yaml, judge, version_key
from release.errors import NotFoundError, ReleaseError, UpstreamError
from release.notes import HOSTS, Host, kernel_version
from release.plan import newest_first
from release.probe import LINUXKIT_YML, Machine
from release.reference import Platform, Reference
from release.registry import Registry
from release.tags import ImageTag
from release.versions import Entry

BANNER_LABEL = "install-zfs.kernel-banner"
FIRST_WITH_HEADERS = "4.31.0"
"""The first Docker Desktop whose virtual machine has the kernel's headers (its release notes:
"Added Linux headers to the VM, to ease the compilation of custom kernel modules").
"""
_LAST_PUBLISHED = "4.13.1"
"""The last Docker Desktop whose kernel image Docker's release notes link."""
_BUILD = (
    "build ZFS for it where it runs, from its own headers; or make a kernel image of it, and add "
    "that to versions.yaml:",
)
_NOT_READ = (UpstreamError, NotFoundError)
_AT_MOST = 12
"""How many published images are looked at."""
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?", re.ASCII)


class Certainty(StrEnum):
    """How sure a claim is, the surest first."""

    CERTAIN = "certain"
    LIKELY = "likely"
    GUESS = "guess"


@dataclass(frozen=True)
class Claim:
    """Something that was found out, how sure it is, and why."""

    value: str
    certainty: Certainty
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.certainty}: {self.reason})"


@dataclass(frozen=True)
class Candidate:
    """A known kernel that the running one may be."""

    entry: Entry
    certainty: Certainty
    reason: str


@dataclass(frozen=True)
class Found:
    """What the registry has for a candidate.

    Attributes:
        banner: of the kernel that the module image is for; None where there is no image.
        failure: why it could not be looked at.
    """

    banner: str | None = None
    failure: ReleaseError | None = None


@dataclass(frozen=True)
class Answer:
    """What ``detect`` tells.

    Attributes:
        kernel: the kernel release.
        image: the module image to run; None where there is none.
        waiting: the known kernel that it is, where no image is published for it yet.
        why: why there is no image; empty where there is one.
        commands: what to type next.
        advice: what to do besides.
        row: evidence that ``desktop.yaml`` does not have.
    """

    machine: Machine
    kernel: Claim
    desktop: Claim | None
    kernel_image: Claim | None
    image: Claim | None
    waiting: Entry | None = None
    why: str = ""
    commands: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    row: Row | None = None


def host_platform(platform: str = sys.platform) -> tuple[Host, ...]:
    """The host that this program runs on, as ``desktop.yaml`` calls it; all where it is unknown."""
    names = {"darwin": "mac", "win32": "windows", "linux": "linux"}
    return tuple(host for host in HOSTS if host == names.get(platform)) or HOSTS


def running_version(machine: Machine) -> str | None:
    """The kernel version: of the kernel image where one is named, else of the kernel release."""
    if image := machine.kernel_image:
        version = ImageTag.parse(image.tag or "").version
        if version:
            return str(version)
    match = _VERSION.match(machine.release)
    return match[0] if match else None


def desktop_of(machine: Machine, known: DesktopMap) -> Claim | None:
    """The Docker Desktop version; None where the engine is none, or nothing tells."""
    if machine.desktop:
        return Claim(
            machine.desktop, Certainty.CERTAIN, f"the engine calls itself {machine.platform}"
        )
    version = running_version(machine)
    if machine.is_wsl2 or not (machine.is_desktop or machine.is_linuxkit) or not version:
        return None
    image = machine.kernel_image
    rows = [row for row in known.rows if image and row.image == image] or [
        row for row in known.rows if kernel_version(row.kernel) == kernel_version(version)
    ]
    versions = sorted({row.desktop for row in rows}, key=version_key)
    if not versions:
        return None
    reason = f"{known.path.name} says that it runs Linux {version}"
    if len(versions) > 1:
        return Claim(" or ".join(versions), Certainty.GUESS, f"{reason}, of each")
    sure = machine.is_desktop
    return Claim(versions[0], Certainty.LIKELY if sure else Certainty.GUESS, reason)


def candidates(
    machine: Machine, known: DesktopMap, entries: Sequence[Entry]
) -> tuple[Candidate, ...]:
    """The known kernels that the running one may be, the surest first."""
    found: dict[str, Candidate] = {}
    for candidate in _candidates(machine, known, entries):
        found.setdefault(candidate.entry.slug, candidate)
    order = list(Certainty)
    return tuple(
        sorted(found.values(), key=lambda candidate: order.index(candidate.certainty))[:_AT_MOST]
    )


def _candidates(
    machine: Machine, known: DesktopMap, entries: Sequence[Entry]
) -> Iterator[Candidate]:
    if machine.is_wsl2:
        return
    if image := machine.kernel_image:
        named = [
            entry
            for entry in entries
            if replace(image, digest=None) in entry.references
            and image.digest in (None, entry.digest)
        ]
        for entry in named:
            sure = Certainty.CERTAIN if len(named) == 1 else Certainty.LIKELY
            moved = "" if len(named) == 1 else f", which has been {len(named)} kernels"
            yield Candidate(entry, sure, f"{LINUXKIT_YML} names it{moved}")
        # It is what was booted: no other kernel can be it.
        return
    version = running_version(machine)
    alike = [entry for entry in entries if version and _is_version(entry, version)]
    if machine.desktop:
        for entry in alike:
            if machine.desktop in entry.desktop:
                reason = f"versions.yaml says that Docker Desktop {machine.desktop} runs it"
                yield Candidate(entry, Certainty.LIKELY, reason)
        for verdict in judge(known, entries):
            if verdict.desktop == machine.desktop and verdict.entry in alike and verdict.entry:
                reason = (
                    f"Docker Desktop {machine.desktop} runs it: {verdict.reason} in "
                    f"{known.path.name}"
                )
                yield Candidate(verdict.entry, Certainty.LIKELY, reason)
    if machine.is_desktop or machine.is_linuxkit:
        for entry in newest_first(alike):
            yield Candidate(entry, Certainty.GUESS, f"it is of the running version, {version}")


def _is_version(entry: Entry, version: str) -> bool:
    tagged = ImageTag.parse(entry.image.tag or "").version
    return tagged is not None and kernel_version(str(tagged)) == kernel_version(version)


def look_up(
    registry: Registry, image: Reference, probable: Iterable[Candidate], platform: Platform
) -> dict[str, Found]:
    """What is published for the candidates, by slug: one list of tags, and labels of what is there.

    A list that cannot be read is a failure of each; nothing is taken to be missing.
    """
    slugs = [one.entry.slug for one in probable]
    if not slugs:
        return {}
    try:
        there = registry.tags(image)
    except _NOT_READ as error:
        return {slug: Found(failure=error) for slug in slugs}
    found = {}
    for slug in slugs:
        if slug not in there:
            found[slug] = Found()
            continue
        try:
            reference = image.with_tag(slug)
            manifest = registry.platforms(reference, registry.get(reference)).get(platform)
            labels = registry.labels(reference, manifest) if manifest else {}
            found[slug] = Found(labels.get(BANNER_LABEL))
        except _NOT_READ as error:
            found[slug] = Found(failure=error)
    return found


def answer(
    machine: Machine,
    known: DesktopMap,
    entries: Sequence[Entry],
    image: Reference,
    found: Mapping[str, Found],
    *,
    hosts: tuple[Host, ...] = HOSTS,
) -> Answer:
    """What all of it comes to.

    Args:
        image: the repository of the module images.
        found: by slug, what it has for the :func:`candidates`.
        hosts: where the Docker Desktop runs, for the evidence that is offered.
    """
    of_container = Certainty.CERTAIN if machine.banner else Certainty.LIKELY
    how = "/proc/version in a container" if machine.banner else "the engine's own word"
    desktop = desktop_of(machine, known)
    probable = candidates(machine, known, entries)
    fits, ruled_out = _weigh(machine, probable, image, found)
    base = Answer(
        machine,
        Claim(machine.release, of_container, how),
        desktop,
        _kernel_image(machine, probable, fits, ruled_out),
        fits[1] if fits else None,
        notes=(
            *((f"not everything could be looked at: {machine.unseen}",) if machine.unseen else ()),
            *_contradiction(machine),
            *ruled_out.values(),
            *(
                f"not known whether it is published: {one.failure.summary}"
                for one in found.values()
                if one.failure
            ),
        ),
        row=_new_row(machine, known, hosts),
    )
    if fits:
        name = fits[1].value.removeprefix("docker.io/")
        return replace(base, commands=(f"docker run --rm --privileged {name}",))
    if ruled_out and len(ruled_out) == len(probable):
        return replace(
            base,
            why="every published image of this version is for another build of it",
            advice=_BUILD,
            commands=_build_commands(image),
        )
    open_ones = [one for one in probable if one.entry.slug not in ruled_out]
    return _without_image(base, open_ones, found, image)


def _contradiction(machine: Machine) -> Iterator[str]:
    if machine.named_image and not machine.kernel_image:
        yield f"{LINUXKIT_YML} names {machine.named_image}, which is not what runs"


def _weigh(
    machine: Machine,
    probable: Iterable[Candidate],
    image: Reference,
    found: Mapping[str, Found],
) -> tuple[tuple[Candidate, Claim] | None, dict[str, str]]:
    """The image that fits best, and by slug why others do not."""
    best: tuple[Candidate, Claim] | None = None
    ruled_out: dict[str, str] = {}
    for one in probable:
        there = found.get(one.entry.slug, Found())
        name = str(image.with_tag(one.entry.slug))
        if there.banner is None:
            continue
        if machine.banner and there.banner == machine.banner:
            reason = f"its label {BANNER_LABEL} is the running kernel's banner"
            return (one, Claim(name, Certainty.CERTAIN, reason)), ruled_out
        if machine.banner:
            ruled_out[one.entry.slug] = f"{name} is for another build: {there.banner}"
        elif not best:
            best = one, Claim(name, one.certainty, one.reason)
    return best, ruled_out


def _kernel_image(
    machine: Machine,
    probable: Sequence[Candidate],
    fits: tuple[Candidate, Claim] | None,
    ruled_out: Mapping[str, str],
) -> Claim | None:
    if machine.kernel_image:
        return Claim(str(machine.kernel_image), Certainty.CERTAIN, f"{LINUXKIT_YML} names it")
    if fits:
        return Claim(str(fits[0].entry.image), fits[1].certainty, fits[1].reason)
    left = [one for one in probable if one.entry.slug not in ruled_out]
    sure = [one for one in left if one.certainty is not Certainty.GUESS]
    if sure or len(left) == 1:
        one = (sure or left)[0]
        return Claim(str(one.entry.image), one.certainty, one.reason)
    return None


def _without_image(
    base: Answer, open_ones: Sequence[Candidate], found: Mapping[str, Found], image: Reference
) -> Answer:
    """Why there is no image, and what can be done."""
    machine = base.machine
    if machine.is_wsl2:
        return replace(
            base,
            why="the kernel is Microsoft's for WSL 2, which is in no kernel image",
            advice=(
                "turn off Settings > General > Use the WSL 2 based engine: Docker Desktop then "
                "runs its own kernel on Hyper-V; then",
            ),
            commands=("python -m release detect",),
        )
    if open_ones:
        best = open_ones[0]
        if best.entry.skip:
            return replace(base, why=f"{best.entry.image} is skipped: {best.entry.skip}")
        unread = any(found.get(one.entry.slug, Found()).failure for one in open_ones)
        is_one = len(open_ones) == 1 or best.certainty is not Certainty.GUESS
        what = (
            f"no module image is published for {best.entry.image}"
            if is_one
            else f"no module image is published for any of {len(open_ones)} kernel images of "
            "this version, and nothing says which of them is the running kernel"
        )
        return replace(
            base,
            waiting=best.entry if is_one else None,
            why="whether an image is published could not be found out" if unread else what,
            advice=() if unread else ("build it here, or publish it:",),
            commands=("python -m release detect",)
            if unread
            else tuple(
                command
                for one in (open_ones[:1] if is_one else open_ones)
                for command in (f"python -m release build {one.entry.slug}",)
            ),
        )
    if kernel := machine.kernel_image:
        return replace(
            base,
            why=f"{kernel} is not among the known kernels",
            advice=(f"add it below kernels: in versions.yaml: - image: {kernel}; then",),
            commands=(f"python -m release sync --only {kernel}",),
        )
    if not (machine.is_desktop or machine.is_linuxkit):
        return replace(
            base,
            why="the kernel is neither Docker Desktop's nor LinuxKit's",
            advice=(
                "install the ZFS of the distribution that it is of (Debian: apt-get install "
                "zfs-dkms); or, where its headers are installed, make a kernel image of it:",
            ),
            commands=("python -m release capture IMAGE",),
        )
    return _unpublished(base, image)


def _build_commands(image: Reference) -> tuple[str, ...]:
    return (on_the_spot_line(image), "python -m release capture IMAGE")


def _unpublished(base: Answer, image: Reference) -> Answer:
    """A kernel of Docker Desktop of which Docker has published no image."""
    version = running_version(base.machine)
    claim = base.desktop
    why = f"no published kernel image of Linux {version} is known"
    exact = claim.value if claim and claim.certainty is not Certainty.GUESS else None
    if exact and version_key(exact) > version_key(_LAST_PUBLISHED):
        why = (
            f"Docker publishes no kernel images since Docker Desktop 4.14, so none of Linux "
            f"{version} either"
        )
    if exact and version_key(exact) < version_key(FIRST_WITH_HEADERS):
        return replace(
            base,
            why=why,
            advice=(
                f"its headers are in the virtual machine since Docker Desktop "
                f"{FIRST_WITH_HEADERS}: update to it or a later one, and run this again",
            ),
        )
    return replace(base, why=why, advice=_BUILD, commands=_build_commands(image))


def _new_row(machine: Machine, known: DesktopMap, hosts: tuple[Host, ...]) -> Row | None:
    """Evidence of which Docker Desktop runs which kernel; None where it is on record."""
    version = running_version(machine)
    if not machine.desktop or machine.is_wsl2 or not version:
        return None
    image = machine.kernel_image
    for row in known.rows:
        if (
            row.desktop == machine.desktop
            and kernel_version(row.kernel) == kernel_version(version)
            and (image is None or row.image == replace(image, digest=None))
        ):
            return None
    if image:
        source, sentence = f"{LINUXKIT_YML} of {machine.platform}", f"kernel: image: {image}"
    else:
        source, sentence = f"/proc/version of {machine.platform}", machine.banner
    return Row(
        machine.desktop,
        version,
        Grade.SEEN,
        source,
        sentence or machine.release,
        hosts,
        image=replace(image, digest=None) if image else None,
    )


# What people see


def show(told: Answer) -> str:
    """The answer as text."""
    lines = [f"Kernel:         {told.kernel}"]
    if told.machine.banner:
        lines.append(f"                {told.machine.banner}")
    engine = " on ".join(
        part for part in (told.machine.platform, told.machine.operating_system) if part
    )
    lines.append(f"Engine:         {engine or 'does not say what it is'}")
    lines.append(f"Docker Desktop: {told.desktop or _no_desktop(told.machine)}")
    lines.append(f"Kernel image:   {told.kernel_image or 'not known'}")
    lines.append(f"Module image:   {told.image or f'none: {told.why}'}")
    lines += [f"Note:           {note}" for note in told.notes]
    lines += ["", *told.advice] if told.advice or told.commands else []
    lines += [f"    {command}" for command in told.commands]
    if told.row:
        lines += [
            "",
            "desktop.yaml does not have this pair of Docker Desktop and kernel; add it below rows:",
            "",
            as_yaml(told.row),
        ]
    return "\n".join(lines) + "\n"


def _no_desktop(machine: Machine) -> str:
    if machine.is_desktop:
        return "one whose version it does not say"
    return "not known" if machine.is_linuxkit else "no"


def as_data(told: Answer) -> dict[str, object]:
    """The answer for programs."""

    def claim(one: Claim | None) -> dict[str, str] | None:
        if not one:
            return None
        return {"value": one.value, "certainty": one.certainty, "reason": one.reason}

    machine = told.machine
    return {
        "kernel": claim(told.kernel),
        "kernel_banner": machine.banner,
        "architecture": machine.architecture,
        "desktop": claim(told.desktop),
        "kernel_image": claim(told.kernel_image),
        "image": claim(told.image),
        "why": told.why,
        "advice": list(told.advice),
        "commands": list(told.commands),
        "notes": list(told.notes),
        "row": as_yaml(told.row) if told.row else None,
    }

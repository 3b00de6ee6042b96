"""How targets end, or stand, that a run does not work on."""

from __future__ import annotations

from collections.abc import Iterable

from release.plan import Target, not_here
from release.reference import Platform, Reference
from release.report import Outcome, Status
from release.versions import Entry
from release.world import native_platform


def settled(target: Target, image: Reference) -> list[Outcome]:
    """The outcomes of a target that this run does not work on."""
    entry = target.entry
    slug_image = str(image.with_tag(entry.slug))
    release = target.release.git_tag if target.release else ""
    if target.left_out:
        platforms = target.platforms or target.elsewhere or (native_platform(),)
        return [
            Outcome(str(entry.image), platform, Status.UNCHANGED)
            if target.held and platform not in target.held
            else Outcome(str(entry.image), platform, target.status, target.left_out)
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
    return unchanged + elsewhere(entry, target.elsewhere)


def outlook(targets: Iterable[Target], image: Reference) -> list[Outcome]:
    """How targets stand: what is still to be done is waiting for a run that does it."""
    outcomes = []
    for target in targets:
        if target.to_do:
            platforms = target.platforms or ("",)
            kernel, name = str(target.entry.image), str(image.with_tag(target.entry.slug))
            outcomes += [
                Outcome(kernel, platform, Status.WAITING, target.reason, image=name)
                for platform in platforms
            ]
        else:
            outcomes += settled(target, image)
    return outcomes


def untouched(target: Target, kept: Iterable[Platform]) -> list[Outcome]:
    """The outcomes of what is published of a kernel that nothing new was made for."""
    return [Outcome(str(target.entry.image), platform, Status.UNCHANGED) for platform in kept]


def elsewhere(entry: Entry, platforms: Iterable[Platform]) -> list[Outcome]:
    return [
        Outcome(str(entry.image), platform, Status.SKIPPED, not_here(platform))
        for platform in sorted(platforms)
    ]

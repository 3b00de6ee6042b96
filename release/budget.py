"""How many kernels a run may publish before somebody's limit of requests is reached. Pure, no I/O.

What does not fit waits for the next run, so that a first fill of hundreds spreads itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from release.plan import Target
from release.reference import DOCKER_HUB, Reference

REQUESTS_AN_HOUR = 1000
"""Of a workflow's ``GITHUB_TOKEN``, to one repository (docs.github.com, "Rate limits for the REST
API", "Primary rate limit for GITHUB_TOKEN in GitHub Actions")."""
CONTENT_AN_HOUR = 500
"""Requests that create content (there, "About secondary rate limits"); in a minute no more than
:data:`release.github.CONTENT_A_MINUTE`."""
PULLS_SIGNED_IN, PULLS_ANONYMOUS = 200, 100
"""GETs of manifests from Docker Hub in six hours, with a free account and without one
(docs.docker.com, "Docker Hub usage and limits")."""
_REQUESTS_BESIDE = 100
"""Of GitHub, that a run makes beside publishing: lists, OpenZFS, what is recorded, issues."""
_PULLS_BESIDE = 10
"""The present ``latest``, and builders."""
_PER_PAGE = 100

USED_UP = "the requests that a run may make are used up; the next run goes on"


@dataclass(frozen=True)
class Requests:
    """What is asked of others, or may be.

    Attributes:
        github: requests to GitHub's API.
        content: those of them that create content.
        pulls: GETs of manifests from Docker Hub.
    """

    github: int
    content: int
    pulls: int

    def __add__(self, other: Requests) -> Requests:
        return Requests(
            self.github + other.github, self.content + other.content, self.pulls + other.pulls
        )

    def within(self, most: Requests) -> bool:
        """Whether all three stay below what is allowed."""
        return (
            self.github <= most.github and self.content <= most.content and self.pulls <= most.pulls
        )


NOTHING = Requests(0, 0, 0)


def allowance(*, signed_in: bool, github_left: int | None, pulls_left: int | None) -> Requests:
    """What a run may use for publishing.

    Args:
        signed_in: to Docker Hub.
        github_left: what GitHub says is left of this hour; None where it says nothing.
        pulls_left: what Docker Hub says is left of these six hours; likewise.
    """
    pulls = PULLS_SIGNED_IN if signed_in else PULLS_ANONYMOUS
    return Requests(
        _least(REQUESTS_AN_HOUR, github_left) - _REQUESTS_BESIDE,
        CONTENT_AN_HOUR,
        _least(pulls, pulls_left) - _PULLS_BESIDE,
    )


def _least(most: int, left: int | None) -> int:
    return most if left is None else min(most, left)


def cost(target: Target, image: Reference, releases: int) -> Requests:
    """What it takes at most to publish a kernel.

    Args:
        image: where module images go.
        releases: how many there are before it; they are listed for each kernel.
    """
    platforms = len(target.platforms) or 1
    # The draft, a tar and what attests it for each platform, the sums, and its publication.
    content = 3 + 3 * platforms
    # The list, two looks at the release and one at its sums; each build may fetch ZFS's tarball.
    github = content + releases // _PER_PAGE + 1 + 3 + 2 * platforms
    pulls = 0
    if target.entry.image.registry == DOCKER_HUB:
        # By us, and by the engine of each build.
        pulls += 1 + platforms
    if image.registry == DOCKER_HUB:
        # What attests the images of both tags, and what `latest` takes.
        pulls += 6 * platforms - 1
    return Requests(github, content, pulls)


def spread(
    costs: Iterable[Requests], first: Requests, most: Requests, limit: int | None = None
) -> tuple[int, ...]:
    """How many kernels each run takes, in their order; the first may take none.

    Args:
        first: what the first run may use.
        most: what each later one may. A kernel that is beyond that has a run of its own, so that
            it stops no other.
        limit: how many kernels a run takes at most; not 0.
    """
    runs = [0]
    used, left = NOTHING, first
    for one in costs:
        full = limit is not None and runs[-1] >= limit
        if full or not (used + one).within(left):
            runs.append(0)
            used, left = NOTHING, most
        runs[-1] += 1
        used += one
    return tuple(runs)


@dataclass(frozen=True)
class Share:
    """What is to be done, cut to what one run may do.

    Attributes:
        targets: all of them; those that this run leaves to later ones are left out.
        runs: how many kernels each run takes, from this one on.
    """

    targets: list[Target]
    runs: tuple[int, ...]

    def __str__(self) -> str:
        """How many runs it takes, in a sentence; empty where this one does it all."""
        if len(self.runs) < 2:
            return ""
        return (
            f"{sum(self.runs)} kernels are to be published: {self.runs[0]} in this run, all of "
            f"them in {len(self.runs)} runs"
        )


def share(
    targets: Sequence[Target],
    image: Reference,
    releases: int,
    first: Requests,
    most: Requests,
    limit: int | None = None,
) -> Share:
    """Leaves to later runs what this one may not do.

    Args:
        image: where module images go.
        releases: how many there are.
        first: what this run may use.
        most: what each later one may.
        limit: how many kernels to work on at most in a run.
    """
    to_do = [number for number, target in enumerate(targets) if target.to_do]
    costs = [cost(targets[n], image, releases + done) for done, n in enumerate(to_do)]
    runs = spread(costs, first, most, limit) if limit != 0 else (0,)
    cut = list(targets)
    for done, number in enumerate(to_do):
        if limit is not None and done >= limit:
            why = f"beyond --limit {limit}; the next run goes on"
            cut[number] = replace(targets[number], left_out=why)
        elif done >= runs[0]:
            cut[number] = replace(targets[number], left_out=USED_UP, waits=True)
    return Share(cut, runs)

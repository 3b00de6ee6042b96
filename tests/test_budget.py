"""A first fill of hundreds of kernels spreads itself over runs, below what others' servers take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.budget import (
    NOTHING,
    USED_UP,
    Requests,
    allowance,
    cost,
    share,
    spread,
)
from release.github import CONTENT_A_MINUTE, GitHub
from release.http import Http
from release.hub import Hub
from release.pace import Pacer
from release.plan import Observed, Target, plan
from release.reference import Platform, Reference, parse_digest
from release.registry import Registry
from release.report import Status
from release.versions import Entry
from tests.lab.github import GitHub as StandIn
from tests.lab.github import Repository
from tests.lab.hub import Hub as HubStandIn
from tests.lab.server import Effect, Response
from tests.lab.small_registry import SmallRegistry
from tests.lab.standin import RateLimit
from tests.recorded import IMAGES, KERNELS, TOKEN, Recorded

BOTH = (Platform("linux/amd64"), Platform("linux/arm64"))
DIGEST = parse_digest("sha256:" + "a" * 64)
ON_THE_HUB = Reference.parse("me/install-zfs")
ELSEWHERE = Reference.parse("ghcr.io/me/install-zfs")
FULL = allowance(signed_in=True, github_left=None, pulls_left=None)


def targets(number: int, repository: str = "linuxkit/kernel") -> list[Target]:
    entries = [
        Entry(Reference.parse(f"{repository}:5.4.{n}"), DIGEST, dict.fromkeys(BOTH, DIGEST))
        for n in range(number)
    ]
    return plan(entries, Observed(frozenset(), ()), platforms=frozenset(BOTH))


def test_a_first_fill_of_600_kernels_spreads_over_runs_newest_first() -> None:
    for image, first, runs in ((ON_THE_HUB, 13, 47), (ELSEWHERE, 52, 14)):
        found = share(targets(600), image, 0, FULL, FULL)
        assert (found.runs[0], len(found.runs), sum(found.runs)) == (first, runs, 600)
        assert str(found) == (
            f"600 kernels are to be published: {first} in this run, all of them in {runs} runs"
        )
        assert [target.to_do for target in found.targets] == [n < first for n in range(600)]
        later = found.targets[first]
        assert (later.status, later.reason) == (Status.WAITING, USED_UP)


def test_what_fits_is_left_alone() -> None:
    found = share(targets(5), ON_THE_HUB, 0, FULL, FULL)
    assert all(target.to_do for target in found.targets)
    assert (found.runs, str(found)) == ((5,), "")
    assert share([], ON_THE_HUB, 0, FULL, FULL).runs == (0,)


def test_a_limit_spreads_it_further_and_keeps_its_words() -> None:
    found = share(targets(50), ELSEWHERE, 0, FULL, FULL, limit=20)
    assert found.runs == (20, 20, 10)
    assert {one.status for one in found.targets[20:]} == {Status.SKIPPED}
    assert "--limit 20" in found.targets[20].reason


def test_what_is_left_says_how_many_there_are_in_this_run_alone() -> None:
    one = cost(targets(1)[0], ELSEWHERE, 0)
    left = allowance(signed_in=True, github_left=100 + 3 * one.github, pulls_left=None)
    assert share(targets(10), ELSEWHERE, 0, left, FULL).runs == (3, 7)
    nothing = allowance(signed_in=True, github_left=0, pulls_left=None)
    found = share(targets(10), ELSEWHERE, 0, nothing, FULL)
    assert found.runs == (0, 10)
    assert not any(target.to_do for target in found.targets)
    no_pulls = allowance(signed_in=False, github_left=None, pulls_left=3)
    assert share(targets(10), ON_THE_HUB, 0, no_pulls, FULL).runs == (0, 10)


def test_what_no_run_could_take_stops_no_other() -> None:
    big, small, most = Requests(9, 9, 9), Requests(1, 1, 1), Requests(2, 2, 2)
    assert spread([small, big, small, small], most, most) == (1, 1, 2)


numbers = st.integers(0, 30)
requests = st.builds(Requests, numbers, numbers, numbers)


@given(st.lists(requests), requests, requests, st.none() | st.integers(1, 5))
def test_all_of_it_is_taken_and_no_run_takes_too_much(
    costs: list[Requests], first: Requests, most: Requests, limit: int | None
) -> None:
    runs = spread(costs, first, most, limit)
    assert sum(runs) == len(costs)
    at = 0
    for number, taken in enumerate(runs):
        used = sum(costs[at : at + taken], start=NOTHING)
        at += taken
        assert used.within(most if number else first) or (number and taken == 1)
        assert limit is None or taken <= limit
        assert taken or not number


# Paces


def test_no_more_pass_in_a_minute_than_are_taken() -> None:
    now, passed = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pacer = Pacer(CONTENT_A_MINUTE, 60, clock=lambda: now, sleep=sleep)
    for number in range(500):
        pacer.wait()
        passed.append(now)
        now += 0.1 if number % 100 else 7
    for at, since in enumerate(passed):
        assert sum(1 for one in passed[at:] if one < since + 60) <= CONTENT_A_MINUTE
    # It waits no longer than it has to.
    assert passed[-1] < 60 * (500 / CONTENT_A_MINUTE)


def test_what_creates_content_is_paced_and_what_reads_is_not() -> None:
    slept: list[float] = []
    pacer = Pacer(2, 60, clock=lambda: 0.0, sleep=slept.append)
    with StandIn() as server:
        server.add(Repository("me", "z"))
        server.add_token(TOKEN, push=["me/z"])
        github = GitHub(Http(), server.url, "me/z", TOKEN, pacer=pacer)
        draft = github.create_draft("a", "a", "a")
        github.describe(draft, "b")
        github.read_back(draft)
        assert slept == []
        github.delete_draft(draft)
        assert slept == [60]
        assert server.violations == []


def test_pages_of_docker_hub_are_paced() -> None:
    slept: list[float] = []
    pacer = Pacer(1, 60, clock=lambda: 0.0, sleep=slept.append)
    with HubStandIn() as server:
        server.repository("linuxkit", "kernel").push("1", DIGEST)
        hub = Hub(Http(), server.url, {}, pacer=pacer)
        for _ in range(2):
            hub.page(Reference.parse("linuxkit/kernel"), 1)
        assert slept == [60]


def test_a_registry_says_how_many_pulls_are_left() -> None:
    with SmallRegistry() as server:
        registry, image = Registry(Http(), {}), Reference.parse(f"{server.host}/me/z:1")
        assert registry.pulls_left(image) is None
        # docs.docker.com, "Docker Hub usage and limits", "View pull rate and limit".
        server.fail("^HEAD ", Response(404, {"ratelimit-remaining": "76;w=21600"}))
        assert registry.head(image) is None
        assert registry.pulls_left(image) == 76


# Whole runs


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Recorded]:
    with Recorded(tmp_path) as setup:
        yield setup
        assert setup.violations == []


def hour(setup: Recorded, requests: int) -> None:
    """An hour begins, in which GitHub takes so many requests."""
    setup.github.rate_limits[TOKEN] = RateLimit(requests, window=3600)


@pytest.mark.parametrize("platforms", [1, 2])
def test_publishing_costs_what_is_reckoned(setup: Recorded, platforms: int) -> None:
    kernel = setup.push_kernel("5.4.39", BOTH[:platforms])
    setup.write_versions(f"  - image: {kernel.reference}\n")
    assert setup.run("plan", "--hand-over", "plan").exit_code == 0
    beside = setup.github.count("/releases") + setup.github.count("/contents/")
    for platform, machine in zip(BOTH[:platforms], ("x86_64", "aarch64"), strict=False):
        setup.machine = machine
        arguments = ("--plan", "plan", "--to", "delivered")
        assert setup.run("hand-over", kernel.slug, platform, *arguments).exit_code == 0
    setup.machine = "x86_64"
    pulls = setup.registry.count(r"^GET \S+/manifests/")
    run = setup.run("sync", "--delivered", "delivered", "--expected", "plan")
    assert run.exit_code == 0, run
    entry = setup.load().kernels[0]
    target = Target(entry, BOTH[:platforms], ())
    reckoned = cost(target, Reference.parse("me/install-zfs"), 0)
    assert setup.github.count("^(POST|PATCH|PUT|DELETE) ") == reckoned.content
    asked = setup.github.count(" /(repos|uploads)/") - beside
    # A run looks at the repository, and at its own releases and OpenZFS's once or twice, too.
    assert reckoned.github - 4 <= asked <= reckoned.github + 10
    mine = setup.registry.count(rf"^GET /v2/({IMAGES}|{KERNELS})/manifests/") - pulls
    assert mine <= reckoned.pulls + 2


def test_runs_go_on_until_all_is_published_newest_first(setup: Recorded) -> None:
    names = [f"5.4.{n}" for n in range(40, 45)]
    kernels = [setup.push_kernel(name) for name in names]
    setup.write_versions()
    one = cost(Target(Entry(Reference.parse(kernels[0].reference)), BOTH[:1], ()), ELSEWHERE, 0)
    hour(setup, 100 + 2 * one.github + 5)
    plan = setup.run("plan")
    assert "5 kernels are to be published: 2 in this run, all of them in 2 runs\n" in plan.stdout
    hour(setup, 100 + 2 * one.github + 5)
    first = setup.run("sync", "--jobs", "1")
    assert first.exit_code == 0, first
    found = {one["kernel"].rpartition(":")[2]: one for one in first.outcomes}
    assert [found[name]["status"] for name in names] == ["waiting"] * 3 + ["published"] * 2
    assert found["5.4.40"]["reason"] == USED_UP
    hour(setup, 1000)
    second = setup.run("sync")
    assert [one["status"] for one in second.outcomes] == ["unchanged"] * 2 + ["published"] * 3
    assert len(setup.releases.releases) == 5
    hour(setup, 1000)
    assert {one["status"] for one in setup.run("sync").outcomes} == {"unchanged"}


def test_a_run_begins_no_kernel_that_others_used_the_requests_of(setup: Recorded) -> None:
    for name in ("5.4.39", "5.4.40", "5.4.41"):
        setup.push_kernel(name)
    setup.write_versions()

    def use_up(effect: Effect) -> None:
        if effect.path.endswith("/releases"):
            setup.github.rate_limits[TOKEN].used = setup.github.rate_limits[TOKEN].limit - 15

    setup.github.effects.on_effect = use_up
    run = setup.run("sync", "--jobs", "1")
    assert [one["status"] for one in run.outcomes] == ["published", "waiting", "waiting"], run
    assert {one["reason"] for one in run.outcomes[1:]} == {USED_UP}

"""One issue for each cause, updated and not repeated, closed when the cause is gone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from release import issues
from release.errors import ConfigurationError, PreflightError
from release.github import GitHub
from release.http import Http
from release.issues import LABEL, MOST_NEW, Results, causes, read, tell
from tests.lab.github import GitHub as Server
from tests.lab.github import Issue, Repository

KERNEL = "docker.io/linuxkit/kernel:5.4.39"
WELL = {"plan": "success", "build": "success", "publish": "success"}
BADLY = {"plan": "success", "build": "failure", "publish": "failure"}


@pytest.fixture
def repository() -> Repository:
    return Repository("me", "zfs")


@pytest.fixture
def github(repository: Repository) -> Iterator[GitHub]:
    with Server() as server:
        server.add(repository)
        server.add_token("writer", push=["me/zfs"], installation=True)
        yield GitHub(Http(), server.url, "me/zfs", "writer")
        assert server.violations == []


def results(
    statuses: Mapping[str, str],
    failures: Mapping[str, str] | None = None,
    jobs: Mapping[str, str] | None = None,
    **more: Any,
) -> Results:
    outcomes = {
        (kernel, "linux/amd64"): {"status": status, "reason": "gcc: `error` @me"}
        for kernel, status in statuses.items()
    }
    said = (failures or {}).items()
    unread = {(on, False): {"what": what, "hint": ""} for on, what in said}
    failed = bool(unread) or "failed" in statuses.values()
    told = frozenset(BADLY) if failed else frozenset[str]()
    jobs = jobs or (BADLY if failed else WELL)
    return Results(outcomes, unread, jobs, looked=True, told=told, **more)


def looks(unread: Iterable[str], *, whole: bool = False) -> Results:
    """A run that could not look at some of what is looked at by lot."""
    failures = {(on, True): {"what": "answered 403", "hint": "wait"} for on in unread}
    return Results({}, failures, WELL, looked=True, whole=whole)


def opened(repository: Repository) -> list[str]:
    return [issue.title for issue in repository.issues if issue.state == "open"]


def test_a_failure_opens_one_issue_which_is_updated_and_closed(
    github: GitHub, repository: Repository
) -> None:
    failing = results({KERNEL: "failed"})
    assert tell(github, failing, "run 1") == [f"opened #1: {KERNEL} {issues.COULD_NOT}"]
    (issue,) = repository.issues
    assert issue.labels == [LABEL]
    # Other people's words are code, not Markdown.
    assert "\n    linux/amd64: gcc: `error` @me\n" in issue.body
    tell(github, failing, "run 2")
    (issue,) = repository.issues
    assert "run 2" in issue.body
    assert "run 1" not in issue.body
    # What this run did not work on is not gone.
    for status in ("waiting", "skipped"):
        tell(github, results({KERNEL: status}), "run 3")
        assert opened(repository) == [issue.title]
    tell(github, results({KERNEL: "published"}), "run 4")
    assert (issue.state, issue.state_reason) == ("closed", "completed")
    assert "Gone in run 4." in issue.body
    # Once more, it is a new one.
    tell(github, failing, "run 5")
    assert [one.number for one in repository.issues if one.state == "open"] == [2]


@pytest.mark.parametrize("given_up", [True, False])
def test_a_kernel_that_is_given_up_or_no_longer_there_is_gone(
    github: GitHub, repository: Repository, given_up: bool
) -> None:
    tell(github, results({KERNEL: "failed"}), "run 1")
    if given_up:
        tell(github, results({KERNEL: "skipped"}, given_up=frozenset({KERNEL})), "run 2")
    else:
        tell(github, results({}), "run 2")
    assert opened(repository) == []


def test_an_upstream_and_a_job_have_issues_of_their_own(
    github: GitHub, repository: Repository
) -> None:
    tell(github, results({}, {"hub.docker.com": "answered 500"}), "run 1")
    assert opened(repository) == ["hub.docker.com could not be read completely"]
    # Nobody looked.
    tell(github, Results({}, {}, {"plan": "failure"}, looked=False), "run 2")
    assert opened(repository) == [
        "hub.docker.com could not be read completely",
        "the job plan of the workflow sync did not end well",
    ]
    tell(github, results({}, jobs={"plan": "success", "build": "skipped"}), "run 3")
    assert opened(repository) == []


def test_an_outage_is_one_cause_whatever_could_not_be_read(
    github: GitHub, repository: Repository
) -> None:
    urls = [f"https://registry.example/v2/me/zfs/manifests/{name}" for name in "ab"]
    tell(github, results({}, dict.fromkeys(urls, "answered 500")), "run 1")
    (issue,) = repository.issues
    assert issue.title == "registry.example could not be read completely"
    assert all(f"    {url}: answered 500\n" in issue.body for url in urls)
    tell(github, results({}, {urls[1]: "answered 500"}), "run 2")
    assert len(repository.issues) == 1
    tell(github, results({}), "run 3")
    assert opened(repository) == []


def test_what_is_looked_at_by_lot_is_not_gone_before_all_is_looked_at(
    github: GitHub, repository: Repository
) -> None:
    tags = ["https://registry.example/v2/me/zfs/manifests/a", "https://registry.example/v2/b"]
    for number, run in enumerate((looks(tags[:1]), looks([]), looks(tags[1:]), looks([]))):
        tell(github, run, f"run {number}")
        assert opened(repository) == ["registry.example could not be read completely"]
        assert len(repository.issues) == 1
    tell(github, looks(tags[:1], whole=True), "run 5")
    assert len(opened(repository)) == 1
    tell(github, looks([], whole=True), "run 6")
    assert opened(repository) == []


def test_a_kernel_that_could_not_be_listed_is_not_gone(
    github: GitHub, repository: Repository
) -> None:
    tell(github, results({KERNEL: "failed"}), "run 1")
    tell(github, results({}, {"hub.docker.com": "answered 500"}), "run 2")
    assert f"{KERNEL} {issues.COULD_NOT}" in opened(repository)
    tell(github, results({}), "run 3")
    assert opened(repository) == []


def test_what_fails_beside_the_kernels_has_an_issue(
    github: GitHub, repository: Repository, tmp_path: Path
) -> None:
    file = tmp_path / "sync.json"
    one = {"kernel": KERNEL, "platform": "linux/amd64", "status": "failed", "reason": "gcc"}
    file.write_text(json.dumps({"outcomes": [one], "failures": []}))
    kernel = f"{KERNEL} {issues.COULD_NOT}"

    def after(plan: str, **steps: str) -> list[str]:
        jobs = {
            "plan": {"result": plan, "outputs": {"matrix": "{}", "build": "true"}},
            "build": {"result": "failure", "outputs": {}},
            "publish": {"result": "failure", "outputs": steps},
        }
        tell(github, read([file], json.dumps(jobs), ()), "a run")
        return opened(repository)

    assert after("success", attest="success", record="success") == [kernel]
    record = "the step record of the job publish of the workflow sync did not end well"
    assert after("success", attest="success", record="failure") == [kernel, record]
    assert after("success", attest="success", record="skipped") == [kernel, record]
    plan = "the job plan of the workflow sync did not end well"
    assert after("failure", attest="success", record="success") == [kernel, plan]


def test_a_tag_that_is_no_kernel_s_has_an_issue_of_its_own(
    github: GitHub, repository: Repository, tmp_path: Path
) -> None:
    file = tmp_path / "sync.json"
    one = {"kernel": KERNEL, "platform": "linux/amd64", "status": "failed", "reason": "gcc"}

    def after(plan: str, publish: str, **content: object) -> list[str]:
        file.unlink(missing_ok=True)
        if content:
            file.write_text(json.dumps({"outcomes": [], "failures": [], **content}))
        jobs = json.dumps({"plan": {"result": plan}, "publish": {"result": publish}})
        tell(github, read([file], jobs, ()), "a run")
        return opened(repository)

    kernel = f"{KERNEL} {issues.COULD_NOT}"
    tag = "the tag latest could not be brought up to date"
    unmoved = {"latest": "me/install-zfs:latest: does not boot"}
    assert after("success", "failure", outcomes=[one], unmoved=unmoved) == [kernel, tag]
    assert after("success", "failure", unmoved=unmoved) == [tag]
    # Neither a job that did not get so far nor one that could not look says that it is gone.
    job = "the job publish of the workflow sync did not end well"
    assert after("success", "failure") == [tag, job]
    assert after("success", "failure", behind=["latest"]) == [tag, job]
    # Publishing was stopped by hand.
    assert after("success", "skipped", behind=["latest"]) == [tag, job]
    unread = {"on": "hub.docker.com", "what": "answered 500", "hint": "", "drawn": False}
    assert tag in after("success", "failure", failures=[unread], unmoved={})
    assert after("success", "failure", outcomes=[one], unmoved={}) == [job, kernel]
    assert after("success", "success", unmoved={}) == []
    assert after("success", "failure", unmoved=unmoved) == [tag]
    assert after("failure", "skipped")[0] == tag
    # Nothing was behind.
    assert after("success", "skipped", behind=[]) == []
    # The other machines are another matter.
    jobs = {"build": {"result": "failure"}, "publish": {"result": "failure"}}
    file.write_text(json.dumps({"outcomes": [], "failures": [], "unmoved": unmoved}))
    assert [cause.of for cause in causes(read([file], json.dumps(jobs), ()))] == ["latest", "build"]


def test_a_job_that_failed_for_its_kernels_has_no_cause_of_its_own() -> None:
    assert [cause.kind for cause in causes(results({KERNEL: "failed"}))] == ["kernel"]
    assert causes(results({KERNEL: "published"}, jobs={"plan": "success"})) == []


def test_a_flood_of_failures_opens_a_few_issues_at_a_time(
    github: GitHub, repository: Repository
) -> None:
    many = results({f"kernel:{n}": "failed" for n in range(MOST_NEW + 3)})
    assert tell(github, many, "run 1")[-1] == "3 more causes get their issues from the next runs"
    assert len(repository.issues) == MOST_NEW
    tell(github, many, "run 2")
    assert len(repository.issues) == MOST_NEW + 3
    tell(github, many, "run 3")
    assert len(repository.issues) == MOST_NEW + 3


def test_issues_of_others_are_left_alone(github: GitHub, repository: Repository) -> None:
    mark = f"<!-- install-zfs: kernel {KERNEL} -->"
    repository.issues += [
        Issue(1, "a stranger's", mark, []),
        Issue(2, "a maintainer's", "about ZFS", [LABEL]),
        Issue(3, "a pull request", mark, [LABEL], pull_request=True),
    ]
    tell(github, results({KERNEL: "published"}), "run 1")
    assert len(opened(repository)) == 3
    tell(github, results({KERNEL: "failed"}), "run 2")
    assert len(opened(repository)) == 4


def test_names_of_others_neither_end_the_mark_nor_overflow(
    github: GitHub, repository: Repository
) -> None:
    for name in ("a --> b\n# c", "x" * 500):
        tell(github, results({}, {name: "answered 500"}), "run 1")
        tell(github, results({}, {name: "answered 500"}), "run 2")
    assert len(repository.issues) == 2
    tell(github, results({}), "run 3")
    assert opened(repository) == []


def test_a_repository_without_issues(github: GitHub, repository: Repository) -> None:
    repository.has_issues = False
    with pytest.raises(PreflightError, match="turn them on"):
        tell(github, results({}), "run 1")


def test_the_later_job_s_word_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "plan.json", tmp_path / "sync.json"
    for file, status in ((first, "waiting"), (second, "failed")):
        one = {"kernel": KERNEL, "platform": "linux/amd64", "status": status}
        file.write_text(json.dumps({"outcomes": [one], "failures": []}))
    found = read([first, second, tmp_path / "none.json"], '{"plan": {"result": "success"}}', ())
    assert [one["status"] for one in found.outcomes.values()] == ["failed"]
    assert found.looked
    assert not read([tmp_path / "none.json"], "{}", ()).looked
    for jobs, content in (("[]", "{}"), ("{}", "[]")):
        first.write_text(content)
        with pytest.raises(ConfigurationError):
            read([first], jobs, ())

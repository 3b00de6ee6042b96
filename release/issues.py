"""One issue for each cause that keeps something from being published, closed when it is gone.

Pure but for :func:`tell`. An issue is known again by a line in its text that people do not see,
and only among those with our label, which strangers cannot set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from release.errors import ConfigurationError
from release.github import GitHub, Issue
from release.report import Status

LABEL = "install-zfs"
COULD_NOT = "could not be built, tested or published"
MOST_NEW = 10
"""How many issues a run opens at most; the next run opens the others."""

_MARK = re.compile(r"<!-- install-zfs: (\S+) (.+?) -->")
_DONE = frozenset({Status.PUBLISHED, Status.UNCHANGED})
_HOST = re.compile(r"https?://([^/]+)")
_ACCOUNTS_FOR = {"plan": ("plan",), "sync": ("build", "publish")}
"""The jobs whose failures a file of results tells of, by its name."""
_HOW_STEPS_END = frozenset({"success", "failure", "cancelled", "skipped"})
_HINT_JOB = "The job's log says why."


@dataclass(frozen=True)
class Cause:
    """Something that went wrong.

    Attributes:
        kind: ``kernel``, ``tag``, ``upstream``, ``look`` (at what is looked at by lot) or ``job``.
        of: which of them.
        title: says the cause, and is the same in every run.
        lines: what is known of it, each in one line of other people's words.
        hint: the next thing to do, in ours.
    """

    kind: str
    of: str
    title: str
    lines: tuple[str, ...]
    hint: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, _plain(self.of) or "-"


@dataclass(frozen=True)
class Results:
    """What the jobs of a run left.

    Attributes:
        outcomes: of kernels, the later job's in place of the earlier one's; by kernel, platform.
        failures: what could not be read, by what it was, and whether that is looked at by lot.
        jobs: how each job ended, in Actions' words: ``success``, ``failure``, ``cancelled`` or
            ``skipped``.
        looked: whether upstream was looked at at all.
        steps: how steps of jobs ended, as far as a job's outputs say it, by ``job/step``.
        told: the jobs whose failure their results account for.
        whole: whether all was looked at, and not a share of it.
        given_up: kernels that a maintainer, or what their image lacks, has taken out.
        behind: tags that are no kernel's and not what they have to be; None where nobody looked.
        unmoved: why they were not brought up to date.
    """

    outcomes: Mapping[tuple[str, str], Mapping[str, Any]]
    failures: Mapping[tuple[str, bool], Mapping[str, Any]]
    jobs: Mapping[str, str]
    looked: bool
    steps: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    told: frozenset[str] = frozenset()
    whole: bool = False
    given_up: frozenset[str] = frozenset()
    behind: frozenset[str] | None = None
    unmoved: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def read(files: Iterable[Path], jobs: str, given_up: Iterable[str]) -> Results:
    """What ``--json`` wrote in each job, in the order of the jobs; a job that did not run has no
    file.

    Args:
        jobs: JSON, the context ``needs`` of a workflow: how each job ended is its ``result``.

    Raises:
        ConfigurationError: something else is there.
    """
    outcomes: dict[tuple[str, str], Mapping[str, Any]] = {}
    failures: dict[tuple[str, bool], Mapping[str, Any]] = {}
    unmoved: dict[str, str] = {}
    behind: frozenset[str] | None = None
    told: set[str] = set()
    looked = whole = False
    for file in files:
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_bytes())
            own = {(one["kernel"], one["platform"]): one for one in content["outcomes"]}
            outcomes |= own
            failures |= {
                (_plain(one["on"]) or "-", one["drawn"] is True): one for one in content["failures"]
            }
            if "behind" in content:
                behind = frozenset(map(str, content["behind"]))
            if "unmoved" in content:
                unmoved = {str(tag): str(why) for tag, why in content["unmoved"].items()}
                behind = frozenset(unmoved)
                told.update(["publish"] if unmoved else [])
            if content["failures"] or any(one["status"] == Status.FAILED for one in own.values()):
                told.update(_ACCOUNTS_FOR.get(file.stem, ()))
            whole = whole or content.get("whole") is True
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError("is not what --json writes", on=str(file)) from error
        looked = True
    try:
        each = json.loads(jobs)
        ended = {str(name): str(job["result"]) for name, job in each.items()}
        steps = {
            f"{name}/{step}": str(how)
            for name, job in each.items()
            for step, how in job.get("outputs", {}).items()
            if how in _HOW_STEPS_END
        }
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigurationError(
            "is not the context of a workflow's jobs",
            on=f"--jobs {jobs!r}",
            hint='write {"plan": {"result": "success"}}',
        ) from error
    return Results(
        outcomes,
        failures,
        ended,
        looked,
        steps,
        frozenset(told),
        whole,
        frozenset(given_up),
        behind,
        unmoved,
    )


def causes(results: Results) -> list[Cause]:
    """What went wrong in a run."""
    found: list[Cause] = []
    failed: dict[str, list[str]] = {}
    for (kernel, platform), one in results.outcomes.items():
        if one["status"] == Status.FAILED:
            failed.setdefault(kernel, []).append(f"{platform}: {one['reason']}")
    for kernel, lines in failed.items():
        hint = (
            "The logs are among the run's artifacts. After three failures with the same inputs "
            "it waits until one of them changes; `force-rebuild` tries it again at once."
        )
        title = f"{kernel} {COULD_NOT}"
        found.append(Cause("kernel", kernel, title, tuple(lines), hint))
    for tag, why in results.unmoved.items():
        title = f"the tag {tag} could not be brought up to date"
        hint = "Every run looks again, and tries again where it is behind. The job's log says more."
        found.append(Cause("tag", tag, title, (why,), hint))
    for (kind, place), failures in _by_place(results).items():
        title = f"{place} could not be read completely"
        said = (f"{on}: {one['what']}" for on, one in failures.items())
        hints = dict.fromkeys(one["hint"] for one in failures.values())
        hint = "Nothing was lost or assumed. Every run tries again."
        found.append(Cause(kind, place, title, (*said, *hints), hint))
    failed_steps = [step for step, how in results.steps.items() if how == "failure"]
    for step in failed_steps:
        job, _, name = step.partition("/")
        title = f"the step {name} of the job {job} of the workflow sync did not end well"
        found.append(Cause("job", step, title, ("failure",), _HINT_JOB))
    # A job that failed for what is told already has no cause of its own.
    told = results.told | {step.partition("/")[0] for step in failed_steps}
    for name, result in results.jobs.items():
        if result not in ("success", "skipped") and name not in told:
            title = f"the job {name} of the workflow sync did not end well"
            found.append(Cause("job", name, title, (result,), _HINT_JOB))
    return found


def _by_place(results: Results) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    """What could not be read, by the kind of look and the server: one outage is one cause."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for (on, drawn), failure in results.failures.items():
        kind = "look" if drawn else "upstream"
        found.setdefault((kind, _place(on)), {})[on] = failure
    return found


def _place(on: str) -> str:
    match = _HOST.match(on)
    return match[1] if match else on


def is_gone(kind: str, of: str, results: Results) -> bool:
    """Whether a run shows that a cause is gone; what was not looked at is not gone."""
    match kind:
        case "kernel" if of in results.given_up:
            return True
        case "kernel":
            seen = [one["status"] for (kernel, _), one in results.outcomes.items() if kernel == of]
            # One that is not among them can be one that could not be listed.
            return _DONE.issuperset(seen) if seen else results.looked and not results.failures
        case "tag":
            behind = results.behind
            return behind is not None and of not in behind and not results.failures
        case "upstream" | "look":
            looked = results.looked and (results.whole or kind == "upstream")
            return looked and (kind, of) not in _by_place(results)
        case "job":
            return "success" in (results.jobs.get(of.partition("/")[0]), results.steps.get(of))
        case _:
            return False


def tell(github: GitHub, results: Results, run: str) -> list[str]:
    """Opens, updates and closes issues; what was done, in lines.

    Args:
        run: the URL of the run.
    """
    known: dict[tuple[str, str], Issue] = {}
    for issue in sorted(github.issues(LABEL), key=lambda one: one.number):
        if mark := _MARK.match(issue.body):
            known.setdefault((mark[1], mark[2]), issue)
    done: list[str] = []
    now = causes(results)
    new = [cause for cause in now if cause.key not in known]
    for cause in new[:MOST_NEW]:
        opened = github.create_issue(_title(cause.title), _body(cause, run), LABEL)
        done.append(f"opened #{opened.number}: {opened.title}")
    if more := len(new) - MOST_NEW:
        done += [f"{more} more causes get their issues from the next runs"] if more > 0 else []
    for cause in now:
        if there := known.get(cause.key):
            if there.body != (body := _body(cause, run)):
                github.edit_issue(there, body=body)
            done.append(f"still there, #{there.number}: {there.title}")
    current = {cause.key for cause in now}
    for key, issue in known.items():
        if key not in current and is_gone(*key, results):
            github.edit_issue(issue, body=f"{issue.body}\n\nGone in {run}.\n", close=True)
            done.append(f"closed #{issue.number}: {issue.title}")
    return done


def _body(cause: Cause, run: str) -> str:
    """An issue's text. What others wrote is shown as code: no Markdown, nobody is mentioned."""
    kind, of = cause.key
    lines: Sequence[str] = [f"    {_plain(line)}" for line in cause.lines if line]
    mark = f"<!-- install-zfs: {kind} {of} -->"
    return "\n".join((mark, "", *lines, "", cause.hint, "", f"Last seen in {run}.")) + "\n"


def _title(text: str) -> str:
    return _plain(text)[:200]


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("-->", "")

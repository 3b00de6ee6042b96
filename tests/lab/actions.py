"""GitHub Actions, as far as our workflows use it: jobs run here, with the words of the file.

Described at https://docs.github.com/actions/reference. What is not known here (a key, a context, a
function, an action or one of its inputs) is an error, as it may be on the real thing. Commands that
a test names are left out; all others are run by bash as a runner does.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

Contexts = Mapping[str, Any]

_JOB_KEYS = frozenset(
    {"name", "needs", "if", "runs-on", "timeout-minutes", "permissions", "outputs", "steps"}
    | {"strategy"}
)
_STEP_KEYS = frozenset({"name", "id", "if", "uses", "with", "run", "env"}) | {"continue-on-error"}
_STATUS = re.compile(r"\b(?:always|cancelled|failure|success)\(\)")
_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+)|'(?P<text>(?:[^']|'')*)'|(?P<name>[A-Za-z_][\w-]*)"
    r"|(?P<symbol>\|\||&&|==|!=|[!().,]))"
)


class Unknown(Exception):  # noqa: N818 - what the workflow says is not known here
    """A workflow says something that is not known here."""


# Expressions


def evaluate(expression: str, contexts: Contexts) -> Any:
    """The value of what stands between ``${{`` and ``}}``.

    Raises:
        Unknown: a context, one of its fixed members, or a function that is not known.
    """
    return _Parser(expression, contexts).whole()


def resolve(value: Any, contexts: Contexts) -> Any:
    """A value of the file, its expressions resolved; one that is nothing else keeps its type."""
    if not isinstance(value, str):
        return value
    if whole := _EXPRESSION.fullmatch(value.strip()):
        return evaluate(whole[1], contexts)
    return _EXPRESSION.sub(lambda match: as_text(evaluate(match[1], contexts)), value)


def as_text(value: Any) -> str:
    """A value as a string, as it comes into an environment."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


class Context(dict[str, Any]):
    """A context whose members are all known; asking for another one is an error.

    Others (``vars``, ``secrets``, outputs) answer with nothing where nothing is set.
    """


class _Parser:
    """Both sides of an operator are evaluated: a wrong name is found wherever it stands."""

    def __init__(self, expression: str, contexts: Contexts) -> None:
        self._contexts = contexts
        self._tokens: list[tuple[str, str]] = []
        position = 0
        text = expression.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if not match or not match.lastgroup:
                raise Unknown(f"{text[position:]!r} in {expression!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()

    def whole(self) -> Any:
        value = self._either()
        if self._tokens:
            raise Unknown(f"{self._tokens[0][1]!r} is not expected")
        return value

    def _next(self, *symbols: str) -> str:
        if self._tokens and self._tokens[0][0] == "symbol" and self._tokens[0][1] in symbols:
            return self._tokens.pop(0)[1]
        return ""

    def _either(self) -> Any:
        value = self._both()
        while self._next("||"):
            other = self._both()
            value = value or other
        return value

    def _both(self) -> Any:
        value = self._compared()
        while self._next("&&"):
            other = self._compared()
            value = value and other
        return value

    def _compared(self) -> Any:
        value = self._single()
        while symbol := self._next("==", "!="):
            other = self._single()
            # Nothing equals an empty string; other types are not compared in our workflows.
            one, two = (("" if each is None else each) for each in (value, other))
            if type(one) is not type(two):
                raise Unknown(f"{one!r} {symbol} {two!r}: of two types")
            value = (one == two) is (symbol == "==")
        return value

    def _single(self) -> Any:
        if self._next("!"):
            return not self._single()
        if self._next("("):
            value = self._either()
            self._expect(")")
            return value
        kind, word = self._tokens.pop(0) if self._tokens else ("end", "the end")
        match kind:
            case "number":
                return int(word)
            case "text":
                return word.replace("''", "'")
            case "name" if word in ("true", "false"):
                return word == "true"
            case "name" if self._next("("):
                return self._call(word)
            case "name":
                return self._member(word)
        raise Unknown(f"{word!r} is not expected")

    def _expect(self, symbol: str) -> None:
        if not self._next(symbol):
            raise Unknown(f"{symbol!r} is missing")

    def _call(self, name: str) -> Any:
        arguments = []
        while not self._next(")"):
            arguments.append(self._either())
            self._next(",")
        match name, arguments:
            case "fromJSON", [str(text)]:
                return json.loads(text)
            case "toJSON", [value]:
                return json.dumps(value, indent=2)
            case (("always" | "cancelled" | "failure" | "success"), []):
                return self._contexts["status"][name]
        raise Unknown(f"{name}() of {len(arguments)} arguments")

    def _member(self, name: str) -> Any:
        if name not in self._contexts or name == "status":
            raise Unknown(f"the context {name!r}")
        value = self._contexts[name]
        while self._next("."):
            _, member = self._tokens.pop(0) if self._tokens else ("end", "")
            if isinstance(value, Context) and member not in value:
                raise Unknown(f"{name}.{member}")
            value = value.get(member) if isinstance(value, dict) else None
        return value


# Jobs


@dataclass(frozen=True)
class Ended:
    """How a job ended, and what its steps printed."""

    result: str
    outputs: Mapping[str, str]
    printed: str
    summary: str


@dataclass
class Run:
    """One run of a workflow.

    Attributes:
        file: the workflow.
        checkout: what ``actions/checkout`` gives: copies a clone to a directory.
        directory: where jobs and artifacts are put.
        contexts: ``github``, ``vars``, ``secrets`` and ``inputs``.
        environment: what the machine has; nothing else is passed on.
        left_out: names of steps whose commands are not for this machine.
        python: what stands for ``.venv/bin/python``.
        attested: names and digests that were signed.
        dies_before: the step before which a job's machine is lost.
    """

    file: Path
    checkout: Callable[[Path, Mapping[str, Any]], None]
    directory: Path
    contexts: Contexts
    environment: Mapping[str, str]
    left_out: frozenset[str]
    python: Path
    ended: dict[str, Ended] = field(default_factory=dict)
    attested: set[tuple[str, str]] = field(default_factory=set)
    dies_before: str = ""

    @property
    def workflow(self) -> dict[Any, Any]:
        return dict(yaml.safe_load(self.file.read_text()))

    @property
    def artifacts(self) -> Path:
        return self.directory / "artifacts"

    def job(self, name: str, matrix: Mapping[str, Any] | None = None) -> Ended:
        """Runs a job, or finds that it is skipped."""
        job = self.workflow["jobs"][name]
        _known(job, _JOB_KEYS, name)
        needed = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        needs = {
            one: Context(result=self.ended[one].result, outputs=self.ended[one].outputs)
            for one in needed
        }
        well = all(one["result"] == "success" for one in needs.values())
        contexts = {**self.contexts, "needs": Context(needs), "status": _status(well)}
        if not _wanted(job, contexts):
            self.ended[name] = Ended("skipped", {}, "", "")
            return self.ended[name]
        contexts["matrix"] = Context(matrix or {})
        self.ended[name] = _Job(self, name, job, contexts).run()
        return self.ended[name]


def _wanted(item: Mapping[str, Any], contexts: Contexts) -> bool:
    """Whether a job or a step runs: without a word on it, where all before it went well."""
    condition = item.get("if", "${{ success() }}")
    if not _EXPRESSION.fullmatch(condition.strip()):
        raise Unknown(f"if: {condition}")
    asks = bool(_STATUS.search(condition))
    return bool(resolve(condition, contexts)) and (asks or contexts["status"]["success"])


def _status(well: bool) -> dict[str, bool]:
    return {"always": True, "cancelled": False, "failure": not well, "success": well}


def _known(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    if unknown := set(found) - set(known):
        raise Unknown(f"{sorted(unknown)} in {where}")


class _Job:
    def __init__(self, run: Run, name: str, job: Mapping[str, Any], contexts: Contexts) -> None:
        self._run = run
        self._job = job
        self._contexts = dict(contexts)
        self._steps: dict[str, Any] = {}
        self._well = True
        self._place = run.directory / "jobs" / f"{name}-{len(run.ended)}"
        self._workspace = self._place / "workspace"
        self._workspace.mkdir(parents=True)
        self._printed = ""

    def run(self) -> Ended:
        ids = [step["id"] for step in self._job["steps"] if "id" in step]
        for step in ids:
            self._steps[step] = Context(outputs={}, outcome="skipped", conclusion="skipped")
        for step in self._job["steps"]:
            if self._run.dies_before and step.get("name") == self._run.dies_before:
                self._well = False
                break
            self._step(step)
        contexts = self._now()
        outputs = {
            name: as_text(resolve(value, contexts))
            for name, value in self._job.get("outputs", {}).items()
        }
        summary = self._file("summary").read_text() if self._file("summary").exists() else ""
        result = "success" if self._well else "failure"
        return Ended(result, Context(outputs), self._printed, summary)

    def _file(self, name: str) -> Path:
        return self._place / name

    def _now(self) -> dict[str, Any]:
        return {**self._contexts, "steps": Context(self._steps), "status": _status(self._well)}

    def _step(self, step: Mapping[str, Any]) -> None:
        _known(step, _STEP_KEYS, str(step))
        contexts = self._now()
        if not _wanted(step, contexts):
            return
        output = self._file("output")
        output.write_text("")
        if "uses" in step:
            inputs = {key: as_text(resolve(v, contexts)) for key, v in step.get("with", {}).items()}
            well = self._use(step["uses"], inputs, output)
        else:
            well = self._bash(step, contexts, output)
        pardoned = step.get("continue-on-error", False) is True
        if name := step.get("id"):
            pairs = (line.partition("=") for line in output.read_text().splitlines())
            outputs = {key: value for key, _, value in pairs}
            how, in_the_end = ("success" if one else "failure" for one in (well, well or pardoned))
            self._steps[name] = Context(outputs=outputs, outcome=how, conclusion=in_the_end)
        self._well = self._well and (well or pardoned)

    def _bash(self, step: Mapping[str, Any], contexts: Contexts, output: Path) -> bool:
        variables = {**self._run.workflow.get("env", {}), **step.get("env", {})}
        resolved = {name: as_text(resolve(value, contexts)) for name, value in variables.items()}
        if step.get("name") in self._run.left_out:
            return True
        github = self._contexts["github"]
        environment = {
            **self._run.environment,
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_API_URL": github["api_url"],
            "GITHUB_OUTPUT": str(output),
            "GITHUB_REPOSITORY": github["repository"],
            "GITHUB_RUN_ID": github["run_id"],
            "GITHUB_SERVER_URL": github["server_url"],
            "GITHUB_SHA": github["sha"],
            "GITHUB_STEP_SUMMARY": str(self._file("summary")),
            **resolved,
        }
        done = subprocess.run(
            ["bash", "-e", "-c", resolve(step["run"], contexts)],
            cwd=self._workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        self._printed += done.stdout
        return done.returncode == 0

    def _use(self, action: str, inputs: dict[str, str], output: Path) -> bool:
        name, _, pin = action.partition("@")
        if not re.fullmatch("[0-9a-f]{40}", pin):
            raise Unknown(f"{action} is not pinned by a commit")
        match name:
            case "actions/checkout":
                _known(inputs, ("persist-credentials", "ref"), action)
                self._run.checkout(self._workspace, inputs)
                binaries = self._workspace / ".venv" / "bin"
                binaries.mkdir(parents=True)
                (binaries / "python").symlink_to(self._run.python)
            case "actions/upload-artifact":
                return self._upload(action, inputs)
            case "actions/download-artifact":
                return self._download(action, inputs)
            case "actions/github-script":
                _known(inputs, ("script",), action)
                names = re.findall(r"setOutput\('(\w+)'", inputs["script"])
                output.write_text("".join(f"{one}=a {one}\n" for one in names))
            case "actions/attest-build-provenance":
                _known(inputs, ("subject-checksums",), action)
                return self._attest(self._workspace / inputs["subject-checksums"])
            case _:
                raise Unknown(f"the action {name}")
        return True

    def _attest(self, checksums: Path) -> bool:
        """Signs what a file names, as sha256sum writes it, and stores that at GitHub."""
        permissions = self._job["permissions"]
        if {permissions.get(one) for one in ("attestations", "id-token")} != {"write"}:
            return False
        lines = checksums.read_text().splitlines()
        found = [re.fullmatch(r"([0-9a-f]{64})  (\S+)", line) for line in lines]
        subjects = [(one[2], one[1]) for one in found if one]
        if len(subjects) < len(found) or not 0 < len(found) <= 1024:
            return False
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": hex_}} for name, hex_ in subjects],
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {},
        }
        payload = base64.b64encode(json.dumps(statement).encode()).decode()
        envelope = {
            "payloadType": "application/vnd.in-toto+json",
            "payload": payload,
            "signatures": [{"sig": "bm9uZQ=="}],
        }
        media_type = "application/vnd.dev.sigstore.bundle.v0.3+json"
        github = self._contexts["github"]
        answer = requests.post(
            f"{github['api_url']}/repos/{github['repository']}/attestations",
            json={"bundle": {"mediaType": media_type, "dsseEnvelope": envelope}},
            headers={"Authorization": f"Bearer {github['token']}"},
            timeout=10,
        )
        if answer.status_code == 201:
            self._run.attested.update((name, f"sha256:{hex_}") for name, hex_ in subjects)
        return answer.status_code == 201

    def _upload(self, action: str, inputs: dict[str, str]) -> bool:
        known = ("name", "path", "if-no-files-found", "overwrite", "retention-days")
        _known(inputs, known, action)
        to = self._run.artifacts / inputs["name"]
        if to.exists() and inputs.get("overwrite") != "true":
            raise Unknown(f"the artifact {inputs['name']} is there already")
        if bad := set(inputs["name"]) & set('":<>|*?\r\n\\/'):
            raise Unknown(f"an artifact's name may not have {bad}")
        paths = [self._workspace / line for line in inputs["path"].split()]
        there = [path for path in paths if path.is_dir() and any(path.rglob("*"))]
        if there:
            shutil.rmtree(to, ignore_errors=True)
        for path in there:
            # The root of an artifact is what its paths have in common.
            shutil.copytree(path, to if len(paths) == 1 else to / path.name)
        return bool(there) or inputs.get("if-no-files-found") == "ignore"

    def _download(self, action: str, inputs: dict[str, str]) -> bool:
        _known(inputs, ("name", "pattern", "path", "merge-multiple"), action)
        to = self._workspace / inputs["path"]
        if "name" in inputs:
            found = [self._run.artifacts / inputs["name"]]
            if not found[0].is_dir():
                return False
        else:
            found = sorted(self._run.artifacts.glob(inputs["pattern"]))
        merged = "name" in inputs or inputs.get("merge-multiple") == "true"
        for artifact in found:
            target = to if merged else to / artifact.name
            shutil.copytree(artifact, target, dirs_exist_ok=True)
        return True

"""Commits what a run wrote down, and pushes it to where the checkout came from."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Mapping
from pathlib import Path

from release.errors import PublishError
from release.http import redact

_PUSHES = 5
"""How often a push is tried: each time somebody else has pushed meanwhile, we go behind them."""
_TIMEOUT_SECONDS = 120.0
_NAME = "github-actions[bot]"
_MAIL = "41898282+github-actions[bot]@users.noreply.github.com"


def commit(
    directory: Path, files: tuple[str, ...], message: str, environment: Mapping[str, str]
) -> str:
    """Commits those of ``files`` that changed, and pushes the branch that is checked out.

    Returns:
        The commit that is there now; empty where nothing had changed.

    Raises:
        PublishError: it could not be pushed, or somebody else changed the same lines.
    """
    git = _Git(directory, environment)
    branch = git("symbolic-ref", "--short", "HEAD")
    there = [name for name in files if (directory / name).is_file()]
    git("add", "--", *there)
    if git.says_no("diff", "--cached", "--quiet"):
        git("commit", "--quiet", "--message", message)
    elif not git.says_no("diff", "--quiet", f"origin/{branch}", "HEAD"):
        return ""
    refusal = ""
    for _ in range(_PUSHES):
        if not git.says_no("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}"):
            return git("rev-parse", "HEAD")
        refusal = git.last
        git("fetch", "--quiet", "origin", branch)
        if git.says_no("rebase", "--quiet", f"origin/{branch}"):
            git("rebase", "--abort")
            raise PublishError(
                "what was published could not be recorded: somebody else changed the same lines",
                on=", ".join(there),
                hint="run again; what is published is found again and recorded",
            )
    raise PublishError(
        "what was published could not be recorded: the branch takes no push",
        on=git("remote", "get-url", "origin"),
        detail=refusal,
        hint="let the workflow push to the branch (contents: write, and no rule against it)",
    )


class _Git:
    """git in one checkout, without the settings of whoever runs it.

    Attributes:
        last: the last lines that it printed on stderr.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.last = ""
        self._directory = directory
        self._environment = {
            **environment,
            "GIT_AUTHOR_NAME": _NAME,
            "GIT_AUTHOR_EMAIL": _MAIL,
            "GIT_COMMITTER_NAME": _NAME,
            "GIT_COMMITTER_EMAIL": _MAIL,
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }
        if token := environment.get("GITHUB_TOKEN"):
            # By the environment: a command's arguments are for everybody on the machine to read.
            # The name and the header are those of actions/checkout.
            server = environment.get("GITHUB_SERVER_URL", "https://github.com")
            login = base64.b64encode(f"x-access-token:{token}".encode()).decode()
            self._environment |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{server}/.extraheader",
                "GIT_CONFIG_VALUE_0": f"AUTHORIZATION: basic {login}",
            }

    def __call__(self, *arguments: str) -> str:
        done = self._run(arguments)
        if done.returncode != 0:
            raise PublishError(
                f"git {arguments[0]} ended with {done.returncode}",
                on=str(self._directory),
                detail=self.last,
            )
        return done.stdout.strip()

    def says_no(self, *arguments: str) -> bool:
        return self._run(arguments).returncode != 0

    def _run(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PublishError(
                f"git {arguments[0]} took longer than {_TIMEOUT_SECONDS:.0f} s",
                on=str(self._directory),
            ) from error
        self.last = redact("\n".join(done.stderr.splitlines()[-10:]))
        return done

"""What people and programs see: progress on stderr, results on stdout, JSON, a job summary."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from release.errors import ReleaseError
from release.http import redact
from release.reference import Platform

_MOST_SUMMARY = 900_000
"""GitHub drops a step's summary of more than 1 MiB."""
_MOST_CELL = 1000


class Status(StrEnum):
    """How a target ended."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    WAITING = "waiting"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """How one kernel on one platform ended.

    Attributes:
        kernel: the kernel image, with its tag.
        reason: why, in a line; empty where there is nothing to say.
        image: the module image, with its tag.
        digest: of the module image's manifest for this platform, where it is known.
        github_release: the git tag of the GitHub release, where it is known.
        seconds: that this run spent on the kernel.
    """

    kernel: str
    platform: Platform | str
    status: Status
    reason: str = ""
    image: str = ""
    digest: str = ""
    github_release: str = ""
    seconds: float = 0.0


class Report:
    """Shows progress while it lasts: a display on a terminal, plain lines elsewhere.

    Safe to use from several threads.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._actions = environment.get("GITHUB_ACTIONS") == "true"
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._steps: dict[str, tuple[str, float]] = {}
        self._done: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._actions:
            self._live = Live(console=self._console, get_renderable=self._display, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _display(self) -> Table:
        table = Table.grid(padding=(0, 1))
        with self._lock:
            now = time.monotonic()
            for name, (step, since) in self._steps.items():
                table.add_row(Spinner("dots"), Text(name), Text(step), f"{now - since:.0f} s")
        return table

    def say(self, text: str) -> None:
        """Lines on stderr."""
        text = shown(text)
        self._console.print(Text(without_commands(text) if self._actions else text))

    def step(self, name: str, step: str) -> None:
        """``name`` (a slug) is now at ``step``; an empty step means that it is done."""
        now = time.monotonic()
        with self._lock:
            if before := self._steps.pop(name, None):
                self._done.setdefault(name, []).append(f"{before[0]}: {now - before[1]:.1f} s")
            if step:
                self._steps[name] = (step, now)
            done = [] if step else self._done.pop(name, [])
        if self._actions:
            # Kernels are worked on side by side: each gets its group when it is done.
            if done:
                lines = (f"::group::{_data(name)}", *done, "::endgroup::")
                self._console.print(Text(shown("\n".join(lines))))
        elif step and not self._live:
            self.say(f"{name}: {step}")

    def fail(self, error: ReleaseError) -> None:
        """An expected failure, whole; under Actions also as an annotation of the run."""
        text = shown(str(error))
        if self._actions:
            sys.stderr.write(f"::error title={_property(shown(error.summary))}::{_data(text)}\n")
        else:
            self._console.print(Text(f"error: {text}", style="red"))

    def warn(self, text: str) -> None:
        """Something that holds nothing up, but that somebody should know."""
        text = shown(text)
        if self._actions:
            sys.stderr.write(f"::warning::{_data(text)}\n")
        else:
            self._console.print(Text(f"warning: {text}", style="yellow"))

    def requests(self, counted: Counter[str], budget: int | None = None) -> None:
        """How many requests went to which host.

        Args:
            budget: how many a poll may make, told where a tenth of it is used.
        """
        if counted:
            hosts = ", ".join(f"{number} to {host}" for host, number in sorted(counted.items()))
            at_most = (
                f"; a poll may make {budget}" if budget and counted.total() * 10 > budget else ""
            )
            self.say(f"requests: {counted.total()} ({hosts}{at_most})")

    def output(self, **values: str) -> None:
        """Outputs of a workflow's step, each a single line; nothing elsewhere."""
        if file := self._environment.get("GITHUB_OUTPUT"):
            with Path(file).open("a") as out:
                for name, value in values.items():
                    assert "\n" not in value
                    out.write(f"{name}={value}\n")

    def outcomes(
        self,
        outcomes: Sequence[Outcome],
        to: Path | None,
        failures: Iterable[ReleaseError] = (),
        *,
        whole: bool = False,
        unmoved: Mapping[str, ReleaseError] = MappingProxyType({}),
    ) -> None:
        """The result: a table on stdout, JSON to a file, and the job's summary under Actions.

        Args:
            failures: what could not be read, for the JSON.
            whole: whether all was looked at, and not a share of it, for the JSON.
            unmoved: why tags that are no kernel's stay as they were, for the JSON.
        """
        rows = [
            (one.status, one.kernel, one.platform, f"{one.seconds:.0f} s", one.reason)
            for one in outcomes
        ]
        table(("STATUS", "KERNEL", "PLATFORM", "TIME", "REASON"), rows)
        tags = {name: error.summary for name, error in unmoved.items()}
        write_json(outcomes, to, failures=as_data(failures), whole=whole, unmoved=tags)
        self.summary(outcomes)

    def summary(self, outcomes: Sequence[Outcome]) -> None:
        """The outcomes as a table in the job's summary; nothing elsewhere."""
        if outcomes and (summary := self._environment.get("GITHUB_STEP_SUMMARY")):
            with Path(summary).open("a") as file:
                file.write(redact(_markdown(outcomes, _MOST_SUMMARY)))


def as_data(failures: Iterable[ReleaseError]) -> list[dict[str, str | bool]]:
    """What could not be read, for programs."""
    return [
        {"on": one.on, "what": one.what, "hint": one.hint, "drawn": one.drawn} for one in failures
    ]


def write_json(outcomes: Sequence[Outcome], to: Path | None, **more: object) -> None:
    """Writes the outcomes for programs, and what else there is, where a file was named."""
    if to:
        content = {"outcomes": [asdict(one) for one in outcomes], **more}
        to.write_text(redact(json.dumps(content, indent=2)) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """An aligned table on stdout; nothing is cut where stdout is not a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        sys.stdout.write(without_commands(_plain(header, rows)))
        return
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in header:
        grid.add_column(name, no_wrap=name not in ("REASON", "DESKTOP"), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(shown(str(cell))) for cell in row))
    with console.capture() as captured:
        console.print(grid)
    lines = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    sys.stdout.write(without_commands(lines))


def _plain(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The table for what is no terminal, where thousands of rows take no time."""
    cells = [
        line
        for row in (header, *rows)
        for line in zip_longest(*(shown(str(cell)).split("\n") for cell in row), fillvalue="")
    ]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        )
        for row in cells
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def shown(text: str) -> str:
    """Text as a terminal may get it, whoever wrote it: without secrets, and without characters that
    would steer it.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in redact(text))


def without_commands(text: str) -> str:
    """Lines that Actions would take for commands, as text (actions/runner, ``ActionCommand``)."""
    text = text.replace("##[", "## [")
    return "\n".join(
        f"| {line}" if line.lstrip().startswith("::") else line for line in text.split("\n")
    )


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _data(text: str) -> str:
    """Escapes a workflow command's data (actions/toolkit, ``command.ts``)."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _markdown(outcomes: Sequence[Outcome], most: int) -> str:
    """A table, of as many rows as fit in ``most`` bytes."""
    lines = [
        "| status | kernel | platform | module image | reason |",
        "|---|---|---|---|---|",
    ]
    for one in outcomes:
        cells = (one.status, one.kernel, one.platform, one.image, one.reason)
        lines.append("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |")
    size = 0
    for number, line in enumerate(lines):
        size += len(line.encode()) + 1
        if size > most:
            return "\n".join((*lines[:number], "", f"and {len(lines) - number} more")) + "\n"
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Other people's text in a Markdown table: as code, on one line."""
    clean = " ".join(shown(text).split()).replace("`", "'").replace("|", "/")
    if len(clean) > _MOST_CELL:
        clean = f"{clean[:_MOST_CELL]} ..."
    return f"`{clean}`" if clean else ""

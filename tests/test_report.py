"""What people and programs get to see. Golden files are in ``golden/report``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from release.errors import BuildError
from release.report import Outcome, Report, Status, table

GOLDEN = Path(__file__).parent / "golden" / "report"
SHA256 = "sha256:" + "a" * 64
OUTCOMES = [
    Outcome(
        "docker.io/docker/for-desktop-kernel:5.15.49-13422a825f833d125942948cf8a8688cef721ead",
        "linux/amd64",
        Status.PUBLISHED,
        image="docker.io/me/install-zfs:docker-for-desktop-kernel-5.15.49",
        digest=SHA256,
        github_release="docker-for-desktop-kernel-5.15.49-zfs-2.1.5",
        seconds=61.6,
    ),
    Outcome("docker.io/linuxkit/kernel:5.4.39", "linux/amd64", Status.UNCHANGED),
    Outcome(
        "docker.io/linuxkit/kernel:6.99.1",
        "linux/amd64",
        Status.WAITING,
        "no OpenZFS release is for Linux 6.99.1 yet",
    ),
    Outcome(
        "docker.io/linuxkit/kernel:4.19.76",
        "linux/arm64",
        Status.FAILED,
        "gcc says: `a | b`\n[bold]no[/bold] token: hunter2 " + "and a long text " * 12,
        seconds=3.0,
    ),
]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "hunter2")


def test_the_table_and_the_summary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# From an earlier step\n\n")
    Report({"GITHUB_STEP_SUMMARY": str(summary)}).outcomes(OUTCOMES, None)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (GOLDEN / "table.txt").read_text()
    assert summary.read_text() == (GOLDEN / "summary.md").read_text()


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.json"
    Report({}).outcomes(OUTCOMES, file)
    text = file.read_text()
    assert "hunter2" not in text
    first, *_, last = json.loads(text)["outcomes"]
    assert first == {
        "kernel": OUTCOMES[0].kernel,
        "platform": "linux/amd64",
        "status": "published",
        "reason": "",
        "image": OUTCOMES[0].image,
        "digest": SHA256,
        "github_release": OUTCOMES[0].github_release,
        "seconds": 61.6,
    }
    assert last["status"] == "failed"
    assert "`a | b`\n" in last["reason"]


def test_a_cell_of_the_summary_cannot_leave_its_cell(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    reason = "`</table>` | [link](http://x)\r\n\n# a heading\x0b## b | ``` c"
    Report({"GITHUB_STEP_SUMMARY": str(summary)}).outcomes(
        [Outcome("kernel", "linux/amd64", Status.FAILED, reason)], None
    )
    *_, row = summary.read_text().splitlines()
    assert row.count("|") == 6
    assert row.count("`") == 8
    assert len(summary.read_text().splitlines()) == 3


FAILURE = BuildError(
    "the build failed",
    on="linuxkit/kernel:5.4.39, 100%",
    detail="make: *** [hunter2] Error 1\n::set-output name=x::y",
    hint="look at the log",
)


def test_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    Report({}).fail(FAILURE)
    assert capsys.readouterr().err == (
        "error: linuxkit/kernel:5.4.39, 100%: the build failed\n"
        "    make: *** [<GITHUB_TOKEN>] Error 1\n"
        "    ::set-output name=x::y\n"
        "  next: look at the log\n"
    )


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({}, "warning: 100% new\n::stop\n"),
        ({"GITHUB_ACTIONS": "true"}, "::warning::100%25 new%0A::stop\n"),
    ],
)
def test_a_warning(
    capsys: pytest.CaptureFixture[str], environment: dict[str, str], shown: str
) -> None:
    Report(environment).warn("100% new\n::stop")
    assert capsys.readouterr().err == shown


def test_a_failure_is_one_annotation_under_actions(capsys: pytest.CaptureFixture[str]) -> None:
    Report({"GITHUB_ACTIONS": "true"}).fail(FAILURE)
    assert capsys.readouterr().err == (
        "::error title=linuxkit/kernel%3A5.4.39%2C 100%25%3A the build failed::"
        "linuxkit/kernel:5.4.39, 100%25: the build failed%0A"
        "    make: *** [<GITHUB_TOKEN>] Error 1%0A"
        "    ::set-output name=x::y%0A"
        "  next: look at the log\n"
    )


def test_the_title_of_an_annotation_is_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    Report({"GITHUB_ACTIONS": "true"}).fail(BuildError("failed", on="https://me:pw@host/hunter2"))
    shown = capsys.readouterr().err
    assert "hunter2" not in shown
    assert "pw" not in shown


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Report({}) as report:
        report.step("linuxkit-kernel-5.4.39", "build [red]ZFS[/red] 2.1.5")
        report.step("linuxkit-kernel-5.4.39", "")
        report.say("password: hunter2")
        report.requests(Counter({"hub.docker.com": 2, "api.github.com": 1}))
        report.requests(Counter({"hub.docker.com": 2}), budget=20)
        report.requests(Counter({"hub.docker.com": 3}), budget=20)
        report.requests(Counter())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "linuxkit-kernel-5.4.39: build [red]ZFS[/red] 2.1.5",
        "password: <GITHUB_TOKEN>",
        "requests: 3 (1 to api.github.com, 2 to hub.docker.com)",
        "requests: 2 (2 to hub.docker.com)",
        "requests: 3 (3 to hub.docker.com; a poll may make 20)",
    ]


def test_a_table_cuts_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    table(("A", "REASON"), [("x" * 300, "y" * 300)])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["A", "REASON"]
    assert row.split() == ["x" * 300, "y" * 300]

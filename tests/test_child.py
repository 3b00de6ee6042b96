"""Commands whose output goes into a log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from release import child


def test_what_a_command_prints_is_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "command.log"
    command = ["sh", "-c", "echo $WORD; echo loudly >&2; exit 3"]
    assert child.logged(command, log, {**os.environ, "WORD": "quietly"}, 60) == 3
    assert log.read_text() == "quietly\nloudly\n"


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="did not end in 0 minutes"):
        child.logged(["sleep", "60"], tmp_path / "log", os.environ, 0.2)
    assert time.monotonic() - started < 30


def test_an_interrupt_that_gets_lost_ends_the_run_at_the_next_child() -> None:
    code = (
        "import signal, weakref\n"
        "from release import child, cli\n"
        "class It: pass\n"
        "signal.signal(signal.SIGINT, cli._interrupt)\n"
        # Python ignores what a callback of a weak reference raises.
        "ref = weakref.ref(It(), lambda _: signal.raise_signal(signal.SIGINT))\n"
        "print('goes on')\n"
        "with child.running(['echo', 'started']): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "goes on\n"
    assert "KeyboardInterrupt" in done.stderr.splitlines()[-1]


def test_a_command_that_passes_no_signal_on_is_ended_with_its_child(tmp_path: Path) -> None:
    """As docker, where its plugin had not begun when it was signalled."""
    script = (
        "trap : TERM; sleep 60 & plugin=$!; echo $plugin >plugin; "
        "while kill -0 $plugin 2>/dev/null; do wait $plugin; done; exit 7"
    )
    started = time.monotonic()
    with child.running(["sh", "-c", script], cwd=tmp_path) as process:
        while not (tmp_path / "plugin").is_file() or not (tmp_path / "plugin").read_text():
            time.sleep(0.02)
    assert process.returncode == 7
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "plugin").read_text()), 0)

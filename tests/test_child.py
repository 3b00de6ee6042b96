"""Commands whose output goes into a log."""

from __future__ import annotations

import os
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

"""Child processes that do not outlive this one: all are ended when a run is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_GRACE_SECONDS = 5

_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()
_ended = threading.Event()


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts ``command`` (never through a shell) and makes sure that it has ended afterwards.

    Raises:
        KeyboardInterrupt: the run is being interrupted, nothing is started any more.
    """
    with _lock:
        if _ended.is_set():
            raise KeyboardInterrupt
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        _running.add(process)
    try:
        yield process
    finally:
        _end(process)
        with _lock:
            _running.discard(process)


def logged(
    command: Sequence[str], log: Path, environment: Mapping[str, str], limit_seconds: float
) -> int:
    """Runs ``command`` to its end, with all that it prints in ``log``; returns its exit code.

    Raises:
        TimeoutError: it did not end in time, and was ended.
        KeyboardInterrupt: the run is being interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        log.open("wb") as output,
        running(command, stdout=output, stderr=output, env=dict(environment)) as process,
    ):
        while process.poll() is None:
            if time.monotonic() - started > limit_seconds:
                raise TimeoutError(f"did not end in {limit_seconds / 60:.0f} minutes")
            time.sleep(0.05)
        return int(process.returncode)


def stop() -> None:
    """Lets no more children be started. For handlers of signals, whose exceptions can get lost."""
    _ended.set()


def interrupt() -> None:
    """Ends all children and starts none any more."""
    stop()
    with _lock:
        processes = tuple(_running)
    for process in processes:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        for _ in range(_GRACE_SECONDS):
            # docker passes a signal on only to a plugin that runs already (docker/cli,
            # cmd/docker/docker.go, "tryPluginRun"), and then waits for its end.
            _signal_children(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
                break
        else:
            _signal_children(process, signal.SIGKILL)
            process.kill()
    process.wait()


def _signal_children(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signals the children of a process, where /proc tells of them (proc_pid_children(5))."""
    with suppress(OSError):
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(pid), number)

"""Keeps requests below what a server takes in a while."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

MINUTE = 61.0
"""Seconds; one more than there are, for requests take differently long to arrive."""


class Pacer:
    """Lets no more than ``most`` pass in any ``seconds``. Safe to share between threads.

    Args:
        clock: seconds that never go back.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        most: int,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._passed: deque[float] = deque(maxlen=most)
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Waits until one more may pass."""
        with self._lock:
            now = due = self._clock()
            if len(self._passed) == self._passed.maxlen:
                due = max(now, self._passed[0] + self._seconds)
            self._passed.append(due)
        if due > now:
            self._sleep(due - now)

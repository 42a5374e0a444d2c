"""A circuit breaker: a dependency that has just failed is left alone for a while, instead of a time-out per request.

Pure: the time is an argument. After the pause one batch tries again; each failure in a row doubles the pause.
"""

from __future__ import annotations


class Breaker:
    """Open (do not try) or closed (try). `wait_s` is the first pause, `most_s` the longest."""

    def __init__(self, wait_s: float = 0.5, most_s: float = 5.0) -> None:
        self._first_ms, self._most_ms = wait_s * 1000, most_s * 1000
        self._pause_ms = 0.0
        self._until_ms = 0.0
        self._reason = ""

    @property
    def is_open(self) -> bool:
        """True if the last try has failed."""
        return self._pause_ms > 0

    @property
    def last_reason(self) -> str:
        """The reason of the last failure."""
        return self._reason

    def reason(self, now_ms: int) -> str | None:
        """The reason not to try now; None: try. A clock that went back, before the pause began, ends the pause."""
        return self._reason if self._until_ms - self._pause_ms <= now_ms < self._until_ms else None

    def failed(self, now_ms: int, reason: str) -> None:
        self._pause_ms = min(self._most_ms, 2 * self._pause_ms) if self._pause_ms else self._first_ms
        self._until_ms = now_ms + self._pause_ms
        self._reason = reason

    def succeeded(self) -> None:
        self._pause_ms = self._until_ms = 0.0

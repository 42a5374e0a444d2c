"""A machine's clock, as far as it can be believed: it may jump by an hour, forward or back, and nothing must be lost.

Two things are asked of a clock. How much time has passed: a jump is no time that passed, so a step that is too large
to be one counts as none (a machine that slept has seen nothing meanwhile either). And how late it may be at most, to
tell a stamp that is ahead of its time: that never goes back. Pure: whoever owns it tells it the time, often. Only
`running_s` reads a clock itself.
"""

from __future__ import annotations

import time

LEAP_MS = 600_000  # a clock that is looked at every second does not make such a step by itself


class Clock:
    """`passed_ms` since it was made, without leaps; `latest_ms` follows a leap forward and goes on over one back."""

    def __init__(self, now_ms: int) -> None:
        self.passed_ms = 0
        self.latest_ms = self._looked_ms = now_ms

    def look(self, now_ms: int) -> Clock:
        """The clock shows `now_ms`."""
        step_ms = now_ms - self._looked_ms
        if not 0 <= step_ms <= LEAP_MS:
            step_ms = 0
        self.passed_ms += step_ms
        self.latest_ms = max(now_ms, self.latest_ms + step_ms)
        self._looked_ms = now_ms
        return self


def running_s() -> float:
    """Seconds by a clock that never jumps and counts on while the machine sleeps (the monotonic one does not)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

"""The lead of our clock over those that stamp requests: a jump of it must not make every request look late.

A request's deadline counts from its stamp, by its client's clock. Whoever reads a partition to its end sees requests
that have hardly waited; if even the youngest of them look old, and not for a moment, our clock is ahead. Clocks of
clients that are ahead of ours show nothing here: their requests do not look old. Pure: what is seen is an argument.
"""

from __future__ import annotations

from collections import deque

ENOUGH = 20  # requests that were the newest of their partitions
LEAST_S = 5.0  # ...over so long
LEAST_AHEAD_MS = 1000.0  # less may well have been waited


class ClockSkew:
    """Estimated from the newest requests of partitions that are read to their ends."""

    def __init__(self) -> None:
        self._ages: deque[tuple[float, float]] = deque(maxlen=ENOUGH)

    def observe(self, age_ms: float, now_s: float) -> None:
        """A request, just read, whose stamp is `age_ms` old by our clock; `now_s` is a clock that does not jump."""
        self._ages.append((now_s, age_ms))

    @property
    def ahead_ms(self) -> float:
        """0 while it cannot be told from requests that have waited."""
        if len(self._ages) < ENOUGH or self._ages[-1][0] - self._ages[0][0] < LEAST_S:
            return 0.0
        youngest_ms = min(age_ms for _, age_ms in self._ages)
        return youngest_ms if youngest_ms >= LEAST_AHEAD_MS else 0.0

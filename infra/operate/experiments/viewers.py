"""The viewers of an experiment, from the lists that they were shown and what became of them.

A viewer is one observation, and a finished one: the seconds watched out of the lists of the first `hours` after the
first list of the experiment. Who is still within these hours, or whose last list may still be watched, does not count
yet, so no observation changes after it was looked at, but for late watches. What guard rails look at is the viewer's
first list alone, for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from infra.operate.experiments.parts import ExamplePart, ImpressionPart, NewestLists
from models.experiments.interleaving import credit
from streams.messages import Experiment

HOUR_MS = 3_600_000


class FirstList(NamedTuple):
    """A viewer's first list of the experiment."""

    variant: str
    at_ms: int
    took_ms: float
    degraded: bool
    partition: int


class Seconds(NamedTuple):
    """What became of one list: seconds watched; of an interleaved one, of the variant's picks less the control's."""

    user_id: str
    at_ms: int
    seconds: float


class Viewers:
    """Hears the lists of one experiment. `window_ms`: so long the join waits for the watches of a list."""

    def __init__(self, experiment: Experiment, window_ms: int) -> None:
        self.first: dict[str, FirstList] = {}
        self._experiment, self._window_ms = experiment, window_ms
        self._hours_ms = int(experiment.hours * HOUR_MS)
        self._lists = NewestLists[Seconds]()
        self._closed_ms: dict[int, int] = {}  # by partition: every list that closed before is there

    def shown(self, impression: ImpressionPart, partition: int) -> None:
        """Take a list."""
        assigned = impression.assigned
        if assigned is None or assigned.experiment != self._experiment.name:
            return
        before = self.first.get(impression.user_id)
        if before is None or impression.at_ms < before.at_ms:
            self.first[impression.user_id] = FirstList(
                assigned.variant, impression.at_ms, assigned.took_ms, assigned.degraded, partition
            )

    def closed(self, example: ExamplePart) -> None:
        """Take what became of a list; of any experiment, or of none, it tells how far the join has come."""
        impression, partition = example.impression, example.partition
        self._closed_ms[partition] = max(example.closed_ms, self._closed_ms.get(partition, 0))
        assigned = impression.assigned
        if assigned is None or assigned.experiment != self._experiment.name:
            return
        self._lists.take(example, Seconds(impression.user_id, impression.at_ms, self._seconds_of(example)))

    def finished(self) -> dict[str, float]:
        """The seconds of each viewer whose hours are over, 0 for who has watched nothing."""
        seconds = {user_id: 0.0 for user_id, first in self.first.items() if self._is_finished(first)}
        for each in self._lists:
            first = self.first.get(each.user_id)
            if first and each.user_id in seconds and 0 <= each.at_ms - first.at_ms < self._hours_ms:
                seconds[each.user_id] += each.seconds
        return seconds

    def firsts_of(self, variant: str) -> Iterator[FirstList]:
        return (first for first in self.first.values() if first.variant == variant)

    def _is_finished(self, first: FirstList) -> bool:
        """Lists of after a stop are of no variant: who would still have had some is no whole observation."""
        ends_ms, stopped_ms = first.at_ms + self._hours_ms, self._experiment.stopped_ms
        if stopped_ms and ends_ms > stopped_ms:
            return False
        return self._closed_ms.get(first.partition, 0) >= ends_ms + self._window_ms

    def _seconds_of(self, example: ExamplePart) -> float:
        if not self._experiment.interleaved:
            return sum(example.watched_s)
        control, variant = (each.name for each in self._experiment.variants)
        teams = (shown.team for shown in example.impression.items)
        return credit(teams, example.watched_s, variant, control)

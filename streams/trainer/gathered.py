"""The examples that were read and wait to be learnt together: a step costs about as much for ten as for a hundred."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from streams.kafka.intake import Raw
from streams.messages import TrainingExample


class Read(NamedTuple):
    raw: Raw
    example: TrainingExample


class Gathered:
    """What was read from `start` to before `stop`; what could not be used of it is between these two as well."""

    def __init__(self) -> None:
        self.examples: list[Read] = []
        self.start = self.stop = 0
        self._is_begun, self._since_s = False, 0.0

    def __bool__(self) -> bool:
        return self._is_begun

    def add(self, batch: Sequence[Raw], examples: Iterable[Read], now_s: float) -> None:
        """A batch that was read, and what of it is to be learnt."""
        if not self:
            self.start, self._since_s, self._is_begun = batch[0].offset, now_s, True
        self.stop = max(self.stop, batch[-1].offset + 1)
        self.examples += examples

    def waited_s(self, now_s: float) -> float:
        """How long the first of it waits."""
        return now_s - self._since_s

    def take(self, most: int) -> Iterator[tuple[list[Read], int]]:
        """Yield all of it in groups of at most `most` examples, each with the offset up to which it reaches."""
        examples, stop = self.examples, self.stop
        self.clear()
        for first in range(0, max(len(examples), 1), most):
            group, following = examples[first : first + most], examples[first + most : first + most + 1]
            yield group, following[0].raw.offset if following else stop

    def clear(self) -> None:
        """Forget it: it is another trainer's to learn, or is being learnt."""
        self.examples, self.start, self.stop, self._is_begun = [], 0, 0, False

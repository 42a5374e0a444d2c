"""What is read here of lists on record and of what became of them, and which of several records of one list holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from msgspec import Struct

from streams.messages import Assigned, Outcome, Pool

T = TypeVar("T")


class ShownPart(Struct, frozen=True, gc=False):
    """What is read here of Shown."""

    item_id: str
    team: str = ""
    expected_watch_s: float | None = None
    probability: float | None = None


class ImpressionPart(Struct, frozen=True, gc=False):
    """What is read here of Impression."""

    user_id: str
    at_ms: int
    items: tuple[ShownPart, ...]
    assigned: Assigned | None = None
    pool: Pool | None = None
    cap_s: float = 600.0
    ranked_by: str = ""


class ExamplePart(Struct, frozen=True, gc=False):
    """What is read here of RankingExample."""

    impression: ImpressionPart
    outcomes: tuple[Outcome, ...]
    partition: int
    offset: int
    closed_ms: int
    revision: int = 0

    @property
    def watched_s(self) -> list[float]:
        """Of each item, what was left running for no more than the list's cap."""
        return [min(outcome.watched_s, self.impression.cap_s) for outcome in self.outcomes]


class NewestLists(Generic[T]):
    """What is known of each list. One may be there again (after a crash) or corrected (a late watch): the highest
    revision holds, of equal ones the last."""

    def __init__(self) -> None:
        self._lists: dict[tuple[int, int, int], tuple[int, T]] = {}

    def take(self, example: ExamplePart, known: T) -> None:
        identity = (example.partition, example.offset, example.impression.at_ms)
        before = self._lists.get(identity)
        if before is None or example.revision >= before[0]:
            self._lists[identity] = (example.revision, known)

    def __iter__(self) -> Iterator[T]:
        return (known for _, known in self._lists.values())

    def __len__(self) -> int:
        return len(self._lists)

"""The offsets that the views had read when an answer was made: with them its features can be computed again."""

from __future__ import annotations


class ReadOffsets:
    """By topic the next offset of each partition."""

    def __init__(self) -> None:
        self._next: dict[str, list[int]] = {}

    def read(self, topic: str, partition: int, offset: int) -> None:
        places = self._next.setdefault(topic, [])
        places += [0] * (partition + 1 - len(places))
        places[partition] = offset + 1

    def of(self, topic: str) -> tuple[int, ...]:
        return tuple(self._next.get(topic, ()))

    def as_dict(self) -> dict[str, tuple[int, ...]]:
        return {topic: tuple(places) for topic, places in self._next.items()}

"""The newest facts of each item of the catalogue, kept small: equal names and equal lists of topics are one object."""

from __future__ import annotations

from typing import Any

from indexer.scalars import UNKNOWN, Scalars


class Facts:
    """What a row in the index says of its item beside the vector."""

    def __init__(self) -> None:
        self._of: dict[str, Scalars] = {}
        self._same: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._of)

    def of(self, item_id: str) -> Scalars:
        """UNKNOWN for an item that the catalogue does not know."""
        return self._of.get(item_id, UNKNOWN)

    def set(self, item_id: str, scalars: Scalars) -> bool:
        """Whether it is something new."""
        if scalars == self.of(item_id):
            return False
        self._of[item_id] = scalars._replace(
            channel=self._one(scalars.channel),
            topics=self._one(scalars.topics),
            language=self._one(scalars.language),
        )
        return True

    def forget(self, item_id: str) -> None:
        """The item is no longer in the catalogue, or is down; its return brings its facts with it."""
        self._of.pop(item_id, None)

    def _one(self, value: Any) -> Any:
        return self._same.setdefault(value, value)

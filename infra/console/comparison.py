"""What is said of a list: why each item is in it, and what has moved since an earlier one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextwatch_client import Recommended

WHY = {
    "two_tower": "fits what this user watched",
    "similar": "like the last completed watch",
    "trending": "watched by many now",
    "popular": "watched by many, as the release knows",
    "fresh": "new",
    "pinned": "pinned to the top",
    "catalogue": "may be shown, where nothing else is left",
}
DRAWN = "drawn, to learn about it"


@dataclass(frozen=True)
class Row:
    """One place of the list now. `was`: its place in the list before, None when it was not in it; `moved`: by how many
    places up (negative: down), 0 also without a list before."""

    item: Recommended
    why: str
    was: int | None = None
    moved: int = 0
    is_new: bool = False


def rows_of(now: Sequence[Recommended], before: Sequence[Recommended] | None = None) -> list[Row]:
    """The list now, compared with the one before."""
    places = {item.item_id: item.rank for item in before or ()}
    return [_row(item, places, is_compared=before is not None) for item in now]


def gone_from(now: Sequence[Recommended], before: Sequence[Recommended]) -> list[Recommended]:
    """What was in the list before and is not in this one."""
    there = {item.item_id for item in now}
    return [item for item in before if item.item_id not in there]


def _row(item: Recommended, places: dict[str, int], *, is_compared: bool) -> Row:
    was = places.get(item.item_id)
    moved = 0 if was is None else was - item.rank
    why = WHY.get(item.source, item.source) if item.probability is None else DRAWN
    return Row(item, why, was, moved, is_compared and was is None)

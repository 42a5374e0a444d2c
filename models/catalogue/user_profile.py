"""Users and their watches, as structure only: the messages of `streams` fit without being imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Watched(Protocol):
    """One watch of a history. `completed` marks a positive; the user tower reads those, and beside them (as something
    else) the others where it was trained to; the ranker reads all."""

    @property
    def item_id(self) -> str: ...
    @property
    def event_ms(self) -> int: ...
    @property
    def watch_s(self) -> float: ...
    @property
    def completed(self) -> bool: ...


class ShownList(Protocol):
    """Items that were shown together, top first."""

    @property
    def at_ms(self) -> int: ...
    @property
    def item_ids(self) -> Sequence[str]: ...


class UserProfile(Protocol):
    """A user as the user tower sees them. `watches` is oldest first."""

    @property
    def watches(self) -> Sequence[Watched]: ...
    @property
    def searches(self) -> Sequence[Any]: ...
    @property
    def context(self) -> Any: ...


class RankedUserProfile(UserProfile, Protocol):
    """A user as the ranker sees them: also what they were shown, oldest first."""

    @property
    def impressions(self) -> Sequence[ShownList]: ...


class Example(UserProfile, Protocol):
    """A completed watch; `watches` is the history as it was before it (paper section 3.4). `weight` of what it teaches
    the item rows: 1 as a rule."""

    @property
    def item_id(self) -> str: ...
    @property
    def weight(self) -> float: ...

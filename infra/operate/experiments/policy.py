"""`nextwatch evaluate-policy`: what the places that were drawn would have brought, had they been drawn otherwise.

A list on record says with which probability each drawn item stood in its place, and of all that could have been drawn
how many there were and what the ranker expected of them (streams.messages.Pool). So the probability is known that each
of these policies would have had: `uniform` (all alike), `expected` (in proportion to expected seconds), `best` (the one
of most expected seconds).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from infra.operate.experiments.parts import ExamplePart, NewestLists
from infra.operate.experiments.reading import messages
from infra.operate.experiments.report import Between
from infra.operate.progress import Step, no_progress
from infra.platform.settings import Settings
from models.experiments.policy_value import (
    DrawnPlaces,
    doubly_robust,
    effective_places,
    logged_value,
    snips,
    weights_of,
)
from streams import topics
from streams.erased_users import ErasedUsers
from streams.erasure.erase_users import read_erased_users
from streams.messages import Pool

POLICIES = ("uniform", "expected", "best")
HARDLY_TRIED = 100  # effective places; below, an interval promises too much


class PolicyRefused(RuntimeError):
    """A policy cannot be evaluated on what is on record; the text says why."""


class PolicyValue(msgspec.Struct, frozen=True):
    """Watch seconds of a drawn place under a policy, with 95 % intervals; none where nothing of it was drawn.
    `largest_weight`: the share of the estimate that stands on one place."""

    policy: str
    snips: Between
    doubly_robust: Between
    effective_places: float
    largest_weight: float
    hardly_tried: bool


class PolicyReport(msgspec.Struct, frozen=True):
    """`logged`: what the drawn places have brought as they were drawn."""

    lists: int
    places: int
    viewers: int
    logged: Between
    policies: tuple[PolicyValue, ...]


class Place(NamedTuple):
    """A drawn place of a list whose pool is on record."""

    user_id: str
    probability: float
    expected_s: float
    watched_s: float
    pool: Pool


class DrawnLists:
    """The newest revision of each list, as far as it matters here: its drawn places."""

    def __init__(self) -> None:
        self._lists = NewestLists[tuple[int, tuple[Place, ...]]]()
        self._of_rivals = NewestLists[None]()

    def add(self, example: ExamplePart) -> None:
        """Take a list; one that a rival has ranked is left out: what that expects is another measure."""
        if example.impression.ranked_by:
            self._of_rivals.take(example, None)
            return
        drawn = sum(shown.probability is not None for shown in example.impression.items)
        self._lists.take(example, (drawn, tuple(_places(example))))

    def places(self) -> list[Place]:
        """Raises PolicyRefused where there is none."""
        found = [place for _, places in self._lists for place in places]
        if not self._lists and self._of_rivals:
            raise PolicyRefused(
                f"all {len(self._of_rivals):,} lists were ranked by a rival of the live release, and such lists are "
                "left out (docs/experiments.md): wait for lists that the live one's ranker has ranked"
            )
        if not self._lists:
            raise PolicyRefused("there is no ranking example: has the join closed a list yet (join.window_s)?")
        if not any(drawn for drawn, _ in self._lists):
            raise PolicyRefused(
                f"exploration was off: of {len(self._lists):,} lists no place was drawn, so nothing has a probability; "
                "set selection.explore (docs/selection.md)"
            )
        if not found:
            raise PolicyRefused(
                "places were drawn, but no list says of what: the ranker had not ranked it, or it is of before 0.4"
            )
        return found

    def __len__(self) -> int:
        return len(self._lists)


def evaluate_policies(settings: Settings, since_ms: int = 0, progress: Step = no_progress) -> PolicyReport:
    """Read `ranking-examples` and evaluate. Raises PolicyRefused, TopicMissing, KafkaError, ForgetSecretWrong."""
    lists = DrawnLists()
    for example in _kept(settings, read_erased_users(settings), since_ms, progress):
        lists.add(example)
    return report_of(lists.places(), len(lists))


def report_of(places: list[Place], lists: int) -> PolicyReport:
    values = tuple(_value_of(drawn_places(places, policy), policy) for policy in POLICIES)
    users, logged = {place.user_id for place in places}, Between(*logged_value(drawn_places(places, "uniform")))
    return PolicyReport(lists, len(places), len(users), logged, values)


def _value_of(drawn: DrawnPlaces, policy: str) -> PolicyValue:
    effective = effective_places(drawn)
    if not effective:  # it would have shown nothing of what was drawn
        return PolicyValue(policy, Between(), Between(), 0.0, 0.0, True)
    weights = weights_of(drawn)
    largest = float(weights.max() / weights.sum())
    estimates = Between(*snips(drawn)), Between(*doubly_robust(drawn))
    return PolicyValue(policy, *estimates, effective, largest, effective < HARDLY_TRIED)


def drawn_places(places: Iterable[Place], policy: str) -> DrawnPlaces:
    """The places as a policy sees them: given that the place is drawn, which does not depend on the policy."""
    rows = [(place.probability / place.pool.chance, *target_of(place, policy)) for place in places]
    logged, target, policy_s = np.array(rows, np.float64).T
    _, viewer = np.unique([place.user_id for place in places], return_inverse=True)
    watched_s = np.array([place.watched_s for place in places])
    expected_s = np.array([place.expected_s for place in places])
    return DrawnPlaces(logged, target, watched_s, expected_s, policy_s, viewer)


def target_of(place: Place, policy: str) -> tuple[float, float]:
    """The probability that the policy draws what was drawn there, and what the ranker expects of the policy."""
    pool = place.pool
    if policy == "best":
        return float(place.expected_s >= pool.best_s), pool.best_s
    if policy == "uniform" or not pool.sum_s:
        return 1 / pool.candidates, pool.sum_s / pool.candidates
    return place.expected_s / pool.sum_s, pool.squares_s / pool.sum_s


def _places(example: ExamplePart) -> Iterator[Place]:
    impression = example.impression
    if impression.pool is None or not impression.pool.chance:
        return
    for shown, watched_s in zip(impression.items, example.watched_s, strict=False):
        if shown.probability and shown.expected_watch_s is not None:
            yield Place(impression.user_id, shown.probability, shown.expected_watch_s, watched_s, impression.pool)


def _kept(settings: Settings, erased: ErasedUsers, since_ms: int, progress: Step) -> Iterator[ExamplePart]:
    for _, example in messages(settings.kafka, topics.RANKING_EXAMPLES, ExamplePart, since_ms, progress):
        if not erased.is_from_before(example.impression.user_id, example.impression.at_ms):
            yield example

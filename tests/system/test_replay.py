"""What a crash run is judged by, by hand: the replay of a few events, and what a verdict calls lost and doubled."""

from __future__ import annotations

from pathlib import Path

from streams.messages import Impression, Shown, WatchEvent
from tests.harness.crash.replay import Events, examples, histories, outcomes, trending
from tests.harness.crash.run import WINDOW_S, settings_for
from tests.harness.crash.verdict import Verdict

SETTINGS = settings_for(Path("data"))
AT_MS = 1_000_000


def watch(name: str, item: str, after_s: float, seconds: float = 60.0, request_id: str | None = None) -> WatchEvent:
    return WatchEvent(name, "u", item, AT_MS + round(1000 * after_s), seconds, 60.0, request_id)


def events_of(watches: list[WatchEvent], shown: list[Impression]) -> Events:
    """In this order on partition 0."""
    found = Events(at_home=watches)
    found.watches["u"] = [(event, (0, offset)) for offset, event in enumerate(watches)]
    found.lists["u"] = [(impression, (0, offset)) for offset, impression in enumerate(shown)]
    return found


def show(request_id: str, items: str, after_s: float = 0.0) -> Impression:
    shown = tuple(Shown(item, place, "retrieval") for place, item in enumerate(items, 1))
    return Impression(request_id, "u", AT_MS + round(1000 * after_s), "server", "v", shown)


def test_a_history_is_in_order_of_time_and_an_example_is_of_a_completed_watch():
    events = events_of([watch("late", "a", 2), watch("early", "b", 1, seconds=5)], [])
    assert histories(events, SETTINGS)["u"].watches == (("early", 1), ("late", 0))
    assert examples(events, SETTINGS) == {(0, 0): "a"}
    assert trending(events, SETTINGS) == {"a": 1}


def test_a_watch_belongs_to_the_list_that_it_names_else_to_the_newest_that_showed_it_in_time():
    shown = [show("first", "ab"), show("second", "bc", 1)]
    watches = [
        watch("named", "b", 2, 10, "first"),
        watch("newest", "b", 2, 20),
        watch("too late", "c", 1 + WINDOW_S + 1, 40),
        watch("before", "a", -1, 40),
    ]
    assert outcomes(events_of(watches, shown), SETTINGS) == {(0, 0): [0, 10], (0, 1): [20, 0]}


def test_what_is_missing_is_lost_what_is_too_much_is_doubled_and_the_rest_is_the_same():
    verdict = Verdict()
    verdict.compare("row", {"a": 1, "b": 1, "c": 1}, {"b": 2, "c": 1, "d": 1})
    assert verdict.lost == ["row a"]
    assert verdict.doubled == ["row d: there is none"]
    assert verdict.differing == ["row b: 2, not 1"]

"""`ranking-examples` as the ranker learns from it: each impression once, as it was corrected last."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from infra.platform.settings import Settings
from models.ranking.feature import Scope
from models.ranking.features import SCHEMA_HASH, ids_of, numbers_of
from models.ranking.ranking_batch import HISTORY, Codes
from models.ranking.ranking_examples import QUERY_IDS
from streams.export import ranking_archive
from streams.export.ranking_archive import ServedExamples, is_usable, store_served
from streams.messages import Impression, Outcome, RankingExample, Shown, encode
from streams.topics import RANKING_EXAMPLES, create_topics

AT_MS = 1_700_000_000_000


def values(scope: Scope, first: float) -> bytes:
    """Features of a scope: `first` and its successors, the last one missing."""
    row = np.arange(first, first + len(numbers_of(scope)), dtype="<f4")
    row[-1] = np.nan
    return row.tobytes()


def shown(item_id: str, position: int, first: float | None = None, **ids: tuple[str, ...]) -> Shown:
    """Without `first` nothing was ranked."""
    fed = b"" if first is None else values("impression", first)
    return Shown(item_id, position, "retrieval", ids={"candidate": (item_id,), **ids} if fed else {}, values=fed)


def example(
    *items: Shown, offset: int, watched_s: tuple[float, ...] = (), revision: int = 0, **changes: Any
) -> RankingExample:
    """Items are completed from 18 s on."""
    fields: dict[str, Any] = {"schema_hash": SCHEMA_HASH, "values": values("query", 1000.0 * offset), "user_id": "ann"}
    fields |= changes
    impression = Impression(
        request_id=f"r{offset}", at_ms=AT_MS + offset, served_by="server", version="v1", items=items, **fields
    )
    watched_s = watched_s or (0.0,) * len(items)
    outcomes = tuple(Outcome(item.item_id, s, s >= 18) for item, s in zip(items, watched_s, strict=True))
    return RankingExample(impression, outcomes, 0, offset, AT_MS + 10_000, revision)


FIRST = example(
    shown("a", 1, 1.0, channel=("c",), topics=("t", "s")),
    shown("b", 2),
    shown("x", 3, 50.0),
    offset=1,
    watched_s=(20.0, 9.0, 700.0),
    ids={"last_watched": ("x", "a"), "region": ("de",)},
)
BEFORE, AFTER = (
    example(shown("a", 1, 2.0), offset=2, watched_s=(s,), revision=revision, user_id="bob")
    for s, revision in ((5.0, 0), (33.0, 1))
)
EMPTY = example(offset=7)
EXTERNAL = example(Shown("a", 1, "mobile app"), offset=3, watched_s=(40.0,), schema_hash="", values=b"")
FOREIGN = example(shown("a", 1, 1.0), offset=4, watched_s=(40.0,), schema_hash="another")
BROKEN = encode(example(shown("a", 1, 1.0), offset=5)).replace(b'"candidate":["a"]', b'"candidate":7')  # as it came


def test_an_example_is_usable_when_its_features_are_ours_and_whole():
    assert is_usable(FIRST)
    assert is_usable(EMPTY)
    assert not is_usable(EXTERNAL)
    assert not is_usable(FOREIGN)
    short = example(Shown("a", 1, "retrieval", values=values("impression", 1.0)[:-4]), offset=1)
    assert not is_usable(short)
    assert not is_usable(example(shown("a", 1, 1.0), offset=1, values=values("query", 0) + b"...."))
    assert not is_usable(example(shown("a", 1, 1.0), offset=1, values=b""))
    assert not is_usable(msgspec.structs.replace(FIRST, outcomes=FIRST.outcomes[:2]))


@pytest.fixture(scope="module")
def filled(with_topics: Settings, send: Callable[..., Any]) -> Settings:
    long = example(shown("z", 1, 3.0), offset=9, watched_s=(12.0,), ids={"last_watched": ("q",) * 60})
    for each in (BEFORE, AFTER, BEFORE):  # again after a crash: the correction still holds
        send(RANKING_EXAMPLES, b"ann", encode(each), partition=1)
    for value in (*map(encode, (FIRST, FIRST)), b"junk", None, BROKEN, *map(encode, (EXTERNAL, FOREIGN, EMPTY, long))):
        send(RANKING_EXAMPLES, b"ann", value, partition=0)
    return with_topics


CATALOGUE = pl.DataFrame({"item_id": ["a", "z", "x"], "duration_s": [30.0, 0.0, None]})


@pytest.fixture(scope="module", params=[2_000, 1], ids=["together", "one by one"])
def served(
    request: pytest.FixtureRequest, filled: Settings, tmp_path_factory: pytest.TempPathFactory
) -> ServedExamples:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_archive, "CHUNK", request.param)
        return store_served(filled, tmp_path_factory.mktemp("served"), CATALOGUE)


def by_time(found: ServedExamples) -> list[int]:
    """Rows in order of time and place: partitions come in any order."""
    return np.lexsort((found.examples.position, found.examples.at_ms)).tolist()


def names(found: ServedExamples, feature: str, row: int) -> tuple[str, ...]:
    named: Codes = found.examples.ids[feature]
    at = found.examples.request[row] if feature in QUERY_IDS else row
    return tuple(named.names[code] for code in named.codes[at].tolist() if code)


@pytest.mark.system
def test_each_impression_is_there_once_and_what_cannot_be_used_is_counted(served):
    assert (served.impressions, served.passed_over, served.repeated) == (4, 5, 3)
    assert len(served.examples) == 4, "two ranked items of the first, one of each other but the empty one"


@pytest.mark.system
def test_outcomes_are_those_of_the_last_correction(served):
    rows, examples = by_time(served), served.examples
    assert examples.at_ms[rows].tolist() == [AT_MS + 1, AT_MS + 1, AT_MS + 2, AT_MS + 9]
    assert examples.position[rows].tolist() == [1, 3, 1, 1]
    assert examples.target_s[rows].tolist() == [20, 700, 30, 12], "at most the duration, a duration of 0 is none"
    np.testing.assert_array_equal(examples.duration_s[rows], [30, np.nan, 30, np.nan])
    assert examples.completed[rows].tolist() == [True, True, True, False]
    ann, also_ann, bob, last = examples.user[rows].tolist()
    assert ann == also_ann == last != bob


@pytest.mark.system
def test_features_are_those_that_were_served_to_the_bit(served):
    rows, examples = by_time(served), served.examples
    for row, first, offset in zip(rows, (1.0, 50.0, 2.0, 3.0), (1, 1, 2, 9), strict=True):
        assert examples.numbers["impression"][row].tobytes() == values("impression", first)
        assert examples.numbers["query"][examples.request[row]].tobytes() == values("query", 1000.0 * offset)
    assert [names(served, "candidate", row) for row in rows] == [("a",), ("x",), ("a",), ("z",)]
    assert names(served, "last_watched", rows[1]) == ("x", "a")
    assert (names(served, "region", rows[0]), names(served, "topics", rows[0])) == (("de",), ("t", "s"))
    assert (names(served, "region", rows[2]), names(served, "topics", rows[1])) == ((), ())
    assert names(served, "last_watched", rows[3]) == ("q",) * HISTORY
    assert served.examples.ids["last_watched"].names is served.examples.ids["candidate"].names, "one space, one list"
    assert {f.name for scope in ("query", "impression") for f in ids_of(scope)} == set(examples.ids)


@pytest.mark.system
def test_without_a_catalogue_durations_are_unknown(filled, tmp_path):
    found = store_served(filled, tmp_path, None)
    assert np.isnan(found.examples.duration_s).all()
    assert found.examples.target_s[by_time(found)].tolist() == [20, 700, 33, 12]


@pytest.mark.system
def test_progress_is_told_up_to_the_end_of_both_readings(filled, tmp_path):
    told: list[tuple[str, int, int]] = []
    store_served(filled, tmp_path, None, lambda *step: told.append(step))
    assert ("reading outcomes", 12, 12) in told
    assert told[-1] == ("served impressions", 12, 12)


@pytest.mark.system
def test_a_topic_without_examples_gives_none(kafka_settings, tmp_path):
    create_topics(kafka_settings.kafka)
    found = store_served(kafka_settings, tmp_path, None)
    assert (len(found.examples), found.impressions, found.repeated) == (0, 0, 0)

import polars as pl
import pytest

from models.evaluation.backtest_log import read_stream
from models.logs.log import items_from_frame
from models.logs.stored_log import store_frame


@pytest.fixture
def log(tmp_path):
    rows = [  # user, item, time, seconds
        ("ann", "a", 1000, 30.0),
        ("bob", "b", 1010, 2.0),  # no positive, but the item is known from here
        ("ann", "c", 1020, 30.0),
        ("bob", "b", 1030, 30.0),
        ("cem", "d", 1040, 30.0),
    ]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "event_ms", "watch_s"], orient="row")
    return store_frame(frame, tmp_path, completed_s=18.0)


def items_of(*rows: tuple[str, int | None]) -> pl.DataFrame:
    return items_from_frame(pl.DataFrame(rows, {"item_id": pl.String, "published_ms": pl.Int64}, orient="row"))


def test_the_stream_holds_the_positives_in_time(log):
    reading = read_stream(log, None)
    users = [reading.user_ids[code] for code in reading.stream.users.tolist()]
    items = [reading.item_ids[row] for row in reading.stream.items.tolist()]
    assert list(zip(users, items, reading.stream.event_ms.tolist(), strict=True)) == [
        ("ann", "a", 1000),
        ("ann", "c", 1020),
        ("bob", "b", 1030),
        ("cem", "d", 1040),
    ]


def test_an_item_is_known_from_its_first_row_even_if_that_is_no_positive(log):
    reading = read_stream(log, None)
    assert reading.item_ids.to_list() == ["a", "b", "c", "d"]
    assert reading.training_set.known_ms.tolist() == [1000, 1010, 1020, 1040]
    assert [reading.training_set.known_at(cut) for cut in range(4)] == [0, 2, 3, 3]


def test_a_catalogue_makes_items_known_at_their_publication_or_from_the_beginning(log):
    items = items_of(("d", 1005), ("never watched", None), ("c", 2000), ("later", 3000), ("b", None))
    reading = read_stream(log, items)
    known = dict(zip(reading.item_ids.to_list(), reading.training_set.known_ms.tolist(), strict=True))
    assert known == {"b": -1, "never watched": -1, "a": 1000, "d": 1005, "c": 1020, "later": 3000}
    assert reading.training_set.known_ms.tolist() == sorted(reading.training_set.known_ms.tolist())
    assert [reading.item_ids[row] for row in reading.stream.items.tolist()] == ["a", "c", "b", "d"]
    assert reading.training_set.known_at(1) == 4


def test_age_counts_from_publication_else_from_the_first_row(log):
    reading = read_stream(log, items_of(("d", 500), ("never watched", None)))
    born = dict(zip(reading.item_ids.to_list(), reading.training_set.born_ms.tolist(), strict=True))
    assert born == {"a": 1000, "b": 1010, "c": 1020, "d": 500, "never watched": 1000}

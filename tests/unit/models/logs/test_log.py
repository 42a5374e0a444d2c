from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from models.logs import log
from models.logs.log import LogError, items_from_frame, log_from_frame, parse_mapping, read_items, read_log

GOOD = {"user_id": ["a", "b", "a"], "item_id": ["x", "x", "y"], "event_ms": [1, 2, 3], "watch_s": [20.0, 5.0, 9.0]}


def frame(**changes: object) -> pl.DataFrame:
    return pl.DataFrame({**GOOD, **changes}, strict=False)


def test_a_watch_is_completed_when_it_lasted_the_duration_or_the_limit():
    log = log_from_frame(frame(duration_s=[60.0, 4.0, None]), 18.0)
    assert log.frame["completed"].to_list() == [True, True, False]


def test_a_duration_of_zero_is_an_unknown_one():
    log = log_from_frame(frame(duration_s=[0.0, 0.0, 0.0]), 18.0)
    assert log.frame["completed"].to_list() == [True, False, False]
    assert log.frame["duration_s"].null_count() == 3


def test_without_watch_times_every_row_is_a_positive():
    log = log_from_frame(frame().drop("watch_s"), 18.0)
    assert log.frame["completed"].all()
    assert not log.watch_times


def test_a_row_of_unknown_length_is_a_positive_among_others():
    log = log_from_frame(frame(watch_s=[None, 5.0, 3.0]), 18.0)
    assert log.frame["completed"].to_list() == [True, False, False]
    assert log.watch_times


def test_rows_are_sorted_by_time_and_equal_times_keep_their_order():
    log = log_from_frame(frame(event_ms=[5, 1, 1]), 18.0)
    assert log.frame["user_id"].to_list() == ["b", "a", "a"]
    assert log.frame["item_id"].to_list() == ["x", "y", "x"]


def test_duplicate_rows_count_once_and_are_reported():
    log = log_from_frame(pl.concat([frame(), frame()]), 18.0)
    assert (log.frame.height, log.duplicates) == (3, 3)


@pytest.mark.parametrize(
    ("column", "values", "row"),
    [
        ("user_id", ["a", "", "c"], 2),
        ("item_id", ["a", "b", None], 3),
        ("item_id", ["a", "b" * 1000, "c"], 2),
        ("event_ms", [1, None, 3], 2),
        ("event_ms", [1.0, 2.5, 3.0], 2),
        ("event_ms", ["1", "2", "yesterday"], 3),
        ("event_ms", [1, -2, 3], 2),
        ("event_ms", [1_650_000_000_000, 2, 1_650_000_000_000_000], 3),
        ("watch_s", [1.0, -0.5, 2.0], 2),
        ("watch_s", [1.0, 2.0, float("nan")], 3),
        ("watch_s", [float("inf"), 2.0, 3.0], 1),
        ("watch_s", ["1", "long", "3"], 2),
        ("duration_s", [1.0, 1.0, -3.0], 3),
    ],
)
def test_a_bad_value_is_refused_with_its_row_and_column(column: str, values: list[object], row: int):
    with pytest.raises(LogError, match=rf"row {row}, column {column}"):
        log_from_frame(frame(**{column: values}), 18.0)


def test_a_missing_column_is_named_and_so_are_those_there():
    with pytest.raises(LogError, match=r"column item_id is missing; it has user_id, event_ms, watch_s"):
        log_from_frame(frame().drop("item_id"), 18.0)


def test_an_empty_log_is_refused():
    with pytest.raises(LogError, match="no rows"):
        log_from_frame(frame().clear(), 18.0)


def test_whole_numbers_are_ids_and_fractions_are_not():
    assert log_from_frame(frame(user_id=[1, 2, 3]), 18.0).frame["user_id"].to_list() == ["1", "2", "3"]
    with pytest.raises(LogError, match="column user_id must be text or whole numbers"):
        log_from_frame(frame(user_id=[1.0, 2.0, 3.0]), 18.0)


def test_dates_are_read_as_milliseconds():
    log = log_from_frame(frame(event_ms=[datetime(1970, 1, 1, 0, 0, n, tzinfo=UTC) for n in range(3)]), 18.0)
    assert log.frame["event_ms"].to_list() == [0, 1000, 2000]


def test_each_format_reads_the_same_log(tmp_path: Path):
    frame().write_parquet(tmp_path / "log.parquet")
    frame().write_csv(tmp_path / "log.csv")
    frame().write_ndjson(tmp_path / "log.jsonl")
    logs = [read_log(tmp_path / f"log.{suffix}", completed_s=18.0).frame for suffix in ("parquet", "csv", "jsonl")]
    assert logs[0].equals(logs[1])
    assert logs[0].equals(logs[2])


def test_ids_of_a_csv_stay_as_they_are_written(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,event_ms\n007,1e3,5\n")
    log = read_log(tmp_path / "log.csv", completed_s=18.0)
    assert log.frame.row(0)[:3] == ("007", "1e3", 5)


def test_other_column_names_are_mapped(tmp_path: Path):
    frame().rename({"user_id": "uid"}).write_csv(tmp_path / "log.csv")
    mapping = parse_mapping(["user_id=uid"])
    assert read_log(tmp_path / "log.csv", mapping=mapping, completed_s=18.0).frame.height == 3
    with pytest.raises(LogError, match=r"no column who \(--map user_id=who\); it has uid"):
        read_log(tmp_path / "log.csv", mapping={"user_id": "who"}, completed_s=18.0)
    with pytest.raises(LogError, match="user is not a column of ours"):
        read_log(tmp_path / "log.csv", mapping={"user": "uid"}, completed_s=18.0)


@pytest.mark.parametrize("pair", ["user_id", "=uid", "user_id="])
def test_a_mapping_that_is_none_is_refused(pair: str):
    with pytest.raises(LogError, match="OURS=THEIRS"):
        parse_mapping([pair])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "broken.parquet").write_text("no")
    for name, why in (("none.csv", "no such file"), ("log.xlsx", "cannot tell"), ("broken.parquet", "cannot be read")):
        with pytest.raises(LogError, match=rf"{name}.*{why}|{why}.*{name}"):
            read_log(tmp_path / name, completed_s=18.0)


def test_topics_may_be_a_list_or_text(tmp_path: Path):
    (tmp_path / "items.csv").write_text('item_id,topics,channel\nx,a| b,c1\ny,"a,b,",\nz,,\n')
    items = read_items(tmp_path / "items.csv")
    assert items["topics"].to_list() == [["a", "b"], ["a", "b"], []]
    assert items["channel"].to_list() == ["c1", None, None]
    listed = items_from_frame(pl.DataFrame({"item_id": ["x", "y"], "topics": [["a"], None]}))
    assert listed["topics"].to_list() == [["a"], []]


def test_the_last_row_of_an_item_wins():
    items = items_from_frame(pl.DataFrame({"item_id": ["x", "y", "x"], "channel": ["old", "c", "new"]}))
    assert dict(items.select("item_id", "channel").iter_rows()) == {"x": "new", "y": "c"}


def test_a_catalogue_with_a_bad_duration_is_refused():
    with pytest.raises(LogError, match="row 2, column duration_s"):
        items_from_frame(pl.DataFrame({"item_id": ["x", "y"], "duration_s": [1.0, float("nan")]}))


def test_further_columns_of_a_catalogue_are_ids_and_measures_dates_and_flags_are_not(tmp_path: Path):
    frame = pl.DataFrame(
        {
            "item_id": ["x", "y"],
            "title": ["X", "Y"],
            "language": ["en", "de"],
            "available": [True, False],
            "music": [77, None],
            "cast": [["ann", "", None], None],
            "label": ["", "l1"],
            "score": [0.5, 1.0],
            "day": [datetime(2020, 1, 1, tzinfo=UTC)] * 2,
            "flag": [True, False],
        }
    )
    items = items_from_frame(frame)
    assert items["ids"].to_list() == [
        {"music": ["77"], "cast": ["ann"], "label": []},
        {"music": [], "cast": [], "label": ["l1"]},
    ]
    assert items_from_frame(items).equals(items), "a checked catalogue is taken as it is"
    frame.drop("cast").write_csv(tmp_path / "items.csv")
    from_csv = read_items(tmp_path / "items.csv")["ids"].struct.unnest()
    assert from_csv.columns[:2] == ["music", "label"] and "score" not in from_csv.columns


def test_a_catalogue_without_further_columns_has_no_ids():
    assert "ids" not in items_from_frame(pl.DataFrame({"item_id": ["x"]})).columns
    assert items_from_frame(pl.DataFrame({"item_id": [], "music": []}, strict=False)).height == 0


def test_too_many_id_columns_and_too_long_ids_are_refused():
    with pytest.raises(LogError, match="at most 16 further columns can be ids, it has c0, c1"):
        items_from_frame(pl.DataFrame({"item_id": ["x"]} | {f"c{n}": ["1"] for n in range(17)}))
    with pytest.raises(LogError, match="row 2, column music: an id has at most 256 characters"):
        items_from_frame(pl.DataFrame({"item_id": ["x", "y"], "music": ["1", "2" * 300]}))


def test_an_id_column_may_have_another_name_than_the_file_gives_to_one_of_ours(tmp_path: Path):
    (tmp_path / "items.csv").write_text("video,channel,author\nx,c,a\n")
    items = read_items(tmp_path / "items.csv", mapping={"item_id": "video", "channel": "author"})
    assert items.row(0, named=True)["channel"] == "a" and "ids" not in items.columns


def test_a_time_that_is_missing_among_dates_is_refused():
    with pytest.raises(LogError, match="row 2, column event_ms: a time is needed"):
        log_from_frame(frame(event_ms=[datetime(2020, 1, 1, tzinfo=UTC), None, None]), 18.0)


def test_a_context_is_kept_and_checked():
    log = log_from_frame(frame(region=["de", "", None], signed_in=["true", "0", None], age=[0.25, None, 1]), 18.0)
    assert log.frame["region"].to_list() == ["de", None, None]
    assert log.frame["signed_in"].to_list() == [1.0, 0.0, None]
    with pytest.raises(LogError, match="row 2, column gender: must be a number from 0 to 1, got 'female'"):
        log_from_frame(frame(gender=["0", "female", "1"]), 18.0)
    with pytest.raises(LogError, match="row 1, column region: a name has at most 256 characters"):
        log_from_frame(frame(region=["d" * 257, "", ""]), 18.0)


def test_signals_are_kept_each_once_and_in_order_and_a_column_of_another_meaning_says_nothing():
    log = log_from_frame(frame(signal=[" share, like|like", "", None]), 18.0)
    assert log.frame["signal"].to_list() == ["like|share", None, None]
    log = log_from_frame(frame(signal=[["share", "like"], [], None]), 18.0)
    assert log.frame["signal"].to_list() == ["like|share", None, None]
    for other in ([-61, -70, -80], ["weak", "strong", "weak"], [["weak"], [], None], [[1], [], None]):
        assert log_from_frame(frame(signal=other), 18.0).frame["signal"].to_list() == [None] * 3


def test_a_title_is_kept_cut_to_what_a_message_takes_and_is_no_id():
    frame = pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["T" * 10_000, None, "\N{GRINNING FACE} <b>"]})
    items = items_from_frame(frame)
    assert items["title"].to_list() == ["T" * 2000, None, "\N{GRINNING FACE} <b>"] and "ids" not in items.columns
    assert items_from_frame(items).equals(items) and "title" not in items_from_frame(frame.drop("title")).columns


def test_vectors_are_lists_of_one_length_in_whatever_form_a_file_has_them(tmp_path: Path):
    frame = pl.DataFrame(
        {"item_id": ["x", "y", "z"], "vector": [[1.0, 2.5], None, []], "description": ["d" * 9000, "", None]}
    )
    items = items_from_frame(frame)
    assert items["vector"].to_list() == [[1.0, 2.5], None, None] and items["vector"].dtype == pl.List(pl.Float32)
    assert items["description"].to_list() == ["d" * 2000, None, None]
    assert "ids" not in items.columns and items_from_frame(items).equals(items)
    for text in ("[1, 2.5]", "1|2.5", "1 2.5"):
        pl.DataFrame({"item_id": ["x", "y"], "embedding": [text, ""]}).write_csv(tmp_path / "items.csv")
        read = read_items(tmp_path / "items.csv", mapping={"vector": "embedding"})
        assert read["vector"].to_list() == [[1.0, 2.5], None]
    fixed = pl.Series("vector", [[1.0, 2.5], [0.0, 1.0]], pl.Array(pl.Float32, 2))
    assert items_from_frame(pl.DataFrame({"item_id": ["x", "y"]}).with_columns(fixed))["vector"].to_list()[1] == [0, 1]
    assert items_from_frame(pl.DataFrame({"item_id": ["x"], "vector": [None]}))["vector"].to_list() == [None]


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({"vector": ["landscape", "portrait"], "description": [["a"], ["b", "c"]]}, {"vector", "description"}),
        ({"vector": [1.5, 2.5], "description": [True, False]}, set()),
        ({"vector": [["up"], ["down"]], "description": [{"en": "a"}, {"en": "b"}]}, {"vector"}),
    ],
)
def test_columns_that_are_named_as_content_and_are_none_are_read_as_ever(
    columns: dict[str, list[object]], ids: set[str]
):
    items = items_from_frame(pl.DataFrame({"item_id": ["x", "y"], **columns}))
    assert not {"vector", "description"} & {*items.columns}
    assert {*(items["ids"].struct.fields if ids else ())} == ids


def test_vectors_are_checked_some_rows_at_once_and_the_right_row_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "ROWS_AT_ONCE", 2)
    rows = [[1.0, 2.0], None, None, [3.0, 4.0], [5.0, 6.0]]
    frame = pl.DataFrame({"item_id": list("abcde"), "vector": rows})
    assert items_from_frame(frame)["vector"].to_list() == rows
    with pytest.raises(
        LogError, match="row 5, column vector: all vectors have one length, that of the first is 2, got 1"
    ):
        items_from_frame(pl.DataFrame({"item_id": list("abcde"), "vector": [*rows[:4], [5.0]]}))


@pytest.mark.parametrize(
    ("vectors", "why"),
    [
        (
            [[1.0], [float("nan")]],
            "row 2, column vector: a vector has finite numbers, from -1e\\+30 to 1e\\+30, got nan",
        ),
        ([[1.0, 2.0], [1.0, float("inf")]], "row 2, column vector: a vector has finite numbers"),
        ([[1.0], [1e31]], "row 2, column vector: a vector has finite numbers"),
        ([[1.0], [None]], "row 2, column vector: a vector has finite numbers"),
        (["1 2", "1 two"], "row 2, column vector: a vector has finite numbers, .*, got 'two'"),
        ([[1.0, 2.0], [1.0]], "row 2, column vector: all vectors have one length, that of the first is 2, got 1"),
        ([[1.0], [1.0] * 2049], "row 2, column vector: a vector has at most 2048 numbers, got 2049"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused_with_their_row(vectors: list[object], why: str):
    with pytest.raises(LogError, match=why):
        items_from_frame(pl.DataFrame({"item_id": ["x", "y"], "vector": vectors}, strict=False))

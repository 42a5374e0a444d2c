"""A stored log says what the log in memory says, whatever its size, order and format."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from models.logs.array_file import forget_pages, mapped
from models.logs.log import LOG_COLUMNS, LogError, log_from_frame
from models.logs.stored_log import FACTS, LogWriter, StoredLog, open_log, store_frame, store_log

BUFFER = 7
COMPLETED_S = 18.0
store = partial(store_frame, completed_s=COMPLETED_S)
seconds = st.none() | st.integers(0, 40).map(float)
rows = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from("xyz"),
        st.integers(0, 12),
        seconds,
        seconds,
        st.sampled_from([None, "de"]),
    ),
    min_size=1,
    max_size=60,
)


def table(values: list[tuple[object, ...]]) -> pl.DataFrame:
    kinds = (pl.String, pl.String, pl.Int64, pl.Float64, pl.Float64, pl.String)
    return pl.DataFrame(values, schema=dict(zip((*LOG_COLUMNS, "region"), kinds, strict=True)), orient="row")


def same(stored: StoredLog, frame: pl.DataFrame) -> None:
    """The rows are those of models.logs.log; a context that says nothing may be left out."""
    simple = log_from_frame(frame, COMPLETED_S).frame
    if "region" in simple.columns and "region" not in stored.contexts:
        assert simple["region"].null_count() == simple.height
        simple = simple.drop("region")
    assert_frame_equal(stored.frame(), simple, check_dtypes=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "stored"


def many(count: int, seed: int = 1, times: int = 10_000) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, 50, count).astype(str),
            "item_id": rng.integers(0, 50, count).astype(str),
            "event_ms": rng.integers(0, times, count),
            "watch_s": rng.integers(0, 60, count).astype(float),
        }
    )


@settings(max_examples=150, deadline=None)
@given(rows)
def test_any_log_in_a_small_buffer_is_the_log_in_memory(values: list[tuple[object, ...]]) -> None:
    frame = table(values)
    with TemporaryDirectory() as place:
        stored = store(frame, Path(place), buffer_rows=BUFFER)
        same(stored, frame)
        log = log_from_frame(frame, COMPLETED_S)
        assert (stored.duplicates, stored.watch_times) == (log.duplicates, log.watch_times)
        assert len(stored) == log.frame.height


@settings(max_examples=60, deadline=None)
@given(rows, st.randoms())
def test_the_order_in_the_file_decides_only_between_equal_times(values: list[tuple[object, ...]], random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    with TemporaryDirectory() as place:
        stored = store(table(shuffled), Path(place), buffer_rows=BUFFER)
        whole = table(values).unique(["user_id", "item_id", "event_ms"]).sort("event_ms")
        assert stored.event_ms.tolist() == whole["event_ms"].to_list()
        keys = stored.frame().select("user_id", "item_id", "event_ms").rows()
        assert sorted(keys) == sorted(whole.select("user_id", "item_id", "event_ms").rows())
        same(stored, table(shuffled))


@pytest.mark.parametrize("count", [1, BUFFER, 100, 3000])
def test_each_format_gives_the_same_log(tmp_path: Path, count: int) -> None:
    frame = many(count)
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_csv(tmp_path / "log.csv")
    frame.write_ndjson(tmp_path / "log.jsonl")
    for suffix in ("parquet", "csv", "jsonl"):
        path = tmp_path / f"log.{suffix}"
        stored = store_log(path, tmp_path / suffix, completed_s=COMPLETED_S, buffer_rows=max(BUFFER, count // 13))
        same(stored, frame)


def test_ids_that_look_like_numbers_stay_as_they_are_written(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,event_ms\n007,1e3,5\n7,1000,6\n")
    stored = store_log(tmp_path / "log.csv", directory, completed_s=COMPLETED_S)
    assert (stored.user_ids, stored.item_ids) == (["007", "7"], ["1e3", "1000"])


def test_json_lines_may_leave_out_what_they_do_not_know(tmp_path: Path, directory: Path) -> None:
    lines = [f'{{"user_id": {n}, "item_id": "i{n}", "event_ms": {n}}}' for n in range(3)]
    lines[0] = lines[0].replace("}", ', "watch_s": 3, "region": "de"}')
    lines += ['{"user_id": "u", "item_id": "x", "event_ms": 9, "device": "tv"}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    stored = store_log(tmp_path / "log.jsonl", directory, completed_s=COMPLETED_S, buffer_rows=1)
    assert stored.user_ids == ["0", "1", "2", "u"]
    np.testing.assert_array_equal(stored.watch_s, np.array([3, np.nan, np.nan, np.nan], np.float32))
    assert stored.vocabularies == {"region": ["", "de"], "device": ["", "tv"]}
    assert [stored.contexts[name].tolist() for name in ("region", "device")] == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_other_column_names_are_mapped_also_of_a_context(tmp_path: Path, directory: Path) -> None:
    many(5).rename({"user_id": "uid"}).with_columns(country=pl.lit("de")).write_csv(tmp_path / "log.csv")
    mapping = {"user_id": "uid", "region": "country"}
    stored = store_log(tmp_path / "log.csv", directory, mapping=mapping, completed_s=COMPLETED_S)
    assert stored.contexts["region"].tolist() == [1] * 5
    with pytest.raises(LogError, match=r"no column who \(--map user_id=who\); it has uid"):
        store_log(tmp_path / "log.csv", directory, mapping={"user_id": "who"}, completed_s=COMPLETED_S)
    with pytest.raises(LogError, match="column user_id is missing"):
        store_log(tmp_path / "log.csv", directory, completed_s=COMPLETED_S)


def test_signals_are_stored_and_come_back_also_from_a_file(tmp_path: Path, directory: Path) -> None:
    said = ["like", None, "share|like", "", "dislike"]
    frame = many(5).with_columns(event_ms=pl.Series([1, 2, 3, 4, 5]), said=pl.Series(said))
    frame.write_csv(tmp_path / "log.csv")
    stored = store_log(tmp_path / "log.csv", directory, mapping={"signal": "said"}, completed_s=COMPLETED_S)
    assert stored.frame()["signal"].to_list() == ["like", None, "like|share", None, "dislike"]
    assert open_log(directory).frame().equals(stored.frame())


def test_flags_and_shares_of_a_context_are_numbers_and_unknown_ones_nan(directory: Path) -> None:
    frame = many(3).with_columns(
        event_ms=pl.Series([1, 2, 3]), signed_in=pl.Series([True, None, False]), age=pl.Series(["0.5", "", "1"])
    )
    stored = store(frame, directory)
    np.testing.assert_array_equal(stored.contexts["signed_in"], np.array([1, np.nan, 0], np.float32))
    np.testing.assert_array_equal(stored.contexts["age"], np.array([0.5, np.nan, 1], np.float32))
    with pytest.raises(LogError, match="row 2, column age: must be a number from 0 to 1, got '30'"):
        store(frame.with_columns(age=pl.Series(["0.5", "30", "1"])), directory)


def test_one_user_with_100_000_events_and_an_item_with_nine_tenths_of_them(directory: Path) -> None:
    count = 110_000
    rng = np.random.default_rng(2)
    frame = pl.DataFrame(
        {
            "user_id": np.where(np.arange(count) < 100_000, "one", "others"),
            "item_id": np.where(rng.random(count) < 0.9, "hit", rng.integers(0, 500, count).astype(str)),
            "event_ms": rng.permutation(count),
        }
    )
    stored = store(frame, directory, buffer_rows=9000)
    same(stored, frame)
    assert (stored.users == stored.user_ids.index("one")).sum() == 100_000


def test_a_time_with_more_rows_than_the_buffer_is_not_torn(directory: Path) -> None:
    """Most rows have one and the same time, early times are rare: quantiles alone would never split them off."""
    frame = many(2000, times=3).with_columns(
        event_ms=pl.when(pl.int_range(pl.len()) % 50 == 0).then(pl.col("event_ms")).otherwise(1_700_000_000_000)
    )
    same(store(frame, directory, buffer_rows=30), frame)
    same(store(frame.sort("event_ms"), directory, buffer_rows=30), frame.sort("event_ms"))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("user_id", None, "an id is needed"),
        ("item_id", "b" * 1024, "an id has at most 256 characters"),
        ("event_ms", -5, "must not be negative"),
        ("event_ms", None, "a time is needed"),
        ("watch_s", -1.0, "must be finite and not negative"),
    ],
)
def test_a_bad_row_of_the_third_batch_is_named_by_its_row_in_the_file(
    tmp_path: Path, directory: Path, suffix: str, column: str, value: object, why: str
) -> None:
    frame = many(30)
    values = frame[column].to_list()
    values[24] = value
    frame = frame.with_columns(pl.Series(column, values, strict=False))
    path = tmp_path / f"log.{suffix}"
    write = {"parquet": frame.write_parquet, "csv": frame.write_csv, "jsonl": frame.write_ndjson}[suffix]
    write(path)
    with pytest.raises(LogError, match=rf"log.{suffix}: row 25, column {column}: {why}"):
        store_log(path, directory, completed_s=COMPLETED_S, buffer_rows=10)
    assert not list(directory.iterdir()), "what an error leaves unfinished is cleared away"


def test_a_watch_time_that_is_no_number_is_refused_and_one_left_out_is_unknown(directory: Path) -> None:
    frame = many(3).with_columns(watch_s=pl.Series([1.0, float("nan"), None]))
    with pytest.raises(LogError, match="row 2, column watch_s: must be finite and not negative, got nan"):
        store(frame, directory)
    stored = store(frame[[0, 2]], directory)
    assert np.isnan(stored.watch_s).sum() == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("log.csv", "", "cannot be read|has no rows"),
        ("log.csv", "user_id,item_id,event_ms\n", "has no rows"),
        ("log.jsonl", "", "has no rows"),
        ("log.parquet", "no", "cannot be read"),
        ("log.txt", "x", "cannot tell the format"),
    ],
)
def test_a_file_without_a_log_is_refused_by_name(
    tmp_path: Path, directory: Path, name: str, content: str, why: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LogError, match=why) as refused:
        store_log(tmp_path / name, directory, completed_s=COMPLETED_S)
    assert name in str(refused.value)


def test_a_missing_file_and_a_table_without_columns_or_rows_are_refused(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(LogError, match="no such file"):
        store_log(tmp_path / "none.csv", directory, completed_s=COMPLETED_S)
    with pytest.raises(LogError, match="column item_id is missing"):
        store(many(3).drop("item_id"), directory)
    with pytest.raises(LogError, match="watch-events: has no rows"):
        store(many(3).clear(), directory, source="watch-events")


def test_a_stored_log_is_opened_again_and_half_of_one_is_not(directory: Path) -> None:
    frame = many(100).with_columns(device=pl.lit("tv"))
    stored = store(frame, directory)
    again = open_log(directory)
    assert again.frame().equals(stored.frame())
    assert (again.duplicates, again.completed_s, again.item_ids) == (stored.duplicates, COMPLETED_S, stored.item_ids)
    (directory / FACTS).unlink()
    with pytest.raises(LogError, match="holds no stored log"):
        open_log(directory)


def test_frames_may_come_one_after_the_other(directory: Path) -> None:
    frame = many(500)
    with LogWriter(directory, completed_s=COMPLETED_S, buffer_rows=64) as writer:
        for batch in frame.iter_slices(37):
            writer.add(batch)
        same(writer.finish(), frame)


def test_the_last_known_duration_of_an_item_is_told(directory: Path) -> None:
    rows = [("a", "x", 1, None, 5.0), ("a", "x", 3, None, 6.0), ("a", "y", 4, None, None), ("a", "x", 5, None, None)]
    stored = store(table([(*row, None) for row in rows]), directory)
    np.testing.assert_array_equal(stored.item_durations(), np.array([6, np.nan], np.float32))


def test_progress_is_told_up_to_the_end(tmp_path: Path, directory: Path) -> None:
    many(100).write_parquet(tmp_path / "log.parquet")
    told: list[tuple[str, int, int]] = []
    how = {"completed_s": COMPLETED_S, "buffer_rows": 10}
    store_log(tmp_path / "log.parquet", directory, **how, progress=lambda *step: told.append(step))
    assert ("reading", 100, 100) in told
    assert told[-1] == ("sorting", 100, 100)


PEAK = """
import resource, sys
from pathlib import Path
from models.logs.stored_log import store_log
store_log(Path(sys.argv[1]), Path(sys.argv[2]), completed_s=18.0, buffer_rows=100_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    paths = [tmp_path / f"{count}.parquet" for count in (200_000, 3_000_000)]
    for path in paths:  # both before either is read: a child's peak begins with its parent's memory
        many(int(path.stem), times=10**12).write_parquet(path, row_group_size=100_000)

    def peak_mb(path: Path) -> float:
        command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / path.stem)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024

    small, large = map(peak_mb, paths)
    assert large - small < 50, "2.8 million rows more, 76 MB at 27 bytes each"


def test_pages_that_were_let_go_of_are_read_again(tmp_path: Path):
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(10_000, dtype=np.float32).reshape(-1, 10))
    for mode in ("r", "c"):
        array = mapped(path, mode)  # type: ignore[arg-type]
        total = array.sum()
        forget_pages(array)
        assert array.sum() == total
    forget_pages(np.zeros(3))

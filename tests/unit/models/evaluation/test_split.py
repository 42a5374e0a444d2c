import numpy as np
import pytest

from models.evaluation.eval_queries import History, Stream
from models.evaluation.split import (
    LIVE_VALIDATION,
    BacktestError,
    Split,
    cut_at,
    cut_fraction,
    iso,
    split,
    validation_history,
)


def stream_of(rows: int, *, users: int = 7, every_ms: int = 10) -> Stream:
    """Each user watches something new every time."""
    numbers = np.arange(rows)
    return Stream(numbers % users, numbers, 1000 + every_ms * numbers)


def test_a_cut_in_time_is_the_first_row_at_or_after_it():
    stream = stream_of(20)
    assert [cut_at(stream, time, "x") for time in (1010, 1011, 1190)] == [1, 2, 19]


def test_rows_of_one_millisecond_stay_on_one_side():
    stream = Stream(np.arange(6), np.arange(6), np.array([1, 1, 5, 5, 5, 9]))
    assert cut_fraction(stream, 0.4, "x") == 2
    assert cut_at(stream, 5, "x") == 2


@pytest.mark.parametrize(("time_ms", "says"), [(1000, "no positive is before"), (1191, "no positive is at or after")])
def test_a_cut_outside_the_log_names_the_option_and_the_logs_times(time_ms, says):
    with pytest.raises(BacktestError, match=f"^--test-from 7: {says} .*from 1970-01-01T00:00:01.000Z to "):
        cut_at(stream_of(20), time_ms, "--test-from 7")


def test_a_fraction_that_leaves_nothing_before_names_the_option():
    with pytest.raises(BacktestError, match=r"^--test-fraction"):
        cut_fraction(stream_of(20), 0.99, "--test-fraction 0.99")
    one_moment = Stream(np.arange(9), np.arange(9), np.full(9, 5))
    with pytest.raises(BacktestError, match=r"^--test-fraction"):
        cut_fraction(one_moment, 0.5, "--test-fraction 0.5")
    nothing = np.empty(0, np.int64)
    with pytest.raises(BacktestError, match="no positive"):
        cut_fraction(Stream(nothing, nothing, nothing), 0.1, "x")


def test_validation_is_as_long_as_the_test_but_at_most_a_tenth_of_what_is_before():
    history = History(stream_of(1000))
    assert split(history, 950, live=False) == Split(900, 950, 1000)
    assert split(history, 500, live=False) == Split(450, 500, 1000)
    assert split(history, 500, live=False, validation_share=0.4) == Split(300, 500, 1000)


def test_a_live_validation_walk_is_bounded(monkeypatch):
    assert LIVE_VALIDATION == 10_000
    monkeypatch.setattr("models.evaluation.split.LIVE_VALIDATION", 30)
    history = History(stream_of(1000))
    assert split(history, 500, live=True) == Split(470, 500, 1000)
    assert split(history, 500, live=False) == Split(450, 500, 1000)


def test_validation_begins_with_a_whole_millisecond():
    stream = stream_of(1000)
    together = Stream(stream.users, stream.items, stream.event_ms // 70)
    parts = split(History(together), 950, live=False)
    assert parts.validation <= 900
    assert together.event_ms[parts.validation - 1] < together.event_ms[parts.validation]


def test_nobody_to_ask_in_the_test_is_an_error():
    users = np.r_[np.arange(50) % 5, 5 + np.arange(50)]  # only new users after the cut
    with pytest.raises(BacktestError, match="nobody to be asked: move --test-from or --test-fraction"):
        split(History(Stream(users, np.arange(100), np.arange(100))), 50, live=False)


def test_an_empty_validation_part_says_how_to_get_one():
    with pytest.raises(BacktestError, match="--validation-fraction"):
        split(History(stream_of(14)), 7, live=False)  # a tenth of seven rows is none
    users = np.r_[np.arange(10), 100 + np.arange(90), np.arange(10)]  # nobody of before validation is in it
    with pytest.raises(BacktestError, match="--validation-fraction"):
        split(History(Stream(users, np.arange(110), np.arange(110))), 100, live=False)


def test_nothing_of_the_test_is_a_validation_case():
    stream = stream_of(100)
    parts = split(History(stream), 90, live=False)
    history = validation_history(stream, parts)
    assert len(history.stream) == 90
    assert (history.next_unseen(parts.validation).watched < 90).all()


def test_times_are_written_in_utc():
    assert iso(1_651_656_924_331) == "2022-05-04T09:35:24.331Z"

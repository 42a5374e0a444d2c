"""When a round of retraining begins, and that none goes on for longer than it may."""

import pytest

from infra.operate.retrain.rounds import (
    RETRY_S,
    OutOfTime,
    Round,
    Stopped,
    first_start,
    next_start,
    read_duration,
    within,
)

HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_000


def test_the_first_round_begins_when_the_newest_release_is_old_enough_whoever_made_it():
    assert first_start(0, NOW_MS, 3600) == NOW_MS, "there is none"
    assert first_start(NOW_MS - HOUR_MS // 4, NOW_MS, 3600) == NOW_MS + 3 * HOUR_MS // 4
    assert first_start(NOW_MS - 5 * HOUR_MS, NOW_MS, 3600) == NOW_MS, "a restart does not train anew what is fresh"


def test_rounds_keep_their_pace_and_one_that_took_too_long_is_followed_at_once():
    assert next_start(Round("announced", NOW_MS, 600.0), 3600) == NOW_MS + HOUR_MS
    assert next_start(Round("refused", NOW_MS, 600.0), 3600) == NOW_MS + HOUR_MS, "the same watches say the same"
    assert next_start(Round("announced", NOW_MS, 5000.0), 3600) == NOW_MS + HOUR_MS, "which has passed"


def test_a_round_that_failed_is_tried_again_soon_but_no_later_than_its_turn():
    soon_ms = NOW_MS + round(1000 * (10 + RETRY_S))
    assert next_start(Round("failed", NOW_MS, 10.0), 86_400) == soon_ms
    assert next_start(Round("failed", NOW_MS, 10.0), 60) == NOW_MS + 60_000
    assert next_start(Round("failed", NOW_MS, 100.0), 60) == NOW_MS + 100_000, "not before it has ended"


def test_a_training_that_has_used_up_its_time_ends_with_the_stage_it_was_at():
    now, told = [0.0], []
    step = within(lambda *each: told.append(each), 60.0, clock=lambda: now[0])
    step("validation", 1, 9)
    now[0] = 60.0
    step("validation", 2, 9)
    now[0] = 60.1
    with pytest.raises(OutOfTime, match=r"--budget \(60 s; it was at `candidates`, 3 of 9\)"):
        step("candidates", 3, 9)
    assert told == [("validation", 1, 9), ("validation", 2, 9)]


def test_a_training_ends_when_the_process_is_asked_to():
    stopping = [False]
    step = within(lambda *_: None, 60.0, clock=lambda: 0.0, stopped=lambda: stopping[0])
    step("validation", 1, 9)
    stopping[0] = True
    with pytest.raises(Stopped):
        step("validation", 2, 9)


def test_a_time_is_a_number_and_a_unit():
    assert [read_duration(each) for each in ("90s", "30m", "6h", "1d", " 1.5h ")] == [90, 1800, 21_600, 86_400, 5400]
    for wrong in ("6", "h", "-6h", "6 hours", "0h", "", "nanh"):
        with pytest.raises(ValueError, match="a time such as"):
            read_duration(wrong)

"""The crash run of tests/benchmarks/reliability/crash.py in two minutes: everything is killed once at least, and most
protocols at each of their steps; afterwards everything that the topics imply is there, once."""

from __future__ import annotations

import pytest

from tests.harness.crash.fast import POINTS, fast
from tests.harness.crash.run import Outcome, Scale, counts, run_crashes, timed
from tests.harness.crash.supervised import ALL, UP
from tests.harness.needs import KAFKA, needs

pytestmark = needs(KAFKA, "noida loses acknowledged records on kill -9")

SEED = 1


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    say = timed(print)
    found = run_crashes(Scale(), fast, tmp_path_factory.mktemp("crash"), SEED, say)
    for line in counts(found):
        say(line)
    return found


def test_every_process_was_killed_and_every_armed_point_reached(outcome):
    assert set(outcome.deaths.killed) == {*ALL, UP}
    assert set(outcome.deaths.died_at) == set(POINTS) and outcome.deaths.not_reached == []


def test_nothing_that_was_acknowledged_is_lost(outcome):
    assert outcome.verdict.lost == []


def test_nothing_counts_twice(outcome):
    assert outcome.verdict.doubled == []


def test_histories_examples_rows_and_index_are_what_the_topics_imply(outcome):
    assert min(outcome.verdict.compared.values()) > 0, "each kind was compared"
    assert outcome.verdict.differing == []


def test_the_trainer_died_and_no_row_has_counted_a_watch_twice(outcome):
    """One that has is among what is doubled."""
    assert outcome.deaths.of("trainer") > 0 and outcome.verdict.compared["examples in rows"] > 0


def test_every_request_is_answered(outcome):
    assert len(outcome.sent.asked) > 100 and outcome.unanswered == 0
    assert outcome.refused == []


def test_no_reply_mixes_versions_and_copies_are_alike(outcome):
    assert outcome.versions == 2 and outcome.scores > 500
    assert outcome.mixed == []
    assert outcome.otherwise == []

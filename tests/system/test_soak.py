"""The soak of tests/benchmarks/reliability/soak.py in a minute: whatever dies, every request is answered, and from
one version."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.benchmarks.reliability.soak import Outcome, Plan, run_soak

PER_S = 15.0
TAKEDOWN_MS = 5000  # two seconds are promised, on a machine that does nothing else (tests/system/test_takedown.py)
BOTH = Plan(36.0, swap_s=9.0, per_s=PER_S, away_s=3.0)
# noida lets no second member into a group, nor a killed one's successor
ALONE = Plan(36.0, swap_s=9.0, per_s=PER_S, away_s=3.0, servers=("serving-1",), kills=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    plan = BOTH if os.environ.get("KAFKA_HOME") else ALONE
    yield run_soak(plan, tmp_path_factory.mktemp("soak"), lambda what: None)


def test_every_request_is_answered_whatever_dies(outcome):
    assert len(outcome.asked) >= 0.9 * PER_S * outcome.plan.seconds
    assert outcome.unanswered == 0


def test_no_reply_mixes_versions_over_swaps_roll_backs_and_a_build_without_milvus(outcome):
    served = {each.version for lists in outcome.witness.replies.values() for each in lists}
    assert len(served) == outcome.plan.releases, "each release was live"
    assert outcome.witness.compared > 1000 and outcome.witness.mixed == []


def test_what_was_given_is_what_is_on_record_and_copies_are_alike(outcome):
    assert outcome.witness.recorded_otherwise(outcome.editor.done) == []
    assert outcome.witness.answered_otherwise(outcome.editor.done) == []


def test_what_is_taken_down_is_in_no_reply_soon_after(outcome):
    assert len(outcome.editor.done) > 10
    assert outcome.witness.shown_late(outcome.editor.done, TAKEDOWN_MS) == []

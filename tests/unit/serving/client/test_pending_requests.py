from __future__ import annotations

import pytest

from serving.client.pending_requests import PendingRequests, copy_of, request_for, shares
from streams.messages import RecommendReply, RecommendRequest

REQUEST = RecommendRequest("r", "ann", deadline_ms=1000)


def test_the_time_is_divided_equally_among_all_sends():
    assert shares(4.0, 3) == (1.0, 2.0, 3.0)
    assert shares(4.0, 0) == ()


def test_a_request_has_a_new_id_unless_it_is_given_one():
    assert request_for("ann", timeout_s=1).request_id != request_for("ann", timeout_s=1).request_id
    assert request_for("ann", request_id="mine", timeout_s=1).request_id == "mine"


def test_a_copy_differs_in_nothing_but_the_time_that_is_left():
    assert copy_of(REQUEST, 0.4) == RecommendRequest("r", "ann", deadline_ms=600)
    assert copy_of(REQUEST, 2.0).deadline_ms == 1
    assert copy_of(RecommendRequest("r", "ann"), 2.0) == RecommendRequest("r", "ann")


def test_what_is_not_answered_is_due_again_at_its_times_with_the_same_correlation_id():
    under_way = PendingRequests()
    correlation, _ = under_way.add(REQUEST, 10.0, shares(0.9, 2))
    assert under_way.due(10.2) == []
    assert under_way.due(10.5) == [(correlation, copy_of(REQUEST, 0.5))]
    assert under_way.due(10.55) == []
    assert [again for again, _ in under_way.due(10.7)] == [correlation]
    assert under_way.due(99.0) == []


def test_what_is_answered_failed_or_cancelled_is_not_sent_again():
    under_way = PendingRequests()
    answered, failed, cancelled = (under_way.add(REQUEST, 0.0, [1.0]) for _ in range(3))
    under_way.reply(answered[0], RecommendReply("r"))
    under_way.fail(failed[0], RuntimeError())
    cancelled[1].future.cancel()
    assert under_way.due(2.0) == []
    assert len(under_way) == 0


def test_the_first_reply_wins():
    under_way = PendingRequests()
    correlation, waiting = under_way.add(REQUEST, 0.0)
    under_way.reply(correlation, RecommendReply("r", version="first"))
    under_way.reply(correlation, RecommendReply("r", version="second"))
    under_way.fail(correlation, RuntimeError("too late"))
    assert waiting.future.result(0).version == "first"


def test_a_failure_reaches_whoever_waits():
    under_way = PendingRequests()
    both = [under_way.add(REQUEST, 0.0)[1] for _ in range(2)]
    under_way.fail_all(RuntimeError("gone"))
    for waiting in both:
        with pytest.raises(RuntimeError, match="gone"):
            waiting.future.result(0)
    assert len(under_way) == 0


def test_it_is_known_whether_the_brokers_took_a_request():
    under_way = PendingRequests()
    correlation, waiting = under_way.add(REQUEST, 0.0)
    assert not under_way.is_accepted(waiting.future)
    under_way.accept(correlation)
    assert under_way.is_accepted(waiting.future)

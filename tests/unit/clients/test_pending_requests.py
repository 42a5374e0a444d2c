import pytest

from nextwatch_client import RecommendReply, RecommendRequest
from nextwatch_client.pending_requests import PendingRequests, copy_to_resend, new_request, resend_times_s

REQUEST = RecommendRequest("r", "ann", deadline_ms=1000)


def test_the_time_is_divided_equally_among_all_sends():
    assert resend_times_s(4.0, 3) == (1.0, 2.0, 3.0)
    assert resend_times_s(4.0, 0) == ()


def test_a_request_has_a_new_id_unless_it_is_given_one():
    assert new_request("ann", timeout_s=1).request_id != new_request("ann", timeout_s=1).request_id
    assert new_request("ann", request_id="mine", timeout_s=1).request_id == "mine"


def test_a_copy_differs_in_nothing_but_the_time_that_is_left():
    assert copy_to_resend(REQUEST, 0.4) == RecommendRequest("r", "ann", deadline_ms=600)
    assert copy_to_resend(REQUEST, 2.0).deadline_ms == 1
    assert copy_to_resend(RecommendRequest("r", "ann"), 2.0) == RecommendRequest("r", "ann")


def test_what_the_brokers_have_not_taken_is_not_sent_again_behind_itself_but_soon_after_they_have():
    pending = PendingRequests()
    correlation_id, _ = pending.add(REQUEST, 10.0, resend_times_s(0.9, 1))
    assert pending.due(10.5) == []
    pending.acknowledge(correlation_id)
    assert pending.due(10.55) == []
    assert pending.due(10.65) == [(correlation_id, copy_to_resend(REQUEST, 0.65))]
    assert pending.due(99.0) == []


def test_what_is_not_answered_is_due_again_at_its_times_with_the_same_correlation_id():
    pending = PendingRequests()
    correlation_id, _ = pending.add(REQUEST, 10.0, resend_times_s(0.9, 2))
    pending.acknowledge(correlation_id)
    assert pending.due(10.2) == []
    assert pending.due(10.5) == [(correlation_id, copy_to_resend(REQUEST, 0.5))]
    assert pending.due(10.55) == []
    assert [again for again, _ in pending.due(10.7)] == [correlation_id]
    assert pending.due(99.0) == []


def test_what_is_answered_failed_or_cancelled_is_not_sent_again():
    pending = PendingRequests()
    answered, failed, cancelled = (pending.add(REQUEST, 0.0, [1.0]) for _ in range(3))
    pending.reply(answered[0], RecommendReply("r"))
    pending.fail(failed[0], RuntimeError())
    cancelled[1].future.cancel()
    assert pending.due(2.0) == []
    assert len(pending) == 0


def test_the_first_reply_wins():
    pending = PendingRequests()
    correlation_id, entry = pending.add(REQUEST, 0.0)
    pending.reply(correlation_id, RecommendReply("r", version="first"))
    pending.reply(correlation_id, RecommendReply("r", version="second"))
    pending.fail(correlation_id, RuntimeError("too late"))
    assert entry.future.result(0).version == "first"


def test_a_failure_reaches_whoever_waits():
    pending = PendingRequests()
    both = [pending.add(REQUEST, 0.0)[1] for _ in range(2)]
    pending.fail_all(RuntimeError("gone"))
    for entry in both:
        with pytest.raises(RuntimeError, match="gone"):
            entry.future.result(0)
    assert len(pending) == 0


def test_it_is_known_whether_the_brokers_took_a_request():
    pending = PendingRequests()
    correlation_id, entry = pending.add(REQUEST, 0.0)
    assert not pending.is_acknowledged(entry.future)
    pending.acknowledge(correlation_id)
    assert pending.is_acknowledged(entry.future)

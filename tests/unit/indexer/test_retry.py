"""What waiting does to `/health`, and what is not waited for."""

import threading
from collections.abc import Callable

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from indexer import retry
from indexer.errors import IndexMissing, IndexUnavailable
from indexer.retry import Retry, Stopped
from infra.platform.health import Health


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)


def answering(*answers: Exception | str) -> Callable[[], str]:
    """A call with these answers, one after the other."""
    left = list(answers)

    def call() -> str:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call


def patient(health: Health) -> Retry:
    return Retry(threading.Event(), health, lambda: None)


def test_an_indexer_is_ready_again_whatever_milvus_says_when_it_is_back() -> None:
    health = Health("indexer", ready=True, waiting_for="")
    retry = patient(health)
    call = answering(IndexUnavailable("away"), IndexMissing("it came back empty"), "an answer")
    with pytest.raises(IndexMissing):
        retry(call)
    assert (health.ready, health.waiting_for) == (True, "")
    assert retry(call) == "an answer"
    assert (health.ready, health.waiting_for) == (True, "")


def test_while_milvus_or_kafka_is_away_it_is_not_ready_and_says_why() -> None:
    health, seen = Health("indexer", ready=True, waiting_for=""), []
    call = answering(IndexUnavailable("no port"), KafkaTimeoutError("no leader"), "an answer")
    retry = Retry(threading.Event(), health, lambda: seen.append((health.ready, health.waiting_for)))
    assert retry(call) == "an answer"
    assert [ready for ready, _ in seen] == [True, False, False]
    assert "Milvus: no port" in seen[1][1] and "no leader" in seen[2][1]


def test_who_was_not_ready_before_is_not_made_so_by_an_answer() -> None:
    health = Health("indexer", waiting_for="the catalogue to be read")
    assert patient(health)(answering(IndexUnavailable("away"), "an answer")) == "an answer"
    assert (health.ready, health.waiting_for) == (False, "the catalogue to be read")


def test_who_is_asked_to_stop_meanwhile_is_not_made_ready() -> None:
    health, stop = Health("indexer", ready=True), threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        Retry(stop, health, lambda: None)(answering(IndexUnavailable("away")))
    assert not health.ready


def test_a_message_that_is_too_large_is_not_sent_for_ever() -> None:
    health = Health("indexer", ready=True)
    with pytest.raises(MessageSizeTooLargeError):
        patient(health)(answering(MessageSizeTooLargeError("8 MB"), "no second try"), of="kafka")
    assert health.ready

"""Which request to rebuild is open: told by order of arrival, whatever the clocks of those who ask say."""

from __future__ import annotations

from indexer.rebuilding import Requests
from streams.messages import RebuildAsked, RebuildDone


def asked(at_ms: int) -> RebuildAsked:
    return RebuildAsked("v", at_ms)


def done(asked_ms: int) -> RebuildDone:
    return RebuildDone("v", asked_ms, 1, "", 1)


def open_after(*messages: RebuildAsked | RebuildDone) -> RebuildAsked | None:
    requests = Requests()
    for message in messages:
        requests.hear(message)
    return requests.open


def test_a_request_is_open_until_its_answer() -> None:
    assert open_after() is None
    assert open_after(asked(100)) == asked(100)
    assert open_after(asked(100), done(100)) is None
    assert open_after(done(100)) is None, "compaction has taken the request"


def test_an_answered_request_of_a_clock_that_is_ahead_hides_no_later_one() -> None:
    assert open_after(asked(100), done(100), asked(50)) == asked(50)
    assert open_after(asked(100), done(100), asked(50), done(50)) is None
    assert open_after(done(100), asked(50)) == asked(50), "compacted"


def test_the_newest_is_open_when_an_older_one_is_answered_meanwhile() -> None:
    assert open_after(asked(50), asked(100), done(50)) == asked(100)
    assert open_after(asked(100), asked(50), done(100)) == asked(50)
    assert open_after(asked(100), asked(50), done(50), done(100)) is None, "our own answers are read again later"


def test_a_request_that_was_sent_twice_is_done_once() -> None:
    assert open_after(asked(100), done(100), asked(100)) is None

"""The pages of dead letters: what is shown of them, and what retrying and dropping one does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from infra.platform.settings import Kafka
from streams.dead_letters.box import Place, of
from streams.dead_letters.retry import SENT, Outcome
from streams.kafka.dead_letters import RETRIED, dead_letter, marked
from streams.messages import DeadLetter, Refused, encode
from streams.topics import WATCH_EVENTS
from tests.harness.traffic import now_ms
from tests.unit.infra.console.consoles import HERE, TOKEN, know_catalogue, run

LIST, PAGE = "/console/dead-letters", "/console/dead-letter"
MARKUP = "<script>alert('1')</script>\"&"


@dataclass
class Topic:
    """The dead letters, and what was sent again, without a broker."""

    letters: list[DeadLetter] = field(default_factory=list)
    sent: list[DeadLetter] = field(default_factory=list)
    error: Exception | None = None

    def put(self, offset: int, value: bytes | None = b"{}", **change: Any) -> str:
        """A letter; its id."""
        facts: dict[str, Any] = {"key": b"ann", "headers": (), "code": "invalid", "reason": "no good"} | change
        key, headers, refused = facts["key"], facts["headers"], Refused(facts["code"], facts["reason"])
        at_ms, limit = facts.get("at_ms", now_ms()), 1000
        letter = dead_letter(WATCH_EVENTS, 1, offset, key, value, headers, refused, at_ms, max_bytes=limit)
        self.letters.append(letter)
        return str(of(letter))

    def read(self, kafka: Kafka, name: str, *, progress: Any) -> Iterator[Any]:
        if self.error is not None:
            raise self.error
        yield from [SimpleNamespace(value=encode(letter)) for letter in self.letters]

    # --- a Sender ---

    def __enter__(self) -> "Topic":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def send(self, letters: Sequence[DeadLetter], overtaken: set[Place], at_ms: int) -> list[Outcome]:
        self.sent += letters
        self.mark(letters, SENT, at_ms)
        return [Outcome(str(of(letter)), f"sent again as {letter.topic}/1/77") for letter in letters]

    def mark(self, letters: Sequence[DeadLetter], mark: str, at_ms: int) -> None:
        self.letters += [marked(letter, mark, at_ms) for letter in letters]


@pytest.fixture(autouse=True)
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    know_catalogue(monkeypatch)
    found = Topic()
    monkeypatch.setattr("streams.dead_letters.box.read_to_end", found.read)
    monkeypatch.setattr("streams.dead_letters.retry.Sender", lambda kafka: found)
    return found


def see(path: str, token: str = "") -> tuple[int, str]:
    return run(lambda ask: ask("GET", path), token)


def do(what: str, letter: str, **how: Any) -> tuple[int, str]:
    token = how.pop("token", "")
    return run(lambda ask: ask("POST", PAGE, data={"id": letter, "do": what}, headers=HERE, **how), token)


def test_open_letters_are_listed_newest_first_with_place_reason_age_and_tries(topic: Topic):
    topic.put(5, at_ms=now_ms() - 7_300_000, reason="the first reason")
    topic.put(9, reason=f"{MARKUP} {'x' * 900}", code="future", headers=((RETRIED, b"watch-events/1/5"),))
    dropped = topic.put(7)
    assert do("drop", dropped)[0] == 200
    status, page = see(LIST)
    assert status == 200 and "2 open" in page and dropped not in page
    assert page.index("watch-events/1/9") < page.index("watch-events/1/5") < page.index("the first reason")
    assert 'data-label="age">2 h<' in page and 'data-label="tried">2<' in page and 'data-label="tried">1<' in page
    assert "&lt;script&gt;" in page and "<script" not in page and "x" * 300 not in page


def test_a_letter_is_shown_with_where_it_came_from_and_what_it_holds_as_text(topic: Topic):
    headers = ((RETRIED, b"watch-events/1/3"), ("trace <i>", b"1\xe2\x80\xae2"))
    letter = topic.put(5, MARKUP.encode() + b"\n{", at_ms=now_ms() - 600_000, reason=MARKUP, headers=headers)
    status, page = see(f"{PAGE}?id={letter}")
    assert status == 200 and "<script" not in page and "<i>" not in page
    assert f"<pre>{MARKUP}\n{{</pre>" in unescape(page), "whole, and escaped"
    for fact in ("<dd>watch-events</dd>", "<dd>1</dd>", "<dd>5</dd>", "10 min ago", "<dd>2 times</dd>", "<dd>ann</dd>"):
        assert fact in page
    assert f'href="{PAGE}?id=watch-events%2F1%2F3"' in page and "\u202e" not in page


def test_what_is_no_text_is_shown_as_its_bytes_and_a_long_value_cut(topic: Topic):
    binary, long, none = topic.put(1, b"\x00\xff bytes"), topic.put(2, b"w" * 1001), topic.put(3, None)
    page = see(f"{PAGE}?id={binary}")[1]
    assert "00000000  00 ff 20 62 79 74 65 73" in page and "This is no text" in page
    page = see(f"{PAGE}?id={long}")[1]
    assert "not all kept" in page and "it had 1,001 bytes" in page
    assert "A message without a value" in see(f"{PAGE}?id={none}")[1]


def test_retrying_sends_it_once_however_often_the_page_is_sent(topic: Topic):
    letter = topic.put(5, b"the bytes")
    first, second = do("retry", letter), do("retry", letter)
    assert first[0] == second[0] == 200 and [each.value for each in topic.sent] == [b"the bytes"]
    assert "was sent again as watch-events/1/77" in first[1] and "was sent again before" in second[1]
    assert "<button" not in first[1] and "<dd>retried at" in first[1] and "0 open" in see(LIST)[1]


def test_dropping_closes_it_and_what_it_holds_is_shown_no_more(topic: Topic):
    letter = topic.put(5, b"the bytes")
    page = see(f"{PAGE}?id={letter}")[1]
    assert "the bytes" in page and 'value="retry"' in page and 'value="drop"' in page
    status, page = do("drop", letter)
    assert status == 200 and "was dropped." in page and "the bytes" not in page and "0 open" in see(LIST)[1]
    status, page = do("retry", letter)
    assert status == 409 and "not sent: it was dropped" in page and not topic.sent


def test_what_cannot_be_sent_says_why_and_stays_open(topic: Topic):
    letter = topic.put(5, b"w" * 1001)
    status, page = do("retry", letter)
    assert status == 409 and "not sent: it is not kept whole" in page and 'value="drop"' in page and not topic.sent


@pytest.mark.parametrize(("what", "letter", "status"), [
    ("retry", "watch-events/1/404", 404),
    ("drop", "watch-events/1/404", 404),
    ("drop", "nonsense", 400),
    ("burn", "watch-events/1/5", 400),
    ("", "", 400),
])  # fmt: skip
def test_what_is_not_there_or_cannot_be_done_changes_nothing(what: str, letter: str, status: int, topic: Topic):
    topic.put(5)
    assert do(what, letter)[0] == status and not topic.sent and len(topic.letters) == 1
    assert see(f"{PAGE}?id=watch-events/1/404")[0] == 404 and see(f"{PAGE}?id={MARKUP}")[0] == 400


def test_without_a_broker_the_pages_say_so(topic: Topic):
    letter = topic.put(5)
    topic.error = KafkaTimeoutError("no broker answers")
    for status, page in (see(LIST), see(f"{PAGE}?id={letter}"), do("retry", letter)):
        assert status == 503 and "no broker answers" in page and "<h1>" in page
    assert "not known to be done" in do("drop", letter)[1]


def test_what_was_done_is_told_also_when_the_letter_cannot_be_looked_at_afterwards(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
):
    letter, mark = topic.put(5), topic.mark

    def mark_and_fail(*told: Any) -> None:
        mark(*told)
        topic.error = KafkaTimeoutError("no broker answers")

    monkeypatch.setattr(topic, "mark", mark_and_fail)
    status, page = do("drop", letter)
    assert status == 503 and "dropped, but it cannot be looked at now" in page and "no broker answers" in page


def test_reading_takes_no_token_and_retrying_and_dropping_do(topic: Topic):
    letter = topic.put(5)
    status, page = see(f"{PAGE}?id={letter}", TOKEN)
    assert status == 200 and "<form" not in page and "log in to write" in page
    assert do("retry", letter, token=TOKEN)[0] == do("drop", letter, token=TOKEN)[0] == 303

    async def log_in_and_drop(ask):
        await ask.http.post("/console/login", data={"token": TOKEN}, headers=HERE)
        strange = await ask("POST", PAGE, data={"id": letter, "do": "drop"}, headers={"Origin": "https://evil.example"})
        before = len(topic.letters)
        return strange[0], before, await ask("POST", PAGE, data={"id": letter, "do": "drop"}, headers=HERE)

    strange, before, (status, page) = run(log_in_and_drop, TOKEN)
    assert (strange, before, status) == (403, 1, 200) and "was dropped." in page and not topic.sent


@pytest.mark.parametrize("token", ["", TOKEN])
def test_another_site_cannot_retry_or_drop(token: str, topic: Topic):
    letter = topic.put(5)
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        ask_for = {"id": letter, "do": "drop"}
        reply = run(lambda ask, h=headers, d=ask_for: ask("POST", PAGE, data=d, headers=h), token)
        assert reply[0] == 403
    assert len(topic.letters) == 1

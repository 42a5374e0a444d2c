"""`nextwatch dead-letters`, as an operator works through what could not be used."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from infra.local.processes import process_environ
from infra.platform.settings import Settings
from streams import topics
from streams.kafka.dead_letters import RETRIED, dead_letter, marked
from streams.messages import DeadLetter, Refused, decode, encode
from streams.topics import DEAD_LETTERS, ITEMS, WATCH_EVENTS, create_topics
from tests.harness.system import cli
from tests.harness.traffic import Reader, Traffic, now_ms
from tests.unit.infra.command import Done, commands

LIMIT = 1_000_000
HOUR_MS = 3_600_000


@dataclass
class Desk:
    """Topics of their own, what is put into them, and the command."""

    settings: Settings
    traffic: Traffic
    run: Callable[..., Done]

    def put(self, value: bytes | None, topic: str = WATCH_EVENTS, offset: int = 5, **change: Any) -> str:
        """One letter in the topic; its id."""
        facts: dict[str, Any] = {"key": b"ann", "headers": [("trace", b"1")], "code": "invalid", "reason": "no good"}
        facts |= {"partition": 1, "at_ms": now_ms()} | change
        refused = Refused(facts["code"], facts["reason"])
        letter = dead_letter(
            topic,
            facts["partition"],
            offset,
            facts["key"],
            value,
            facts["headers"],
            refused,
            facts["at_ms"],
            max_bytes=LIMIT,
        )
        self.write(letter)
        return f"{topic}/{facts['partition']}/{offset}"

    def write(self, letter: DeadLetter) -> None:
        self.traffic.send(
            DEAD_LETTERS, None, encode(letter), partition=letter.partition % self.settings.kafka.partitions
        )

    def all_of(self, topic: str) -> list[Any]:
        reader = Reader(self.settings.kafka, topic)
        try:
            return list(reader.to_the_end())
        finally:
            reader.close()

    def listed(self, *arguments: str) -> dict[str, dict[str, Any]]:
        done = self.run("list", "--json", *arguments)
        assert done.code == 0, done.err
        return {each["id"]: each for each in json.loads(done.out)}


@pytest.fixture
def desk(kafka_settings: Settings, monkeypatch, capsys) -> Iterator[Desk]:
    create_topics(kafka_settings.kafka)
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", kafka_settings.kafka.bootstrap)
    monkeypatch.setenv("NEXTWATCH_KAFKA__TOPIC_PREFIX", kafka_settings.kafka.topic_prefix)
    traffic = Traffic(kafka_settings.kafka)
    yield Desk(kafka_settings, traffic, commands(monkeypatch, capsys, "dead-letters"))
    traffic.close()


def test_letters_are_listed_and_chosen_by_topic_code_and_time(desk: Desk):
    old = desk.put(b"{", offset=1, at_ms=now_ms() - 3 * HOUR_MS, code="malformed")
    new = desk.put(b"{}", offset=2, at_ms=now_ms() - 1000)
    item = desk.put(b"\xff", topic=ITEMS, offset=2)
    desk.traffic.send(DEAD_LETTERS, None, b"this is no letter")
    assert list(desk.listed()) == [old, new, item], "oldest first; what is no letter is passed over"
    assert list(desk.listed("--topic", WATCH_EVENTS)) == [old, new]
    assert list(desk.listed("--code", "malformed")) == [old]
    assert list(desk.listed("--since", "2h")) == [new, item]
    assert list(desk.listed("--limit", "1")) == [item]
    said = desk.run("list", "--limit", "2")
    assert said.code == 0 and "1 older" in said.out
    assert new in said.out and "no good" in said.out and old not in said.out


def test_a_letter_is_shown_whole_and_cannot_speak_to_the_terminal(desk: Desk):
    text = desk.put(b'{"user_id": "ann"}', offset=1)
    binary = desk.put(b"\x00\xff bytes \x1b[31m", offset=2, reason="colour \x1b[31m", key=b"\xff\xfe")
    said = desk.run("show", text)
    assert said.code == 0 and all(part in said.out for part in ('{"user_id": "ann"}', "no good", "header trace", "ann"))
    said = desk.run("show", binary)
    assert said.code == 0 and "\x1b" not in said.out
    assert "00000000  00 ff 20 62 79 74 65 73" in said.out and "0xfffe" in said.out
    assert json.loads(desk.run("show", binary, "--json").out)["value_hex"] == b"\x00\xff bytes \x1b[31m".hex()


def test_the_bytes_of_a_letter_come_out_as_they_are(desk: Desk):
    letter, environ = desk.put(b"\x00\xff\r\n"), process_environ(desk.settings, os.environ)
    command = cli("dead-letters", "show", letter, "--raw")
    assert subprocess.run(command, env=environ, capture_output=True, check=True).stdout == b"\x00\xff\r\n"


def test_a_message_goes_back_once_to_where_it_was_with_where_it_comes_from(desk: Desk):
    letter = desk.put(b"the bytes", headers=[("trace", b"1"), (RETRIED, b"watch-events/0/1")])
    assert desk.listed()[letter]["retried_from"] == "watch-events/0/1"
    first, second = desk.run("retry", letter), desk.run("retry", letter)
    assert first.code == second.code == 0
    assert f"sent again as {WATCH_EVENTS}/1/0" in first.out and "was sent again before" in second.out
    [record] = desk.all_of(WATCH_EVENTS)
    assert (record.partition, record.key, record.value) == (1, b"ann", b"the bytes")
    assert list(record.headers) == [("trace", b"1"), (RETRIED, letter.encode())]
    assert desk.listed() == {} and desk.listed("--all")[letter]["state"] == "retried"
    assert desk.run("retry", letter, "--again").code == 0
    assert len(desk.all_of(WATCH_EVENTS)) == 2


def test_all_that_are_open_are_sent_and_none_of_what_came_of_it(desk: Desk):
    letters = [desk.put(b"%d" % number, offset=number) for number in range(450)]
    desk.put(b"other", offset=1000, code="future")
    dropped = letters.pop()
    assert desk.run("drop", dropped).code == 0
    done = desk.run("retry", "--all", "--code", "invalid", "--json")
    assert done.code == 0 and {each["place"] for each in json.loads(done.out)} == set(letters)
    assert [record.value for record in desk.all_of(WATCH_EVENTS)] == [b"%d" % number for number in range(449)]
    assert list(desk.listed()) == [f"{WATCH_EVENTS}/1/1000"]
    assert desk.listed("--all")[dropped]["state"] == "dropped"


def test_after_a_crash_between_sending_and_marking_a_message_is_sent_twice_at_most(desk: Desk, monkeypatch):
    letter = desk.put(b"the bytes")
    with monkeypatch.context() as crash:
        crash.setattr("streams.dead_letters.retry.marked", lambda *_: 1 / 0)
        assert desk.run("retry", letter).code == 70
    assert desk.run("retry", letter).code == desk.run("retry", letter).code == 0
    assert len(desk.all_of(WATCH_EVENTS)) == 2


def test_what_cannot_be_sent_says_why_and_the_others_are(desk: Desk):
    cut = desk.put(b"x" * (LIMIT + 1), offset=1)
    foreign = desk.put(b"x", topic="another-topic", offset=2)
    beyond = desk.put(b"x", partition=99, offset=3)
    good = desk.put(b"good", offset=4)
    done = desk.run("retry", cut, foreign, beyond, good, f"{WATCH_EVENTS}/0/12345", "--json")
    problems = {each["place"]: each["problem"] for each in json.loads(done.out)}
    assert done.code == 1 and problems[good] == ""
    assert "not kept whole" in problems[cut] and "no topic of ours" in problems[foreign]
    assert "no partition 99" in problems[beyond] and "no such letter" in problems[f"{WATCH_EVENTS}/0/12345"]
    assert [record.value for record in desk.all_of(WATCH_EVENTS)] == [b"good"]
    assert {cut, foreign, beyond} == desk.listed().keys()


def test_an_old_catalogue_entry_does_not_replace_a_newer_one(desk: Desk):
    places = [desk.traffic.send(ITEMS, key, value) for key, value in (("a", b"bad"), ("b", b"bad"), ("a", b"mended"))]
    letters = [
        desk.put(b"bad", topic=ITEMS, key=key, partition=place.partition, offset=place.offset)
        for key, place in zip((b"a", b"b"), places[:2], strict=True)
    ]
    done = desk.run("retry", "--all", "--json")
    problems = {each["place"]: each["problem"] for each in json.loads(done.out)}
    assert done.code == 1 and "newer message" in problems[letters[0]] and problems[letters[1]] == ""
    newest = {record.key: record.value for record in desk.all_of(ITEMS)}
    assert newest == {b"a": b"mended", b"b": b"bad"}


def test_what_is_not_there_and_what_is_no_id_end_with_other_codes(desk: Desk):
    assert desk.run("show", f"{WATCH_EVENTS}/0/7").code == 1
    for arguments in (("show", "nonsense"), ("show", "a/b/c"), ("retry",), ("drop", "--all", "x/0/1")):
        done = desk.run(*arguments)
        assert done.code == 2 and ("dead letter" in done.err or "--all" in done.err), arguments
    assert desk.run("list", "--since", "yesterday").code == 2


def test_without_a_broker_the_command_says_so(monkeypatch, capsys):
    def nobody(*_: Any) -> None:
        raise KafkaTimeoutError("no broker answers")

    monkeypatch.setattr("streams.dead_letters.box.TopicFollower", nobody)
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    done = commands(monkeypatch, capsys, "dead-letters")("list")
    assert done.code == 2 and "kafka.bootstrap" in done.err


def test_a_mark_holds_nothing_of_the_message_and_two_letters_of_one_place_are_one(desk: Desk):
    letter = desk.put(b"a secret")
    desk.put(b"a secret")  # as a crash leaves it
    assert len(desk.listed()) == 1
    assert desk.run("drop", letter).code == 0 and desk.run("drop", letter).code == 0
    assert desk.listed() == {}
    marks = [each for each in map(letter_in, desk.all_of(DEAD_LETTERS)) if each.mark]
    [mark] = marks
    assert mark == marked(mark, "dropped", mark.at_ms) and mark.value is None and mark.key is None and not mark.headers


def letter_in(record: Any) -> DeadLetter:
    return decode(DeadLetter, record.value)


def test_every_topic_but_the_dead_letters_can_get_a_message_back():
    from streams.dead_letters.retry import COMPACTED, OURS

    assert {WATCH_EVENTS, topics.RECOMMEND_REQUESTS} < OURS and DEAD_LETTERS not in OURS
    assert ITEMS in COMPACTED and WATCH_EVENTS not in COMPACTED

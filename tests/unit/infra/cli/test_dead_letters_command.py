"""`nextwatch dead-letters`, as an operator works through what could not be used."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
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
class LetterBox:
    """Topics of their own, what is put into them, and the command."""

    settings: Settings
    traffic: Traffic
    run: Callable[..., Done]

    def put(self, value: bytes | None, topic: str = WATCH_EVENTS, offset: int = 5, **change: Any) -> str:
        """One letter in the topic; its id."""
        facts: dict[str, Any] = {"key": b"ann", "headers": [("trace", b"1")], "code": "invalid", "reason": "no good"}
        facts |= {"partition": 1, "at_ms": now_ms()} | change
        partition, key, headers, at_ms = (facts[name] for name in ("partition", "key", "headers", "at_ms"))
        refused = Refused(facts["code"], facts["reason"])
        letter = dead_letter(topic, partition, offset, key, value, headers, refused, at_ms, max_bytes=LIMIT)
        self.traffic.send(DEAD_LETTERS, None, encode(letter), partition=partition % self.settings.kafka.partitions)
        return f"{topic}/{partition}/{offset}"

    def all_of(self, topic: str) -> list[Any]:
        with closing(Reader(self.settings.kafka, topic)) as reader:
            return list(reader.to_the_end())

    def listed(self, *arguments: str) -> dict[str, dict[str, Any]]:
        done = self.run("list", "--json", *arguments)
        assert done.code == 0, done.err
        return {each["id"]: each for each in json.loads(done.out)}


@pytest.fixture
def box(kafka_settings: Settings, monkeypatch, capsys) -> Iterator[LetterBox]:
    create_topics(kafka_settings.kafka)
    run = commands(monkeypatch, capsys, "dead-letters", settings=kafka_settings)
    with closing(Traffic(kafka_settings.kafka)) as traffic:
        yield LetterBox(kafka_settings, traffic, run)


def test_letters_are_listed_and_chosen_by_topic_code_and_time(box: LetterBox):
    old = box.put(b"{", offset=1, at_ms=now_ms() - 3 * HOUR_MS, code="malformed")
    new = box.put(b"{}", offset=2, at_ms=now_ms() - 1000)
    item = box.put(b"\xff", topic=ITEMS, offset=2)
    box.traffic.send(DEAD_LETTERS, None, b"this is no letter")
    assert list(box.listed()) == [old, new, item], "oldest first; what is no letter is passed over"
    assert list(box.listed("--topic", WATCH_EVENTS)) == [old, new]
    assert list(box.listed("--code", "malformed")) == [old]
    assert list(box.listed("--since", "2h")) == [new, item]
    assert list(box.listed("--limit", "1")) == [item]
    said = box.run("list", "--limit", "2")
    assert said.code == 0 and "1 older" in said.out
    assert new in said.out and "no good" in said.out and old not in said.out


def test_a_letter_is_shown_whole_and_cannot_speak_to_the_terminal(box: LetterBox):
    text = box.put(b'{"user_id": "ann"}', offset=1)
    binary = box.put(b"\x00\xff bytes \x1b[31m", offset=2, reason="colour \x1b[31m", key=b"\xff\xfe")
    said = box.run("show", text)
    assert said.code == 0 and all(part in said.out for part in ('{"user_id": "ann"}', "no good", "header trace", "ann"))
    said = box.run("show", binary)
    assert said.code == 0 and "\x1b" not in said.out
    assert "00000000  00 ff 20 62 79 74 65 73" in said.out and "0xfffe" in said.out
    assert json.loads(box.run("show", binary, "--json").out)["value_hex"] == b"\x00\xff bytes \x1b[31m".hex()


def test_the_bytes_of_a_letter_come_out_as_they_are(box: LetterBox):
    letter, environ = box.put(b"\x00\xff\r\n"), process_environ(box.settings, os.environ)
    command = cli("dead-letters", "show", letter, "--raw")
    assert subprocess.run(command, env=environ, capture_output=True, check=True).stdout == b"\x00\xff\r\n"


def test_a_message_goes_back_once_to_where_it_was_with_where_it_comes_from(box: LetterBox):
    letter = box.put(b"the bytes", headers=[("trace", b"1"), (RETRIED, b"watch-events/0/1")])
    assert box.listed()[letter]["retried_from"] == "watch-events/0/1"
    first, second = box.run("retry", letter), box.run("retry", letter)
    assert first.code == second.code == 0
    assert f"sent again as {WATCH_EVENTS}/1/0" in first.out and "was sent again before" in second.out
    [record] = box.all_of(WATCH_EVENTS)
    assert (record.partition, record.key, record.value) == (1, b"ann", b"the bytes")
    assert list(record.headers) == [("trace", b"1"), (RETRIED, letter.encode())]
    assert box.listed() == {} and box.listed("--all")[letter]["state"] == "retried"
    assert box.run("retry", letter, "--again").code == 0
    assert len(box.all_of(WATCH_EVENTS)) == 2


def test_all_that_are_open_are_sent_and_none_of_what_came_of_it(box: LetterBox):
    letters = [box.put(b"%d" % number, offset=number) for number in range(450)]
    box.put(b"other", offset=1000, code="future")
    dropped = letters.pop()
    assert box.run("drop", dropped).code == 0
    done = box.run("retry", "--all", "--code", "invalid", "--json")
    assert done.code == 0 and {each["place"] for each in json.loads(done.out)} == set(letters)
    assert [record.value for record in box.all_of(WATCH_EVENTS)] == [b"%d" % number for number in range(449)]
    assert list(box.listed()) == [f"{WATCH_EVENTS}/1/1000"]
    assert box.listed("--all")[dropped]["state"] == "dropped"


def test_after_a_crash_between_sending_and_marking_a_message_is_sent_twice_at_most(box: LetterBox, monkeypatch):
    letter = box.put(b"the bytes")
    with monkeypatch.context() as crash:
        crash.setattr("streams.dead_letters.retry.marked", lambda *_: 1 / 0)
        assert box.run("retry", letter).code == 70
    assert box.run("retry", letter).code == box.run("retry", letter).code == 0
    assert len(box.all_of(WATCH_EVENTS)) == 2


def test_what_cannot_be_sent_says_why_and_the_others_are(box: LetterBox):
    cut = box.put(b"x" * (LIMIT + 1), offset=1)
    foreign = box.put(b"x", topic="another-topic", offset=2)
    beyond = box.put(b"x", partition=99, offset=3)
    good = box.put(b"good", offset=4)
    done = box.run("retry", cut, foreign, beyond, good, f"{WATCH_EVENTS}/0/12345", "--json")
    problems = {each["place"]: each["problem"] for each in json.loads(done.out)}
    assert done.code == 1 and problems[good] == ""
    assert "not kept whole" in problems[cut] and "no topic of ours" in problems[foreign]
    assert "no partition 99" in problems[beyond] and "no such letter" in problems[f"{WATCH_EVENTS}/0/12345"]
    assert [record.value for record in box.all_of(WATCH_EVENTS)] == [b"good"]
    assert {cut, foreign, beyond} == box.listed().keys()


def test_an_old_catalogue_entry_does_not_replace_a_newer_one(box: LetterBox):
    places = [box.traffic.send(ITEMS, key, value) for key, value in (("a", b"bad"), ("b", b"bad"), ("a", b"mended"))]
    letters = [
        box.put(b"bad", topic=ITEMS, key=key, partition=place.partition, offset=place.offset)
        for key, place in zip((b"a", b"b"), places[:2], strict=True)
    ]
    done = box.run("retry", "--all", "--json")
    problems = {each["place"]: each["problem"] for each in json.loads(done.out)}
    assert done.code == 1 and "newer message" in problems[letters[0]] and problems[letters[1]] == ""
    newest = {record.key: record.value for record in box.all_of(ITEMS)}
    assert newest == {b"a": b"mended", b"b": b"bad"}


def test_what_is_not_there_and_what_is_no_id_end_with_other_codes(box: LetterBox):
    assert box.run("show", f"{WATCH_EVENTS}/0/7").code == 1
    for arguments in (("show", "nonsense"), ("show", "a/b/c"), ("retry",), ("drop", "--all", "x/0/1")):
        done = box.run(*arguments)
        assert done.code == 2 and ("dead letter" in done.err or "--all" in done.err), arguments
    assert box.run("list", "--since", "yesterday").code == 2


def test_without_a_broker_the_command_says_so(monkeypatch, capsys):
    def nobody(*_: Any, **__: Any) -> None:
        raise KafkaTimeoutError("no broker answers")

    monkeypatch.setattr("streams.dead_letters.box.read_to_end", nobody)
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    done = commands(monkeypatch, capsys, "dead-letters")("list")
    assert done.code == 2 and "kafka.bootstrap" in done.err


def test_a_mark_holds_nothing_of_the_message_and_two_letters_of_one_place_are_one(box: LetterBox):
    letter = box.put(b"a secret")
    box.put(b"a secret")  # as a crash leaves it
    assert len(box.listed()) == 1
    assert box.run("drop", letter).code == 0 and box.run("drop", letter).code == 0
    assert box.listed() == {}
    letters = [decode(DeadLetter, record.value) for record in box.all_of(DEAD_LETTERS)]
    [mark] = [each for each in letters if each.mark]
    assert mark == marked(mark, "dropped", mark.at_ms) and mark.value is None and mark.key is None and not mark.headers


def test_every_topic_but_the_dead_letters_can_get_a_message_back():
    from streams.dead_letters.retry import COMPACTED, OURS

    assert {WATCH_EVENTS, topics.RECOMMEND_REQUESTS} < OURS and DEAD_LETTERS not in OURS
    assert ITEMS in COMPACTED and WATCH_EVENTS not in COMPACTED

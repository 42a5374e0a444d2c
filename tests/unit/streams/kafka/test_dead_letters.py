"""What cannot be used is kept whole, with the reason."""

import pytest

from streams.kafka.dead_letters import check_headers, dead_letter, is_whole, marked
from streams.messages import UNREADABLE, DeadLetter, Refused, decode, encode

LIMIT = 1_000_000


def letter(
    value: bytes | None = b"\xff\x00raw", reason: str = "not JSON", key: bytes = b"\xffkey", more: bytes | None = None
) -> DeadLetter:
    headers = [("a", b"1"), ("b", more)]
    refused = Refused("malformed", reason)
    return dead_letter("items", 2, 40, key, value, headers, refused=refused, now_ms=5, max_bytes=LIMIT)


def test_a_dead_letter_carries_the_raw_record_its_place_and_the_reason() -> None:
    assert decode(DeadLetter, encode(letter())) == DeadLetter(
        topic="items",
        partition=2,
        offset=40,
        reason="not JSON",
        code="malformed",
        at_ms=5,
        key=b"\xffkey",
        value=b"\xff\x00raw",
        headers=(("a", b"1"), ("b", b"")),
    )


def test_a_tombstone_that_was_refused_has_no_value() -> None:
    assert letter(None).value is None


def test_a_value_within_the_limit_is_kept_whole_so_that_it_can_be_sent_again() -> None:
    kept = letter(b"x" * LIMIT)
    assert kept.value == b"x" * LIMIT and is_whole(kept)


def test_what_is_too_large_is_cut_and_the_letter_says_so() -> None:
    cut = letter(b"x" * 2_000_000, reason="too large" * 1000)
    assert len(encode(cut)) < LIMIT and not is_whole(cut)
    assert "cut to 500000 of 2000000 bytes" in cut.reason and cut.cut == {"value": 2_000_000}


def test_a_letter_fits_into_its_topic_whatever_the_record_is_made_of() -> None:
    largest = letter(b"\xff" * LIMIT, "\x01" * 9000, key=b"k" * 2 * LIMIT, more=b"h" * 3 * LIMIT)
    assert len(encode(largest)) + len(largest.key or b"") < 4 * LIMIT, "what the topic takes (streams.topics)"
    assert largest.cut == {"key": 2 * LIMIT, "headers": 3 * LIMIT + 3 + 2 * 16} and not is_whole(largest)
    assert largest.key == b"k" * (LIMIT // 4) and largest.headers == ()


@pytest.mark.parametrize(("name", "content"), [("", b""), ("", b"x"), ("\x01" * 8, b""), ("\x01" * 60_000, b"")])
def test_a_letter_with_as_many_headers_as_may_travel_fits_into_its_topic(name: str, content: bytes) -> None:
    """Of empty ones as well: each is two bytes in Kafka and eight in a letter."""
    headers = [(name, content)] * (LIMIT // 4 // (16 + len(name) + len(content)))
    check_headers(headers, LIMIT)
    with pytest.raises(Refused, match="headers of"):
        check_headers([*headers, (name, content)], LIMIT)
    raw = b"k" * LIMIT, b"\xff" * LIMIT, headers
    kept = dead_letter("items", 2, 40, *raw, refused=Refused("malformed", "no"), now_ms=5, max_bytes=LIMIT)
    assert len(kept.headers) == len(headers) > 0
    assert len(encode(kept)) + len(kept.key or b"") < 4 * LIMIT


def test_letters_of_before_said_in_words_what_was_cut() -> None:
    assert not is_whole(DeadLetter("items", 0, 1, "no (value cut to 500000 of 2000000 bytes)", "too_large", 5))


def test_what_stands_for_a_batch_that_could_not_be_unpacked_is_not_the_message() -> None:
    assert not is_whole(DeadLetter("items", 0, 1, "it cannot be unpacked", "unreadable", 5, None, UNREADABLE + b"why"))


def test_a_mark_names_the_place_and_holds_nothing_else() -> None:
    assert marked(letter(), "dropped", 9) == DeadLetter("items", 2, 40, "dropped by hand", "dropped", 9, mark="dropped")


def test_headers_that_are_too_large_to_travel_on_are_refused() -> None:
    check_headers([("a", b"x" * 200_000), ("b", None)], LIMIT)
    with pytest.raises(Refused, match="over the limit of 250000 bytes"):
        check_headers([("a", b"x" * 200_000), ("b" * 50_000, b"")], LIMIT)

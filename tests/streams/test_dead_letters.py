"""What cannot be used is kept whole, with the reason."""

from __future__ import annotations

from streams.dead_letters import dead_letter
from streams.messages import DeadLetter, Refused, decode, encode


def letter(value: bytes | None = b"\xff\x00raw", reason: str = "not JSON") -> DeadLetter:
    headers = [("a", b"1"), ("b", None)]
    return dead_letter("items", 2, 40, b"\xffkey", value, headers, refused=Refused("malformed", reason), now_ms=5)


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


def test_a_record_that_is_too_large_for_a_message_is_cut_and_says_so() -> None:
    cut = letter(b"x" * 2_000_000, reason="too large" * 1000)
    assert len(encode(cut)) < 1_000_000
    assert "cut to 500000 of 2000000 bytes" in cut.reason

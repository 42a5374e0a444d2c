"""Dead letters, the end of a message that cannot be used: it goes to `dead-letters` whole, with the reason, and the
stream goes on.

The raw bytes travel, not a decoded form: what could not be read cannot be re-encoded either. The source's topic,
partition and offset say where the original lies, so that a person can find the producer, and `nextwatch dead-letters
retry` sends it there again.

A letter must itself fit into its topic, whatever it is of: base64 makes four bytes of three, and keys and headers may
be as large as a whole message. So a value within the size limit is kept whole (one beyond it would be refused again
anyhow), and of keys and headers a quarter of the limit each. What is cut is named in the letter.
"""

from __future__ import annotations

from collections.abc import Iterable

from streams.messages import DeadLetter, Refused

RETRIED = "nextwatch-retried"  # header of a message that was sent again: which dead letter it was
MARKED = {"retried": "sent again", "dropped": "dropped by hand"}
_MOST_REASON = 1000
_HEADER = 16  # bytes of a header beside name and content, in Kafka or in a letter at most: many empty ones are large

Headers = Iterable[tuple[str, bytes | None]]


def dead_letter(
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    headers: Headers,
    refused: Refused,
    now_ms: int,
    *,
    max_bytes: int,
) -> DeadLetter:
    """The dead letter of a record; `max_bytes` is the limit of a value. What is overlong is cut, and the reason says so
    too."""
    whole = tuple((name, content or b"") for name, content in headers)
    kept = whole if size_of(whole) <= max_bytes // 4 else ()
    cut_key = key if key is None else key[: max_bytes // 4]
    cut_value = value[: max_bytes // 2] if value is not None and len(value) > max_bytes else value
    cut = {
        what: before
        for what, before, after in (
            ("value", len(value or b""), len(cut_value or b"")),
            ("key", len(key or b""), len(cut_key or b"")),
            ("headers", size_of(whole), size_of(kept)),
        )
        if before > after
    }
    reason = str(refused)[:_MOST_REASON]
    if "value" in cut:
        reason += f" (value cut to {max_bytes // 2} of {cut['value']} bytes)"
    return DeadLetter(topic, partition, offset, reason, refused.code, now_ms, cut_key, cut_value, headers=kept, cut=cut)


def marked(letter: DeadLetter, mark: str, now_ms: int) -> DeadLetter:
    """The record that says what became of a letter; it holds nothing of what the letter does."""
    return DeadLetter(
        letter.topic,
        letter.partition,
        letter.offset,
        MARKED[mark],
        mark,
        now_ms,
        mark=mark,  # type: ignore[arg-type]
    )


def is_whole(letter: DeadLetter) -> bool:
    """Return whether all of the record is in the letter: not of one that was cut (letters of before said it in the
    reason only), nor of a batch that could not be unpacked, of which only a note is kept."""
    return not letter.cut and "(value cut to " not in letter.reason and letter.code != "unreadable"


def size_of(headers: Headers) -> int:
    return sum(_HEADER + len(name.encode(errors="replace")) + len(content or b"") for name, content in headers)


def check_headers(headers: Headers, max_bytes: int) -> None:
    """Raises Refused for headers that are too large to travel on: with a forwarded message, in a reply, in a letter."""
    if headers and (size := size_of(headers)) > max_bytes // 4:
        raise Refused("too_large", f"headers of {size} bytes are over the limit of {max_bytes // 4} bytes")

"""What becomes of a message that cannot be used: it goes to `dead-letters` whole, with the reason, and the stream goes
on.

The raw bytes travel, not a decoded form: what could not be read cannot be re-encoded either. The source's topic,
partition and offset say where the original lies, so that a person can find the producer and replay what was mended.
"""

from __future__ import annotations

from collections.abc import Iterable

from streams.messages import DeadLetter, Refused

_MOST_BYTES = 500_000  # of a value: a dead letter must itself fit into a message, in base64
_MOST_REASON = 1000


def dead_letter(
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    refused: Refused,
    now_ms: int,
) -> DeadLetter:
    """The dead letter of a record; an overlong key or value is cut, and the reason says so."""
    reason = str(refused)[:_MOST_REASON]
    if value is not None and len(value) > _MOST_BYTES:
        reason += f" (value cut to {_MOST_BYTES} of {len(value)} bytes)"
        value = value[:_MOST_BYTES]
    return DeadLetter(
        topic=topic,
        partition=partition,
        offset=offset,
        reason=reason,
        code=refused.code,
        at_ms=now_ms,
        key=key if key is None else key[:_MOST_BYTES],
        value=value,
        headers=tuple((name, content or b"") for name, content in headers),
    )

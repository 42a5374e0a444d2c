"""What a message says that was moved to its user's partition, in its header `nextwatch-forwarded`: where it was read,
and among how many partitions it was moved. One that was not read yet when these were raised may be forwarded again, and
between processes that disagree about their number it does not go round for ever."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from streams.topics import FORWARDED

Header = tuple[str, bytes | None]


def may_forward(headers: Iterable[Header], partitions: int) -> bool:
    """Return whether a message may be forwarded among so many partitions: once, and once more after each raise."""
    return all(_forwarded_among(content) < partitions for name, content in headers if name == FORWARDED)


def forwarded_from(topic: str, partition: int, offset: int, partitions: int) -> tuple[str, bytes]:
    """Return the header of a message that is forwarded from there among so many partitions."""
    return FORWARDED, f"{topic}/{partition}/{offset}/{partitions}".encode()


def _forwarded_among(origin: bytes | None) -> float:
    """How many partitions there were when a message was forwarded; of an origin that does not tell, the most."""
    *_, partitions = place = (origin or b"").split(b"/")
    return int(partitions) if len(place) == 4 and partitions.isdigit() and len(partitions) < 10 else inf

"""What a request's own filter may name: the fields, and the bounds within which the index and the catalogue agree."""

from __future__ import annotations

import re

CHANNEL, TOPICS, LANGUAGE = "channel", "topics", "language"
DURATION, PUBLISHED = "duration_s", "published_ms"

LONGEST_NAME = 256  # characters of a channel, a topic, a language
MOST_TOPICS = 32  # of one item
LATEST_MS = 2**53 - 1  # later ones are no exact float64, as the catalogue holds them

_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, halves of surrogate pairs


def can_be_named(name: str) -> bool:
    """Whether a filter can name this channel, topic or language."""
    return 0 < len(name) <= LONGEST_NAME and _UNWRITABLE.search(name) is None

"""Whatever comes in has a size limit: messages as a whole, and each part that could grow within one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.platform.settings import SettingsError, load_settings
from models.catalogue.filter_syntax import MOST_CHARACTERS
from serving.request.parsing import Unsupported, read_filter
from streams.messages import (
    Impression,
    ImpressionOutline,
    Item,
    RecommendRequest,
    Refused,
    SearchEvent,
    SignalEvent,
    WatchEvent,
    decode,
)

WATCH = {"event_id": "e", "user_id": "u", "item_id": "i", "event_ms": 1, "watch_s": 1}
SEARCH = {"event_id": "e", "user_id": "u", "query": "q", "event_ms": 1}
SIGNAL = {"event_id": "e", "user_id": "u", "kind": "like", "event_ms": 1}
REQUEST = {"request_id": "r", "user_id": "u"}
ITEM = {"item_id": "i"}
SHOWN = {"item_id": "i", "position": 1, "source": "s"}
IMPRESSION = {"request_id": "r", "user_id": "u", "at_ms": 1, "served_by": "", "version": "", "items": [SHOWN]}

Sized = Callable[[int], Any]
LIMITS: list[tuple[type, dict[str, Any], str, int, Sized]] = [
    (WatchEvent, WATCH, "user_id", 256, lambda n: "u" * n),
    (WatchEvent, WATCH, "context", 2000, lambda n: {"region": "r" * n}),
    (WatchEvent, WATCH, "context", 2000, lambda n: {"surface": "s" * n}),
    (SearchEvent, SEARCH, "query", 2000, lambda n: "q" * n),
    (SignalEvent, SIGNAL, "item_id", 256, lambda n: "i" * n),
    (SignalEvent, SIGNAL, "channel", 256, lambda n: "c" * n),
    (RecommendRequest, REQUEST, "exclude", 10_000, lambda n: ["i"] * n),
    (RecommendRequest, REQUEST, "exclude", 256, lambda n: ["i" * n]),
    (RecommendRequest, REQUEST, "pinned", 1000, lambda n: ["i"] * n),
    (RecommendRequest, REQUEST, "filter", 100_000, lambda n: "f" * n),
    (RecommendRequest, REQUEST, "k", 1000, lambda n: n),
    (RecommendRequest, REQUEST, "deadline_ms", 600_000, lambda n: n),
    (Item, ITEM, "title", 2000, lambda n: "t" * n),
    (Item, ITEM, "vector", 2048, lambda n: [0.5] * n),
    (Item, ITEM, "channel", 256, lambda n: "c" * n),
    (Item, ITEM, "topics", 1000, lambda n: ["t"] * n),
    (Item, ITEM, "topics", 256, lambda n: ["t" * n]),
    (Item, ITEM, "ids", 16, lambda n: {f"name-{at}": ["1"] for at in range(n)}),
    (Item, ITEM, "ids", 1000, lambda n: {"music": ["1"] * n}),
    (Item, ITEM, "ids", 256, lambda n: {"m" * n: ["1"]}),
    (Impression, IMPRESSION, "items", 1000, lambda n: [SHOWN] * n),
    (ImpressionOutline, IMPRESSION, "items", 1000, lambda n: [SHOWN] * n),
    (ImpressionOutline, IMPRESSION, "items", 1000, lambda n: [SHOWN | {"ids": {"topics": ["1"] * n}}]),
    (ImpressionOutline, IMPRESSION, "items", 256, lambda n: [SHOWN | {"ids": {"channel": ["c" * n]}}]),
    (Impression, IMPRESSION, "items", 16, lambda n: [SHOWN | {"ids": {f"name-{at}": ["1"] for at in range(n)}}]),
    (Impression, IMPRESSION, "items", 1000, lambda n: [SHOWN | {"ids": {"topics": ["1"] * n}}]),
    (Impression, IMPRESSION, "items", 256, lambda n: [SHOWN | {"ids": {"topics": ["t" * n]}}]),
]


@pytest.mark.parametrize(("kind", "message", "field", "most", "of_size"), LIMITS)
def test_the_largest_is_taken_and_the_next_larger_refused(
    kind: type, message: dict[str, Any], field: str, most: int, of_size: Sized
) -> None:
    decode(kind, json.dumps(message | {field: of_size(most)}).encode())
    with pytest.raises(Refused, match=rf"\$\.{field}") as refused:
        decode(kind, json.dumps(message | {field: of_size(most + 1)}).encode())
    assert refused.value.code == "invalid"


def test_a_message_over_the_limit_is_refused_before_it_is_read() -> None:
    raw = json.dumps(WATCH).encode()
    decode(WatchEvent, raw, max_bytes=len(raw))
    began = time.monotonic()
    for value in (raw + b" ", b"[" * 50_000_000):
        with pytest.raises(Refused) as refused:
            decode(WatchEvent, value, max_bytes=len(raw))
        assert refused.value.code == "too_large"
    assert time.monotonic() - began < 5


def test_a_filter_too_long_to_be_read_is_told_as_such() -> None:
    with pytest.raises(Unsupported, match=f"at most {MOST_CHARACTERS:,}"):
        read_filter(RecommendRequest("r", "u", filter="a" * (MOST_CHARACTERS + 1)))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 100_000, b"[" * 100_000])
def test_a_settings_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "nextwatch.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"nextwatch\.toml: not a TOML file"):
        load_settings(file)

"""What `nextwatch load` tells the topics, on a broker without workers; with them: tests/system/test_load.py."""

from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from infra.operate.loading import listed, load_log
from infra.operate.sending import SendError
from infra.platform.settings import Settings
from models.logs.stored_log import StoredLog, store_frame
from streams.messages import COMPACT, Item, LoadedHistory, decode
from streams.topics import ITEMS, LOADED_HISTORIES, TRENDING, create_topics, partition_of
from tests.harness.traffic import Reader

DAY_MS = 86_400_000


def log_of(directory: Path, region: str) -> StoredLog:
    users = ["ann", "b/ob", "ann", "\N{SNOWMAN}"]
    frame = pl.DataFrame(
        {"user_id": users, "item_id": list("xyzx"), "event_ms": [at * DAY_MS for at in range(4)], "region": region}
    )
    return store_frame(frame, directory, completed_s=18.0)


def records(settings: Settings, topic: str) -> list[tuple[int, bytes, bytes | None]]:
    with closing(Reader(settings.kafka, topic)) as reader:
        return [(record.partition, record.key, record.value) for record in reader.to_the_end()]


def test_each_user_is_one_message_at_home_and_lists_of_another_load_are_taken_back(
    kafka_settings: Settings, tmp_path: Path
):
    create_topics(kafka_settings.kafka)
    pl.DataFrame({"item_id": ["x", "y"], "title": ["<b>", None]}).write_csv(tmp_path / "items.csv")
    steps: dict[str, tuple[int, int]] = {}
    first = load_log(
        kafka_settings,
        log_of(tmp_path / "a", "de"),
        items=tmp_path / "items.csv",
        wait_s=0,
        step=lambda name, *done: steps.update({name: done}),
    )
    assert (first.rows, first.users, first.items, first.lists, first.taken) == (4, 3, 2, 2, False)
    assert steps == {"items": (2, 2), "histories": (3, 3), "trending": (4, 4), "taken in": (0, 3)}
    told = records(kafka_settings, LOADED_HISTORIES)
    histories = [decode(LoadedHistory, value) for _, _, value in told]
    assert {history.user_id for history in histories} == {"ann", "b/ob", "\N{SNOWMAN}"}
    for (partition, key, value), history in zip(told, histories, strict=True):
        assert key == history.user_id.encode() and partition == partition_of(
            history.user_id, kafka_settings.kafka.partitions
        )
        assert value is not None and value.startswith(COMPACT)
    assert {decode(Item, value).title for _, _, value in records(kafka_settings, ITEMS)} == {"<b>", ""}
    assert listed(kafka_settings.kafka) == {"global/loaded", "region/de/loaded"}
    load_log(kafka_settings, log_of(tmp_path / "b", "fr"), wait_s=0)
    assert listed(kafka_settings.kafka) == {"global/loaded", "region/fr/loaded"}
    assert [key for _, key, value in records(kafka_settings, TRENDING) if value is None] == [b"region/de/loaded"]


def test_topics_of_before_are_named_with_the_command_that_makes_what_is_missing(
    kafka_settings: Settings, tmp_path: Path
):
    with pytest.raises(SendError, match=r"-loaded-histories: missing \(nextwatch topics --create\)"):
        load_log(kafka_settings, log_of(tmp_path, "de"), wait_s=0)

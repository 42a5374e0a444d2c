"""`nextwatch load`: a log of 2013 is a recommender that knows its users, and nothing of it is learnt twice."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from infra.operate.replay import replay
from infra.operate.status import fetch_samples
from infra.operate.user_history import read_history
from infra.platform.guarded_process import GuardedProcess
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings
from streams.messages import Item, Trending, UserHistory, WatchEvent, decode, encode
from streams.topics import ITEMS, LOADED_HISTORIES, TRAINING_EXAMPLES, TRENDING, WATCH_EVENTS
from tests.harness.needs import require_kafka
from tests.harness.system import (
    SMALL,
    Cluster,
    embedded,
    run_cli,
    running,
    temporary_settings,
    wait_until,
)
from tests.harness.traffic import Reader, Traffic

FIRST_MS = 1_370_000_000_000  # May 2013
HOUR_MS = 3_600_000
ODD = ["an/na b", "o'\"neill", "\N{GRINNING FACE} emil"]
USERS = [*ODD, *(f"user-{number}" for number in range(25))]
ITEM_IDS = [f"film/{number}" for number in range(60)]
WAIT_S = 120.0
SMALL_MODELS = {
    "model": {"dim": 8, "hidden": (16,), "members": 1, "linear_dim": 0, "epochs": 1, "negatives": 64, "batch": 128},
    "ranker": {"hidden": (8,), "members": 1, "epochs": 1},
    "trainer": {"evaluate_share": 1.0, "step_s": 0.1},
    "history": {"watches": 10},
    "kafka": SMALL,
}


def log_of(rows: int = 1500) -> pl.DataFrame:
    """Watches of everybody, each user's at times of their own."""
    rng = np.random.default_rng(7)
    users, items = rng.integers(0, len(USERS), rows), rng.integers(0, len(ITEM_IDS), rows)
    return pl.DataFrame(
        {
            "viewer": [USERS[at] for at in users],
            "item_id": [ITEM_IDS[at] for at in items],
            "event_ms": FIRST_MS + HOUR_MS * np.arange(rows),
            "watch_s": rng.choice([5.0, 50.0], rows),
            "duration_s": [60.0] * rows,
        }
    )


def write(directory: Path, log: pl.DataFrame) -> tuple[str, ...]:
    """The arguments of `load` for this log."""
    log.write_parquet(directory / "log.parquet")
    titles = ["T" * 10_000, *(f"Film {number}" for number in range(1, len(ITEM_IDS)))]
    pl.DataFrame({"item_id": ITEM_IDS, "title": titles}).write_csv(directory / "items.csv")
    return (str(directory / "log.parquet"), "--items", str(directory / "items.csv"), "--map", "user_id=viewer")


@dataclass
class System:
    """A log that was loaded before anything ran, and the system that was started on it then."""

    settings: Settings
    processes: dict[str, GuardedProcess]
    log: pl.DataFrame
    arguments: tuple[str, ...]
    report: dict[str, Any]
    loaded: dict[str, UserHistory]  # histories as they were then
    cluster: Cluster

    def histories(self) -> dict[str, UserHistory]:
        return {user: history for user in USERS if (history := read_history(self.settings, user)) is not None}

    def samples(self) -> dict[str, float]:
        """Sums over the labels of the trainer's metrics."""
        found: dict[str, float] = {}
        for record in read_run_files(self.settings.run_dir):
            if record["name"] == "trainer":
                for (name, _), value in fetch_samples(record).items():
                    found[name] = found.get(name, 0.0) + value
        return found


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    require_kafka("kafka" if os.environ.get("KAFKA_HOME") else "noida", "what was loaded is there after a restart")
    directory, log = tmp_path_factory.mktemp("load"), log_of()
    arguments = write(directory, log)
    with temporary_settings(**SMALL_MODELS) as own:
        report = json.loads(run_cli(own, "load", *arguments, "--user", ODD[0], "--json", timeout_s=400.0))
        with embedded(own) as settings, running(settings) as processes, Cluster(settings.kafka) as cluster:
            system = System(settings, processes, log, arguments, report, {}, cluster)
            system.loaded = system.histories()
            yield system


def newest_of(log: pl.DataFrame, user: str, keep: int) -> list[str]:
    """The items of the newest watches, and of as many completed ones."""
    own = log.filter(pl.col("viewer") == user).with_row_index()
    long = own.filter(pl.col("watch_s") > 18).tail(keep)["index"]
    stay = sorted({*own.tail(keep)["index"], *long})
    return own.filter(pl.col("index").is_in(stay))["item_id"].to_list()


def test_one_command_trains_tells_and_shows_a_list_with_titles_without_a_broker(system):
    report = system.report
    assert report["taken"] and report["rows"] == system.log.height and report["users"] == len(USERS)
    reply = report["reply"]
    assert report["user"] == ODD[0] and reply["version"] == report["version"] and not reply.get("error")
    known = newest_of(system.log, ODD[0], 10)
    shown = {item["item_id"] for item in reply["items"]}
    assert reply["history_watches"] == len(known) and shown and not shown & set(known)
    titles = {item["item_id"]: item["title"] for item in reply["items"] if item["item_id"] != ITEM_IDS[0]}
    assert titles == {item: f"Film {ITEM_IDS.index(item)}" for item in titles}


def test_the_histories_are_there_after_a_restart_and_no_example_was_made(system):
    assert system.loaded.keys() == set(USERS)
    for user, history in system.loaded.items():
        assert [watch.item_id for watch in history.watches] == newest_of(system.log, user, 10)
        assert history.seen and history.watch_offset == -1
    assert system.cluster.total(WATCH_EVENTS) == system.cluster.total(TRAINING_EXAMPLES) == 0
    assert system.cluster.total(LOADED_HISTORIES) == len(USERS)


def test_items_and_trending_are_as_of_the_logs_end(system):
    reader = Reader(system.settings.kafka, ITEMS)
    items = {item.item_id: item for item in (decode(Item, record.value) for record in reader.to_the_end())}
    reader.close()
    assert items[ITEM_IDS[1]].title == "Film 1" and len(items[ITEM_IDS[0]].title) == 2000
    reader = Reader(system.settings.kafka, TRENDING)
    (lists,) = [decode(Trending, record.value) for record in reader.to_the_end()]
    reader.close()
    completed = system.log.filter(pl.col("watch_s") > 18)
    assert lists.as_of_ms == completed["event_ms"].max() and dict(lists.items)[completed["item_id"][-1]] >= 1


def test_the_same_rows_sent_as_watches_and_a_second_load_teach_nothing_and_bring_nobody_back(system):
    before = system.samples()
    rows = system.log.rename({"viewer": "user_id"})
    replay(rows, system.settings)
    wait_until(lambda: system.cluster.behind("history", WATCH_EVENTS) == 0, "the replay is read", WAIT_S)
    assert system.cluster.total(TRAINING_EXAMPLES) == 0, "each row is known"
    forgotten = json.loads(run_cli(system.settings, "forget", ODD[1], "--json"))
    assert LOADED_HISTORIES in {held["topic"] for held in forgotten["held"]}, "it is told where more is"
    again = json.loads(run_cli(system.settings, "load", *system.arguments, "--json", timeout_s=400.0))
    assert again["taken"] and again["version"] != system.report["version"]
    after = system.histories()
    assert after.keys() == system.loaded.keys() - {ODD[1]}
    for user in after:
        found, loaded = ([(w.item_id, w.event_id) for w in each[user].watches] for each in (after, system.loaded))
        assert found == loaded
    assert system.samples()["nextwatch_training_steps_total"] == before["nextwatch_training_steps_total"] == 0


def test_a_late_watch_with_an_old_time_that_was_not_in_the_log_is_learnt_and_counted(system):
    user, item = USERS[-1], ITEM_IDS[3]
    last = system.histories()[user].watches[-1]
    traffic = Traffic(system.settings.kafka)
    event = WatchEvent("late", user, item, last.event_ms - 1, 50.0, 60.0)
    same = WatchEvent("player-1", user, last.item_id, last.event_ms, last.watch_s, last.duration_s)
    for each in (event, same):
        traffic.send_later(WATCH_EVENTS, user, encode(each))
    traffic.flush()
    traffic.close()
    wait_until(lambda: system.samples().get("nextwatch_prequential_examples_total", 0) >= 1, "it is learnt", WAIT_S)
    assert system.cluster.total(TRAINING_EXAMPLES) == 1, "the log's own watch, sent by a player, is known"
    assert system.samples()["nextwatch_prequential_sample"] == 1


def test_a_rebuild_of_the_histories_finds_them_as_the_topics_say(system):
    system.processes["history"].stop()
    for arguments in ((), ("--from-scratch",)):
        found = json.loads(run_cli(system.settings, "rebuild", "histories", "--dry-run", "--json", *arguments))
        assert found["differ"] == 0 and found["users"] == len(USERS) - 1

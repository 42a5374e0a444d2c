"""What the benchmarks of events send: messages that the workers take, and lists before what was watched of them."""

import pytest
from msgspec.structs import replace

from infra.platform.settings import Ingest, Settings
from models.logs.log import read_items, read_log
from streams.ingest.batch import readers_of, take
from streams.kafka.intake import Raw
from streams.messages import Impression, ImpressionOutline, WatchEvent, decode
from streams.topics import WATCH_EVENTS
from tests.benchmarks.events.history import make_messages as make_watches
from tests.benchmarks.events.join import CASES, LENGTH, make_messages
from tests.benchmarks.events.loading import A_USER, write_log
from tests.benchmarks.events.whole_way import APART_MS, WATCHES, Place, end_of, make_backlog
from tests.harness.needs import FASTAVRO, needs
from tests.harness.schema_registry import running_registry

NOW_MS = 1_700_000_000_000
NAMES = [f"i{number}" for number in range(100)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_the_benchmark_of_the_join_sends_is_nowhere_refused(case):
    shown, watched = make_messages(case, 2 * case.lists, NOW_MS)
    for key, value in shown:
        whole, outline = decode(Impression, value), decode(ImpressionOutline, value)
        assert key.decode() == whole.user_id and len(outline.items) == LENGTH
        assert bool(whole.values) == case.ranked == all(item.values for item in whole.items)
    assert {decode(WatchEvent, value).request_id for _, value in watched} == {f"r{n}" for n in range(2 * case.lists)}


def test_a_backlog_without_lists_goes_on_in_time_by_all_users_in_turn():
    backlog = make_backlog(NAMES, 6, 4, 3, NOW_MS, with_lists=False)
    watches = [decode(WatchEvent, value) for _, value in backlog.watches]
    assert [watch.event_ms - NOW_MS for watch in watches] == [0, APART_MS, 2 * APART_MS, 3 * APART_MS]
    assert [watch.user_id for watch in watches] == ["u0", "u1", "u2", "u0"] and backlog.lists == []
    assert backlog.newest == {"u0": watches[3].event_ms, "u1": watches[1].event_ms, "u2": watches[2].event_ms}


def test_each_list_of_a_backlog_is_shown_before_its_watches_and_has_all_of_them():
    backlog = make_backlog(NAMES, 0, 12, 3, NOW_MS, with_lists=True)
    lists = {shown.request_id: shown for shown in (decode(Impression, value) for _, value in backlog.lists)}
    watches = [decode(WatchEvent, value) for _, value in backlog.watches]
    assert len(lists) * WATCHES == len(watches)
    for watch in watches:
        shown = lists[watch.request_id or ""]
        assert shown.user_id == watch.user_id and shown.at_ms < watch.event_ms
        assert watch.item_id in {item.item_id for item in shown.items[:WATCHES]}


def test_a_stage_ends_where_it_was_first_as_far_as_in_the_end():
    looks = [Place(float(at_s), {"rows": done}, {}) for at_s, done in enumerate((0, 5, 9, 9, 9))]
    assert end_of("rows", looks).at_s == 2


def test_the_log_that_is_loaded_has_distinct_rows_of_2013_of_users_and_items_of_all_sizes(tmp_path):
    paths = write_log(tmp_path, 5_000)
    log = read_log(paths[0], completed_s=18.0)
    rows = log.frame["user_id"].value_counts()["count"]
    assert log.frame.height == 5_000 and rows.max() > 2 * A_USER and log.frame["completed"].mean() < 0.9
    assert log.frame["event_ms"].is_between(1_370_000_000_000, 1_380_000_000_000).all()
    assert set(log.frame["item_id"]) <= set(read_items(paths[1])["item_id"])


@needs(FASTAVRO)
def test_every_lane_of_the_benchmark_of_ingest_makes_the_same_watches():
    from tests.benchmarks.events import ingest

    (key, value), *_ = make_watches(1, 1, NOW_MS)
    watch = decode(WatchEvent, value)
    with running_registry() as registry:
        schema_ids = ingest.register(registry)
        for lane in ingest.LANES:
            mapping = ingest.mapping_of(lane, "plays")
            settings = Settings(ingest=Ingest(topics=(mapping,), registry_url=registry.url))
            raw = Raw("plays", 0, 0, NOW_MS, key, lane.write(watch, schema_ids.get(lane.format, 0)), ())
            (sent,) = take([raw], readers_of(settings), settings, now_ms=NOW_MS).outgoing
            assert (sent.topic, sent.key) == (WATCH_EVENTS, key), lane.name
            assert abs(decode(WatchEvent, sent.value).watch_s - watch.watch_s) < 0.001
            assert replace(decode(WatchEvent, sent.value), watch_s=watch.watch_s) == watch

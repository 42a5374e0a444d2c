"""The indexer process against a real broker (each kind) and a real Milvus."""

import time

import numpy as np
import pytest

from indexer.rollout import is_whole
from infra.local.broker import Broker
from infra.operate.releases import read_topic
from infra.platform import metrics
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from streams import topics
from streams.epochs import mark
from streams.messages import BundlePublished, DeadLetter, decode, encode
from streams.topics import partition_of
from tests.harness.system import cli, process, wait_for_health, with_section
from tests.unit.indexer.site import Site, assert_same

pytestmark = pytest.mark.system


def test_the_first_bundle_is_indexed_and_announced_when_it_comes(site: Site) -> None:
    site.start()
    site.wait(lambda: bool(read_run_files(site.settings.run_dir)), "the indexer runs")
    bundle = site.publish(1)
    ready = site.wait_for_announcement(bundle)
    assert ready.collection == f"items_{bundle.manifest.version}"
    assert ready.items == bundle.manifest.items == site.index.count(bundle.manifest.version)
    assert_same(site.index, bundle)
    user = np.ones((1, bundle.manifest.dim), np.float32)
    [(item_ids, _)] = site.index.search(bundle.manifest.version, user, 10)
    best = np.argsort(-(bundle.model.item_vectors() @ user[0]))[:10]
    assert item_ids == [bundle.model.item_ids[row] for row in best]


def test_a_touched_row_replaces_the_bundles_and_the_newest_step_wins(site: Site) -> None:
    bundle = site.live()
    upserted, seen = metrics.UPSERTED._value.get(), delays_seen()
    for step in (1, 2, 3):
        site.touch(bundle, "item-3", value=step, step=step, produced_ms=int(time.time() * 1000))
    site.touch(bundle, "brand-new", value=9, step=3)
    site.wait_for(bundle, item_3=3.0, brand_new=9.0)
    assert_same(site.index, bundle, but={"item-3"})
    assert metrics.UPSERTED._value.get() - upserted >= 2
    assert delays_seen() > seen


def test_rows_that_lay_in_the_topic_before_the_release_was_indexed_are_in_it_when_it_is_announced(site: Site) -> None:
    bundle = site.publish(1)
    site.touch(bundle, "item-3", value=3)
    site.touch(bundle, "brand-new", value=9)
    site.start()
    ready = site.wait_for_announcement(bundle)
    assert site.value_of(bundle, "item-3") == 3.0
    assert ready.items == bundle.manifest.items + 1


def test_the_spare_is_kept_and_what_no_living_server_serves_is_dropped(site: Site) -> None:
    site.settings = with_section(site.settings, "indexer", server_timeout_s=1.0)
    site.start()
    bundles = []
    for seed in (1, 2, 3):
        bundles.append(site.publish(seed))
        site.wait_for_announcement(bundles[-1])
        if seed == 1:
            site.serve("slow", bundles[0])
    versions = [bundle.manifest.version for bundle in bundles]
    time.sleep(2.5)  # longer than server_timeout_s; nobody else was heard, so nobody is dead
    assert site.index.versions() == versions
    site.serve("other", bundles[2])
    time.sleep(1.5)
    site.serve("other", bundles[2])
    site.wait(lambda: site.index.versions() == versions[1:], "the first collection is dropped")


def test_a_server_that_died_leaves_releases_by_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.rollout.LONG", 2)
    site.settings = with_section(site.settings, "indexer", server_timeout_s=0.5)
    bundle = site.live()
    site.serve("dead", bundle)
    time.sleep(0.5)
    site.serve("alive", bundle)
    time.sleep(1.5)
    site.serve("alive", bundle)
    site.wait(lambda: set(read_topic(site.settings.kafka).servers or ()) == {"alive"}, "the dead one is forgotten")


def test_live_rows_go_on_while_the_next_release_is_built(site: Site) -> None:
    first = site.live()
    second = site.publish(2)
    site.touch(first, "item-3", value=3)
    site.touch(second, "item-4", value=4)
    site.wait_for(first, item_3=3.0)
    site.wait_for_announcement(second)
    site.wait_for(second, item_4=4.0)
    assert_same(site.index, second, but={"item-4"})


def test_bad_messages_go_to_the_dead_letters_once_and_the_others_go_on(site: Site) -> None:
    bundle = site.live()
    site.send(topics.ITEM_VECTORS, "item-1", b"\xc1")
    site.touch(bundle, "item-2", value=float("nan"))
    site.send(topics.ITEMS, "item-1", b'{"item_id": 5}')
    site.send(topics.RELEASES, "bundle", b"{}")
    site.touch(bundle, "item-3", value=3)
    site.wait_for(bundle, item_3=3.0)
    site.wait(lambda: len(site.read(topics.DEAD_LETTERS)) == 4, "dead letters")
    letters = [decode(DeadLetter, value) for value in site.read(topics.DEAD_LETTERS)]
    assert {(letter.topic, letter.code) for letter in letters} == {
        (topics.ITEM_VECTORS, "malformed"),
        (topics.ITEM_VECTORS, "invalid"),
        (topics.ITEMS, "invalid"),
        (topics.RELEASES, "invalid"),
    }
    site.stop()
    site.start()
    site.touch(bundle, "item-3", value=4)
    site.wait_for(bundle, item_3=4.0)
    assert len(site.read(topics.DEAD_LETTERS)) == 4


def test_a_row_of_a_trainer_that_was_replaced_is_not_indexed_now_nor_in_an_index_that_is_made_anew(site: Site) -> None:
    bundle = site.live()
    home = {item: partition_of(item, site.settings.kafka.partitions) for item in bundle.model.item_ids}
    beside = next(item for item in home if home[item] == home["item-3"] and item != "item-3")
    site.claim(1)
    site.touch(bundle, "item-3", value=3, epoch=1)
    site.claim(2)
    site.touch(bundle, "item-3", value=5, step=9, epoch=1)
    site.send(topics.ITEM_VECTORS, "item-3", None, headers=[mark(1)])
    site.touch(bundle, beside, value=4, epoch=2)
    site.wait_for(bundle, **{beside.replace("-", "_"): 4.0}, item_3=3.0)
    site.stop()
    version = bundle.manifest.version
    site.index.drop(version)
    site.start()
    site.wait(lambda: version in site.index.versions() and is_whole(site.index.mark_of(version)), "a new collection")
    site.wait_for(bundle, **{beside.replace("-", "_"): 4.0}, item_3=3.0)
    assert site.read(topics.DEAD_LETTERS) == [], "a claim is no bad message"


def test_a_bundle_that_cannot_be_read_does_not_stop_the_live_one(site: Site) -> None:
    bundle = site.live()
    site.send(topics.RELEASES, "bundle", encode(BundlePublished("20300101_000000_abcdef", 0, 9, 1, "x")))
    site.touch(bundle, "item-3", value=3)
    site.wait_for(bundle, item_3=3.0)
    newer = site.publish(2)
    site.wait_for_announcement(newer)


def test_only_one_of_two_indexers_writes_and_the_other_takes_over(site: Site, broker: Broker) -> None:
    first_stop = site.start()
    bundle = site.publish(1)
    site.wait_for_announcement(bundle)
    site.start()
    site.wait(lambda: len(read_run_files(site.settings.run_dir)) == 2, "the second one runs")
    if broker.kind == "kafka":  # noida lets no second member into a group, so nobody tells it who has the lease
        site.wait(lambda: roles(site) == ["active", "standby"], "the second one says that it is a standby")
    site.touch(bundle, "item-3", value=3)
    site.wait_for(bundle, item_3=3.0)
    first_stop.set()
    site.touch(bundle, "item-3", value=4)
    site.wait_for(bundle, item_3=4.0)
    assert len(site.announcements()) == 1


def roles(site: Site) -> list[str]:
    return sorted(fetch_health(record).get("role", "") for record in read_run_files(site.settings.run_dir))


def delays_seen() -> float:
    return float(metrics.EVENT_TO_VECTOR._sum.get())


def test_a_killed_indexer_loses_no_row(site: Site) -> None:
    site.settings = with_section(site.settings, "kafka", session_timeout_s=6.0)
    bundle = site.publish(1)
    with process(site.settings, "indexer", cli("indexer")) as started:
        wait_for_health(site.settings, started)
        site.wait_for_announcement(bundle)
        for number in range(60):
            site.touch(bundle, f"new-{number}", value=number, step=number)
            if number == 30:
                started.kill()
    items = [f"new-{number}" for number in range(60)]
    with process(site.settings, "indexer-again", cli("indexer")) as started:
        wait_for_health(site.settings, started)
        site.wait(lambda: len(site.index.vectors(bundle.manifest.version, items)) == 60, "all rows")
    assert [site.value_of(bundle, item_id) for item_id in items] == list(range(60))

"""An item that is taken down, or let go of by the trainer, is not in the index; its return brings its newest row."""

import shutil
import time

import pytest

from infra.local.milvus_server import MilvusServer
from streams import topics
from streams.messages import Item, encode
from tests.unit.indexer.site import Site, first_number

pytestmark = pytest.mark.system


def test_an_item_taken_down_is_gone_also_when_a_stale_vector_comes_and_its_return_brings_the_newest(site: Site) -> None:
    bundle = site.live()
    kept = site.value_of(bundle, "item-4")
    site.take_down("item-3")
    site.take_down("item-4")
    site.wait_for(bundle, item_3=None, item_4=None)
    site.touch(bundle, "item-3", value=7)
    site.touch(bundle, "item-5", value=8)
    site.wait_for(bundle, item_5=8.0, item_3=None)
    site.bring_back("item-3")
    site.bring_back("item-4")
    site.wait_for(bundle, item_3=7.0, item_4=kept)


def test_an_item_that_was_down_before_a_release_is_not_in_it_until_it_returns(site: Site) -> None:
    site.send(topics.ITEMS, "item-3", None)
    bundle = site.publish(1)
    site.start()
    ready = site.wait_for_announcement(bundle)
    assert ready.items == bundle.manifest.items - 1
    assert site.value_of(bundle, "item-3") is None
    site.bring_back("item-3")
    site.wait_for(bundle, item_3=first_number(bundle, "item-3"))


def test_a_restart_goes_on_where_it_was_and_knows_what_is_down(site: Site) -> None:
    bundle = site.live()
    site.touch(bundle, "item-3", value=3, step=1)
    site.touch(bundle, "item-4", value=4, step=1)
    site.wait_for(bundle, item_3=3.0, item_4=4.0)
    site.take_down("item-3")
    site.take_down("item-6")
    site.wait_for(bundle, item_3=None, item_6=None)
    site.stop()
    site.take_down("item-5")
    site.touch(bundle, "item-4", value=44, step=2)
    site.start()
    site.wait_for(bundle, item_3=None, item_4=44.0, item_5=None)
    for item_id in ("item-3", "item-5", "item-6"):
        site.bring_back(item_id)
    site.wait_for(bundle, item_3=3.0, item_5=first_number(bundle, "item-5"), item_6=first_number(bundle, "item-6"))
    assert len(site.announcements()) == 1


def test_an_item_that_returns_while_no_indexer_runs_has_its_newest_row(site: Site) -> None:
    bundle = site.live()
    site.touch(bundle, "item-3", value=3, step=1)
    site.wait_for(bundle, item_3=3.0)
    site.take_down("item-3")
    site.take_down("item-4")
    site.wait_for(bundle, item_3=None, item_4=None)
    site.stop()
    site.bring_back("item-3")
    site.bring_back("item-4")
    site.start()
    site.wait_for(bundle, item_3=3.0, item_4=first_number(bundle, "item-4"))


def test_an_id_that_milvus_cannot_hold_stops_nothing_when_it_is_taken_down(site: Site) -> None:
    bundle = site.live()
    for item_id in ("bell \x07", "x" * 1025):
        site.send(topics.ITEMS, item_id, None)
        site.send(topics.ITEM_VECTORS, item_id, None)
    site.take_down("item-4")
    site.wait_for(bundle, item_4=None)


GONE_WITHIN_S = 2.0  # of a take-down; the window of the tests is far shorter


@pytest.mark.parametrize("how", ["tombstone", "unavailable"])
def test_a_take_down_holds_over_stale_vectors_restarts_and_a_new_milvus(
    own_site: Site, own_milvus: MilvusServer, how: str
) -> None:
    site = own_site
    bundle = site.live()
    site.touch(bundle, "item-3", value=3, step=3)
    site.wait_for(bundle, item_3=3.0)
    sent_s = time.monotonic()
    site.send(topics.ITEMS, "item-3", None if how == "tombstone" else encode(Item("item-3", available=False)))
    site.wait_for(bundle, item_3=None)
    assert time.monotonic() - sent_s < GONE_WITHIN_S
    site.touch(bundle, "item-3", value=4, step=4)
    site.touch(bundle, "item-3", value=2, step=2)
    site.touch(bundle, "item-5", value=5, step=4)
    site.wait_for(bundle, item_5=5.0, item_3=None)
    site.stop()
    site.start()
    site.touch(bundle, "item-5", value=6, step=5)
    site.wait_for(bundle, item_5=6.0, item_3=None)
    site.stop()
    own_milvus.process.stop()
    shutil.rmtree(site.settings.data_dir / "milvus")
    own_milvus.restart()
    site.start()
    site.wait(lambda: len(site.announcements()) == 2, "the rebuilt collection is announced")
    site.wait_for(bundle, item_5=6.0, item_3=None)
    site.bring_back("item-3")
    site.wait_for(bundle, item_3=4.0)


def test_what_the_trainer_lets_go_of_stays_away_over_a_restart_and_a_rebuild_until_its_next_row(site: Site) -> None:
    bundle = site.live()
    site.touch(bundle, "item-3", value=3, step=3)
    site.wait_for(bundle, item_3=3.0)
    site.send(topics.ITEM_VECTORS, "item-3", None)
    site.wait_for(bundle, item_3=None)
    site.stop()
    site.start()
    site.touch(bundle, "item-5", value=5, step=4)
    site.wait_for(bundle, item_5=5.0, item_3=None)
    site.stop()
    site.index.drop(bundle.manifest.version)  # as a Milvus that was set up anew
    site.start()
    site.wait(lambda: len(site.announcements()) == 2, "the rebuilt collection is announced")
    site.wait_for(bundle, item_5=5.0, item_3=None)
    site.touch(bundle, "item-3", value=9, step=9)
    site.wait_for(bundle, item_3=9.0)

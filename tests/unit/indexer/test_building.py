"""A new collection: whatever happens while it is made, only one that holds its bundle and finds it is announced."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from indexer.collection import Index
from indexer.item_attributes import ItemAttributes
from indexer.mips_to_l2 import longest_of
from indexer.rollout import WHOLE, announced
from infra.platform import metrics
from models.release.bundle import Bundle
from streams import topics
from streams.messages import Item, encode
from tests.harness.system import wait_until
from tests.unit.indexer.site import PATIENCE_S, Crash, Site, assert_same, crash_in

pytestmark = pytest.mark.system


def test_a_half_full_collection_is_dropped_and_made_again(site: Site) -> None:
    bundle = site.publish(1)
    version = bundle.manifest.version
    site.index.create(version, bundle.manifest.dim)
    site.index.upsert(version, ["leftover"], np.ones((1, bundle.manifest.dim), np.float32), [5])
    site.start()
    site.wait_for_announcement(bundle)
    assert site.value_of(bundle, "leftover") is None
    assert_same(site.index, bundle)


@pytest.mark.parametrize(
    ("name", "when", "how"),
    [
        ("upsert", lambda *_: True, {"nth": 2, "after": True}),
        ("mark", lambda _, __, mark: mark == WHOLE, {"after": True}),
        ("mark", lambda _, __, mark: mark == WHOLE, {}),
        ("mark", lambda _, __, mark: mark != WHOLE, {}),
    ],
    ids=["second upsert", "mark whole", "before mark whole", "mark announced"],
)
def test_a_crash_at_any_point_of_a_build_leads_to_the_same_index(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, when: Callable[..., bool], how: dict[str, Any]
) -> None:
    bundle = site.publish(1)
    site.touch(bundle, "item-3", value=3)
    crash_in(monkeypatch, name, when, **how)
    site.start()
    wait_until(lambda: bool(site.failures), "the crash", PATIENCE_S)
    assert isinstance(site.failures.pop(), Crash)
    monkeypatch.undo()
    site.start()
    site.wait_for_announcement(bundle)
    site.wait_for(bundle, item_3=3.0)
    assert_same(site.index, bundle, but={"item-3"})
    assert site.index.count(bundle.manifest.version) == bundle.manifest.items


@pytest.mark.parametrize("fault", ["a row is lost", "a row is foreign", "a vector is another"])
def test_a_collection_that_does_not_hold_its_bundle_is_never_announced(
    site: Site, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    original, faulty, bundle = Index.upsert, 2, site.publish(1)

    def upsert(
        self: Index,
        version: str,
        item_ids: list[str],
        vectors: np.ndarray,
        steps: list[int],
        attributes: Sequence[ItemAttributes],
    ) -> None:
        nonlocal faulty
        if faulty and item_ids[0] == bundle.model.item_ids[0]:
            faulty -= 1
            if fault == "a row is lost":
                item_ids, vectors, steps, attributes = item_ids[1:], vectors[1:], steps[1:], attributes[1:]
            elif fault == "a row is foreign":
                item_ids, vectors, steps = [*item_ids, "foreign"], vectors[[*range(len(vectors)), 0]], [*steps, 0]
                attributes = [*attributes, attributes[0]]
            else:
                vectors = vectors + 1
        original(self, version, item_ids, vectors, steps, attributes)

    monkeypatch.setattr(Index, "upsert", upsert)
    monkeypatch.setattr("indexer.rollout_executor.RETRY_S", 0.2)
    site.start()
    site.wait_for_announcement(bundle)
    assert faulty == 0
    assert len(site.announcements()) == 1
    assert_same(site.index, bundle)


def test_a_collection_that_is_not_found_in_is_never_announced_and_the_recall_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, faulty = Index.search, 2

    def search(self: Index, version: str, vectors: np.ndarray, limit: int, **more: Any) -> Any:
        nonlocal faulty
        found = original(self, version, vectors, limit, **more)
        faulty -= 1
        return [(ids[: len(ids) // 2], inner[: len(ids) // 2]) for ids, inner in found] if faulty >= 0 else found

    monkeypatch.setattr(Index, "search", search)
    monkeypatch.setattr("indexer.rollout_executor.RETRY_S", 0.2)
    bundle = site.live()
    assert faulty < 0
    assert len(site.announcements()) == 1
    assert capsys.readouterr().out.count("finds 0.500 of the best, not 0.95") == 2
    assert_same(site.index, bundle)
    assert metrics.INDEX_RECALL._value.get() == 1.0


def test_a_collection_without_the_items_facts_is_made_anew_and_the_reason_is_logged(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = site.publish(1)
    version = bundle.manifest.version
    monkeypatch.setattr("indexer.schema.add_fields", lambda schema: None)
    monkeypatch.setattr("indexer.index_spec.IndexSpec.properties", lambda spec: {"nextwatch.radius": "0.0"})
    site.index.create(version, bundle.manifest.dim)
    site.index.mark(version, announced(5))
    monkeypatch.undo()
    site.send(topics.ITEMS, "item-3", encode(Item("item-3", channel="music")))
    site.start()
    site.wait_for_announcement(bundle)
    assert "collection was made by another version of nextwatch" in capsys.readouterr().out
    assert_same(site.index, bundle)
    assert found_where(site, bundle, 'channel == "music"') == {"item-3"}


def test_a_mark_that_milvus_forgets_is_written_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server of 2.3 does when it is started again; a server of ours would not take the release any more."""
    monkeypatch.setattr("indexer.process.REPORT_S", 0.2)
    version = site.live().manifest.version
    mark = site.index.mark_of(version)
    site.index.mark(version, "")
    site.wait(lambda: site.index.mark_of(version) == mark, "the mark")
    assert len(site.announcements()) == 1


@pytest.mark.parametrize("kind", ["HNSW", "IVF_FLAT"])
def test_a_release_is_indexed_in_each_form_and_its_rows_stay_findable(site: Site, kind: str) -> None:
    site.use_milvus(index_type=kind)
    bundle = site.live()
    assert_same(site.index, bundle)
    longer = 1.2 * longest_of(bundle.model.item_vectors())  # as rows may be that were learnt later
    value = float(np.float32(longer / np.sqrt(bundle.manifest.dim)))
    site.touch(bundle, "item-3", value=value)
    site.wait_for(bundle, item_3=value)
    query = np.ones((1, bundle.manifest.dim), np.float32)
    [(item_ids, _)] = site.index.search(bundle.manifest.version, query, 1, strong=True)
    assert item_ids == ["item-3"]


def test_rows_carry_the_newest_facts_of_their_items(site: Site) -> None:
    site.send(topics.ITEMS, "item-3", encode(Item("item-3", channel="music", duration_s=30.0)))
    site.send(topics.ITEMS, "item-4", encode(Item("item-4", channel="sport")))
    bundle = site.live()
    vectors = site.index.vectors(bundle.manifest.version, ["item-3", "item-4", "item-5"])
    assert found_where(site, bundle, 'channel == "music" and duration_s < 60') == {"item-3"}
    site.send(topics.ITEMS, "item-4", encode(Item("item-4", channel="music")))
    site.send(topics.ITEMS, "item-5", encode(Item("item-5", channel="music", language="en")))
    music = {"item-3", "item-4", "item-5"}
    site.wait(lambda: found_where(site, bundle, 'channel == "music"') == music, "the new attributes")
    assert found_where(site, bundle, 'channel == "music" and language == "en"') == {"item-5"}
    found = site.index.vectors(bundle.manifest.version, ["item-3", "item-4", "item-5"])
    for item_id, (step, vector) in vectors.items():
        assert found[item_id][0] == step
        np.testing.assert_array_equal(found[item_id][1], vector)
    site.touch(bundle, "item-5", value=9)
    site.wait_for(bundle, item_5=9.0)
    assert found_where(site, bundle, 'language == "en"') == {"item-5"}


def test_an_entry_that_changed_while_no_indexer_ran_reaches_the_rows_and_others_are_left_alone(site: Site) -> None:
    for item_id in ("item-3", "item-4"):
        site.send(topics.ITEMS, item_id, encode(Item(item_id, channel="music")))
    bundle = site.live()
    site.stop()
    site.send(topics.ITEMS, "item-4", encode(Item("item-4", channel="sport")))
    rewritten = metrics.INDEX_REWRITTEN._value.get()
    site.start()
    site.wait(lambda: found_where(site, bundle, 'channel == "sport"') == {"item-4"}, "the new channel")
    assert found_where(site, bundle, 'channel == "music"') == {"item-3"}
    site.wait(lambda: metrics.INDEX_REWRITTEN._value.get() > rewritten, "the count, which follows the write")
    assert metrics.INDEX_REWRITTEN._value.get() == rewritten + 1


def found_where(site: Site, bundle: Bundle, expression: str) -> set[str]:
    """The items that a search with this filter finds."""
    query = np.ones((1, bundle.manifest.dim), np.float32)
    [(item_ids, _)] = site.index.search(bundle.manifest.version, query, 1000, expression=expression)
    return set(item_ids)

"""The index against a real Milvus Lite server, a Milvus server where there is one, and against exact numpy."""

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.collection import Index
from indexer.errors import FilterRefused, IndexMissing, IndexRefused, IndexUnavailable
from indexer.item_attributes import ItemAttributes
from indexer.milvus import is_lite
from indexer.mips_to_l2 import longest_of
from indexer.schema import SHADOW, collection_name, is_indexable
from infra.local.milvus_server import start_milvus
from infra.platform.settings import Milvus, Settings
from tests.conftest import milvus_answers
from tests.harness.system import stopping, wait_until
from tests.unit.indexer.site import Searcher

pytestmark = pytest.mark.system

DIM = 9


@pytest.fixture
def index(milvus_uri: str) -> Iterator[Index]:
    with contextlib.closing(Index(Milvus(uri=milvus_uri))) as index:
        for version in index.versions():
            index.drop(version)
        yield index


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def fill(index: Index, rows: np.ndarray, version: str = "a", /, *, attributes: Any = None, **how: Any) -> None:
    """A new collection of these rows, flushed and loaded."""
    index.create(version, rows.shape[1], **how)
    index.upsert(version, ids(len(rows)), rows, [0] * len(rows), attributes)
    index.flush(version)
    index.load(version)


def is_on_lite(index: Index) -> bool:
    index.is_ready()
    return index._is_lite


def ids(count: int) -> list[str]:
    return [f"item {number}" for number in range(count)]


@pytest.mark.parametrize(("version", "lite"), [("milvus_lite-3.2.2", True), ("v2.3.5-lite", False), ("v2.6.1", False)])
def test_a_server_from_a_package_is_no_milvus_lite(version: str, lite: bool) -> None:
    assert is_lite(version) is lite


def test_flat_search_is_the_exact_top_k(index: Index) -> None:
    rows, queries = vectors(3000), vectors(3, seed=1)
    fill(index, rows)
    found = index.search("a", queries, 500)
    for (item_ids, inner), expected in zip(found, queries @ rows.T, strict=True):
        best = -np.sort(-expected)[:500]
        found_rows = [int(item_id.removeprefix("item ")) for item_id in item_ids]
        assert len(set(found_rows)) == 500
        # equal to rounding: in which order two scores stand that differ in their last bit is the processor's business
        np.testing.assert_allclose(expected[found_rows], best, rtol=0, atol=2e-6)
        np.testing.assert_allclose(inner, best, rtol=1e-5, atol=1e-5)
        assert inner.dtype == np.float32


def test_hnsw_finds_nearly_all_of_the_top_k_also_with_a_popularity_coordinate(milvus_uri: str, index: Index) -> None:
    index = Index(Milvus(uri=milvus_uri, index_type="HNSW"))
    rows, queries = popular(4000, seed=0), users(5)
    fill(index, rows, longest=longest_of(rows))
    assert index.dim("a") == 65
    wait_until(lambda: index._client().describe_index("items_a", "vector")["pending_index_rows"] == 0, "index", 20)
    time.sleep(1.0)  # Milvus Lite searches exactly until a segment's index is built, and says so too early
    for (item_ids, inner), expected in zip(index.search("a", queries, 500), queries @ rows.T, strict=True):
        np.testing.assert_allclose(inner, [expected[int(i.split()[1])] for i in item_ids], atol=1e-3)
    assert recall(index, "a", rows, queries) >= 0.99
    np.testing.assert_array_equal(index.vectors("a", ["item 7"])["item 7"][1], rows[7])


def test_ivf_finds_nearly_all_of_the_top_k_also_of_few_rows_and_after_upserts(milvus_uri: str, index: Index) -> None:
    index = Index(Milvus(uri=milvus_uri, index_type="IVF_FLAT"))
    for version, count in (("few", 300), ("many", 6000)):
        rows, queries = popular(count, seed=0), users(5)
        fill(index, rows, version, longest=longest_of(rows), rows=count)
        time.sleep(2.0)  # Milvus Lite searches exactly until a segment's index is built
        assert recall(index, version, rows, queries) >= 0.99
        touched = np.random.default_rng(2).choice(count, count // 5, replace=False)
        rows[touched] += popular(len(touched), seed=3) * [[0.3] * 64 + [0]]
        index.upsert(version, [f"item {row}" for row in touched], rows[touched], [1] * len(touched))
        index.flush(version)
        time.sleep(2.0)
        assert recall(index, version, rows, queries) >= 0.99


@pytest.mark.parametrize("kind", ["FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8", "SCANN"])
def test_a_filtered_search_finds_the_best_of_what_the_filter_leaves(milvus_uri: str, index: Index, kind: str) -> None:
    is_lite, index = is_on_lite(index), Index(Milvus(uri=milvus_uri, index_type=kind))
    rows, queries, channels = popular(4000, seed=0), users(5), [f"c{number % 40}" for number in range(4000)]
    if is_lite and kind in {"IVF_SQ8", "SCANN"}:
        for call in (index.check, lambda: index.create("a", 65)):
            with pytest.raises(IndexRefused, match=r"milvus\.index_type: Milvus Lite .+; take FLAT, HNSW or IVF_FLAT"):
                call()
        return
    fill(index, rows, attributes=[ItemAttributes(channel) for channel in channels], longest=longest_of(rows), rows=4000)
    time.sleep(2.0)
    assert recall(index, "a", rows, queries) >= 0.99
    np.testing.assert_array_equal(index.vectors("a", ["item 7"])["item 7"][1], rows[7])
    for expression, wanted in (('channel == "c7"', {"c7"}), ('channel != "c7"', set(channels) - {"c7"})):
        left = np.array([row for row, channel in enumerate(channels) if channel in wanted])
        found, shares = index.search("a", queries, 90, expression=expression), []
        for (item_ids, _), query in zip(found, queries, strict=True):
            best = left[np.argsort(-(rows[left] @ query))[:90]]
            assert {channels[int(item_id.split()[1])] for item_id in item_ids} <= wanted
            shares.append(len({f"item {row}" for row in best} & set(item_ids)) / 90)
        assert np.mean(shares) >= 0.98
    assert index.search("a", queries[:1], 90, expression='channel == "none"')[0][0] == []


def test_an_expression_that_milvus_does_not_understand_is_refused(index: Index) -> None:
    index.create("a", DIM)
    index.upsert("a", ids(3), vectors(3), [0] * 3)
    with pytest.raises(IndexRefused if is_on_lite(index) else FilterRefused):
        index.search("a", vectors(1), 3, expression="channel ==")


def test_a_row_is_written_whole(index: Index) -> None:
    index.create("a", DIM)
    index.upsert("a", ["x"], vectors(1), [1], [ItemAttributes("music", ("t",), "en", 30.0, 5)])
    index.flush("a")
    index.upsert("a", ["x"], vectors(1), [2])
    [row] = index._query("a", 'item_id == "x"', ["channel", "language", "duration_s", "published_ms", "step"])
    assert row == {"item_id": "x", "channel": "", "language": "", "duration_s": -1.0, "published_ms": -1, "step": 2}


def popular(count: int, seed: int) -> np.ndarray:
    """Vectors [N, 65] with a popularity coordinate as the product's have it."""
    rng = np.random.default_rng(seed)
    parts = 0.3 * rng.normal(size=(count, 64)), rng.normal(-8, 1.5, size=(count, 1))
    return np.concatenate(parts, axis=1).astype(np.float32)


def users(count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.concatenate([0.8 * rng.normal(size=(count, 64)), np.ones((count, 1))], axis=1).astype(np.float32)


def recall(index: Index, version: str, rows: np.ndarray, queries: np.ndarray) -> float:
    """Mean recall of the 500 best, or of all where there are fewer."""
    most = min(500, len(rows))
    best = [{f"item {row}" for row in np.argsort(-(rows @ query))[:most]} for query in queries]
    found = index.search(version, queries, most)
    return float(np.mean([len(one & set(item_ids)) / most for one, (item_ids, _) in zip(best, found, strict=True)]))


def test_a_changed_index_type_leaves_existing_collections_readable(milvus_uri: str, index: Index) -> None:
    rows, far = vectors(20), np.full((1, DIM), 3, np.float32)
    index.create("a", DIM)
    index.upsert("a", ids(20), rows, [0] * 20)
    index = Index(Milvus(uri=milvus_uri, index_type="HNSW"))
    index.upsert("a", ["item 1"], far, [1])
    [(item_ids, inner)] = index.search("a", far, 1, strong=True)
    assert item_ids == ["item 1"]
    np.testing.assert_allclose(inner, [9 * DIM])
    assert index.dim("a") == DIM


def test_a_limit_beyond_the_rows_gives_all_of_them(index: Index) -> None:
    index.create("a", DIM)
    index.upsert("a", ids(5), vectors(5), [0] * 5)
    [(item_ids, inner)] = index.search("a", vectors(1), 20_000, strong=True)
    assert sorted(item_ids) == ids(5)
    assert len(inner) == 5


def test_an_empty_collection_finds_nothing(index: Index) -> None:
    index.create("a", DIM)
    assert [item_ids for item_ids, _ in index.search("a", vectors(2), 10)] == [[], []]


def test_what_was_upserted_is_found_by_the_next_strong_search(index: Index) -> None:
    index.create("a", DIM)
    index.upsert("a", ids(3), vectors(3), [0] * 3)
    far = np.full((1, DIM), 100, np.float32)
    index.upsert("a", ["item 1"], far, [7])
    assert index.search("a", far, 1, strong=True)[0][0] == ["item 1"]
    assert index.count("a") == 3
    step, vector = index.vectors("a", ["item 1", "not there"])["item 1"]
    assert step == 7
    np.testing.assert_array_equal(vector, far[0])


def test_what_was_deleted_is_not_found(index: Index) -> None:
    fill(index, vectors(3))
    index.delete("a", ["item 1", "not there"])
    assert sorted(index.search("a", vectors(1), 10, strong=True)[0][0]) == ["item 0", "item 2"]
    assert index.count("a") == 2


def test_ids_with_quotes_and_other_scripts_are_found_and_deleted(index: Index) -> None:
    strange = [
        "it's",
        'a"b',
        'it\'s "x"',
        "back\\slash",
        "é😀",
        "new\nline",
        "{x}",
        "%s",
        "zero\u200bwidth",
        "ends with \\",
        "क",
    ]
    index.create("a", DIM)
    index.upsert("a", strange, vectors(len(strange)), [0] * len(strange))
    assert set(index.vectors("a", strange)) == set(strange)
    assert sorted(index.search("a", vectors(1), 100)[0][0]) == sorted(strange)
    for item_id in strange:
        index.delete("a", [item_id])
        assert item_id not in index.vectors("a", strange)
    assert index.count("a") == 0


def test_a_vector_that_is_not_finite_is_refused_before_it_is_written(index: Index) -> None:
    index.create("a", DIM)
    rows = vectors(3)
    rows[1, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 3 vectors"):
        index.upsert("a", ids(3), rows, [0] * 3)
    assert index.count("a") == 0
    with pytest.raises(ValueError, match="finite"):
        index.search("a", rows, 3)


def test_a_mark_stays_with_its_collection(index: Index) -> None:
    index.create("a", DIM)
    index.create("b", DIM + 1)
    assert index.mark_of("a") == ""
    index.mark("a", "whole")
    index.mark("a", "announced:5")
    assert (index.mark_of("a"), index.mark_of("b")) == ("announced:5", "")
    assert (index.dim("a"), index.dim("b")) == (DIM, DIM + 1)
    assert index.versions() == ["a", "b"]
    index.drop("a")
    index.drop("a")
    assert index.versions() == ["b"]


def test_one_takes_the_place_of_another_and_no_search_is_without(index: Index, milvus_uri: str) -> None:
    """Milvus Lite's rename, under searches, left directories behind whose names nothing could have any more."""
    rows, shadow = vectors(20), Index(Milvus(uri=milvus_uri), SHADOW)
    fill(index, rows[:10])
    searcher = Searcher(Milvus(uri=milvus_uri), "a", rows[:1])
    found, failures = searcher.found, searcher.failures
    with searcher.searching():
        for count in range(11, 21):
            fill(shadow, rows[:count])
            assert index.versions() == ["a"], "a shadow is no version"
            index.replace("a")
            shadow.drop("a")
            shadow.drop("a")
            assert index.count("a") == count
            before = len(found)
            wait_until(lambda before=before: len(found) > before + 1, "searches", 20)  # type: ignore[misc]
    shadow.close()
    assert found == sorted(found) and set(found) == set(range(10, 21))
    assert len(failures) <= 1, f"at most one that was under way in what was dropped: {failures}"
    assert len(index._stored()) == 1, "what was replaced is gone"


def test_two_deployments_on_one_milvus_leave_each_others_collections_alone(index: Index, milvus_uri: str) -> None:
    """Also of the same version, and what a crash has left; one is filled, swapped, emptied and dropped beside the
    other."""
    other_milvus, rows = Milvus(uri=milvus_uri, collection_prefix="staging_"), vectors(20)
    with contextlib.closing(Index(other_milvus)) as other, contextlib.closing(Index(other_milvus, SHADOW)) as shadow:
        for version in other.versions():
            other.drop(version)
        fill(index, rows)
        index.create("left", DIM)
        index._client().drop_alias(collection_name("items_", "left"))
        fill(other, rows[:5])
        fill(other, rows[:5], "old")
        fill(shadow, rows[:6])
        other.replace("a")
        shadow.drop("a")
        other.drop("old")
        assert (other.count("a"), index.count("a")) == (6, 20)
        other.delete("a", ids(6))
        assert (index.versions(), other.versions()) == (["a"], ["a"])
        other.drop("a")
        assert (index.versions(), other.versions()) == (["a"], [])
        assert sorted(index.search("a", rows[:1], 100)[0][0]) == sorted(ids(20))
        assert len(index._stored()) == 2, "what a crash left is its own deployment's to drop"
        index.drop("none")
        assert len(index._stored()) == 1


def test_a_database_holds_collections_of_its_own_and_must_be_there(index: Index, milvus_uri: str) -> None:
    """A server of 2.3 knows aliases of its default database only, however it is asked, but for one way."""
    name = f"apart_{secrets.token_hex(4)}"
    apart = Milvus(uri=milvus_uri, database=name)
    with pytest.raises(IndexRefused, match=name):
        Index(apart).versions()
    index._client().create_database(name)
    with contextlib.closing(Index(apart)) as other:
        fill(index, vectors(3))
        assert other.versions() == []
        fill(other, vectors(5))
        with contextlib.closing(Index(apart, SHADOW)) as shadow:
            fill(shadow, vectors(6))
            other.replace("a")
            shadow.drop("a")
        other.drop("none")
        assert (index.count("a"), other.count("a")) == (3, 6)
        index.drop("a")
        assert (index.versions(), other.versions()) == ([], ["a"])
        other.drop("a")
    index._client().drop_database(name)


def test_what_a_server_is_asked_for_is_there_or_refused_with_the_settings_name(index: Index, milvus_uri: str) -> None:
    for beyond in ({"shards": 2}, {"mmap": True}):
        with contextlib.closing(Index(Milvus(uri=milvus_uri, **beyond))) as asked:
            if is_on_lite(index):
                with pytest.raises(IndexRefused, match=f"setting milvus.{next(iter(beyond))}: Milvus Lite passes over"):
                    asked.create("a", DIM)
                continue
            fill(asked, vectors(20))
            about = asked._client().describe_collection(collection_name("items_", "a"))
            assert (about["num_shards"], dict(about["properties"]).get("mmap.enabled")) in ((2, None), (1, "true"))
            assert len(asked.search("a", vectors(1), 100)[0][0]) == 20
            asked.drop("a")
    with contextlib.closing(Index(Milvus(uri=milvus_uri, replicas=2, timeout_s=2))) as asked:
        error, text = (IndexRefused, "setting") if is_on_lite(index) else (IndexUnavailable, "load ")
        with pytest.raises(error, match=rf"{text}.*milvus\.replicas"):  # one query node, and it may still get another
            asked.create("a", DIM)
        asked.drop("a")


def test_a_collection_that_is_loaded_stays_so_when_the_setting_changes(index: Index, milvus_uri: str) -> None:
    fill(index, vectors(3))
    with contextlib.closing(Index(Milvus(uri=milvus_uri, replicas=2))) as changed:
        changed.load("a")
        assert changed.count("a") == 3


def test_what_a_crash_leaves_without_an_alias_goes_with_the_next_drop(index: Index) -> None:
    index.create("a", DIM)
    index.create("b", DIM)
    index._client().drop_alias(collection_name("items_", "b"))
    assert index.versions() == ["a"] and len(index._stored()) == 2
    index.drop("c")
    assert index.versions() == ["a"] and len(index._stored()) == 1


def test_a_missing_collection_is_named(index: Index) -> None:
    name = collection_name("items_", "nope")
    for call in (
        lambda: index.search("nope", vectors(1), 3),
        lambda: index.upsert("nope", ids(1), vectors(1), [0]),
        lambda: index.delete("nope", ids(1)),
        lambda: index.count("nope"),
        lambda: index.mark("nope", "whole"),
        lambda: index.load("nope"),
        lambda: index.replace("nope"),
    ):
        with pytest.raises(IndexMissing, match=name):
            call()


def test_the_memtable_of_milvus_lite_stays_small_and_a_server_is_not_flushed_per_batch(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    client = index._client()
    original = client.flush
    monkeypatch.setattr(client, "flush", lambda *a, **more: (flushed.append(index.count("a")), original(*a, **more)))
    index.create("a", DIM)
    for _ in range(5):
        index.upsert("a", ids(1000), vectors(1000), [0] * 1000)
    assert flushed == [], "nobody searches a collection that is being filled"
    index.flush("a")
    index.load("a")
    for step in range(5):
        index.upsert("a", ids(1000), vectors(1000, seed=step), [step] * 1000)
    index.delete("a", ids(1000))
    assert flushed == ([1000, 1000, 1000, 0] if index._is_lite else [1000])


def test_milvus_away_is_unavailable_and_its_return_is_noticed(tmp_path: Path) -> None:
    with stopping(start_milvus(Settings(data_dir=tmp_path), probe=milvus_answers)) as server:
        index = Index(Milvus(uri=server.uri, timeout_s=2))
        index.create("a", DIM)
        index.upsert("a", ids(3), vectors(3), [0] * 3)
        index.mark("a", "whole")
        server.process.kill()
        for call in (index.versions, lambda: index.search("a", vectors(1), 3), lambda: index.delete("a", ids(1))):
            with pytest.raises(IndexUnavailable):
                call()
        assert not index.is_ready()
        server.restart()
        wait_until(index.is_ready, "Milvus answers again", 20)
        # Collections are not loaded after a restart: the search does it.
        assert sorted(index.search("a", vectors(1), 3)[0][0]) == ids(3)
        assert index.mark_of("a") == "whole"
        assert index.count("a") == 3


def test_nobody_at_the_address_is_unavailable_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        index = Index(Milvus(uri=f"http://127.0.0.1:{taken.getsockname()[1]}", timeout_s=1))
        with pytest.raises(IndexUnavailable, match="connect"):
            index.versions()


def test_an_empty_uri_names_its_setting() -> None:
    with pytest.raises(IndexRefused, match=r"milvus\.uri"):
        Index(Milvus())


def test_ids_that_milvus_cannot_hold_are_known() -> None:
    assert is_indexable("é" * 512)
    assert not is_indexable("é" * 513)
    assert not is_indexable("")
    assert not is_indexable("bell \x07")

"""Who is asked for candidates, in which order, and how a bad index is found out and used again."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import FilterRefused
from indexer.item_attributes import to_milvus
from infra.platform import metrics
from infra.platform.settings import Serving
from models.catalogue.filter_syntax import parse_filter
from models.release.bundle import Manifest
from serving.request.retrieval import Answer, Query, Retrieval
from serving.state import search_order
from serving.state.recall_audit import ENOUGH, RecallAudit, compare
from serving.state.release import LiveRelease, load_release
from streams.bundles.source import BundleSource
from tests.unit.serving.worlds import ITEMS, ExactIndex, unavailable, until

NOW_MS = 1_700_000_000_000


@pytest.fixture
def bare(bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex) -> LiveRelease:
    """The same release where its vectors are too many to be held in memory."""
    return load_release(BundleSource(bundles_dir), bundles[0].version, index, mirror_items=len(ITEMS) - 1)


INDEX_FIRST, MIRROR_FIRST = Serving(first="index"), Serving(first="mirror")


def some(live: LiveRelease, count: int = 2, limit: int = 10) -> list[Query]:
    vectors = np.random.default_rng(1).standard_normal((count, live.model.dim)).astype(np.float32)
    vectors[:, -1] = 1
    return [Query(vector, limit) for vector in vectors]


def search(
    retrieval: Retrieval,
    live: LiveRelease,
    queries: Sequence[Query] | None = None,
    now_ms: int = NOW_MS,
    left_s: float = 5.0,
) -> Answer:
    queries = queries or some(live)
    return retrieval.finish(retrieval.start(queries, live, now_ms=now_ms, left_s=left_s), now_ms=now_ms)


def test_the_index_is_asked_first_and_the_mirror_knows_the_same(live: LiveRelease, index: ExactIndex) -> None:
    found, exact = search(Retrieval(INDEX_FIRST, 1), live), search(Retrieval(MIRROR_FIRST, 1), live)
    assert len(index.searched) == 1
    assert (found.fell_to, exact.fell_to) == ("", "")
    assert found.found is not None
    assert exact.found is not None
    for (ids, scores), (same, equal) in zip(found.found, exact.found, strict=True):
        assert ids == same
        np.testing.assert_allclose(scores, equal, rtol=1e-5)


def test_a_small_mirror_goes_first_by_itself_says_so_and_an_index_in_its_shadow_is_audited(
    live: LiveRelease, index: ExactIndex, monkeypatch
) -> None:
    monkeypatch.setattr(search_order, "CLEARLY", float("inf"))
    retrieval = Retrieval(Serving(audit_share=1.0), 1)
    before = metrics.AUDITED._value.get()
    answer = search(retrieval, live)
    assert (answer.by, answer.fell_to) == ("mirror", "")
    until(lambda: len(index.searched) == 1)
    until(lambda: search(retrieval, live).by == "mirror" and metrics.AUDITED._value.get() > before)


def test_an_index_that_refuses_at_once_in_the_shadow_is_told_and_degrades_no_answer(
    live: LiveRelease, index: ExactIndex
) -> None:
    retrieval = Retrieval(Serving(audit_share=1.0), 1)
    index.failure = unavailable()
    for number in range(2 * search_order.RECENT):
        answer = search(retrieval, live, now_ms=NOW_MS + 10_000 * number)
        assert (answer.by, answer.fell_to) == ("mirror", ""), number
        until(lambda: retrieval._probe is None or retrieval._probe[0].done())
    assert metrics.INDEX_IN_USE._value.get() == 0
    index.failure = None
    later_ms = NOW_MS + 1_000_000
    until(lambda: search(retrieval, live, now_ms=later_ms).by == "mirror" and metrics.INDEX_IN_USE._value.get())


def test_an_index_that_is_clearly_quicker_goes_first(live: LiveRelease, index: ExactIndex, monkeypatch) -> None:
    retrieval, mirror = Retrieval(Serving(audit_share=1.0), 1), live.mirror
    assert mirror is not None
    quick = mirror.search

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return quick(*arguments)

    monkeypatch.setattr(mirror, "search", slow)
    until(lambda: search(retrieval, live).by == "index")


def test_a_failure_is_answered_by_the_mirror_at_once_and_the_index_left_alone(
    live: LiveRelease, index: ExactIndex
) -> None:
    retrieval = Retrieval(INDEX_FIRST, 1)
    exact = search(Retrieval(MIRROR_FIRST, 1), live)
    index.failure = unavailable()
    for _ in range(3):
        answer = search(retrieval, live)
        assert answer.fell_to == "mirror"
        assert "connection refused" in answer.reason
        assert answer.found is not None
        assert [ids for ids, _ in answer.found] == [ids for ids, _ in exact.found or ()]


def test_a_filter_that_milvus_refuses_is_its_request_s_fault_and_the_index_stays_in_use(
    live: LiveRelease, bare: LiveRelease, index: ExactIndex
) -> None:
    """As a filter on topics is by a server before 2.4."""
    retrieval = Retrieval(INDEX_FIRST, 1)
    index.failure = FilterRefused("Milvus: read: cannot parse expression")
    answer = search(retrieval, live)
    assert (answer.by, answer.fell_to) == ("mirror", "mirror") and "cannot parse" in answer.reason
    assert search(retrieval, bare).fell_to == "trending"
    assert retrieval.search_again(some(bare)[0], bare, now_ms=NOW_MS) is None
    index.failure = None
    assert metrics.INDEX_IN_USE._value.get() == 1
    assert search(retrieval, live).by == search(retrieval, bare).by == "index"


def test_a_refused_filter_in_the_shadow_tells_nothing_of_the_index(
    live: LiveRelease, index: ExactIndex, monkeypatch
) -> None:
    monkeypatch.setattr(search_order, "CLEARLY", float("inf"))
    retrieval = Retrieval(Serving(audit_share=1.0), 1)
    index.failure = FilterRefused("Milvus: read: cannot parse expression")
    for _ in range(5):
        assert search(retrieval, live).by == "mirror"
        until(lambda: retrieval._probe is None or retrieval._probe[0].done())
    assert metrics.INDEX_IN_USE._value.get() == 1


def test_without_a_mirror_a_failure_leaves_trending(bare: LiveRelease, index: ExactIndex) -> None:
    index.failure = unavailable()
    answer = search(Retrieval(INDEX_FIRST, 1), bare)
    assert (answer.found, answer.fell_to) == (None, "trending")
    assert "serving.mirror_items" in answer.reason


def test_without_a_mirror_a_collection_that_was_lost_is_asked_again_only_when_it_is_whole(
    bare: LiveRelease, index: ExactIndex
) -> None:
    """Milvus has lost its data, and the indexer fills the collection anew."""
    retrieval, version = Retrieval(INDEX_FIRST, 1), bare.version
    item_ids, rows = index.collections.pop(version)
    assert search(retrieval, bare).fell_to == "trending"
    index.collections[version], index.marks[version] = (item_ids[:3], rows[:3]), ""
    index.searched.clear()
    for later_ms in (1_000, 10_000, 20_000):
        answer = search(retrieval, bare, now_ms=NOW_MS + later_ms)
        assert (answer.found, answer.fell_to) == (None, "trending")
        assert "not whole" in answer.reason
        assert retrieval.search_again(some(bare)[0], bare, now_ms=NOW_MS + later_ms + 9_000) is None
    assert index.searched == []
    index.collections[version], index.marks[version] = (item_ids, rows), "whole"
    answer = search(retrieval, bare, now_ms=NOW_MS + 30_000)
    assert answer.fell_to == ""
    assert answer.found is not None
    assert len(answer.found[0][0]) == 10
    assert retrieval.search_again(some(bare)[0], bare, now_ms=NOW_MS + 30_000) is not None


def test_without_a_mirror_an_answer_from_before_a_failure_does_not_vouch_for_the_collection(
    bare: LiveRelease, index: ExactIndex
) -> None:
    """A batch begins before the one before it is finished."""
    retrieval, version = Retrieval(INDEX_FIRST, 1), bare.version
    kept = index.collections.pop(version)
    lost = retrieval.start(some(bare), bare, now_ms=NOW_MS, left_s=5.0)
    until(lambda: lost.pending is not None and lost.pending.done())
    index.collections[version], index.marks[version] = kept, ""
    begun = retrieval.start(some(bare), bare, now_ms=NOW_MS, left_s=5.0)
    assert retrieval.finish(lost, now_ms=NOW_MS).fell_to == "trending"
    assert retrieval.finish(begun, now_ms=NOW_MS).fell_to == ""
    assert search(retrieval, bare, now_ms=NOW_MS + 10_000).fell_to == "trending"


def test_an_index_that_does_well_is_not_asked_whether_it_is_whole(bare: LiveRelease, index: ExactIndex) -> None:
    index.marks.clear()
    assert search(Retrieval(INDEX_FIRST, 1), bare).fell_to == ""


def test_an_index_that_is_late_is_not_waited_for(
    live: LiveRelease, index: ExactIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = index.search

    def slow(*args: object, **kwargs: object) -> object:
        time.sleep(1.0)
        return quick(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "search", slow)
    began = time.monotonic()
    answer = search(Retrieval(Serving(first="index", search_s=0.1), 1), live)
    assert answer.fell_to == "mirror"
    assert "no answer within 0.10 s" in answer.reason
    assert time.monotonic() - began < 0.8


def test_a_shadow_finds_out_that_the_index_is_back_and_no_request_waits_for_it(
    live: LiveRelease, index: ExactIndex
) -> None:
    retrieval = Retrieval(INDEX_FIRST, 1)
    index.failure = unavailable()
    search(retrieval, live)
    index.failure = None
    assert search(retrieval, live, now_ms=NOW_MS + 400).fell_to == "mirror"
    assert index.searched == [], "the pause is half a second"
    assert search(retrieval, live, now_ms=NOW_MS + 600).fell_to == "mirror", "this one only sends the shadow"
    until(lambda: len(index.searched) == 1)
    until(lambda: search(retrieval, live, now_ms=NOW_MS + 700).fell_to == "")


def test_a_shadow_that_fails_makes_the_pause_longer(live: LiveRelease, index: ExactIndex) -> None:
    retrieval = Retrieval(INDEX_FIRST, 1)
    index.failure = unavailable()
    search(retrieval, live)
    search(retrieval, live, now_ms=NOW_MS + 600)
    until(lambda: retrieval._probe is not None and retrieval._probe[0].done())
    index.failure = None
    search(retrieval, live, now_ms=NOW_MS + 700)  # takes the failure up
    search(retrieval, live, now_ms=NOW_MS + 1600)
    assert index.searched == [], "a second of pause this time"


def test_an_index_that_answers_wrongly_is_left_alone_until_a_sample_is_right(
    live: LiveRelease, index: ExactIndex
) -> None:
    item_ids, rows = index.collections[live.version]
    index.collections[live.version] = item_ids, np.roll(rows, 7, axis=0)  # every item has another's vector
    retrieval = Retrieval(Serving(first="index", audit_share=1.0), 1)
    for number in range(ENOUGH):
        assert search(retrieval, live, some(live, 1), now_ms=NOW_MS).fell_to == "", number
    answer = search(retrieval, live, some(live, 1))
    assert answer.fell_to == "mirror"
    assert "serving.audit_recall is 0.9" in answer.reason
    search(retrieval, live, now_ms=NOW_MS + 600)
    until(lambda: retrieval._probe is not None and retrieval._probe[0].done())
    assert search(retrieval, live, now_ms=NOW_MS + 700).fell_to == "mirror", "the sample was still wrong"
    index.collections[live.version] = item_ids, rows
    search(retrieval, live, now_ms=NOW_MS + 5000)
    until(lambda: search(retrieval, live, now_ms=NOW_MS + 5100).fell_to == "")


def test_queries_with_the_same_filter_are_searched_together(live: LiveRelease, index: ExactIndex) -> None:
    short = parse_filter("duration_s < 60")
    plain, other = some(live)
    queries = [plain, other._replace(filter=short), plain, other._replace(filter=short, limit=3)]
    answer = search(Retrieval(INDEX_FIRST, 1), live, queries)
    assert index.expressions == ["", to_milvus(short)]
    assert answer.found is not None
    assert [len(ids) for ids, _ in answer.found] == [10, 10, 10, 3]
    assert answer.found[0][0] == answer.found[2][0]


def test_the_mirror_applies_a_filter_by_the_releases_catalogue(live: LiveRelease) -> None:
    for row, item_id in enumerate(ITEMS[:4]):
        live.catalogue.upsert(item_id, duration_s=30.0 + row)
    assert live.mirror is not None
    live.mirror.catalogue_rows[:] = live.catalogue.rows(live.mirror.item_ids)
    queries = [query._replace(filter=parse_filter("duration_s < 32")) for query in some(live)]
    answer = search(Retrieval(MIRROR_FIRST, 1), live, queries)
    assert answer.found is not None
    assert all(set(ids) == {ITEMS[0], ITEMS[1]} for ids, _ in answer.found)


def test_recall_and_the_score_that_is_missed_by_hand() -> None:
    exact = (["a", "b", "c", "d"], np.array([4, 3, 2, 1], np.float32))
    assert compare(exact, exact) == (1.0, 0.0)
    recall, missed = compare((["a", "c"], np.array([4, 2], np.float32)), exact)
    assert recall == 0.5
    assert missed == pytest.approx((4 + 3 + 2 + 1) / 4 - (4 + 2 + 1 + 1) / 4)
    assert compare(([], np.zeros(0, np.float32)), ([], np.zeros(0, np.float32))) == (1.0, 0.0)


def test_nothing_is_concluded_from_a_few_answers_nor_when_it_is_switched_off() -> None:
    exact = (["a"], np.ones(1, np.float32))
    for least, alarmed in ((0.9, True), (0.0, False)):
        audit = RecallAudit(least)
        for number in range(ENOUGH):
            assert audit.alarm() is None, number
            audit.add((["b"], np.ones(1, np.float32)), exact)
        assert (audit.alarm() is not None) == alarmed

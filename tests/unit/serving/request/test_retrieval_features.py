"""What a ranker learns of retrieval from a log is what serving feeds it: score, best score, place and who nominated."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infra.platform.settings import Model, Ranker, Serving
from models.logs.stored_log import StoredLog, store_frame
from models.logs.stored_searches import StoredSearches, store_searches
from models.logs.training_set import prepare
from models.ranking.impression_log import Delays, ImpressionLog, Retrieved
from models.ranking.ranker_release import CANDIDATES, UnseenScores
from models.ranking.ranking_batch import FRESH, TRENDING, TWO_TOWER
from models.release.bundle import read_bundle
from models.release.training import train_with_trial
from serving.request.response_draft import RequestContext
from serving.state.release import LiveRelease, load_release
from streams.bundles.source import BundleSource
from streams.messages import (
    Context,
    Impression,
    Item,
    RecommendRequest,
    Search,
    Trending,
    UserHistory,
    Watch,
    encode,
)
from tests.unit.serving.worlds import CREATED_MS, ITEMS, ExactIndex, answer, no_views, pipeline_of

NOW_MS = CREATED_MS + 7_200_000  # a page of its own
MOST = 12  # candidates of a request
USERS = [f"u{number}" for number in range(6)]
REGIONS = {user: ("de", "ch")[number % 2] for number, user in enumerate(USERS)}
WORDS = ("red cats", "dogs", "old songs", "red dogs")


def frames() -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Watches, then at NOW_MS everything shown to everybody; searches; how many rows are watches."""
    rng, rows = np.random.default_rng(5), 900
    users = [USERS[number] for number in rng.integers(0, len(USERS), rows)]
    watches = pl.DataFrame(
        {
            "user_id": users,
            "item_id": [ITEMS[number] for number in rng.integers(0, len(ITEMS), rows)],
            "event_ms": CREATED_MS - 1000 * np.arange(rows)[::-1],
            "watch_s": np.where(rng.random(rows) < 0.3, 4.0, rng.uniform(20, 60, rows)),
            "duration_s": np.full(rows, 60.0),
            "region": [REGIONS[user] for user in users],
        }
    )
    # Nobody has watched more than half of it: there are more items left than candidates.
    kept = watches.filter((pl.col("item_id").hash(seed=1) + pl.col("user_id").hash(seed=2)) % 10 < 5)
    shown = pl.DataFrame({"user_id": USERS}).join(pl.DataFrame({"item_id": ITEMS}), how="cross")
    shown = shown.with_columns(
        event_ms=pl.lit(NOW_MS), watch_s=0.0, duration_s=60.0, region=pl.col("user_id").replace_strict(REGIONS)
    )
    asked = rng.integers(0, len(USERS), 60)
    searches = pl.DataFrame(
        {
            "user_id": [USERS[number] for number in asked],
            "query": [WORDS[number] for number in rng.integers(0, len(WORDS), 60)],
            "event_ms": CREATED_MS - 7000 * np.arange(60)[::-1],
        }
    )
    return pl.concat([kept, shown.select(kept.columns)]), searches, kept.height


class World:
    """A log whose last rows are one page for everybody, and a release that has learnt what is before them."""

    def __init__(self, directory: Path) -> None:
        self.frame, self.searches, self.since = frames()
        settings = Model(dim=8, hidden=(16,), members=1, negatives=64, batch=256, epochs=3, skips=5, search_tokens=500)
        past = self._stored(self.frame.head(self.since), directory / "past")
        manifest = train_with_trial(
            past,
            pl.DataFrame({"item_id": ITEMS}),
            settings=settings,
            ranker=Ranker(hidden=(8,), members=1, epochs=1),
            bundles_dir=directory,
            created_ms=CREATED_MS,
            offsets={},
            searches=self._stored_searches(past, settings.search_tokens),
            measure=False,
        ).manifest
        self.bundle = read_bundle(directory / manifest.version)
        self.live = load_release(BundleSource(directory), manifest.version, ExactIndex(self.bundle), mirror_items=100)
        whole = self._stored(self.frame, directory / "whole")
        words = self._stored_searches(whole, settings.search_tokens)
        training_set = prepare(whole, pl.DataFrame({"item_id": ITEMS}), searches=words, skips=settings.skips)
        self.impressions = ImpressionLog(whole, training_set, directory / "impressions", Delays())

    def learnt(self) -> Retrieved:
        rows = np.arange(self.since, len(self.impressions))
        return UnseenScores(self.bundle.model, self.impressions, self.since, MOST)(rows, self.impressions.pages[rows])

    def served(self, live: LiveRelease, trending: int = 0) -> dict[str, Impression]:
        """By user the list of all candidates, on record; `trending` items are nominated beside the towers'."""
        views = no_views()
        for user in USERS:
            views.histories.apply(0, user.encode(), encode(self._history(user)))
        for item_id in ITEMS:
            views.catalogue.apply(item_id.encode(), encode(Item(item_id, duration_s=60.0)))
        counts = tuple((item_id, 9.0) for item_id in ITEMS[::-1])
        views.trending.apply(b"global/0", encode(Trending("global", 0, NOW_MS, 3600.0, counts)))
        settings = Serving(first="mirror", candidates=MOST, ranked=0, trending=trending, similar=0, fresh=0)
        contexts = [
            RequestContext(RecommendRequest(user, user, k=MOST, context=Context(region=REGIONS[user])), 0)
            for user in USERS
        ]
        answered = answer(contexts, live, pipeline_of(views, settings), now_ms=NOW_MS)
        return {each.impression.user_id: each.impression for each in answered if each.impression is not None}

    def _history(self, user: str) -> UserHistory:
        mine = self.frame.head(self.since).filter(pl.col("user_id") == user)
        watches = tuple(
            Watch(item, at_ms, watch_s, 60.0, watch_s >= 18.0, f"{user}-{place}", place)
            for place, (item, at_ms, watch_s) in enumerate(mine.select("item_id", "event_ms", "watch_s").iter_rows())
        )
        asked = self.searches.filter(pl.col("user_id") == user).select("query", "event_ms")
        searches = tuple(
            Search(query, at_ms, f"s{place}", place) for place, (query, at_ms) in enumerate(asked.iter_rows())
        )
        return UserHistory(user, watches, searches)

    @staticmethod
    def _stored(frame: pl.DataFrame, directory: Path) -> StoredLog:
        directory.mkdir()
        return store_frame(frame, directory, completed_s=18.0)

    def _stored_searches(self, log: StoredLog, buckets: int) -> StoredSearches:
        return store_searches(self.searches, log, buckets=buckets)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_a_log_gives_the_ranker_the_retrieval_features_that_serving_gives_it(world: World) -> None:
    shape = world.bundle.model.encoder.tower.shape
    assert shape.words and shape.contexts and shape.skips, "the towers read searches, context and skips"
    learnt, log = world.learnt(), world.impressions.log
    served = world.served(world.live)
    compared = 0
    for at, row in enumerate(range(world.since, len(log))):
        impression = served[log.user_ids[log.users[row]]]
        shown = {item.item_id: item for item in impression.items}
        item = shown.get(log.item_ids[log.items[row]])
        seen = log.items[row] in watched_by(world, row)
        assert (item is not None) == (bool(learnt.found[at]) and not seen)
        if item is not None:
            assert item.score == pytest.approx(learnt.score[at], abs=1e-5)
            assert impression.best_score == pytest.approx(learnt.best[at], abs=1e-5)
            assert item.retrieval_rank == learnt.rank[at]
            assert list(item.sources) == [TWO_TOWER]
            compared += 1
    assert compared == sum(len(impression.items) for impression in served.values()) > 4 * len(USERS)


def watched_by(world: World, row: int) -> set[int]:
    log = world.impressions.log
    return set(log.items[: world.since][log.users[: world.since] == log.users[row]].tolist())


def test_what_another_source_nominates_stands_among_the_last_candidates(world: World) -> None:
    learnt, log = world.learnt(), world.impressions.log
    served, compared = world.served(world.live, trending=3), 0
    for at, row in enumerate(range(world.since, len(log))):
        impression = served[log.user_ids[log.users[row]]]
        item = {item.item_id: item for item in impression.items}.get(log.item_ids[log.items[row]])
        if item is not None and TRENDING in item.sources and not learnt.found[at]:
            assert item.score == pytest.approx(learnt.score[at], abs=1e-5)
            assert TWO_TOWER not in item.sources and FRESH not in item.sources
            assert learnt.rank[at] == MOST and item.retrieval_rank is not None
            assert MOST - 3 < item.retrieval_rank <= MOST
            compared += 1
    assert compared


def test_a_request_has_as_many_candidates_in_a_log_as_in_serving() -> None:
    assert Serving().candidates == CANDIDATES

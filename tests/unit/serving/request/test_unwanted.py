"""What a user does not want is in no answer, whatever nominates it, and whatever else fails."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from infra.platform.settings import Serving
from models.catalogue.filter_syntax import parse_filter
from serving.request.hydration import last_watch_alone
from serving.request.response_draft import RequestContext
from serving.state.release import LiveRelease, describe
from serving.state.views import Views
from streams.messages import Item, RecommendRequest, Signal, Trending, encode
from tests.unit.serving.worlds import (
    CREATED_MS,
    ITEMS,
    ExactIndex,
    answer,
    history,
    pipeline_of,
    unavailable,
    views_of_ann,
)

NOW_MS = CREATED_MS + 60_000
EVERYTHING = 2 * len(ITEMS)
ODD = {item_id for item_id in ITEMS if int(item_id.removeprefix("item-")) % 2}
WATCHED = {"item-1", "item-2", "item-3"}


def dislike(item_id: str | None = None, channel: str | None = None, kind: str = "dislike") -> Signal:
    return Signal(kind, item_id, channel, NOW_MS, f"{item_id}{channel}", 0)


def tell(views: Views, *signals: Signal) -> None:
    known = replace(history("ann", *sorted(WATCHED)), signals=signals)
    views.histories.apply(0, b"ann", encode(known))


@pytest.fixture
def views() -> Views:
    """Every second item is of the channel `odd`, the others of `even`; all of them are trending and new."""
    views = views_of_ann()
    for item_id in ITEMS:
        item = Item(item_id, channel="odd" if item_id in ODD else "even", published_ms=NOW_MS - 1000)
        views.catalogue.apply(item_id.encode(), encode(item), NOW_MS)
    counts = tuple((item_id, float(count)) for count, item_id in enumerate(ITEMS))
    views.trending.apply(b"global/0", encode(Trending("global", 0, NOW_MS, 3600.0, counts)))
    return views


@pytest.fixture(params=["index", "mirror", "milvus is away", "no release"])
def way(request: pytest.FixtureRequest, views: Views, live: LiveRelease, index: ExactIndex) -> Any:
    """Each way to an answer: its release, and the settings that take it there."""
    for item_id in ITEMS:
        describe(item_id, live, views.catalogue)
    if request.param == "milvus is away":
        index.failure = unavailable()
    first = "mirror" if request.param == "mirror" else "index"
    return (None if request.param == "no release" else live), first


def shown(views: Views, way: Any, k: int = EVERYTHING, **asked: Any) -> Sequence[str]:
    live, first = way
    request = RecommendRequest("r", "ann", k, **asked)
    context = RequestContext(request, 0, 0.0, None if request.filter is None else parse_filter(request.filter))
    [answered] = answer([context], live, pipeline_of(views, Serving(first=first)), now_ms=NOW_MS)
    return [item.item_id for item in answered.reply.items]


def test_an_unwanted_item_is_in_no_answer_and_everything_else_is(views: Views, way: Any) -> None:
    assert set(shown(views, way)) == set(ITEMS) - WATCHED
    tell(views, dislike("item-9"), dislike("item-8", kind="not_interested"), dislike("item-7", kind="like"))
    assert set(shown(views, way)) == set(ITEMS) - WATCHED - {"item-9", "item-8"}
    assert "item-9" not in shown(views, way, pinned=("item-9", "item-10")), "nor where it is pinned"


def test_of_an_unwanted_channel_nothing_is_in_an_answer(views: Views, way: Any) -> None:
    tell(views, dislike(channel="odd"), dislike(channel="of which there is nothing"))
    assert set(shown(views, way)) == set(ITEMS) - ODD - WATCHED
    assert set(shown(views, way, filter='channel in ["odd"]')) == set()
    assert len(shown(views, way, k=10)) == 10, "the list is full all the same"
    tell(views)
    assert set(shown(views, way)) == set(ITEMS) - WATCHED


def test_an_item_that_comes_into_an_unwanted_channel_is_gone_at_once(views: Views, live: LiveRelease) -> None:
    tell(views, dislike(channel="bad"))
    assert "item-10" in shown(views, (live, "index"))
    views.catalogue.apply(b"item-10", encode(Item("item-10", channel="bad")), NOW_MS)
    describe("item-10", live, views.catalogue)
    assert "item-10" not in shown(views, (live, "index"))


def test_others_are_shown_what_one_user_does_not_want(views: Views, live: LiveRelease) -> None:
    tell(views, dislike("item-9"), dislike(channel="even"))
    requests = [RequestContext(RecommendRequest(user, user, EVERYTHING), 0) for user in ("ann", "bob")]
    anns, bobs = answer(requests, live, pipeline_of(views, Serving(first="index")), now_ms=NOW_MS)
    assert "item-9" not in {item.item_id for item in anns.reply.items}
    assert {item.item_id for item in bobs.reply.items} == set(ITEMS)


def test_nothing_is_looked_for_that_is_like_an_unwanted_watch() -> None:
    user = history("ann", "a", "b", "c")
    found = [last_watch_alone(user, frozenset(unwanted)) for unwanted in ("", "c", "bc", "abc")]
    assert [each and each.watches[0].item_id for each in found] == ["c", "b", "a", None]

"""What the topics hold, as training takes it."""

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from infra.platform.settings import Settings
from models.catalogue.catalogue import Catalogue
from models.logs.log import LogError, items_from_frame
from models.logs.searches import tokens_of
from streams.export.archive import Archive, item_frame, lighter, store_archive
from streams.messages import Context, Item, SearchEvent, SignalEvent, WatchEvent, encode
from streams.topics import FORWARDED, ITEMS, SEARCH_EVENTS, SIGNALS, TRAINING_EXAMPLES, WATCH_EVENTS, create_topics


def test_the_catalogue_of_no_items_has_its_columns_all_the_same():
    frame = item_frame([])
    assert frame.height == 0 and frame.columns == ["item_id", "channel", "topics", "duration_s", "published_ms"]
    assert item_frame([Item("i", topics=("a", "b"))])["topics"].to_list() == [["a", "b"]]


def test_the_ids_of_items_are_id_columns_of_the_catalogue():
    frame = items_from_frame(item_frame([Item("i", ids={"music": ("1", "2")}), Item("j", ids={"cast": ("a",)})]))
    catalogue = Catalogue()
    for facts in frame.iter_rows(named=True):
        catalogue.upsert(**facts)
    assert [catalogue.all_ids_of(row) for row in (0, 1)] == [{"music": ("1", "2")}, {"cast": ("a",)}]


def test_the_titles_of_items_are_told_where_there_are_any():
    frame = items_from_frame(item_frame([Item("i", "A title"), Item("j")]))
    assert frame["title"].to_list() == ["A title", None]


def test_vectors_of_the_length_that_most_items_have_are_told():
    items = [Item("i", description="what"), Item("j"), Item("k"), Item("l")]
    vectors = [array("f", numbers) for numbers in ([1, 2], [], [1, 2, 3], [0, 1])]
    frame = items_from_frame(item_frame(items, vectors))
    assert frame["vector"].to_list() == [[1, 2], None, None, [0, 1]]
    assert frame["description"].to_list() == ["what", None, None, None]
    assert not {"vector", "description"} & {*item_frame([Item("j")], [array("f")]).columns}


def test_what_an_item_says_is_kept_compactly_and_only_for_a_map_of_content():
    item = Item("i", "A title", description="what", vector=(0.5, 0.25))
    assert lighter(item, content=True) == (Item("i", "A title", description="what"), array("f", [0.5, 0.25]))
    assert lighter(item, content=False) == (Item("i", "A title"), array("f"))


def watch(event_id: str, item_id: str, event_ms: int, duration_s: float | None = None, **context: Any) -> bytes:
    where = Context(**context) if context else None
    return encode(WatchEvent(event_id, "u", item_id, event_ms, 30.0, duration_s, context=where))


@pytest.fixture(scope="module")
def filled(with_topics: Settings, send: Callable[..., Any]) -> Settings:
    send(WATCH_EVENTS, b"u", watch("e1", "a", 1000, 60.0), partition=0)
    send(WATCH_EVENTS, b"u", watch("e2", "b", 3000), partition=1)
    send(WATCH_EVENTS, b"u", watch("e2", "b", 3000), partition=0, headers=[(FORWARDED, b"watch-events/1/0")])
    send(WATCH_EVENTS, b"u", b"junk", partition=1)
    send(WATCH_EVENTS, b"u", None, partition=1)
    send(WATCH_EVENTS, b"u", watch("e3", "a", 2000, region="de", device="d" * 300, signed_in=True), partition=1)
    send(WATCH_EVENTS, b"u", watch("e4", "a", 10**15), partition=1)
    cats = "s1", "u", "cats"
    for event_id, user_id, query in (("s2", "u", "red cars"), cats, cats, ("s3", "v", "x")):
        event_ms = 2500 if event_id == "s2" else 1500
        send(SEARCH_EVENTS, user_id.encode(), encode(SearchEvent(event_id, user_id, query, event_ms)), partition=0)
    send(SEARCH_EVENTS, b"u", b"junk", partition=0)
    for kind, event_ms in (("like", 1), ("share", 2), ("dislike", 3), ("like", 2)):
        send(SIGNALS, b"u", encode(SignalEvent(f"{kind}{event_ms}", "u", kind, event_ms, "a")), partition=0)
    send(ITEMS, b"a", encode(Item("a", "A", "old channel")), partition=0)
    send(ITEMS, b"a", encode(Item("a", "A", "channel", ("t",), 60.0, 500)), partition=0)
    send(ITEMS, b"b", encode(Item("b", "B")), partition=1)
    send(ITEMS, b"b", None, partition=1)
    for _ in range(3):
        send(TRAINING_EXAMPLES, b"u", b"{}", partition=0)
    return with_topics


@pytest.fixture(scope="module")
def archive(filled: Settings, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return store_archive(filled, tmp_path_factory.mktemp("archive"))


@pytest.mark.system
def test_every_watch_is_there_once_and_the_unusable_are_counted(archive):
    watches = archive.log.frame()
    assert watches["item_id"].to_list() == ["a", "a", "b"] and watches["event_ms"].to_list() == [1000, 2000, 3000]
    assert watches["duration_s"].to_list() == [60.0, None, None] and watches["completed"].all()
    assert archive.log.duplicates == 1
    assert archive.refused == 4, "junk twice, a null, a time beyond 2100"


@pytest.mark.system
def test_the_context_of_a_watch_is_there_as_far_as_it_is_known(archive):
    assert archive.log.contexts.keys() == {"region", "signed_in"}
    assert archive.log.frame()["region"].to_list() == [None, "de", None]
    assert archive.log.frame()["signed_in"].to_list() == [None, 1.0, None]


@pytest.mark.system
def test_what_users_have_said_of_items_is_told_where_watches_weigh_by_it(archive, filled, tmp_path):
    assert "signal" not in archive.log.contexts
    weighing = filled.model_copy(update={"model": filled.model.model_copy(update={"unwanted_weight": 0.0})})
    told = store_archive(weighing, tmp_path).log.frame()
    assert told["signal"].to_list() == ["dislike|share", "dislike|share", None]


@pytest.mark.system
def test_the_searches_of_those_who_watched_are_there_once(archive, filled):
    searches, buckets = archive.searches, filled.model.search_tokens
    assert searches.event_ms.tolist() == [1500, 2500] and (searches.duplicates, searches.strangers) == (1, 1)
    assert searches.tokens.tolist() == tokens_of("cats", buckets) + tokens_of("red cars", buckets)


@pytest.mark.system
def test_the_catalogue_is_the_newest_and_without_what_was_taken_down(archive):
    assert archive.items.to_dicts() == [
        {
            "item_id": "a",
            "channel": "channel",
            "topics": ["t"],
            "duration_s": 60.0,
            "published_ms": 500,
            "title": "A",
        }
    ]


@pytest.mark.system
def test_the_offsets_say_where_the_trainer_goes_on(archive):
    assert archive.offsets == {f"{TRAINING_EXAMPLES}/0": 3}


@pytest.mark.system
def test_progress_is_told_up_to_the_end(filled, tmp_path):
    told: list[tuple[str, int, int]] = []
    store_archive(filled, tmp_path, lambda *step: told.append(step))
    for step in (("watch-events", 7, 7), ("sorting", 4, 4), ("search-events", 5, 5), ("items", 4, 4)):
        assert step in told


@pytest.mark.system
def test_topics_without_watches_are_refused_as_a_log_without_rows_is(kafka_settings, tmp_path):
    create_topics(kafka_settings.kafka)
    with pytest.raises(LogError, match="watch-events: has no rows"):
        store_archive(kafka_settings, tmp_path)

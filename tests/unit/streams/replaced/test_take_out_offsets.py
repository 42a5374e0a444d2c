"""What remembers offsets of a topic that was deleted and made again, and goes on with the new one."""

from contextlib import suppress

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from infra.local.broker import Broker
from infra.platform.settings import Settings
from streams import topics
from streams.history.rebuild_histories import group_of, read_histories, without_offsets
from streams.join.app import read_statistics
from streams.kafka.topic_ids import BY_HAND, check_topic_ids, require_same_topics
from streams.messages import (
    Impression,
    JoinState,
    Search,
    Shown,
    StatisticsRow,
    Trending,
    UserHistory,
    Watch,
    decode,
    encode,
)
from streams.replaced import take_out_offsets as module
from streams.replaced.take_out_offsets import take_out_replaced
from streams.trending.app import read_published
from tests.harness.needs import require_kafka
from tests.harness.system import wait_until
from tests.unit.streams.join.test_rules import Stream, watch
from tests.unit.streams.kafka.test_topic_ids import make_again

HISTORY = UserHistory(
    "u",
    (Watch("a", 1, 2.0, None, True, "e", 3),),
    (Search("q", 1, "s", 4),),
    watch_offset=3,
    search_offset=4,
    impression_offset=5,
)


def test_only_the_offsets_of_the_topic_are_taken_out():
    found = without_offsets(HISTORY, [topics.WATCH_EVENTS])
    assert (found.watch_offset, found.watches[0].offset, found.watches[0].event_id) == (-1, -1, "e")
    assert (found.search_offset, found.searches, found.impression_offset) == (4, HISTORY.searches, 5)


def test_a_correction_from_a_topic_that_was_made_again_is_above_those_of_before():
    stream = Stream()
    stream.show("r", 0, "ab", offset=50)
    stream.watch(watch("a", 10, "r"), offset=70)
    stream.until(110)
    stream.state = module.without_offsets(stream.state, [topics.WATCH_EVENTS])
    assert (stream.state.watch_offset, stream.state.impression_offset) == (-1, 50)
    again = module.without_offsets(stream.state, [topics.WATCH_EVENTS])
    assert again == stream.state, "done twice is done once"
    stream.watch(watch("a", 10, "r"), offset=0)
    stream.watch(watch("b", 20, "r"), offset=1)
    before, after = stream.examples
    assert after.revision > before.revision and [each.watched_s for each in after.outcomes] == [20.0, 20.0]
    for compact in (True, False):
        assert decode(JoinState, encode(stream.state, compact=compact)) == stream.state


def has_groups(settings: Settings) -> bool:
    """Whether the broker takes groups: it does not until it was asked for one."""
    with suppress(KafkaError):
        topics.committed_offsets(settings.kafka, group_of(settings.kafka), [topics.WATCH_EVENTS], 0)
        return True
    return False


def test_all_that_remembers_a_topic_goes_on_with_the_new_one(broker: Broker, with_topics: Settings, send):
    """And what remembers others stays as it is."""
    require_kafka(broker.kind, "noida tells no topic ids")
    kafka, number = with_topics.kafka, topics.partition_of("u", with_topics.kafka.partitions)
    wait_until(lambda: has_groups(with_topics), "groups have a coordinator", 30, 0.2)
    for worker in BY_HAND:
        require_same_topics(kafka, worker)
    shown = encode(Impression("r", "u", 1, "server", "v", (Shown("a", 1, "x"),)))
    stream = Stream()
    stream.take(shown, 6)
    send(topics.USER_HISTORIES, b"u", encode(HISTORY), partition=number)
    send(topics.JOIN_STATE, b"u", encode(stream.state), partition=number)
    row = StatisticsRow("item", "a", number, 1, 1.0, 0.0, 0.0, 0.0, 0.0, (9, 6))
    send(topics.ITEM_STATISTICS, b"item/0/a", encode(row))
    send(topics.TRENDING, b"global/0", encode(Trending("global", number, 1, 60.0, (("a", 1.0),), 70)))
    assert take_out_replaced(with_topics).topics == []
    make_again(with_topics, topics.WATCH_EVENTS, topics.IMPRESSIONS)
    watches = TopicPartition(kafka.topic_prefix + topics.WATCH_EVENTS, number)
    send(topics.WATCH_EVENTS, b"u", b"junk", partition=number)
    with topics.open_admin(kafka) as admin:  # a worker that ran on has read of the new one
        admin.alter_group_offsets(group_of(kafka), {watches: OffsetAndMetadata(1, "", -1)})
    assert len(check_topic_ids(kafka)) == 2
    found = take_out_replaced(with_topics)
    assert (found.topics, found.written) == ([topics.IMPRESSIONS, topics.WATCH_EVENTS], 4)
    history = decode(UserHistory, read_histories(kafka, number)["u"])
    assert (history.watch_offset, history.search_offset, history.impression_offset) == (-1, 4, -1)
    states = {key: decode(JoinState, value) for _, key, value in module._newest(with_topics, topics.JOIN_STATE)}
    assert states == {b"u": module.without_offsets(stream.state, [topics.WATCH_EVENTS, topics.IMPRESSIONS])}
    assert states[b"u"].impression_offset == -1 and len(states[b"u"].impressions) == 1
    assert [each.mark for each in read_statistics(kafka)[number]] == [(9, -1)]
    assert [each.offset for each in read_published(kafka)] == [-1]
    group = group_of(kafka)
    assert topics.committed_offsets(kafka, group, [topics.WATCH_EVENTS], number) == {topics.WATCH_EVENTS: 0}
    assert not check_topic_ids(kafka) and take_out_replaced(with_topics).written == 0

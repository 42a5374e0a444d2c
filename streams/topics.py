"""Every topic that a message travels in, with its key, partitions and cleanup policy; how they are made and checked.

All user-keyed topics that are read together have the same number of partitions and are keyed by the bare user id in
UTF-8, partitioned as Kafka's Java client does (murmur2). A producer with another partitioner is forgiven: whoever reads
a user's message on the wrong partition forwards it once (`partition_of` decides).

Topics of items are read whole by whoever reads them, so they keep the partitions that they were made with when those of
users are raised (streams/partitions).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import NoError, TopicAlreadyExistsError, for_code
from kafka.partitioner.default import murmur2

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from streams import messages

SEGMENT_BYTES = 16 << 20  # of compacted topics
HOUR_MS = 3_600_000
# Of compacted topics of users: so long after it was overwritten a record may still lie in the log, and so long after
# that its tombstone, which holds the user's id. It is enough for whoever reads the topic from its beginning.
USER_COMPACTION_H = 24.0
FORWARDED = "nextwatch-forwarded"  # header of a message that was moved to its user's partition

WATCH_EVENTS = "watch-events"
SEARCH_EVENTS = "search-events"
SIGNALS = "signals"
ITEMS = "items"
LOADED_HISTORIES = "loaded-histories"
USER_HISTORIES = "user-histories"
TRAINING_EXAMPLES = "training-examples"
ITEM_VECTORS = "item-vectors"
RIVAL_VECTORS = "rival-vectors"
RELEASES = "releases"
IMPRESSIONS = "impressions"
RANKING_EXAMPLES = "ranking-examples"
ITEM_STATISTICS = "item-statistics"
JOIN_STATE = "join-state"
TRENDING = "trending"
RECOMMEND_REQUESTS = "recommend-requests"
RECOMMEND_REPLIES = "recommend-replies"
DEAD_LETTERS = "dead-letters"
FORGOTTEN = "forgotten"

AT_LEAST = ("retention.ms", "delete.retention.ms", "max.message.bytes", "min.compaction.lag.ms")
AT_MOST = ("max.compaction.lag.ms",)
MEND_MS = 60_000
BY_THE_CLUSTER = -1  # as many copies as `default.replication.factor` says
ENOUGH_COPIES, LEAST_IN_SYNC = 3, 2
RAISE = "stop history, join, trending and serving, then `nextwatch rebuild partitions`"


@dataclass(frozen=True)
class Topic:
    name: str
    key: str
    cleanup: Literal["delete", "compact"]
    message: Any
    single: bool = False  # one partition, whatever `kafka.partitions` says

    @property
    def is_raised(self) -> bool:
        """True where it must have as many partitions as `kafka.partitions` says, also when that was raised."""
        return not self.single and self.key != "item"


TOPICS = (
    Topic(WATCH_EVENTS, "user", "delete", messages.WatchEvent),
    Topic(SEARCH_EVENTS, "user", "delete", messages.SearchEvent),
    Topic(SIGNALS, "user", "delete", messages.SignalEvent),
    Topic(ITEMS, "item", "compact", messages.Item),
    Topic(LOADED_HISTORIES, "user", "delete", messages.LoadedHistory),
    Topic(USER_HISTORIES, "user", "compact", messages.UserHistory),
    Topic(TRAINING_EXAMPLES, "user", "delete", messages.TrainingExample, single=True),
    Topic(ITEM_VECTORS, "item", "compact", messages.ItemVector),
    Topic(RIVAL_VECTORS, "item", "compact", messages.ItemVector),
    Topic(RELEASES, "kind", "compact", messages.Release, single=True),
    Topic(IMPRESSIONS, "user", "delete", messages.Impression),
    Topic(RANKING_EXAMPLES, "user", "delete", messages.RankingExample),
    Topic(JOIN_STATE, "user", "compact", messages.JoinState),
    Topic(ITEM_STATISTICS, "scope", "compact", messages.StatisticsRow, single=True),
    Topic(TRENDING, "scope", "compact", messages.Trending, single=True),
    Topic(RECOMMEND_REQUESTS, "user", "delete", messages.RecommendRequest),
    Topic(RECOMMEND_REPLIES, "request", "delete", messages.RecommendReply),
    Topic(DEAD_LETTERS, "as source", "delete", messages.DeadLetter),
    Topic(FORGOTTEN, "user's hash", "compact", messages.Erasure, single=True),
)


def partition_of(user_id: str, partitions: int) -> int:
    """The partition of a key, as Kafka's default partitioner chooses it."""
    return int((murmur2(user_id.encode()) & 0x7FFFFFFF) % partitions)


def partitions_of(topic: Topic, kafka: Kafka) -> int:
    return 1 if topic.single else kafka.partitions


def config_of(topic: Topic, kafka: Kafka) -> dict[str, str]:
    """Topic-level settings that the design relies on."""
    # Room for headers and the batch around the largest value we accept; histories carry fifty watches.
    config = {"cleanup.policy": topic.cleanup, "max.message.bytes": str(4 * kafka.max_message_bytes)}
    if topic.cleanup == "delete":
        retention_ms = int(kafka.retention_h * HOUR_MS)
        config["retention.ms"] = str(retention_ms)
        # Only whole segments are deleted, a week of messages would else stay for another week.
        config["segment.ms"] = str(max(HOUR_MS, retention_ms // 7))
    else:
        # A bundle that is older than this could bring back an item whose tombstone is gone.
        config["delete.retention.ms"] = str(int(kafka.tombstone_h * HOUR_MS))
        # The segment that is being written is never compacted, and views read all of it when they start.
        config["segment.bytes"] = str(SEGMENT_BYTES)
    if topic.name in (ITEM_VECTORS, RIVAL_VECTORS):
        # Until a trainer has written over what one that was replaced has written (see streams.trainer.writer_epoch).
        config["min.compaction.lag.ms"] = str(MEND_MS)
    if topic.cleanup == "compact" and topic.key == "user":
        config["delete.retention.ms"] = str(int(min(kafka.tombstone_h, USER_COMPACTION_H) * HOUR_MS))
        config["max.compaction.lag.ms"] = str(int(USER_COMPACTION_H * HOUR_MS))
    return config


def create_topics(kafka: Kafka) -> list[str]:
    """Make the topics that are missing; the names made. Existing ones are left as they are (see check_topics)."""
    made: list[str] = []
    with open_admin(kafka) as admin:
        there = set(admin.list_topics())
        missing = [topic for topic in TOPICS if kafka.topic_prefix + topic.name not in there]
        if missing:
            wanted = {
                kafka.topic_prefix + topic.name: {
                    "num_partitions": partitions_of(topic, kafka),
                    "replication_factor": kafka.replication or BY_THE_CLUSTER,
                    "configs": config_of(topic, kafka),
                }
                for topic in missing
            }
            made = _create(admin, wanted)
            admin.wait_for_topics(list(wanted))
    return made


def check_topics(kafka: Kafka) -> list[str]:
    """Return what differs between the cluster and the design, one line each; empty when all is well."""
    with open_admin(kafka) as admin:
        there = set(admin.list_topics())
        names = {kafka.topic_prefix + topic.name: topic for topic in TOPICS}
        problems = [f"{name}: missing (nextwatch topics --create)" for name in names if name not in there]
        present = [name for name in names if name in there]
        partitions = {t["name"]: t["partitions"] for t in admin.describe_topics(present)}
        configs = describe_configs(admin, present)
        brokers = _broker_ids(admin, partitions.values())
        copies = kafka.replication or _default_copies(admin, brokers)
    if copies == 1 and len(brokers) > 1:
        problems.append(f"one copy of each topic on {len(brokers)} brokers: a lost broker loses it (kafka.replication)")
    for name in present:
        problems += _differences(name, names[name], kafka, len(partitions[name]), configs.get(name, {}))
        problems += (f"{name}: {each}" for each in wrong_replicas(partitions[name], configs.get(name, {}), copies))
    return problems


def _broker_ids(admin: Any, described: Iterable[Sequence[Mapping[str, Any]]]) -> list[int]:
    """The brokers; those that hold our partitions (`described`) where kafka-python cannot tell: it takes a field for
    granted that noida and Kafka before 3.7 do not send."""
    try:
        return [broker["broker_id"] for broker in admin.describe_cluster()["brokers"]]
    except KeyError:
        return sorted({node for partitions in described for each in partitions for node in each["replica_nodes"]})


def _default_copies(admin: Any, brokers: Sequence[int]) -> int:
    """The cluster's `default.replication.factor`; 1 where the brokers do not tell."""
    if not brokers:
        return 1
    resource = ConfigResource(ConfigResourceType.BROKER, str(brokers[0]))
    found: dict[str, Any] = next(iter(admin.describe_configs([resource], config_filter="all").values()), {})
    config: dict[str, Any] = next(iter(found.values()), {})
    return int(config.get("default.replication.factor", {"value": 1})["value"])


def wrong_replicas(partitions: Sequence[Mapping[str, Any]], config: Mapping[str, str], copies: int) -> Iterator[str]:
    """Yield what may lose acknowledged messages of a topic with its brokers, and what lacks at this moment.
    `partitions`: as the brokers describe them; `copies`: how many there must be."""
    fewest = min(len(each["replica_nodes"]) for each in partitions)
    if fewest < copies:
        yield f"{fewest} of {copies} copies (kafka-reassign-partitions.sh makes more, or set kafka.replication)"
    least_in_sync = int(config.get("min.insync.replicas", "2"))
    if fewest >= ENOUGH_COPIES and least_in_sync < LEAST_IN_SYNC:
        why = "one broker may acknowledge alone, and be lost"
        yield f"min.insync.replicas is {least_in_sync}, expected {LEAST_IN_SYNC} or more ({why}: kafka-configs.sh)"
    if config.get("unclean.leader.election.enable") == "true":
        yield "unclean.leader.election.enable is true, expected false (a broker that lags may lead: kafka-configs.sh)"
    lacking = [each for each in partitions if len(each["isr_nodes"]) < len(each["replica_nodes"])]
    if lacking:
        numbers = ", ".join(str(each["partition_index"]) for each in lacking)
        yield f"not all copies in sync, of partition {numbers}: is a broker down?"


def _create(admin: Any, wanted: dict[str, Any]) -> list[str]:
    """Make topics; the names made. One that somebody else has made meanwhile is there, which is all that is wanted."""
    made = []
    for topic in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error = for_code(topic["error_code"])
        if error is NoError:
            made.append(topic["name"])
        elif error is not TopicAlreadyExistsError:
            raise error(f"topic {topic['name']} cannot be made: {topic['error_message']}")
    return made


def _differences(name: str, topic: Topic, kafka: Kafka, partitions: int, config: dict[str, str]) -> Iterator[str]:
    wanted = partitions_of(topic, kafka)
    if partitions > wanted or (partitions < wanted and topic.is_raised):
        why = "must have one" if topic.single else "user-keyed topics are co-partitioned: set kafka.partitions"
        yield f"{name}: {partitions} partitions, expected {wanted} ({RAISE if partitions < wanted else why})"
    for setting, has, expected in wrong_settings(topic, kafka, config):
        yield f"{name}: {setting} is {has}, expected {expected} (nextwatch topics --alter)"


def wrong_settings(topic: Topic, kafka: Kafka, config: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(setting, what it is, what it must be, or at least or at most be) of a topic; of what the broker does not tell
    nothing is said."""
    for setting, wanted in config_of(topic, kafka).items():
        has = config.get(setting)
        if has is None or has == wanted:
            continue
        if setting == "cleanup.policy":
            yield setting, has, wanted
        elif setting in AT_LEAST and 0 <= int(has) < int(wanted):  # -1: for ever
            yield setting, has, f"{wanted} or more"
        elif setting in AT_MOST and int(has) > int(wanted):
            yield setting, has, f"{wanted} or less"


def describe_configs(admin: Any, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Topic-level configuration by topic; empty where the broker does not tell."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    answer = admin.describe_configs(resources, config_filter="all")
    found: dict[str, Any] = next(iter(answer.values()), {})
    return {name: {key: str(entry["value"]) for key, entry in entries.items()} for name, entries in found.items()}


def committed_offsets(kafka: Kafka, group: str, names: Iterable[str], partition: int) -> dict[str, int]:
    """The next offset that a group will read of a partition of these topics, by name; 0 where it has read nothing."""
    places = {name: TopicPartition(kafka.topic_prefix + name, partition) for name in names}
    with open_admin(kafka) as admin:
        found = admin.list_group_offsets({group: list(places.values())})[group]
    return {name: max(0, found[place].offset) if place in found else 0 for name, place in places.items()}


def partition_counts(kafka: Kafka, names: Iterable[str]) -> dict[str, int]:
    """How many partitions these topics (names without prefix) have, of those that are there."""
    with open_admin(kafka) as admin:
        described = admin.describe_topics([kafka.topic_prefix + name for name in names])
    there = [each for each in described if not each["error_code"]]
    return {each["name"].removeprefix(kafka.topic_prefix): len(each["partitions"]) for each in there}


def open_admin(kafka: Kafka) -> Any:
    return KafkaAdminClient(client_id="nextwatch-topics", **kafka_python_options(kafka))

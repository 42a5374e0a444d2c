"""The settings that a process relies on in its topics, looked at before it starts: a topic that is not compacted as it
must be, or that forgets sooner than a join can wait, loses data without a word later; here it ends the start with one
line.

One request to the brokers. A broker that does not tell topics' settings (noida, or for want of a permission) is
believed. What else differs from the design can wait for a person: `nextwatch topics --check` lists it, and `--alter`
mends both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import structlog
from kafka.admin import ConfigResource, ConfigResourceType

from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.topics import Topic, config_of, describe_configs, open_admin, wrong_settings

log = structlog.get_logger(__name__)

_BY_NAME = {topic.name: topic for topic in topics.TOPICS}


class TopicUnfit(RuntimeError):
    """A topic does not keep what the design needs of it; the text names it, what is wrong and the command that mends
    it."""


def require_settings(settings: Settings, names: Iterable[str]) -> None:
    """Return when these topics (names without prefix) keep what we need; missing ones are somebody else's to report.
    Raises TopicUnfit, and kafka.errors.KafkaError when no broker answers."""
    kafka = settings.kafka
    wanted = {kafka.topic_prefix + name: _BY_NAME[name] for name in names}
    with open_admin(kafka) as admin:
        configs = describe_configs(admin, wanted)
    if not any(configs.values()):
        log.debug("the broker does not tell the settings of topics, so they are not checked")
    problems = [
        f"{name}: {problem}"
        for name, topic in wanted.items()
        for problem in fatal_problems(topic, settings, configs.get(name, {}))
    ]
    if problems:
        raise TopicUnfit("\n".join(problems) + "\n`nextwatch topics --alter` sets it right")


def fatal_problems(topic: Topic, settings: Settings, config: Mapping[str, str]) -> Iterator[str]:
    """Yield what in a topic's settings would lose data."""
    cleanup = config.get("cleanup.policy")
    if cleanup is not None and cleanup != topic.cleanup:
        why = (
            "it is a table, and would be lost bit by bit"
            if topic.cleanup == "compact"
            else "only the newest message of each key would be kept"
        )
        yield f"cleanup.policy is {cleanup} and must be {topic.cleanup}: {why}"
    most, needed = config.get("max.message.bytes"), int(config_of(topic, settings.kafka)["max.message.bytes"])
    if topic.name not in _TOLD_US and most is not None and int(most) < needed:
        yield f"max.message.bytes is {most} and must be {needed} or more: a process of ours would send one for ever"
    retention_ms, least_ms = config.get("retention.ms"), least_retention_ms(topic.name, settings)
    if topic.cleanup == "delete" and retention_ms is not None and 0 <= int(retention_ms) < least_ms:
        yield f"retention.ms is {retention_ms} and must be {least_ms} or more: {_WAITED_FOR[topic.name]}"


_TOLD_US = {topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS, topics.ITEMS, topics.RECOMMEND_REQUESTS}

_WAITED_FOR = {
    topics.WATCH_EVENTS: "so long a watch can wait for its impression (join.early_s) or correct its example "
    "(join.window_s and join.grace_s)",
    topics.IMPRESSIONS: "so long an impression can be corrected (join.window_s and join.grace_s), or a request "
    "repeated (serving.repeat_s)",
}


def least_retention_ms(name: str, settings: Settings) -> int:
    """Return how long a topic must keep a message so that nothing that still waits for it can miss it; 0 where nothing
    waits but the reader itself."""
    join = settings.join
    corrected_s = join.window_s + join.grace_s
    if name == topics.WATCH_EVENTS:
        return int(1000 * max(corrected_s, join.early_s))
    if name == topics.IMPRESSIONS:
        return int(1000 * max(corrected_s, settings.serving.repeat_s))
    return 0


def alter_topics(kafka: Kafka) -> list[str]:
    """Set right what is wrong in the settings of the topics that are there; what was changed, one line each. Raises
    TopicUnfit when the brokers refuse."""
    wanted = {kafka.topic_prefix + topic.name: topic for topic in topics.TOPICS}
    changes: dict[str, dict[str, str]] = {}
    with open_admin(kafka) as admin:
        configs = describe_configs(admin, set(wanted) & set(admin.list_topics()))
        for name, config in configs.items():
            wrong = {setting for setting, _, _ in wrong_settings(wanted[name], kafka, config)}
            changes[name] = {key: value for key, value in config_of(wanted[name], kafka).items() if key in wrong}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, change) for name, change in changes.items()]
        answers = admin.alter_configs([each for each in resources if each.configs]) if any(changes.values()) else {}
    refused = [
        f"{name} cannot be altered: {answer}"
        for of_type in answers.values()
        for name, answer in of_type.items()
        if answer != "OK"
    ]
    if refused:
        raise TopicUnfit("\n".join(refused))
    return [f"{name}: {key} is {value} now" for name, change in changes.items() for key, value in change.items()]

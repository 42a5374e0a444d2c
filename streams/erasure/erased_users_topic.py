"""The topic `forgotten`, read as the users that it names."""

from __future__ import annotations

from infra.platform.settings import Settings
from streams import topics
from streams.erased_users import ErasedUsers
from streams.kafka.follow import read_to_end


def read_erased_users(settings: Settings) -> ErasedUsers:
    """Return all that the topic says now. Raises TopicMissing, KafkaError, ForgetSecretWrong."""
    erased = ErasedUsers(settings.forget.secret.get_secret_value())
    for record in read_to_end(settings.kafka, topics.FORGOTTEN):
        erased.hear(record.key, record.value, record.offset)
    return erased

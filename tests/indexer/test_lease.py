"""Who may write, on a real broker of each kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from indexer.lease import Lease, LeaseLost, Offsets
from infra.settings import Kafka, Settings
from streams import topics
from tests.system import with_section

pytestmark = pytest.mark.system

PATIENCE_S = 20.0


@pytest.fixture
def kafka(kafka_settings: Settings) -> Iterator[Kafka]:
    kafka = with_section(kafka_settings, "kafka", session_timeout_s=6.0).kafka
    topics.create_topics(kafka)
    yield kafka


def test_one_holds_the_lease_and_a_newcomer_does_not_take_it(kafka: Kafka) -> None:
    first = Lease(kafka)
    assert first.acquire(PATIENCE_S)
    second = Lease(kafka)
    assert not second.acquire(4.0)
    first.check()
    first.close()
    assert second.acquire(PATIENCE_S)
    second.check()
    second.close()


def test_who_has_left_holds_nothing(kafka: Kafka) -> None:
    lease = Lease(kafka)
    assert lease.acquire(PATIENCE_S)
    lease.close()
    with pytest.raises(LeaseLost):
        lease.check()


def test_what_one_has_written_the_next_one_knows(kafka: Kafka) -> None:
    place, other = (topics.ITEM_VECTORS, 0), (topics.ITEMS, 1)
    offsets = Offsets(kafka)
    assert offsets.committed([place, other]) == {place: 0, other: 0}
    offsets.commit({place: 7})
    offsets.commit({place: 9})
    offsets.close()
    offsets = Offsets(kafka)
    assert offsets.committed([place, other]) == {place: 9, other: 0}
    offsets.close()

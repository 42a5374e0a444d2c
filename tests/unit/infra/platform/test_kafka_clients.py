"""What our options make of kafka-python's clients."""

import os
import time

import pytest

from indexer.process import create_producer
from infra.local.broker import start_broker
from infra.platform.settings import Kafka
from streams import topics
from tests.conftest import environ_for
from tests.harness.needs import KAFKA, needs

AWAY_S = 3.0
LEAST_PAUSE_S = 0.05


def spent_s() -> float:
    return sum(os.times()[:2])


@pytest.mark.service
@needs(KAFKA, "noida's partitions have a leader while it lives")
def test_who_has_something_to_send_to_a_broker_that_was_stopped_in_order_does_not_spin(make_settings):
    """It was a whole core, in each process, until the broker was there again. (As often as not: it depends on whether
    the client has heard that there is no leader.)"""
    broker = start_broker(make_settings(), environ=environ_for("kafka"))
    kafka = Kafka(bootstrap=broker.bootstrap)
    topics.create_topics(kafka)
    producer = create_producer(kafka)
    try:
        producer.send(topics.WATCH_EVENTS, b"before").get(10)
        broker.process.ask_to_stop()
        before_s, until_s = spent_s(), time.monotonic() + AWAY_S
        while time.monotonic() < until_s:
            sent = producer.send(topics.WATCH_EVENTS, b"meanwhile", key=os.urandom(4))
            time.sleep(LEAST_PAUSE_S)
        assert spent_s() - before_s < AWAY_S / 3
        broker.process.stop()
        broker.restart()
        sent.get(60)
    finally:
        producer.close(timeout=5)
        broker.process.stop()

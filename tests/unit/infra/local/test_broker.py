"""The embedded brokers start, answer, stop, and say clearly why they cannot."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic

from infra.local.broker import Broker, answers, server_properties, start_broker
from infra.platform.guarded_process import ServiceError
from tests.conftest import BROKERS, environ_for
from tests.harness.needs import KAFKA, needs
from tests.harness.system import stopping


@pytest.fixture(params=BROKERS)
def own_broker(request: pytest.FixtureRequest, make_settings) -> Iterator[Broker]:
    """A broker of this test alone, which it may stop and kill."""
    with stopping(start_broker(make_settings(), environ=environ_for(request.param))) as broker:
        yield broker


JAVA_21 = """-version) echo 'openjdk version "21" 2023-09-19' >&2 ;;"""


def fake_kafka(tmp_path: Path, cases: str) -> dict[str, str]:
    """An environment with a Kafka, and a Java that is a shell script: what it does by its arguments."""
    libs, java = tmp_path / "kafka-home" / "libs", tmp_path / "java-home" / "bin" / "java"
    libs.mkdir(parents=True)
    (libs / "kafka_2.13-4.0.0.jar").touch()
    java.parent.mkdir(parents=True)
    java.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n')
    java.chmod(0o755)
    return {"KAFKA_HOME": str(libs.parent), "JAVA_HOME": str(java.parents[1]), "PATH": os.environ["PATH"]}


def send(bootstrap: str, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        producer.send(topic, value).get(timeout=10)
    producer.close()


def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=10_000
    )
    values = [message.value for _, message in zip(range(count), consumer, strict=False)]
    consumer.close()
    return values


def create(bootstrap: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, 1, 1)])
    admin.close()


def test_a_started_broker_answers_on_loopback_only_and_keeps_its_data_over_a_clean_stop(own_broker):
    host, _, port = own_broker.bootstrap.rpartition(":")
    assert host == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=1)
    create(own_broker.bootstrap, "things")
    send(own_broker.bootstrap, "things", b"1", b"2")
    own_broker.process.stop()
    assert not answers(own_broker.bootstrap)
    before = own_broker.bootstrap
    own_broker.restart()
    own_broker.when_ready()
    assert own_broker.bootstrap == before
    assert read(own_broker.bootstrap, "things", 2) == [b"1", b"2"]


@pytest.mark.service
@needs(KAFKA)
def test_kafka_keeps_what_it_acknowledged_over_a_crash(make_settings):
    with stopping(start_broker(make_settings(), environ=environ_for("kafka"))) as broker:
        assert broker.kind == "kafka"
        create(broker.bootstrap, "things")
        send(broker.bootstrap, "things", b"1", b"2")
        assert broker.process.kill() == 137
        broker.restart()
        broker.when_ready()
        assert read(broker.bootstrap, "things", 2) == [b"1", b"2"]


def test_a_second_broker_on_the_same_data_is_refused(own_broker, monkeypatch):
    monkeypatch.setattr("infra.platform.port_locks.LOCK_WAIT_S", 0.2)
    directory = own_broker.settings.data_dir / own_broker.kind
    with pytest.raises(ServiceError, match=rf"{directory} is in use by another nextwatch.*--data-dir"):
        start_broker(own_broker.settings, environ=own_broker.environ)
    assert answers(own_broker.bootstrap)


def test_a_port_in_use_names_the_setting(make_settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = make_settings(embedded={"kafka_port": taken.getsockname()[1]})
        with pytest.raises(ServiceError, match=r"in use: give embedded\.kafka_port another"):
            start_broker(settings, environ={"PATH": os.environ["PATH"]})


def test_without_jars_the_error_names_kafka_home(make_settings, tmp_path):
    with pytest.raises(ServiceError, match=r"KAFKA_HOME is .*, but .*libs holds no kafka_\*\.jar"):
        start_broker(make_settings(), environ={"KAFKA_HOME": str(tmp_path)})


@pytest.mark.parametrize("where", ["JAVA_HOME", "PATH"])
def test_without_java_the_error_says_where_it_was_looked_for(make_settings, tmp_path, where: str):
    environ = fake_kafka(tmp_path, JAVA_21) | {"JAVA_HOME": "", "PATH": ""} | {where: str(tmp_path / "nowhere")}
    with pytest.raises(ServiceError, match=rf"no Java that runs \({where}.*install Java 17 or later"):
        start_broker(make_settings(), environ=environ)


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        (
            """-version) echo 'openjdk version "11.0.2" 2019-01-15' >&2 ;;""",
            r'needs Java 17 or later, .* says openjdk version "11.0.2"',
        ),
        (
            f"{JAVA_21}\n*StorageTool*) ;;\n*) echo 'out of everything'; exit 3 ;;",
            r"broker ended with code 3 while starting; .*broker\.log(.|\n)*everything",
        ),
        (f"{JAVA_21}\n*) echo 'disk is full'; exit 1 ;;", r"cannot be formatted; (.|\n)*disk is full"),
    ],
    ids=["an old Java", "a broker that ends while starting", "storage that cannot be formatted"],
)
def test_what_goes_wrong_while_starting_is_told_with_its_reason(make_settings, tmp_path, cases: str, says: str):
    with pytest.raises(ServiceError, match=says):
        start_broker(make_settings(), environ=fake_kafka(tmp_path, cases))


def test_a_broker_that_never_answers_is_stopped_after_the_time_out(make_settings, tmp_path):
    pid = tmp_path / "pid"
    cases = f"{JAVA_21}\n*StorageTool*) ;;\n*) echo 'thinking'; echo $$ > {pid}; exec sleep 60 ;;"
    settings = make_settings(embedded={"ready_timeout_s": 0.5})
    with pytest.raises(ServiceError, match=r"not ready after 0.5 s \(embedded\.ready_timeout_s\)(.|\n)*thinking"):
        start_broker(settings, environ=fake_kafka(tmp_path, cases))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_without_a_wheel_and_without_kafka_the_error_names_both(make_settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=r"nextwatch\[embedded\].*KAFKA_HOME.*kafka\.bootstrap"):
        start_broker(make_settings(), environ={})


def test_kafka_takes_messages_of_our_largest_size_and_makes_no_topic_by_itself(tmp_path):
    text = server_properties(tmp_path, 9092, 9093, 5_000_000)
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert int(properties["message.max.bytes"]) > 5_000_000
    assert properties["auto.create.topics.enable"] == "false"
    assert all("127.0.0.1" in each for each in properties["listeners"].split(","))

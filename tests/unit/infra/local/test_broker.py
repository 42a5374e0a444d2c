"""The embedded brokers start, answer, stop, and say clearly why they cannot."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic

from infra.local.broker import Broker, answers, server_properties, start_broker
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Settings
from tests.conftest import BROKERS, environ_for
from tests.harness.needs import KAFKA, needs

MakeSettings = Callable[..., Settings]


@pytest.fixture(params=BROKERS)
def own_broker(request: pytest.FixtureRequest, make_settings: MakeSettings) -> Iterator[Broker]:
    """A broker of this test alone, which it may stop and kill."""
    broker = start_broker(make_settings(), environ=environ_for(request.param))
    yield broker
    broker.process.stop()


def fake_kafka_home(tmp_path: Path) -> str:
    (tmp_path / "kafka-home" / "libs").mkdir(parents=True)
    (tmp_path / "kafka-home" / "libs" / "kafka_2.13-4.0.0.jar").touch()
    return str(tmp_path / "kafka-home")


def fake_java(tmp_path: Path, script: str) -> str:
    """A JAVA_HOME whose java is a shell script."""
    java = tmp_path / "java-home" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    return str(tmp_path / "java-home")


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


def test_a_started_broker_answers_on_loopback_only_and_keeps_its_data_over_a_clean_stop(own_broker: Broker) -> None:
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
    wait(own_broker)
    assert own_broker.bootstrap == before
    assert read(own_broker.bootstrap, "things", 2) == [b"1", b"2"]


@pytest.mark.service
@needs(KAFKA)
def test_kafka_keeps_what_it_acknowledged_over_a_crash(make_settings: MakeSettings) -> None:
    broker = start_broker(make_settings(), environ=environ_for("kafka"))
    try:
        assert broker.kind == "kafka"
        create(broker.bootstrap, "things")
        send(broker.bootstrap, "things", b"1", b"2")
        assert broker.process.kill() == 137
        broker.restart()
        wait(broker)
        assert read(broker.bootstrap, "things", 2) == [b"1", b"2"]
    finally:
        broker.process.stop()


def test_a_second_broker_on_the_same_data_is_refused(own_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.platform.port_locks.LOCK_WAIT_S", 0.2)
    directory = own_broker.settings.data_dir / own_broker.kind
    with pytest.raises(ServiceError, match=rf"{directory} is in use by another nextwatch.*--data-dir"):
        start_broker(own_broker.settings, environ=own_broker.environ)
    assert answers(own_broker.bootstrap)


def test_a_port_in_use_names_the_setting(make_settings: MakeSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = make_settings(embedded={"kafka_port": taken.getsockname()[1]})
        with pytest.raises(ServiceError, match=r"in use: give embedded\.kafka_port another"):
            start_broker(settings, environ={"PATH": os.environ["PATH"]})


def test_without_jars_the_error_names_kafka_home(make_settings: MakeSettings, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"KAFKA_HOME is .*, but .*libs holds no kafka_\*\.jar"):
        start_broker(make_settings(), environ={"KAFKA_HOME": str(tmp_path)})


@pytest.mark.parametrize("where", ["JAVA_HOME", "PATH"])
def test_without_java_the_error_says_where_it_was_looked_for(
    make_settings: MakeSettings, tmp_path: Path, where: str
) -> None:
    environ = {"KAFKA_HOME": fake_kafka_home(tmp_path), "PATH": str(tmp_path)}
    if where == "JAVA_HOME":
        environ["JAVA_HOME"] = str(tmp_path / "nowhere")
    with pytest.raises(ServiceError, match=rf"no Java that runs \({where}.*install Java 17 or later"):
        start_broker(make_settings(), environ=environ)


def test_an_old_java_is_refused_with_its_version(make_settings: MakeSettings, tmp_path: Path) -> None:
    home = fake_java(tmp_path, "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    with pytest.raises(ServiceError, match=r'needs Java 17 or later, .* says openjdk version "11.0.2"'):
        start_broker(make_settings(), environ={"KAFKA_HOME": fake_kafka_home(tmp_path), "JAVA_HOME": home})


def test_a_broker_that_ends_while_starting_shows_the_end_of_its_log(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    script = """case "$*" in
-version) echo 'openjdk version "21" 2023-09-19' >&2 ;;
*StorageTool*) ;;
*) echo 'out of everything'; exit 3 ;;
esac"""
    environ = {"KAFKA_HOME": fake_kafka_home(tmp_path), "JAVA_HOME": fake_java(tmp_path, script)}
    with pytest.raises(ServiceError, match=r"broker ended with code 3 while starting; .*broker\.log(.|\n)*everything"):
        start_broker(make_settings(), environ=environ)


def test_a_broker_that_never_answers_is_stopped_after_the_time_out(make_settings: MakeSettings, tmp_path: Path) -> None:
    script = """case "$*" in
-version) echo 'openjdk version "21" 2023-09-19' >&2 ;;
*StorageTool*) ;;
*) echo 'thinking'; echo $$ > "$PID_FILE"; exec sleep 60 ;;
esac"""
    environ = {
        "KAFKA_HOME": fake_kafka_home(tmp_path),
        "JAVA_HOME": fake_java(tmp_path, script),
        "PATH": os.environ["PATH"],
        "PID_FILE": str(tmp_path / "pid"),
    }
    settings = make_settings(embedded={"ready_timeout_s": 0.5})
    with pytest.raises(ServiceError, match=r"not ready after 0.5 s \(embedded\.ready_timeout_s\)(.|\n)*thinking"):
        start_broker(settings, environ=environ)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_storage_that_cannot_be_formatted_shows_why(make_settings: MakeSettings, tmp_path: Path) -> None:
    script = """case "$*" in
-version) echo 'openjdk version "21" 2023-09-19' >&2 ;;
*) echo 'disk is full'; exit 1 ;;
esac"""
    environ = {"KAFKA_HOME": fake_kafka_home(tmp_path), "JAVA_HOME": fake_java(tmp_path, script)}
    with pytest.raises(ServiceError, match=r"cannot be formatted; (.|\n)*disk is full"):
        start_broker(make_settings(), environ=environ)


def test_without_a_wheel_and_without_kafka_the_error_names_both(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=r"nextwatch\[embedded\].*KAFKA_HOME.*kafka\.bootstrap"):
        start_broker(make_settings(), environ={})


def test_kafka_takes_messages_of_our_largest_size_and_makes_no_topic_by_itself(tmp_path: Path) -> None:
    text = server_properties(tmp_path, 9092, 9093, 5_000_000)
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert int(properties["message.max.bytes"]) > 5_000_000
    assert properties["auto.create.topics.enable"] == "false"
    assert all("127.0.0.1" in each for each in properties["listeners"].split(","))


def wait(broker: Broker) -> None:
    deadline = time.monotonic() + 30
    while not broker.is_ready():
        assert time.monotonic() < deadline, broker.process.tail()
        time.sleep(0.05)

"""A Kafka that asks for a login and speaks TLS: every kind of client of ours gets in, and who may not is told why."""

import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer
from kafka import KafkaConsumer, KafkaProducer
from pydantic import SecretStr

from infra.platform.kafka_access import KafkaRefused, require_access
from infra.platform.kafka_clients import client_options, confluent_options, kafka_python_options
from infra.platform.settings import Kafka, Settings, SettingsError
from nextwatch_client import RecommendClient
from streams import topics
from streams.messages import Trending, UserHistory, WatchEvent, decode, encode
from tests.harness.system import run_cli, running, with_section
from tests.unit.infra.command import Done, commands
from tests.unit.infra.secured_broker import PASSWORD, Secured, secured_broker

pytestmark = pytest.mark.service

SOON_S = 60.0
REFUSED_WITHIN_S = 25.0  # two at most on an idle machine; clients of their own take half a minute or for ever
COMMANDS = [("topics", "--check"), ("worker", "history"), ("worker", "trainer"), ("indexer",), ("serve",), ("up",)]
COMMANDS += [("gateway",)]

Change = Callable[[Secured], Kafka]
WRONG: dict[str, tuple[Change, str]] = {
    "password": (lambda s: s.scram(password=SecretStr("wrong")), r"wrong kafka\.username .*NEXTWATCH_KAFKA__PASSWORD"),
    "user": (lambda s: s.scram(username="bob"), r"wrong kafka\.username \(bob\)"),
    "mechanism": (lambda s: s.scram(sasl_mechanism="SCRAM-SHA-256"), r"does not offer kafka\.sasl_mechanism SCRAM-S"),
    "authority": (lambda s: s.scram(ssl_ca_file=s.certificates.pem("stranger")), r"kafka\.ssl_ca_file is .*stranger"),
    "no authority": (lambda s: s.scram(ssl_ca_file=None), r"kafka\.ssl_ca_file is not set"),
    "name": (lambda s: s.scram(bootstrap=f"localhost:{s.scram_port}"), r"kafka\.bootstrap must name the host"),
    "plain to TLS": (lambda s: s.scram(security_protocol="PLAINTEXT"), r"speaks TLS: is kafka\.security_protocol"),
    "login in plain": (lambda s: s.scram(security_protocol="SASL_PLAINTEXT"), r"speaks TLS: is kafka\.security_proto"),
    "TLS to plain": (lambda s: s.scram(bootstrap=f"127.0.0.1:{s.own_port}"), r"is kafka\.security_protocol \(SASL_SSL"),
    "no login": (lambda s: s.scram(security_protocol="SSL"), r"hangs up: is kafka\.security_protocol \(SSL\)"),
    "login unasked": (
        lambda s: s.certificate(security_protocol="SASL_SSL", username="u", password=SecretStr("p")),
        r"does not want to be asked for a login: is kafka\.security_protocol",
    ),
    "no certificate": (
        lambda s: s.certificate(ssl_cert_file=None, ssl_key_file=None),
        r"does not accept our certificate .*kafka\.ssl_cert_file",
    ),
    "stranger's certificate": (
        lambda s: s.certificate(
            ssl_cert_file=s.certificates.pem("stranger"), ssl_key_file=s.certificates.key("stranger")
        ),
        r"does not accept our certificate .*kafka\.ssl_cert_file",
    ),
}
NOT_WHOLE: dict[str, tuple[Change, str]] = {
    "no password": (lambda s: s.scram(password=SecretStr("")), r"kafka\.password \(NEXTWATCH_KAFKA__PASSWORD\) is not"),
    "no user": (lambda s: s.scram(username=""), r"kafka\.username \(NEXTWATCH_KAFKA__USERNAME\) is not set"),
    "missing file": (lambda s: s.scram(ssl_ca_file=Path("/nowhere.pem")), r"kafka\.ssl_ca_file /nowhere\.pem cannot"),
    "no PEM": (lambda s: s.scram(ssl_ca_file=Path(__file__)), r"kafka\.ssl_ca_file .* cannot be used"),
    "another's key": (
        lambda s: s.certificate(ssl_key_file=s.certificates.key("stranger")),
        r"kafka\.ssl_cert_file, kafka\.ssl_key_file .* cannot be used",
    ),
    "locked key": (
        lambda s: s.certificate(ssl_key_file=s.certificates.key("locked")),
        r"kafka\.ssl_key_file: the key is locked by a passphrase",
    ),
    "key alone": (lambda s: s.certificate(ssl_cert_file=None), r"kafka\.ssl_key_file is set, and kafka\.ssl_cert_file"),
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as running_one:
        yield running_one


@pytest.fixture
def nextwatch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run a command of ours in this process, told of Kafka by the environment."""

    def on(kafka: Kafka, *arguments: str) -> Done:
        settings = with_section(Settings(data_dir=tmp_path, kafka=kafka), "milvus", uri="http://127.0.0.1:9")
        return commands(monkeypatch, capsys, settings=settings)(*arguments)

    return on


def first(kafka: Kafka, topic: str, kind: Any) -> Any:
    """The first message of a topic that is there before SOON_S are over."""
    consumer = KafkaConsumer(kafka.topic_prefix + topic, **kafka_python_options(kafka), auto_offset_reset="earliest")
    try:
        batches: dict[Any, Any] = {}
        deadline = time.monotonic() + SOON_S
        while not batches and time.monotonic() < deadline:
            batches = consumer.poll(timeout_ms=500)
        return decode(kind, next(iter(batches.values()))[0].value)
    finally:
        consumer.close()


def test_every_kind_of_client_gets_in_with_a_password_or_a_certificate(secured, milvus_uri, tmp_path):
    changes = {"topic_prefix": "in-", "partitions": 1, "session_timeout_s": 6.0}
    by_password = Settings(data_dir=tmp_path, kafka=secured.scram(**changes), log_level="debug")
    by_password = with_section(by_password, "milvus", uri=milvus_uri)
    by_certificate = by_password.model_copy(update={"kafka": secured.certificate(**changes)})
    assert "the cluster is as it must be" in run_cli(by_password, "topics", "--create")  # kafka-python's admin
    with (  # Faust, aiokafka's producer, kafka-python's consumers and producers: each by either way
        running(by_password, ("history", "serving"), ready=False) as ours,
        running(by_certificate, ("trending", "indexer"), ready=False) as others,
    ):
        watch = WatchEvent("e1", "alice", "some-video", time.time_ns() // 1_000_000, 60.0, 60.0)
        producer = KafkaProducer(**kafka_python_options(by_certificate.kafka))
        producer.send("in-" + topics.WATCH_EVENTS, key=b"alice", value=encode(watch)).get(timeout=SOON_S)
        producer.close()
        history = first(by_certificate.kafka, topics.USER_HISTORIES, UserHistory)
        trending = first(by_password.kafka, topics.TRENDING, Trending)
        with RecommendClient(client_options(by_password.kafka)) as client:
            reply = client.recommend("alice", timeout_s=SOON_S, retries=3)
        commands_told = [
            Path(f"/proc/{process.pid}/cmdline").read_text() for process in (*ours.values(), *others.values())
        ]
    logs = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert len(logs) == 4 and not [text for text in (*logs, *commands_told) if PASSWORD in text]
    assert [watched.item_id for watched in history.watches] == ["some-video"]
    assert [item for item, _ in trending.items] == ["some-video"]
    assert reply.error is None and reply.degraded, "answered, by a server that has no release yet"


def test_librdkafka_gets_in_by_either_way_and_not_with_another_authority(secured):
    for kafka in (secured.scram(), secured.certificate()):
        assert Producer(confluent_options(kafka)).list_topics(timeout=SOON_S).brokers
    stranger = secured.scram(ssl_ca_file=secured.certificates.pem("stranger"))
    with pytest.raises(KafkaException):
        Producer(confluent_options(stranger) | {"log_level": 0}).list_topics(timeout=3)


@pytest.mark.parametrize("what", WRONG)
def test_who_may_not_come_in_is_told_which_setting_is_to_blame(secured, what: str):
    wrong, says = WRONG[what]
    with pytest.raises(KafkaRefused, match=says):
        require_access(wrong(secured))


@pytest.mark.parametrize("what", NOT_WHOLE)
def test_a_login_that_is_not_whole_is_told_before_anybody_is_asked(secured, what: str):
    if what == "locked key":
        secured.certificates.lock("client", "locked")
    wrong, says = NOT_WHOLE[what]
    with pytest.raises(SettingsError, match=says):
        require_access(wrong(secured))


@pytest.mark.parametrize("what", ["password", "authority", "plain to TLS"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_that_is_not_let_in_says_so_at_once(secured, nextwatch, what: str, command: tuple[str, ...]):
    wrong, says = WRONG[what]
    import_module(
        {"serve": "serving.worker.worker", "indexer": "indexer.process"}.get(command[0], "streams.trainer.app")
    )
    began = time.monotonic()
    done = nextwatch(wrong(secured), *command)
    assert done.code == 2 and time.monotonic() - began < REFUSED_WITHIN_S
    assert re.search(says, done.err), done.err
    assert PASSWORD not in done.err + done.out and "Traceback" not in done.err


def test_brokers_that_are_away_are_left_to_the_clients():
    require_access(Kafka(bootstrap="127.0.0.1:1,nowhere.invalid:9092"))


def test_one_broker_that_lets_us_in_is_enough(secured):
    require_access(secured.scram(bootstrap=f"127.0.0.1:1,127.0.0.1:{secured.scram_port}"))

"""One Kafka connection, as kafka-python, aiokafka and librdkafka want to be told of it (Faust:
streams/kafka/faust_app.py)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from kafka.errors import KafkaError

from infra.platform.settings import Kafka, SettingsError
from infra.platform.third_parties.kafka_python import patches
from nextwatch_client import ConnectionOptions, OptionsError

REPLY_SIZE = 8  # how many times larger than a request a reply may be


def kafka_python_options(kafka: Kafka) -> dict[str, Any]:
    """Keyword arguments of kafka-python's consumer, producer and admin client. Raises SettingsError for a file that
    cannot be used."""
    patches.ask_for_metadata_once()
    patches.look_for_moved_leaders()
    try:
        return client_options(kafka).kafka_python()
    except OptionsError as error:
        raise SettingsError(", ".join(f"kafka.{name}" for name in error.options) + error.why) from None


def aiokafka_options(kafka: Kafka) -> dict[str, Any]:
    """Keyword arguments of aiokafka's consumer and producer."""
    options = kafka_python_options(kafka) | {"bootstrap_servers": kafka.bootstrap}
    del options["kafka_client"]
    return options


def confluent_options(kafka: Kafka) -> dict[str, Any]:
    """Configuration of librdkafka's consumer and producer. Raises SettingsError for a file that cannot be used."""
    kafka_python_options(kafka)
    options = {
        "bootstrap.servers": kafka.bootstrap,
        "security.protocol": kafka.security_protocol,
        "ssl.ca.location": kafka.ssl_ca_file,
        "ssl.certificate.location": kafka.ssl_cert_file,
        "ssl.key.location": kafka.ssl_key_file or kafka.ssl_cert_file,
        "reconnect.backoff.max.ms": 2000,
    }
    if kafka.security_protocol.startswith("SASL"):
        options |= {
            "sasl.mechanism": kafka.sasl_mechanism,
            "sasl.username": kafka.username,
            "sasl.password": kafka.password.get_secret_value(),
        }
    is_tls = kafka.security_protocol.endswith("SSL")
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None and (is_tls or not name.startswith("ssl."))
    }


def client_options(kafka: Kafka) -> ConnectionOptions:
    """Options of the client library, which knows nothing of our settings."""
    return ConnectionOptions(
        bootstrap=kafka.bootstrap,
        security_protocol=kafka.security_protocol,
        sasl_mechanism=kafka.sasl_mechanism,
        username=kafka.username,
        password=kafka.password.get_secret_value(),
        ssl_ca_file=kafka.ssl_ca_file,
        ssl_cert_file=kafka.ssl_cert_file,
        ssl_key_file=kafka.ssl_key_file,
        topic_prefix=kafka.topic_prefix,
        max_reply_bytes=REPLY_SIZE * kafka.max_message_bytes,
    )


def close_producer(producer: Any, timeout_s: float) -> None:
    """Close a kafka-python producer, also one whose brokers are gone: its own `close` raises then and leaves its thread
    running. Raises KafkaError for messages that could not be delivered in time; closed it is all the same."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaError:
        patches.stop_sending(producer, timeout_s)
        with contextlib.suppress(KafkaError):
            producer.close(timeout=1)
        raise

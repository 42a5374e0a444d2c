from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.platform.kafka_clients import client_options, kafka_python_options
from infra.platform.settings import Kafka
from nextwatch_client import ConnectionOptions, OptionsError
from tests.unit.infra.certificates import make_certificates

LOGIN = Kafka(
    bootstrap="a:1,b:2",
    security_protocol="SASL_PLAINTEXT",
    sasl_mechanism="SCRAM-SHA-512",
    username="ann",
    password=SecretStr("hidden"),
    topic_prefix="p-",
    max_message_bytes=1000,
)


def test_our_settings_reach_the_client_whole() -> None:
    options = client_options(LOGIN)
    assert options.kafka_python() == kafka_python_options(LOGIN)
    assert options.kafka_python() == {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "hidden",
    }
    assert (options.requests, options.replies) == ("p-recommend-requests", "p-recommend-replies")
    assert options.max_reply_bytes == 8000


def test_a_password_is_never_printed() -> None:
    assert "hidden" not in repr(client_options(LOGIN))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    made.lock("client", "locked")
    own = {"ssl_ca_file": made.pem("stranger"), "ssl_cert_file": made.pem("client")}
    for files, says in (
        ({"ssl_ca_file": Path("/nowhere.pem")}, r"ssl_ca_file /nowhere\.pem cannot be used"),
        (own | {"ssl_key_file": made.key("stranger")}, "ssl_cert_file, ssl_key_file .* cannot be used"),
        (own | {"ssl_key_file": made.key("locked")}, "locked by a passphrase"),
    ):
        with pytest.raises(OptionsError, match=says):
            ConnectionOptions(bootstrap="a:1", security_protocol="SSL", **files).kafka_python()
    good = ConnectionOptions(bootstrap="a:1", security_protocol="SSL", **own, ssl_key_file=made.key("client"))
    assert good.kafka_python()["ssl_context"].check_hostname

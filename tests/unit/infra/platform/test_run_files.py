"""What one command tells the others about itself, and takes back when it ends."""

import pytest

from infra.platform.guarded_process import ServiceError
from infra.platform.run_files import announce_services, fill_in, find_services
from infra.platform.settings import Settings


def test_other_commands_find_the_services_of_a_running_up(make_settings) -> None:
    settings = make_settings()
    with announce_services(fill_in(settings, "127.0.0.1:9", "http://127.0.0.1:8")):
        found = find_services(settings)
        assert (found.kafka.bootstrap, found.milvus.uri) == ("127.0.0.1:9", "http://127.0.0.1:8")
    with pytest.raises(ServiceError, match=r"set kafka.bootstrap, or start `nextwatch up`"):
        find_services(settings)


def test_services_of_a_killed_up_are_not_found(make_settings) -> None:
    settings = make_settings()
    (settings.data_dir / "services.json").write_text('{"pid": 1, "kafka.bootstrap": "a:1", "milvus.uri": "b"}')
    with pytest.raises(ServiceError, match="no broker"):
        find_services(settings)


def test_what_is_set_is_not_replaced(make_settings) -> None:
    mine = make_settings("mine:1", "http://mine:2")
    assert fill_in(mine, "127.0.0.1:9", "http://127.0.0.1:8") == mine
    assert find_services(mine) is mine


def test_embedded_services_are_spoken_to_without_passwords_and_replicas() -> None:
    settings = Settings(
        kafka={"security_protocol": "SASL_SSL", "password": "p", "replication": 3}, milvus={"token": "t"}
    )
    filled = fill_in(settings, "127.0.0.1:9", "http://127.0.0.1:8")
    assert (filled.kafka.security_protocol, filled.kafka.replication) == ("PLAINTEXT", 1)
    assert filled.milvus.token.get_secret_value() == ""

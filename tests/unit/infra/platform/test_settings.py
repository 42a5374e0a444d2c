"""One tree, three sources, nothing silently ignored, no secret printed."""

import json
from pathlib import Path

import pytest

from infra.platform.settings import Settings, SettingsError, dump_settings, load_settings, to_environ


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No nextwatch.toml of the checkout takes part."""
    monkeypatch.chdir(tmp_path)


def toml(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_later_sources_win(tmp_path, monkeypatch):
    file = toml(tmp_path, '[kafka]\nbootstrap = "file:1"\npartitions = 3\nreplication = 3\n')
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "env:1")
    monkeypatch.setenv("NEXTWATCH_KAFKA__PARTITIONS", "5")
    kafka = load_settings(file, {"kafka.bootstrap": "option:1"}).kafka
    assert (kafka.bootstrap, kafka.partitions, kafka.replication) == ("option:1", 5, 3)


def test_the_file_is_found_by_its_variable_and_by_its_name(tmp_path, monkeypatch):
    toml(tmp_path, 'log_level = "debug"\n', "nextwatch.toml")
    assert load_settings().log_level == "debug"
    monkeypatch.setenv("NEXTWATCH_CONFIG", str(toml(tmp_path, 'log_level = "error"\n')))
    assert load_settings().log_level == "error"
    monkeypatch.setenv("NEXTWATCH_CONFIG", "missing.toml")
    with pytest.raises(SettingsError, match=r"missing.toml does not exist"):
        load_settings()


@pytest.mark.parametrize("text", ["[kafka]\nbootstrp = 'x:1'\n", "[kafak]\nbootstrap = 'x:1'\n", "bootstrap = 'x:1'\n"])
def test_an_unknown_name_in_the_file_is_refused(tmp_path, text: str):
    name = "kafka.bootstrp" if "bootstrp" in text else "kafak" if "kafak" in text else "bootstrap"
    with pytest.raises(SettingsError, match=f"unknown setting {name}"):
        load_settings(toml(tmp_path, text))


@pytest.mark.parametrize("variable", ["KAFKA__BOOTSTRP", "KAFAK__BOOTSTRAP", "KAFKA__BOOTSTRAP__X", "DATADIR"])
def test_an_unknown_name_in_the_environment_is_refused(monkeypatch, variable: str):
    monkeypatch.setenv(f"NEXTWATCH_{variable}", "x:1")
    with pytest.raises(SettingsError, match=f"NEXTWATCH_{variable}"):
        load_settings()


def test_an_unknown_name_among_the_options_is_refused():
    with pytest.raises(SettingsError, match=r"unknown setting serving.kk"):
        load_settings(overrides={"serving.kk": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kafka.partitions", "0"),
        ("kafka.partitions", "many"),
        ("kafka.topic_prefix", "a b"),
        ("kafka.security_protocol", "TLS"),
        ("metrics.port", "70000"),
        ("embedded.kafka_heap", "lots"),
        ("trainer.in_batch", "1.5"),
        ("kafka.session_timeout_s", "0"),
        ("serving.k", "1001"),
    ],
)
def test_a_wrong_value_names_its_setting_and_its_variable(monkeypatch, name: str, value: str):
    variable = "NEXTWATCH_" + name.replace(".", "__").upper()
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"setting {name} \(or {variable}\): .*{value}"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"), [("trainer.pull", 0.1), ("trainer.query_rate", 0.001), ("trainer.learns", "input_rows")]
)
def test_what_there_was_before_is_refused_with_since_when_it_is_gone(tmp_path, monkeypatch, name: str, value: object):
    section, _, leaf = name.partition(".")
    with pytest.raises(SettingsError, match=rf"{name}.*gone since 0\.2"):
        load_settings(toml(tmp_path, f"[{section}]\n{leaf} = {json.dumps(value)}\n"))
    monkeypatch.setenv(f"NEXTWATCH_{section}__{leaf}".upper(), f"{value}")
    with pytest.raises(SettingsError, match=rf"{name}.*gone since 0\.2"):
        load_settings()


def test_a_server_is_heard_three_times_before_it_may_count_as_dead(monkeypatch):
    assert load_settings(overrides={"serving.heartbeat_s": 20.0}).indexer.server_timeout_s == 60
    monkeypatch.setenv("NEXTWATCH_KAFKA__PASSWORD", "hunter2")
    monkeypatch.setenv("NEXTWATCH_SERVING__HEARTBEAT_S", "30")
    with pytest.raises(SettingsError) as error:
        load_settings()
    for told in (
        "serving.heartbeat_s is 30 and indexer.server_timeout_s is 60",
        "NEXTWATCH_INDEXER__SERVER_TIMEOUT_S) be 90 or more",
        "NEXTWATCH_SERVING__HEARTBEAT_S) 20 or less",
    ):
        assert told in str(error.value)
    assert "hunter2" not in str(error.value)
    assert load_settings(overrides={"indexer.server_timeout_s": 90.0}).serving.heartbeat_s == 30


def test_nothing_changes_a_setting_later():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.kafka.partitions = 5
    with pytest.raises(ValueError, match="frozen"):
        settings.log_level = "debug"


def test_a_child_process_sees_exactly_the_same_settings(monkeypatch):
    settings = Settings(
        data_dir=Path("some where"),
        kafka={"bootstrap": "a:1,b:2", "password": 'p"1,=', "topic_prefix": "t-", "ssl_ca_file": "ca.pem"},
        milvus={"token": "123"},
        model={"hidden": (8, 4)},
        metrics={"port": 9100},
    )
    for name, value in to_environ(settings).items():
        monkeypatch.setenv(name, value)
    again = load_settings()
    assert again == settings
    assert again.milvus.token.get_secret_value() == "123"


def test_the_dump_can_be_read_as_json_and_holds_every_section():
    tree = json.loads(json.dumps(dump_settings(load_settings())))
    assert set(tree) == set(Settings.model_fields) and tree["milvus"]["token"] == ""


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("ftp://there/releases", "must begin with one of s3://, gs://, az://, file://"),
        ("releases", "must begin with one of"),
        ("s3://key:hunter2@bucket/releases", "must hold no credentials"),
        ("az://container/releases?sig=hunter2", "must hold no credentials"),
    ],
)
def test_a_place_for_bundles_is_one_that_we_know_and_holds_no_secret(tmp_path, store: str, says: str):
    with pytest.raises(SettingsError, match=f"setting bundles.store .*{says}") as caught:
        load_settings(toml(tmp_path, f'[bundles]\nstore = "{store}"\n'))
    assert "hunter2" not in str(caught.value)
    assert load_settings(toml(tmp_path, '[bundles]\nstore = "s3://bucket/releases"\n')).bundles.store


def test_the_address_of_milvus_holds_no_login(tmp_path):
    with pytest.raises(SettingsError, match=r"setting milvus\.uri .*without a login") as caught:
        load_settings(toml(tmp_path, '[milvus]\nuri = "https://root:hidden@milvus:19530"\n'))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://us:hunter2@registry:8081", "https://registry?key=hunter2", "hunter2", "ftp://x"]
)
def test_a_schema_registrys_address_holds_no_login(tmp_path, url: str):
    with pytest.raises(SettingsError, match=r"setting ingest\.registry_url .*without a login") as caught:
        load_settings(toml(tmp_path, f'[ingest]\nregistry_url = "{url}"\n'))
    assert "hunter2" not in str(caught.value)
    assert load_settings(toml(tmp_path, '[ingest]\nregistry_url = "https://registry:8081/path"\n')).ingest.registry_url


def test_weights_of_signals_are_told_by_kind_where_they_are_not_one():
    assert Settings().model.signal_weights == {}, "as if nothing had been said"
    model = Settings.model_validate({"model": {"like_weight": 2, "unwanted_weight": 0}}).model
    assert model.signal_weights == {"like": 2.0, "dislike": 0.0, "not_interested": 0.0}

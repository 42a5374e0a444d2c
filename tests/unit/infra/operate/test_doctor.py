"""What `nextwatch doctor` finds where there is nothing, where something is missing, and what it plans."""

import json
from pathlib import Path

import pytest

from infra.local.broker import Broker
from infra.operate.doctor import Finding, diagnose
from infra.platform.kafka_access import KafkaRefused
from infra.platform.settings import Kafka, Milvus, Settings
from streams.topics import create_topics
from tests.unit.infra.command import commands


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return commands(monkeypatch, capsys, "doctor")


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_where_nothing_runs_each_thing_has_a_way_out(doctor):
    done = doctor("--json")
    assert done.code == 1
    found = {each["what"]: each for each in json.loads(done.out)}
    assert found.keys() == {"Kafka", "processes"}
    assert "kafka.bootstrap" in found["Kafka"]["way_out"]
    assert "nextwatch up" in found["processes"]["way_out"]
    assert "not right" in doctor().out


def test_a_broker_that_is_dead_or_lets_nobody_in_is_a_finding(doctor, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    done = doctor("--json")
    assert done.code == 1
    assert "127.0.0.1:1" in json.loads(done.out)[0]["told"] + json.loads(done.out)[0]["way_out"]

    def refuse() -> Settings:
        raise KafkaRefused("the password is wrong")

    assert diagnose(Settings(data_dir=tmp_path), refuse)[0].way_out == "the password is wrong"


def test_topics_releases_and_an_index_that_are_missing_are_told(broker: Broker, tmp_path: Path):
    settings = Settings(
        data_dir=tmp_path,
        kafka=Kafka(bootstrap=broker.bootstrap, topic_prefix="doctor-"),
        milvus=Milvus(uri="http://127.0.0.1:1", timeout_s=1.0),
    )
    found = by_name(diagnose(settings, lambda: settings))
    assert not found["Kafka"].way_out
    assert "--create" in found["topics"].way_out
    create_topics(settings.kafka)
    found = by_name(diagnose(settings, lambda: settings))
    assert found["topics"] == Finding("topics", "as they must be")
    assert "collections are not known" in found["releases"].way_out
    assert "nextwatch train" in found["release"].way_out


def test_a_plan_needs_nothing_that_runs_and_names_a_file_of_costs_that_is_none(doctor):
    done = doctor("--plan", "--users", "1e4", "--events", "10", "--requests", "5", "--json")
    assert done.code == 0
    assert json.loads(done.out)["load"]["events_per_s"] == 10
    assert "brokers" in doctor("--plan").out
    assert "breaks" in doctor("--plan", "--events", "50000", "--requests", "20000").out
    refused = doctor("--plan", "--costs", "gone.toml")
    assert refused.code == 2
    assert "gone.toml" in refused.err

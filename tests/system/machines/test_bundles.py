"""A release goes from the machine that trains to those that index, learn and answer, by Kafka and a bucket alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.operate.releases import read_topic
from infra.platform.health import fetch_health
from infra.platform.kafka_clients import client_options
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings
from nextwatch_client import RecommendClient
from streams.bundles.fetching import CACHE
from tests.harness.buckets import CREDENTIALS, Proxy, away, proxy_before, s3_server
from tests.harness.needs import MOTO, needs
from tests.harness.service import READY_S, Size, train_releases
from tests.harness.system import own_settings, run_cli, running, wait_until
from tests.harness.traffic import now_ms

pytestmark = [pytest.mark.system, needs(MOTO)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as port, proxy_before(port) as proxy:
        yield proxy


def machine(shared: Settings, name: str) -> Settings:
    """Settings of a machine with a disk of its own."""
    return shared.model_copy(update={"data_dir": shared.data_dir / name})


def health_of(settings: Settings, name: str) -> dict[str, object]:
    return next((fetch_health(each) for each in read_run_files(settings.run_dir) if each["name"] == name), {})


def test_machines_that_share_no_disk_get_the_release_from_the_bucket_and_answer(
    kafka: str, milvus_uri: str, tmp_path: Path, bucket: Proxy
) -> None:
    shared = own_settings(kafka, tmp_path, milvus_uri)
    shared = shared.model_copy(update={"bundles": bucket.settings(timeout_s=5.0)})
    training = machine(shared, "training")
    (bundle,) = train_releases(training.bundles_dir, 1, Size(watches=1500), now_ms=now_ms()).bundles
    version = bundle.manifest.version
    others = {name: machine(shared, name) for name in ("indexer", "trainer", "serving")}
    with ExitStack() as stack:
        run_cli(training, "releases", "--announce")
        assert bucket.names("PUT")[-1] == f"{version}/manifest.json"
        bucket.spoil(away, method="HEAD")  # the store is gone just after that, before anybody has fetched it
        for name, settings in others.items():
            stack.enter_context(running(settings, [name], ready=False))
        indexer = others["indexer"]
        wait_until(lambda: "no answer from the store" in str(health_of(indexer, "indexer")), "why", READY_S)
        assert read_topic(shared.kafka).live == ""
        bucket.heal()
        wait_until(lambda: read_topic(shared.kafka).live == version, "an index", READY_S)
        serving = others["serving"]
        wait_until(lambda: health_of(serving, "serving").get("version_served") == version, "served", READY_S)
        wait_until(lambda: bool(health_of(others["trainer"], "trainer").get("ready")), "learnt from", READY_S)
        with RecommendClient(client_options(shared.kafka)) as client:
            reply = client.recommend("somebody", k=5, timeout_s=10)
        assert reply.version == version and len(reply.items) == 5
        for settings in others.values():
            assert not (settings.bundles_dir / version).exists()
            assert (settings.bundles_dir / CACHE / version / "manifest.json").is_file()
        report = json.loads(run_cli(machine(shared, "elsewhere"), "releases", "--json"))
    assert [(each["version"], each["place"]) for each in report["bundles"]] == [(version, "store")]
    assert report["bundles"][0]["items"] == bundle.manifest.items and report["live"] == version

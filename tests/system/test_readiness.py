"""Nobody says that it is ready before it knows what it must know: the states of all users, and the release."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import pytest

from infra.operate.releases import read_topic
from infra.operate.training import published
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings
from streams.kafka.releases import announce
from tests.benchmarks.reliability.crash_recovery import fill
from tests.harness.service import Size, train_releases
from tests.harness.system import READY_S, own_settings, process, running, wait_until
from tests.harness.traffic import now_ms

USERS = 4000
KNOWS = {"history": "histories", "join": "join", "serving": "histories"}  # by process: where it says how many it knows


@pytest.fixture(scope="module")
def settings(kafka: str, milvus_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return own_settings(kafka, tmp_path_factory.mktemp("ready"), milvus_uri, kafka={})


def first_when_ready(settings: Settings, names: set[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By process its /health as soon as it says ready, and the last reason that it gave before."""
    ready: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    deadline = time.monotonic() + READY_S
    while names - ready.keys():
        assert time.monotonic() < deadline, (ready, reasons)
        for record in read_run_files(settings.run_dir):
            health = fetch_health(record)
            if health["ready"]:
                ready.setdefault(record["name"], health)
            elif record["name"] not in ready:
                reasons[record["name"]] = "; ".join(health["reasons"])
        time.sleep(0.02)
    return ready, reasons


def test_a_process_is_ready_only_when_all_its_users_are_known_and_its_release_is_live(settings):
    (bundle,) = train_releases(settings.bundles_dir, 1, Size(watches=1500), now_ms=now_ms()).bundles
    fill(settings, USERS, bundle.model.item_ids)
    announce(settings.kafka, published(bundle.manifest))
    with running(settings, ["indexer"]), contextlib.ExitStack() as stack:
        wait_until(lambda: read_topic(settings.kafka).live == bundle.manifest.version, "announced", READY_S)
        stack.enter_context(running(settings, [*KNOWS, "trainer"], ready=False))
        ready, reasons = first_when_ready(settings, {*KNOWS, "trainer"})
    assert {name: ready[name][knows] for name, knows in KNOWS.items()} == dict.fromkeys(KNOWS, USERS)
    assert ready["serving"]["version_served"] == bundle.manifest.version
    assert set(reasons) >= {*KNOWS}, "they were asked before, and said what they waited for"


SLOW = """
import pathlib, runpy, sys, time
import streams.{name}.app as worker

read, found = worker.{reader}, pathlib.Path(sys.argv.pop())

def read_slowly(kafka):
    time.sleep({seconds})
    rows = read(kafka)
    found.touch()
    return rows

worker.{reader} = read_slowly
runpy.run_module("infra.cli", run_name="__main__")
"""


@pytest.mark.parametrize(("name", "reader"), [("trending", "read_published"), ("join", "read_statistics")])
def test_a_worker_that_does_not_know_yet_what_it_has_counted_is_not_ready(settings, tmp_path, name, reader):
    """No event comes: it reads its counts before there is anything to add."""
    program = SLOW.format(name=name, reader=reader, seconds=3)
    found = tmp_path / "found"
    with process(settings, name, [sys.executable, "-c", program, "worker", name, str(found)]):
        first_when_ready(settings, {name})
        assert found.exists()

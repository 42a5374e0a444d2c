"""The HTTP gateway over a real broker and a real server: its answers are theirs, and what it acknowledges is kept."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from infra.local.broker import Broker, start_broker
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Gateway, Kafka, Settings
from nextwatch_client import RecommendClient, RecommendRequest
from streams import topics
from streams.messages import Item, UserHistory, decode
from tests.harness.crash.replay import read_all
from tests.harness.gateways import RunningGateway, posting, running_gateway
from tests.harness.needs import CURL, KAFKA, needs
from tests.harness.service import Service, Size, running_service
from tests.harness.system import fill_in, stopping, wait_until
from tests.harness.traffic import Histories, now_ms

PAGE = Path(__file__).parents[2] / "docs" / "gateway.md"
STRANGE = 'a/"user" with 😀 and 100%'
AWAY_S = 6.0
PER_S = 40.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("gateway"), 1, Size()) as service:
        service.start("history")
        service.wait_ready("history")
        yield service


@pytest.fixture(scope="module")
def gateway(service: Service) -> Iterator[RunningGateway]:
    with running_gateway(service.settings) as running:
        yield running


@pytest.fixture
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with gateway.client() as http:
        yield http


def test_a_list_over_http_is_the_list_over_kafka(service: Service, http: httpx.Client):
    user = next(iter(service.releases.histories))
    with RecommendClient(client_options(service.settings.kafka)) as client:
        asked = client.submit(RecommendRequest("r", user, k=5, filter="duration_s > 0", record=False)).result(30)
    found = http.get(f"/recommend/{user}", params={"k": 5, "filter": "duration_s > 0", "record": False}).json()
    assert found["version"] == asked.version and not found.get("degraded")
    assert [each["item_id"] for each in found["items"]] == [each.item_id for each in asked.items]


def test_a_filter_that_is_refused_is_told_with_the_character(http: httpx.Client):
    reply = http.get("/recommend/ann", params={"filter": "duration_s << 3"})
    assert reply.status_code == 400 and re.search(r"character \d+|at \d+", reply.json()["error"])


def test_a_watch_over_http_is_in_the_next_history(service: Service, http: httpx.Client):
    item = next(iter(service.releases.items))
    event = {"event_id": "over-http", "user_id": STRANGE, "item_id": item, "event_ms": now_ms(), "watch_s": 60.0}
    assert http.get(f"/history/{quote(STRANGE, safe='')}").status_code == 404
    assert http.post("/watches", json=[event, event]).json() == {"accepted": 2, "problems": []}

    def known() -> bool:
        reply = http.get(f"/history/{quote(STRANGE, safe='')}")
        return reply.status_code == 200 and [each[5] for each in reply.json()["watches"]] == ["over-http"]

    wait_until(known, "the watch in the history, once", 30)
    assert http.get(f"/recommend/{quote(STRANGE, safe='')}").json()["history_watches"] == 1


def test_a_history_is_the_one_in_the_topic(service: Service, http: httpx.Client):
    user, history = next(iter(service.releases.histories.items()))
    with contextlib.closing(Histories(service.settings.kafka)) as histories:
        stored: UserHistory = histories.of(user, bool)
    found = http.get(f"/history/{user}").json()
    assert [each[0] for each in found["watches"]] == [each.item_id for each in stored.watches]
    assert len(found["watches"]) == len(history.watches)


def test_an_item_over_http_is_in_the_catalogue_and_out_again(service: Service, http: httpx.Client):
    def stored() -> bytes | None:
        mine = [each.value for each in read_all(service.settings, topics.ITEMS) if each.key == b"new/item"]
        return mine[-1]

    assert http.put("/items/new%2Fitem", json={"title": "<b>T</b>", "duration_s": 60}).status_code == 202
    assert decode(Item, stored()) == Item("new/item", "<b>T</b>", duration_s=60.0)
    assert http.delete("/items/new%2Fitem").status_code == 202
    assert stored() is None


@needs(CURL)
def test_every_example_of_the_page_runs(gateway: RunningGateway):
    examples = re.findall(r"^    (curl .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(examples) >= 10
    for example in examples:
        command = shlex.split(example.replace("http://127.0.0.1:8080", gateway.address))
        told = subprocess.run(
            [*command, "-w", "\n%{http_code}"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        is_unknown = "/history/" in example and told.endswith("404")  # nothing of this user has come in yet
        assert re.search(r"\n20[02]$", told) or is_unknown, f"{example}\n{told}"


def test_ten_thousand_watches_in_one_body(service: Service, http: httpx.Client):
    body = [
        {"event_id": f"many-{number}", "user_id": f"many-{number % 50}", "item_id": "v", "event_ms": 1, "watch_s": 1}
        for number in range(10_000)
    ]
    assert http.post("/watches", json=body).json() == {"accepted": 10_000, "problems": []}


# --- without its broker ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def broker_and_gateway(data_dir: Path) -> Iterator[tuple[Broker, RunningGateway]]:
    own = Settings(data_dir=data_dir, kafka=Kafka(partitions=2), gateway=Gateway(port=0, deadline_s=2.0))
    with stopping(start_broker(own)) as broker:
        settings = fill_in(own, broker.bootstrap, "http://127.0.0.1:1")
        topics.create_topics(settings.kafka)
        with running_gateway(settings) as gateway:
            yield broker, gateway


@contextlib.contextmanager
def killed(broker: Broker) -> Iterator[None]:
    broker.process.kill()
    try:
        yield
    finally:
        broker.restart()


@contextlib.contextmanager
def standing_still(broker: Broker) -> Iterator[None]:
    os.killpg(broker.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(broker.process.pid, signal.SIGCONT)


@needs(KAFKA, "noida keeps nothing over kill -9")
@pytest.mark.parametrize("outage", [killed, standing_still], ids=["killed", "standing still"])
def test_an_outage_of_the_broker_loses_no_acknowledged_watch(outage, tmp_path: Path, record_property):
    with broker_and_gateway(tmp_path) as (broker, gateway):
        with posting(gateway, ["v"], PER_S) as load:
            wait_until(lambda: len(load.acknowledged) > PER_S, "acknowledged", 30)
            with outage(broker):
                time.sleep(AWAY_S)
                assert not gateway.is_ready
                during = dict(load.statuses)
            back_s = time.monotonic()
            wait_until(lambda: max(load.acknowledged.values()) > back_s + 1.0, "acknowledged again", 60)
            wait_until(lambda: gateway.is_ready, "ready again", 30)
        first_s = min(at - back_s for at in load.acknowledged.values() if at > back_s)
        assert during.get(503), "who waits is told"
        assert load.lost(gateway.settings) == [] and set(load.statuses) <= {202, 503}
        assert gateway.process.poll() is None
        record_property("told", f"gateway: {len(load.acknowledged)} acknowledged, again after {first_s:.1f} s")

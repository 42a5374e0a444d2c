"""A hundred thousand messages that cannot be used in each topic of a running system: who lives, and where each is.

Every process runs, on a broker of its own (KAFKA_HOME: what brokers take is only known of Apache Kafka). Requests are
asked all the while, and each must have its reply. `set aside`: one dead letter (`repeated`: its record is there again,
after a rebalance); `answered`: by an error; `passed over`: in a topic that our own processes write for each other, read
by the views, which are as they were.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.platform.kafka_clients import client_options
from infra.simulation.world import NOTICE
from nextwatch_client import RecommendClient, RecommendRequest
from streams import topics
from tests.benchmarks.report import Report, say
from tests.harness.flood import PASSED_OVER, SET_ASIDE, Account, allow_any_time, pour, pour_refused_requests
from tests.harness.service import Service, Size, running_service
from tests.harness.system import read_metrics, wait_until

WORKERS = ("history", "join", "trending", "trainer")
PATIENCE_S = 300.0
ASKED = 200


def measure(report: Report, quick: bool) -> None:
    """Bad messages in every topic while requests are answered; what is unaccounted for, and who has died."""
    count = 2_500 if quick else 100_000
    report.title = f"fuzz: {count:,} bad messages in each topic, bombs and large ones included"
    report.note(NOTICE)
    with TemporaryDirectory(prefix="nextwatch-") as directory, ExitStack() as stack:
        service = stack.enter_context(running_service(Path(directory), 1, Size(), deadline_s=PATIENCE_S))
        for name in WORKERS:
            service.start(name)
        service.wait_ready(*WORKERS)
        kafka = service.settings.kafka
        allow_any_time(kafka)
        account = stack.enter_context(closing(Account(kafka)))
        client = stack.enter_context(RecommendClient(client_options(kafka)))
        unanswered = 0
        for seed, topic in enumerate((*SET_ASIDE, *PASSED_OVER)):
            unanswered += flood(report, service, account, client, topic, count, seed)
        died = [name for name, process in service.processes.items() if process.poll() is not None]
    report.bar("unaccounted", sum(row["unaccounted"] for row in report.rows), at_most=0)
    report.bar("processes that died", len(died), at_most=0)
    report.bar("requests without a reply", unanswered, at_most=0)


def flood(
    report: Report, service: Service, account: Account, client: RecommendClient, topic: str, count: int, seed: int
) -> int:
    """One row of the table; how many of the requests asked meanwhile had no good reply."""
    say(f"{topic}: {count:,}")
    began_s = time.monotonic()
    places = pour(service.settings.kafka, topic, count, seed)
    asked = pour_refused_requests(service.settings.kafka, ASKED) if topic == topics.RECOMMEND_REQUESTS else []
    good = ask(service, client, topic)
    row: dict[str, Any] = {"topic": topic, "sent": len(places) + len(asked)}
    row |= dict.fromkeys(("set aside", "repeated", "answered", "passed over", "unaccounted"), 0)
    if topic in SET_ASIDE:
        account.wait_for(places, asked)
        row["set aside"] = len(places) - len(account.unaccounted(places))
        row["repeated"] = account.repeated(places)
        row["answered"] = sum(account.errors[request] > 0 for request in asked)
    else:
        wait_until(lambda: not lag(service, topic), f"{topic} read", PATIENCE_S)
        row["passed over"] = len(places)
    row["unaccounted"] = row["sent"] - row["set aside"] - row["answered"] - row["passed over"]
    row["unaccounted"] += len([place for place in account.foreign(places) if place[0] == topic])
    report.add(**row, seconds=time.monotonic() - began_s)
    say(str(report.rows[-1]))
    return good


def ask(service: Service, client: RecommendClient, topic: str) -> int:
    users = list(service.releases.histories)[:20]
    requests = [RecommendRequest(f"{user}/{topic}", user, 10) for user in users]
    replies = client.recommend_many(requests, timeout_s=PATIENCE_S)
    return sum(reply.error is not None or not reply.items for reply in replies)


def lag(service: Service, topic: str) -> float:
    """What serving has not read of a topic that it follows; of the others its readers are those who write them."""
    page = read_metrics(service.settings, "serving")
    return sum(value for name, value in page.items() if name.startswith("nextwatch_consumer_lag") and topic in name)

"""How long a killed process takes until it is ready again, with the state of very many users in the topics."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.local.processes import command_part
from infra.local.stack import COMMANDS
from infra.local.supervisor import Supervisor
from infra.operate.training import published
from infra.platform.settings import Embedded, Settings
from streams import topics
from streams.kafka.releases import announce
from streams.messages import Impression, JoinState, OpenImpression, Search, Shown, ShownList, UserHistory, Watch, encode
from tests.benchmarks.load import send_all
from tests.harness.service import Size, train_releases
from tests.harness.system import embedded
from tests.harness.traffic import now_ms

READY_S = 300.0
KILLED = ("history", "join", "serving")
WATCHES, SEARCHES, LISTS, PER_LIST = 30, 3, 5, 20
SIZE = Size(users=200, items=2000, watches=8000, dim=32)
VALUES = bytes(4 * 30)  # what the ranker was fed of an item


def recovery_s(users: int, rounds: int, say: Callable[[str], None]) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds from SIGKILL to ready by process, one at a time under a supervisor; and bytes put into each topic."""
    with TemporaryDirectory(prefix="nextwatch-") as directory, contextlib.ExitStack() as stack:
        settings = Settings(data_dir=Path(directory), embedded=Embedded(ready_timeout_s=READY_S))
        releases = train_releases(settings.bundles_dir, 1, SIZE, now_ms=now_ms())
        settings = stack.enter_context(embedded(settings))
        written = fill(settings, users, list(releases.items))
        say(f"{users:,} users: {', '.join(f'{name} {size / 1e6:.0f} MB' for name, size in written.items())}")
        announce(settings.kafka, published(releases.bundles[0].manifest))
        supervisor = stack.enter_context(Supervisor(lambda process, what: say(f"{process}: {what}")))
        for name in ("indexer", *KILLED):
            supervisor.add(command_part(name, COMMANDS[name], settings))
        supervisor.wait_ready(READY_S)
        found: dict[str, list[float]] = {name: [] for name in KILLED}
        for _ in range(rounds):
            for name in KILLED:
                found[name].append(recover(supervisor, name))
                say(f"{name} ready after {found[name][-1]:.1f} s")
    return found, written


def recover(supervisor: Supervisor, name: str) -> float:
    """Kill a process and wait until it is ready; the seconds."""
    process = supervisor.process(name)
    assert process is not None
    began_s = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    while supervisor.process(name) is process:
        time.sleep(0.01)
    supervisor.wait_ready(READY_S, [name], crashes=1000)  # of our own doing
    return time.monotonic() - began_s


def fill(settings: Settings, users: int, items: list[str]) -> dict[str, int]:
    """Write a history and a state of the join for everybody; the bytes by topic."""
    written, at_ms = Counter[str](), now_ms()

    def messages(topic: str, number: int) -> Iterator[tuple[bytes, bytes]]:
        for user, *state in states(users, items, at_ms):
            value = encode(state[number])
            written[topic] += len(value)
            yield user.encode(), value

    for number, topic in enumerate((topics.USER_HISTORIES, topics.JOIN_STATE)):
        send_all(settings.kafka, topic, messages(topic, number))
    return written


def states(users: int, items: list[str], at_ms: int) -> Iterator[tuple[str, UserHistory, JoinState]]:
    rng = random.Random(1)
    for number in range(users):
        user = f"user-{number}"
        watches = tuple(
            Watch(rng.choice(items), at_ms - 60_000 * back, 40.0, 60.0, True, f"{user}/{back}", WATCHES - back)
            for back in range(WATCHES, 0, -1)
        )
        searches = tuple(Search("red cars", at_ms - back, f"{user}/s{back}", 1) for back in range(SEARCHES, 0, -1))
        lists = tuple(
            ShownList(f"{user}/r{back}", at_ms - 60_000 * back, tuple(rng.choices(items, k=PER_LIST)))
            for back in range(LISTS, 0, -1)
        )
        shown = tuple(
            Shown(item, place, "retrieval", 1.0, 30.0, place, {"retrieval": 1.0}, values=VALUES)
            for place, item in enumerate(lists[-1].item_ids, 1)
        )
        impression = Impression(lists[-1].request_id, user, at_ms, "server", "v", shown, values=VALUES)
        waiting = OpenImpression(
            impression.request_id, at_ms, lists[-1].item_ids, encode(impression), 0, at_ms + 1_800_000
        )
        yield (
            user,
            UserHistory(user, watches, searches, None, 0, 0, at_ms, lists, 0),
            JoinState(user, (waiting,), (), 0, 0),
        )

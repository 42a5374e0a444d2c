"""A rolling upgrade: a system of the last release's code, each process replaced by this checkout's while people watch
and ask, in the order of docs/operating.md. Nothing is lost, everybody is answered, and what was learnt stays."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infra.local.broker import start_broker
from infra.local.milvus_server import start_milvus
from infra.local.processes import process_environ
from infra.local.stack import COMMANDS, milvus_answers
from infra.platform.guarded_process import GuardedProcess, start_guarded
from infra.platform.kafka_clients import client_options
from infra.platform.run_files import fill_in
from infra.platform.settings import ENV_PREFIX, Kafka, Model, Ranker, Settings
from models.release.bundle import read_bundle
from nextwatch_client import RecommendClient
from streams.messages import ItemVector, WatchEvent, decode, encode
from streams.topics import DEAD_LETTERS, ITEM_VECTORS, TRAINING_EXAMPLES, WATCH_EVENTS
from streams.trainer.progress import PROGRESS_KEY
from tests.harness.crash import replay
from tests.harness.crash.replay import read_all
from tests.harness.needs import GIT_HISTORY, LAST_RELEASE, require
from tests.harness.requests import Asked, steady, wait_for_replies
from tests.harness.system import SMALL, TRAIN_S, Cluster, cli, process, run_cli, stopping, wait_for_health, wait_until
from tests.harness.traffic import Histories, Load, Reader, Traffic, now_ms, total_of

pytestmark = pytest.mark.system

USERS, ITEMS, DAY_MS = 40, 120, 86_400_000
STEPS = (("indexer",), ("history",), ("serving",), ("serving-2",), ("trainer", "join", "trending"))
READ = (("history", WATCH_EVENTS), ("join", WATCH_EVENTS), ("trending", WATCH_EVENTS), ("trainer", TRAINING_EXAMPLES))


class Watches(Load):
    """People who watch what there is, most of it to its end."""

    def send_one(self) -> None:
        user, item = self._user(), f"i{int(self._rng.integers(0, ITEMS))}"
        event = WatchEvent(uuid.uuid4().hex, user, item, now_ms(), float(self._rng.uniform(0, 60)), 60.0)
        self._traffic.send_later(WATCH_EVENTS, user, encode(event))


class LastRelease:
    """The code of the last release, as `git archive` gives it, and its processes."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self._root, self._settings = root, settings
        told = subprocess.run(
            [sys.executable, "-P", "-c", "from infra.platform.settings import variables; print(*variables())"],
            env=self._environ(os.environ),
            check=True,
            capture_output=True,
            text=True,
        )
        self._known = set(told.stdout.split())

    def run(self, *arguments: str) -> str:
        return subprocess.run(
            self._command(*arguments), env=self._own_environ(), check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    @contextlib.contextmanager
    def process(self, name: str) -> Iterator[GuardedProcess]:
        log = self._settings.data_dir / "logs" / f"{name}-of-before.log"
        command = self._command(*COMMANDS[name.partition("-")[0]])
        started = start_guarded(name, command, log=log, environ=self._own_environ(), grace_s=20.0)
        try:
            yield started
        finally:
            started.stop()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "infra.cli", *arguments]  # -P: not what lies in the working directory

    def _own_environ(self) -> dict[str, str]:
        """The settings that it knows."""
        ours = process_environ(self._settings, os.environ)
        return self._environ({n: v for n, v in ours.items() if not n.startswith(ENV_PREFIX) or n in self._known})

    def _environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(self._root), str(self._root / "clients" / "python" / "src")])
        return {**environ, "PYTHONPATH": path}


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The last release's files."""
    require(GIT_HISTORY)
    here = Path(__file__).parents[3]
    archive = subprocess.run(["git", "archive", LAST_RELEASE], cwd=here, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path / "before", filter="data")
    return tmp_path / "before"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Services that know none of our topics yet."""
    own = Settings(
        data_dir=tmp_path / "data",
        kafka=Kafka(**SMALL),
        model=Model(dim=8, hidden=(16,), members=1, linear_dim=0, negatives=64, batch=256, epochs=2),
        ranker=Ranker(hidden=(8,), members=1, epochs=1),
    )
    with stopping(start_broker(own)) as broker, stopping(start_milvus(own, probe=milvus_answers)) as milvus:
        yield fill_in(own, broker.bootstrap, milvus.uri)


@pytest.fixture
def log(tmp_path: Path) -> tuple[str, ...]:
    """A log of yesterday and its items, as `nextwatch train` takes them."""
    rng, rows = np.random.default_rng(5), 3000
    users, items = rng.integers(0, USERS, rows), (ITEMS * rng.random(rows) ** 1.5).astype(int)
    frame = pl.DataFrame(
        {
            "user_id": [f"load-1-{number}" for number in users],
            "item_id": [f"i{number}" for number in items],
            "event_ms": now_ms() - DAY_MS + 10_000 * np.arange(rows),
            "watch_s": np.where(users % 4 == items % 4, 50.0, 5.0),
            "duration_s": np.full(rows, 60.0),
        }
    )
    names = [f"i{number}" for number in range(ITEMS)]
    catalogue = pl.DataFrame({"item_id": names, "channel": [f"c{n % 4}" for n in range(ITEMS)], "duration_s": 60.0})
    paths = tmp_path / "log.parquet", tmp_path / "items.parquet"
    frame.write_parquet(paths[0])
    catalogue.write_parquet(paths[1])
    return "train", str(paths[0]), "--items", str(paths[1]), "--wait-s", "90", "--json"


def test_each_process_is_replaced_under_load_and_nothing_is_lost(
    before: Path, settings: Settings, log: tuple[str, ...]
):
    last = LastRelease(before, settings)
    last.run("topics", "--create")
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(last.process(name)) for step in STEPS for name in step}
        wait_for_health(settings, *running.values())
        released = [json.loads(last.run(*log))["version"]]

        def replace(step: Sequence[str]) -> None:
            """Stop them, as a person does who upgrades, and start this checkout's in their place."""
            for name in step:
                assert running[name].stop() == 0, name
                running[name] = stack.enter_context(process(settings, name, cli(*COMMANDS[name.partition("-")[0]])))
            wait_for_health(settings, *(running[name] for name in step))

        client = stack.enter_context(RecommendClient(client_options(settings.kafka)))
        load = Watches(stack.enter_context(contextlib.closing(Traffic(settings.kafka))), seed=1, users=USERS)
        asked: list[Asked] = []
        users = (f"load-1-{number % USERS}" for number in itertools.count())
        with load.flowing(50), steady(client, lambda: next(users), 5, asked):
            for step in STEPS:
                replace(step)
                if step == ("indexer",):
                    run_cli(settings, "topics", "--create")
        wait_for_replies(asked)
        assert len(asked) > 50 and all(each.reply is not None for each in asked)
        assert {each.reply.version for each in asked if each.reply} == set(released), "the release of before is served"
        readers = Histories(settings.kafka), Reader(settings.kafka, TRAINING_EXAMPLES)
        histories, examples = (stack.enter_context(contextlib.closing(each)) for each in readers)
        replay.check(settings, histories, examples)
        with Cluster(settings.kafka) as cluster:
            wait_until(lambda: not any(cluster.behind(*place) for place in READ), "everything read", 60)
        assert not read_all(settings, DEAD_LETTERS)
        made = len(examples.records)
        wait_until(lambda: round(learnt(settings, released[0])) >= made, "rows of all examples", 60, every_s=1.0)
        assert round(learnt(settings, released[0])) == made, "each example counts once"
        released.append(json.loads(run_cli(settings, *log, timeout_s=TRAIN_S))["version"])
        assert client.recommend("load-1-1", 10).version == released[1], "and a new one after it"
        assert all(each.poll() is None for each in running.values())


def learnt(settings: Settings, version: str) -> float:
    """All watches that the rows of a release have counted since it was trained."""
    model = read_bundle(settings.bundles_dir / version).model
    _, before, _ = model.popularity.stored(np.arange(len(model.item_ids)))
    rows = {record.key: record.value for record in read_all(settings, ITEM_VECTORS)}
    found = {key: decode(ItemVector, value) for key, value in rows.items() if value is not None and key != PROGRESS_KEY}
    now = {key.decode(): total_of(row) for key, row in found.items() if row.version == version}
    return sum(now.values()) - sum(before[model.row(item_id)] for item_id in now if model.row(item_id) >= 0)

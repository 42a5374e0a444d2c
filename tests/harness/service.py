"""An indexer and servers on a broker and a Milvus of their own, with releases of the simulated world.

What the other processes would write is written here: histories as the history worker does, rows as the trainer does.
So nothing is learnt meanwhile, and each score that a reply may hold follows from its version, its user and its item: a
reply of mixed versions shows.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from msgspec import structs

from infra.local.milvus_server import MilvusServer
from infra.local.stack import COMMANDS
from infra.operate.releases import read_topic
from infra.operate.training import published
from infra.platform.guarded_process import GuardedProcess
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Embedded, Indexer, Kafka, Model, Ranker, Serving, Settings
from infra.simulation.world import World
from models.logs.stored_log import store_frame
from models.release.bundle import Bundle, read_bundle
from models.release.training import train_with_trial
from streams import topics
from streams.history.rules import is_completed
from streams.kafka.releases import announce
from streams.messages import Item, ItemVector, Trending, UserHistory, Watch, encode
from tests.harness.system import cli, process, services, wait_for_health, wait_until
from tests.harness.traffic import Traffic

DAY_MS = 86_400_000
SEED = 7
COMPLETED_S = 18.0
SERVED_S = 180.0  # much longer than it takes, also on a machine that has too much to do
READY_S = 180.0
TOWERS = Model(hidden=(32,), members=1, linear_dim=0, negatives=256, batch=512, epochs=1, context=False, searches=False)
RANKER = Ranker(hidden=(16,), members=1, epochs=1)


@dataclass(frozen=True)
class Size:
    users: int = 150
    items: int = 200
    watches: int = 4000
    dim: int = 8


@dataclass
class Releases:
    """Bundles that differ in all they have learnt, oldest first; who has watched what, and what there is."""

    bundles: list[Bundle]
    histories: dict[str, UserHistory]
    items: dict[str, Item]

    def scores(self, version: str) -> tuple[dict[str, int], dict[str, int], np.ndarray]:
        """Rows of users, columns of items, and the inner product of each user [U] with each item [N] of a version."""
        model = next(each for each in self.bundles if each.manifest.version == version).model
        users, items = list(self.histories), model.item_ids
        vectors = model.user_vectors(list(self.histories.values()), self.bundles[-1].manifest.created_ms)  # [U, D]
        places = ({name: at for at, name in enumerate(names)} for names in (users, items))
        return *places, vectors @ model.item_vectors().T  # type: ignore[return-value]


def train_release(
    log: pl.DataFrame,
    items: pl.DataFrame | None,
    towers: Model,
    ranker: Ranker,
    bundles_dir: Path,
    now_ms: int,
    offsets: Mapping[str, int] | None = None,
) -> Bundle:
    """As `nextwatch train` would, without judging it first."""
    with TemporaryDirectory() as scratch:
        manifest = train_with_trial(
            store_frame(log, Path(scratch), completed_s=COMPLETED_S),
            items,
            settings=towers,
            ranker=ranker,
            bundles_dir=bundles_dir,
            created_ms=now_ms,
            offsets=dict(offsets or {}),
            measure=False,
        ).manifest
    return read_bundle(bundles_dir / manifest.version)


def train_releases(
    bundles_dir: Path,
    count: int,
    size: Size,
    *,
    now_ms: int,
    seed: int = SEED,
    offsets: Mapping[str, int] | None = None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Releases:
    """`count` bundles, trained on the same watches from other seeds. `renamed`: other ids for items of the world."""
    world = World(seed=seed, start_ms=now_ms, users=size.users, items=size.items)
    new_id = pl.col("item_id").replace(dict(renamed))
    log = world.past_log(now_ms - 10 * DAY_MS, now_ms, size.watches).with_columns(new_id)
    bundles = [
        train_release(
            log.drop("event_id", "device", "surface"),
            world.items_frame(now_ms).with_columns(new_id),
            TOWERS.model_copy(update={"dim": size.dim, "seed": number}),
            RANKER.model_copy(update={"seed": number}),
            bundles_dir,
            now_ms - 1000 * (count - number),
            offsets,
        )
        for number in range(1, count + 1)
    ]
    catalogue = [
        structs.replace(item, item_id=renamed.get(item.item_id, item.item_id)) for item in world.catalogue(now_ms)
    ]
    return Releases(bundles, histories_of(log), {item.item_id: item for item in catalogue})


def histories_of(log: pl.DataFrame, most: int = 20) -> dict[str, UserHistory]:
    """The newest `most` watches of everybody."""
    watches: dict[str, list[Watch]] = {}
    for user, *watch in log.select("user_id", "item_id", "event_ms", "watch_s", "duration_s", "event_id").iter_rows():
        watches.setdefault(user, []).append(watch_of(*watch, offset=len(watches.get(user, ()))))
    return {user: UserHistory(user, tuple(mine[-most:])) for user, mine in sorted(watches.items())}


def watch_of(item_id: str, event_ms: int, watch_s: float, duration_s: float, event_id: str, offset: int = 0) -> Watch:
    completed = is_completed(watch_s, duration_s, COMPLETED_S)
    return Watch(item_id, event_ms, watch_s, duration_s, completed, event_id, offset)


@dataclass
class Service:
    """What runs. Processes started again have their old name."""

    settings: Settings
    releases: Releases
    milvus: MilvusServer
    traffic: Traffic
    stack: contextlib.ExitStack
    processes: dict[str, GuardedProcess] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)  # more than what processes need

    def start(self, name: str, command: str = "") -> GuardedProcess:
        """Start a process of ours (`command`: which, when it is not its name)."""
        how = cli(*COMMANDS[command or name])
        self.processes[name] = self.stack.enter_context(process(self.settings, name, how, self.environ))
        return self.processes[name]

    def wait_ready(self, *names: str) -> None:
        wait_for_health(self.settings, *(self.processes[name] for name in names), timeout_s=READY_S)

    def health(self) -> dict[str, dict[str, Any]]:
        """/health of each process by its name here."""
        records = {record["pid"]: record for record in read_run_files(self.settings.run_dir)}
        return {
            name: fetch_health(records[process.pid]) if process.pid in records else {"ready": False}
            for name, process in self.processes.items()
        }

    def publish(self, number: int) -> str:
        """Announce a bundle as `nextwatch train` does; its version."""
        manifest = self.releases.bundles[number].manifest
        announce(self.settings.kafka, published(manifest))
        return manifest.version

    def wait_served(self, version: str) -> None:
        """Return when every server that was heard lately says that it answers from this version."""
        wait_until(lambda: self.served() == {version}, f"{version} on all servers", SERVED_S, every_s=0.2)

    def served(self) -> set[str]:
        servers = (read_topic(self.settings.kafka).servers or {}).values()
        fresh_ms = max((each.heard_ms for each in servers), default=0) - 4000 * self.settings.serving.heartbeat_s
        return {each.version for each in servers if each.heard_ms >= fresh_ms}

    def tell_known(self) -> None:
        """The catalogue and the histories that there are."""
        for item in self.releases.items.values():
            self.traffic.send_later(topics.ITEMS, item.item_id, encode(item))
        for history in self.releases.histories.values():
            self.traffic.send_later(topics.USER_HISTORIES, history.user_id, encode(history))
        self.traffic.flush()

    def tell_trending(self) -> None:
        top = tuple((item_id, float(1000 - at)) for at, item_id in enumerate(list(self.releases.items)[:50]))
        for partition in range(self.settings.kafka.partitions):
            scope = Trending("global", partition, time.time_ns() // 1_000_000, 3600.0, top)
            self.traffic.send_later(topics.TRENDING, f"global/{partition}", encode(scope))
        self.traffic.flush()

    def row(self, number: int, item_id: str, vector: np.ndarray | None = None) -> ItemVector:
        """A row of a version as the trainer publishes it; with the release's own numbers unless `vector` is given."""
        bundle = self.releases.bundles[number]
        model = bundle.model
        at = model.item_ids.index(item_id)
        vector = model.item_vectors()[at] if vector is None else vector
        query_row = np.asarray(model.query_rows[at], "<f4").tobytes()
        now_ms = time.time_ns() // 1_000_000
        return ItemVector(bundle.manifest.version, 1, np.asarray(vector, "<f4").tobytes(), query_row, now_ms)

    def empty_milvus(self) -> None:
        """A Milvus that has lost everything, on the port that it had."""
        self.milvus.process.stop()
        shutil.rmtree(self.settings.data_dir / "milvus")
        self.restart_milvus()

    def restart_milvus(self) -> None:
        self.milvus.restart()
        wait_until(self.milvus.is_ready, "Milvus", 60)


@contextlib.contextmanager
def running_service(
    data_dir: Path,
    releases: int,
    size: Size,
    *,
    servers: Sequence[str] = ("serving",),
    partitions: int = 2,
    renamed: Mapping[str, str] = MappingProxyType({}),
    **serving: Any,
) -> Iterator[Service]:
    """A broker (Apache Kafka when KAFKA_HOME is set), Milvus Lite, the indexer and these servers, all ready and
    answering from the first release."""
    settings = Settings(
        data_dir=data_dir,
        kafka=Kafka(partitions=partitions, session_timeout_s=6.0),
        indexer=Indexer(window_s=0.1),
        serving=Serving(**({"first": "index", "heartbeat_s": 0.5} | serving)),
        embedded=Embedded(ready_timeout_s=READY_S),
    )
    now_ms = time.time_ns() // 1_000_000
    trained = train_releases(settings.bundles_dir, releases, size, now_ms=now_ms, renamed=renamed)
    with contextlib.ExitStack() as stack:
        settings, _, milvus = stack.enter_context(services(settings))
        traffic = Traffic(settings.kafka)
        stack.callback(traffic.close)
        service = Service(settings, trained, milvus, traffic, stack)
        service.tell_known()
        service.tell_trending()
        service.start("indexer")
        for name in servers:
            service.start(name, "serving")
        service.wait_ready("indexer", *servers)
        service.wait_served(service.publish(0))
        yield service

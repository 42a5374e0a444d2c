"""`nextwatch releases`: what there is, where it lies, who serves it; and back to the spare with all servers."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer

from indexer.rollout import WHOLE, Releases, announced
from infra.local.milvus_server import start_milvus
from infra.local.stack import COMMANDS, milvus_answers
from infra.operate.releases import (
    MANIFEST,
    BundleFound,
    CollectionFound,
    hear,
    read_bundles,
    read_releases,
    servers_of,
    spare_of,
)
from infra.operate.roll_back import RollBackRefused, check_spare, choose, coming, living
from infra.operate.training import published
from infra.platform.guarded_process import GuardedProcess
from infra.platform.kafka_clients import client_options, kafka_python_options
from infra.platform.settings import Serving, Settings
from models.release import bundle as bundle_module
from models.release.bundle import Manifest, read_manifest
from nextwatch_client import RecommendClient
from streams.kafka.releases import announce, key_of
from streams.messages import BundlePublished, IndexReady, ServerState, encode
from streams.topics import RELEASES, create_topics
from tests.harness.system import cli, process, run_cli, wait_for_health, wait_until, with_section
from tests.unit.infra.command import commands
from tests.unit.serving.worlds import train_small

WAIT_S = 60.0


@dataclass(frozen=True)
class Record:
    """One of `releases`."""

    key: bytes
    value: bytes | None
    timestamp: int = 0


def record(message: Any, at_ms: int = 0) -> Record:
    return Record(key_of(message).encode(), encode(message), at_ms)


def told(*records: Record) -> Releases:
    releases = Releases()
    for each in records:
        releases = hear(releases, each)
    return releases


def ready(version: str) -> Record:
    return record(IndexReady(version, f"items_{version}", 1, 0))


def bundle(version: str) -> Record:
    return record(BundlePublished(version, 0, 3, 1, "x"))


def collections(**marks: str) -> list[CollectionFound]:
    return [CollectionFound(version, "", mark, 1) for version, mark in marks.items()]


def test_the_spare_is_the_one_that_was_told_of_last_beside_the_live_one():
    marks = {"a": announced(1), "b": announced(3), "c": announced(2), "d": WHOLE, "e": ""}
    assert spare_of("b", marks) == "c"
    assert spare_of("c", marks) == "b"
    assert spare_of("", marks) == ""
    assert spare_of("a", {"a": announced(1), "d": WHOLE}) == ""


def test_what_is_gone_back_to_is_the_spare_and_only_when_servers_can_take_it():
    bundles = [BundleFound("a", 1), BundleFound("b", 1)]
    both = collections(a=announced(1), b=announced(2))
    assert choose(told(ready("b")), both, bundles).version == "a"
    assert choose(told(ready("b"), ready("a")), both, bundles).version == "b", "rolling back twice goes forward"
    assert choose(told(ready("b")), both, bundles, "a").version == "a"
    for to, why in (("b", "release b is live already"), ("c", "the spare, which is a and not c")):
        with pytest.raises(RollBackRefused, match=why):
            choose(told(ready("b")), both, bundles, to)
    for why, topic, there, on_disk in (
        ("no release is live", told(), both, bundles),
        ("no spare", told(ready("a")), collections(a=announced(1)), bundles),
        ("no spare", told(ready("a")), collections(a=announced(1), b=WHOLE), bundles),
        ("no spare", told(ready("a")), collections(a=announced(1), b=""), bundles),
        ("being announced", told(ready("b")), collections(a=announced(1), b=WHOLE), bundles),
        ("its bundle: it is not there", told(ready("b")), both, bundles[1:]),
        ("its bundle: damaged", told(ready("b")), both, [BundleFound("a", 1, problem="damaged")]),
    ):
        with pytest.raises(RollBackRefused, match=why):
            choose(topic, there, on_disk)


def test_what_is_still_to_be_announced_is_named():
    assert coming(told(bundle("b"), ready("b"), ready("a")), collections(a=announced(1), b=announced(2))) == ""
    assert coming(told(bundle("c"), ready("b")), collections(b=announced(2), c="")) == "c"
    assert coming(told(bundle("c"), ready("b")), []) == "c"


def test_a_server_lives_until_others_were_heard_for_long_without_it_and_is_waited_for_while_it_does():
    heard = told(record(ServerState("old", "a", 0), 1_000), record(ServerState("new", "a", 0), 62_000))
    assert [(each.server_id, each.lives, each.heard_s_ago) for each in servers_of(heard, 63_000, 60.0)] == [
        ("new", True, 1.0),
        ("old", False, 62.0),
    ]
    assert living(heard, 63_000, 60.0) == {"new"}
    assert living(heard, 200_000, 60.0) == set(), "nobody is waited for who has been silent for long"


def test_a_goodbye_and_what_cannot_be_read_are_taken_as_they_are():
    heard = told(record(ServerState("s", "a", 0)), Record(b"server/s", None), Record(b"index", b"broken"))
    assert heard == told(record(ServerState("s", "a", 0)), Record(b"server/s", None))
    assert servers_of(heard, 0, 60.0) == []


def test_bundles_are_listed_readable_or_not_and_unfinished_ones_are_not(tmp_path):
    manifest = train_small(tmp_path)
    (tmp_path / ".writing-x").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / MANIFEST).write_text("{")
    whole, damaged = read_bundles(tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / manifest.version).iterdir())
    assert whole == BundleFound(manifest.version, size, manifest.created_ms, manifest.items, manifest.dim)
    assert damaged.version == "damaged" and damaged.problem
    assert read_bundles(tmp_path / "nowhere") == []


def test_a_bundle_is_read_here_as_where_it_is_written(tmp_path):
    assert bundle_module.MANIFEST == MANIFEST
    manifest = read_manifest(tmp_path / train_small(tmp_path).version)
    [found] = read_bundles(tmp_path)
    assert (found.version, found.items) == (manifest.version, manifest.items)


@pytest.mark.parametrize("damage", ["vectors.npy", MANIFEST])
def test_a_spare_that_no_server_would_take_is_not_gone_back_to(tmp_path, damage: str):
    """A server that starts would have no release then."""
    settings = Settings(data_dir=tmp_path)
    version = train_small(settings.bundles_dir).version
    directory = settings.bundles_dir / version
    check_spare(settings, version)
    content = (directory / damage).read_bytes()
    (directory / damage).write_bytes(content[:-1])
    with pytest.raises(RollBackRefused, match=damage):
        check_spare(settings, version)


# --- on a running system ---------------------------------------------------------------------------------------------


@dataclass
class System:
    settings: Settings
    manifests: list[Manifest]
    processes: dict[str, GuardedProcess]
    stack: contextlib.ExitStack

    def publish(self, number: int) -> str:
        """Announce a bundle; return when the server answers from it."""
        version = self.manifests[number].version
        announce(self.settings.kafka, published(self.manifests[number]))
        wait_until(
            lambda: [each["version"] for each in self.report()["servers"]] == [version], f"{version} live", WAIT_S
        )
        return version

    def report(self) -> dict[str, Any]:
        return dict(msgspec.to_builtins(read_releases(self.settings)))

    def start(self, name: str, as_name: str) -> GuardedProcess:
        started = self.stack.enter_context(process(self.settings, as_name, cli(*COMMANDS[name])))
        self.processes[as_name] = started
        return started


@pytest.fixture(scope="module")
def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """An indexer, a server, and three bundles that nobody has been told of; a Milvus without other tests' spares."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("releases"),
        kafka={"bootstrap": kafka, "topic_prefix": f"r{time.time_ns() % 10**8}-", "partitions": 2},  # type: ignore[arg-type]
        serving=Serving(heartbeat_s=0.5),
    )
    create_topics(settings.kafka)
    manifests = [train_small(settings.bundles_dir, seed) for seed in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        milvus = start_milvus(settings, probe=milvus_answers)
        stack.callback(milvus.process.stop)
        settings = with_section(settings, "milvus", uri=milvus.uri)
        system = System(settings, manifests, {}, stack)
        for name in ("indexer", "serving"):
            system.start(name, name)
        wait_for_health(settings, *system.processes.values())
        yield system


def test_there_is_nothing_to_go_back_to_before_a_second_release(system: System, run_releases: Any):
    run = run_releases(system.settings)
    done = run("--rollback")
    assert done.code == 2 and "no release is live yet" in done.err
    first = system.publish(0)
    report = json.loads(run("--json").out)
    assert (report["live"], report["spare"], report["newest"]) == (first, "", first)
    done = run("--rollback")
    assert done.code == 2 and "there is no spare" in done.err
    assert system.report()["live"] == first


def test_going_back_to_the_spare_takes_seconds_and_the_indexer_leaves_it_there(
    system: System, run_releases: Any, capsys
):
    first, second = system.publish(0), system.publish(1)
    report = system.report()
    assert (report["live"], report["spare"], report["newest"]) == (second, first, second)
    collections = [(each["version"], each["state"], each["rows"]) for each in report["collections"]]
    assert collections == [(each.version, "announced", each.items) for each in system.manifests[:2]]
    with RecommendClient(client_options(system.settings.kafka)) as client:
        assert client.recommend("ann", timeout_s=WAIT_S).version == second
        began = time.perf_counter()
        done = json.loads(run_cli(system.settings, "releases", "--rollback", "--json"))
        spent_s = time.perf_counter() - began
        assert client.recommend("ann", timeout_s=WAIT_S).version == first
    with capsys.disabled():
        print(f"\nroll-back: {done['spent_s']:.2f} s, the whole command {spent_s:.2f} s")
    assert (done["version"], done["before"], done["waiting_for"], done["coming"]) == (first, second, [], "")
    assert len(done["served_by"]) == 1
    assert done["spent_s"] < 5.0

    done_twice = run_releases(system.settings)("--rollback", "--to", first)
    assert done_twice.code == 2 and f"release {first} is live already" in done_twice.err, "and not forward again"

    system.processes["indexer"].stop()
    wait_for_health(system.settings, system.start("indexer", "indexer-again"))
    time.sleep(3.0)  # it decides every second
    report = system.report()
    assert (report["live"], report["spare"], report["newest"]) == (first, second, second)
    third = system.publish(2)
    assert system.report()["live"] == third


def test_a_server_that_does_not_follow_is_named_and_the_exit_code_says_so(system: System, run_releases: Any):
    live = system.report()["live"]
    producer = KafkaProducer(**kafka_python_options(system.settings.kafka))
    state = ServerState("deaf", live, 0)
    topic, key = system.settings.kafka.topic_prefix + RELEASES, key_of(state).encode()
    producer.send(topic, key=key, value=encode(state)).get(10)
    done = run_releases(system.settings)("--rollback", "--wait-s", "4")
    assert done.code == 1
    assert "not served yet by deaf" in done.out
    assert "1 of 2 servers" in done.err
    producer.send(topic, key=key, value=None).get(10)
    producer.close()
    done = run_releases(system.settings)("--rollback")
    assert done.code == 0 and "rolled back from" in done.out


def test_without_milvus_all_else_is_listed_and_nothing_is_rolled_back(system: System, run_releases: Any):
    away = with_section(with_section(system.settings, "milvus", uri="http://127.0.0.1:1"), "milvus", timeout_s=1.0)
    before = system.report()
    done = run_releases(away)("--json")
    report = json.loads(done.out)
    assert done.code == 2
    assert (report["live"], report["bundles"]) == (before["live"], before["bundles"])
    assert {each["server_id"] for each in report["servers"]} == {each["server_id"] for each in before["servers"]}
    assert "collections are not known: Milvus" in report["problems"][0]
    done = run_releases(away)("--rollback")
    assert done.code == 2 and "Milvus" in done.err
    assert system.report()["live"] == before["live"]


def test_a_person_reads_which_is_live_and_which_the_spare(system: System, run_releases: Any):
    done, report = run_releases(system.settings)(), system.report()
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert " live " in lines[report["live"]] and "announced, " in lines[report["live"]]
    assert " spare " in lines[report["spare"]]
    assert all(server["server_id"] in done.out for server in report["servers"])


@pytest.fixture
def run_releases(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`nextwatch releases` with settings, in this process."""
    return lambda settings: commands(monkeypatch, capsys, "releases", settings=settings)

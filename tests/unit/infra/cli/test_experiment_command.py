"""`nextwatch experiment` and `nextwatch evaluate-policy` on topics of their own: started, looked at, stopped."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from kafka import TopicPartition

from infra.cli.experiment import variants_of
from infra.operate.experiments import control
from infra.platform.settings import Kafka, Settings
from streams.erasure.erase_users import write_erased_users
from streams.experiments import Experiments
from streams.kafka.follow import read_to_end
from streams.kafka.releases import announce
from streams.messages import (
    Assigned,
    Experiment,
    Impression,
    IndexReady,
    Outcome,
    Pool,
    RankingExample,
    Release,
    Shown,
    Variant,
    encode,
)
from streams.topics import IMPRESSIONS, RANKING_EXAMPLES, RELEASES, create_topics, open_admin, partition_of
from tests.harness.traffic import Traffic, now_ms
from tests.unit.infra.command import Done, commands
from tests.unit.serving.worlds import rank_anew, train_small

HOURS = 0.01
HOURS_MS = int(HOURS * 3_600_000)
POOL = Pool(4, 0.2, 9.0, 20.0, 120.0)


@dataclass
class Topics:
    """What serving and the join would write, and the command line."""

    settings: Settings
    traffic: Traffic
    run: Callable[..., Done]
    lists: int = 0

    def start(self, name: str, *arguments: str) -> Done:
        given = ("--variant", "control", "--variant", "new:serving.fresh=3", "--hours", str(HOURS), *arguments)
        return self.run("experiment", "start", name, *given)

    def status(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = self.run("experiment", "status", "--json", *arguments)
        return done.code, json.loads(done.out)

    def running(self) -> Experiment | None:
        known = Experiments()
        for record in read_to_end(self.settings.kafka, RELEASES):
            known.hear(record.key, record.value)
        return known.running

    def show(self, user: str, assigned: Assigned | None, seconds: float, at_ms: int, **more: Any) -> None:
        """A list of one item, and what became of it."""
        item = Shown("item", 1, "two_tower", expected_watch_s=5.0, probability=more.get("probability"))
        impression = Impression(
            f"r{self.lists}", user, at_ms, "test", "v1", (item,), assigned=assigned, pool=more.get("pool")
        )
        partition = partition_of(user, self.settings.kafka.partitions)
        example = RankingExample(
            impression, (Outcome("item", seconds, False),), partition, self.lists, at_ms + self.window_ms
        )
        self.lists += 1
        self.traffic.send_later(IMPRESSIONS, user, encode(impression))
        self.traffic.send_later(RANKING_EXAMPLES, user, encode(example))

    @property
    def window_ms(self) -> int:
        return int(self.settings.join.window_s * 1000)


@pytest.fixture
def topics(kafka_settings: Settings, monkeypatch, capsys) -> Iterator[Topics]:
    create_topics(kafka_settings.kafka)
    run = commands(monkeypatch, capsys, settings=kafka_settings)
    with closing(Traffic(kafka_settings.kafka)) as traffic:
        yield Topics(kafka_settings, traffic, run)


def test_an_experiment_from_its_start_to_its_stop(topics: Topics):
    started = topics.start("one", "--slower-ms", "20")
    assert started.code == 0 and "one runs: control 50.0%, new 50.0%" in started.out
    assert topics.start("two").code == 2, "one runs at a time"
    rng, at_ms = np.random.default_rng(1), now_ms()
    for number in range(240):
        variant = ("control", "new")[number % 2]
        assigned = Assigned("one", variant, 10.0 if variant == "control" else 90.0)
        topics.show(f"u{number}", assigned, float(rng.exponential(5.0)) + 10 * (number % 2), at_ms)
    for number in range(40):  # the join has come so far, on every partition
        topics.show(f"other-{number}", None, 0.0, at_ms + HOURS_MS)
    topics.traffic.flush()
    code, report = topics.status("--effect", "0.5")
    control, new = report["variants"]
    assert code == 1 and new["failed"] == ["slower by 80 ms, 20 allowed"]
    assert (control["viewers"], control["finished"], new["finished"]) == (120, 120, 120)
    assert new["verdict"] == "better" and new["better_s"]["low"] < 10 < new["better_s"]["high"]
    assert report["needed"] and not report["sample_ratio_off"] and topics.running() is not None
    told = topics.run("experiment", "status")
    assert "slower by 80 ms, 20 allowed" in told.out and "[" in told.out and "better" in told.out
    assert topics.run("experiment", "status", "--enforce").code == 1 and topics.running() is None
    code, report = topics.status()
    assert report["reason"] == "new: slower by 80 ms, 20 allowed" and report["stopped_ms"]
    assert "one is stopped: new: slower" in topics.run("experiment", "stop", "one").out, "it stays as it was stopped"
    again = topics.start("one")
    assert again.code == 2 and "take another name" in again.err
    assert topics.start("two").code == 0


@pytest.mark.parametrize("later_ms", [-500, 500], ids=["by a clock that is behind", "by a clock that is ahead"])
def test_of_two_that_are_started_in_one_moment_the_second_on_the_topic_is_stopped(
    topics: Topics, monkeypatch, later_ms: int
):
    """The other one is written after the look at what runs."""
    variants = variants_of(["control", "new:serving.fresh=3"])
    other = Experiment("other", "salt", now_ms() + later_ms, variants)

    def announce_second(kafka: Kafka, release: Release) -> None:
        if topics.running() is None:
            announce(kafka, other)
        announce(kafka, release)

    monkeypatch.setattr(control, "announce", announce_second)
    done = topics.start("one")
    assert done.code == 2 and "other was started in the same moment, and first: one is stopped" in done.err
    assert topics.running() == other
    assert topics.status("one")[1]["reason"] == "other was started in the same moment, and first"


def test_the_first_of_two_that_are_started_in_one_moment_runs(topics: Topics, monkeypatch):
    variants = variants_of(["control", "new:serving.fresh=3"])

    def announce_first(kafka: Kafka, release: Release) -> None:
        announce(kafka, release)
        announce(kafka, Experiment("other", "salt", now_ms() - 500, variants))

    monkeypatch.setattr(control, "announce", announce_first)
    assert topics.start("one").code == 0


def test_an_experiment_whose_first_lists_have_expired_is_not_stopped(topics: Topics, monkeypatch):
    topics.start("one", "--slower-ms", "20")
    for number in range(400):
        topics.show(
            f"u{number}", Assigned("one", ("control", "new")[number % 2], 10.0 + 80 * (number % 2)), 5.0, now_ms()
        )
    topics.traffic.flush()
    monkeypatch.setenv("NEXTWATCH_KAFKA__RETENTION_H", "1e-9")
    assert topics.status()[0] == 1, "it is older than that, and yet all of it is there"
    with open_admin(topics.settings.kafka) as admin:
        admin.delete_records({TopicPartition(topics.settings.kafka.topic_prefix + IMPRESSIONS, 0): 1})
    code, report = topics.status("--enforce")
    assert code == 0 and report["variants"][1]["verdict"] == "open" and topics.running() is not None
    assert "no longer kept" in topics.run("experiment", "status").out


def test_what_cannot_be_started_or_is_not_there_ends_as_one_line(topics: Topics):
    for wrong, says in (
        (("status",), "there was no experiment yet"),
        (("stop", "one"), "there is no experiment one"),
        (("start", "a b", "--variant", "x", "--variant", "y"), "letters, digits"),
        (("start", "one", "--variant", "x"), "two variants"),
        (("start", "one", "--variant", "x", "--variant", "y:serving.batch=1"), "serving.batch cannot differ"),
        (("start", "one", "--variant", "x", "--variant", "y", "--interleave", "--slower-ms", "1"), "no guard rail"),
    ):
        done = topics.run("experiment", *wrong)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
        assert says in done.err
    assert topics.running() is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles: one, another of other candidates, and one of the first's candidates and the second's ranker."""
    directory = tmp_path_factory.mktemp("trained")
    rank_anew(directory, train_small(directory, 1), train_small(directory, 2))
    return directory


def go_live(topics: Topics, version: str) -> None:
    announce(topics.settings.kafka, IndexReady(version, f"items_{version}", 40, now_ms()))


def test_rankers_are_compared_where_their_candidates_are_the_live_ones(topics: Topics, trained: Path):
    first, other, rival = sorted(path.name for path in trained.iterdir())
    shutil.copytree(trained, topics.settings.bundles_dir, dirs_exist_ok=True)
    given = ("experiment", "start", "rankers", "--interleave", "--variant", "control", "--variant")

    def refused(version: str) -> str:
        done = topics.run(*given, f"new:release={version}")
        assert done.code == 2 and done.err.count("\n") == 1 and topics.running() is None
        return done.err

    assert "no release is live yet" in refused(rival)
    go_live(topics, first)
    assert "manifest.json: cannot be read" in refused("20260101_000000_0123456789abcdef")
    assert "'7' is not" not in refused("7") and "7 is not the version of a release" in refused("7")
    assert f"variants that are interleaved share their candidates, and {other} has its own: split" in refused(other)
    assert topics.run(*given, f"new:release={rival}").code == 0
    running = topics.running()
    assert running is not None
    assert [each.settings for each in running.variants] == [{"release": first}, {"release": rival}], "both are named"
    assert topics.status()[1]["problems"] == []
    go_live(topics, rival)
    assert topics.status()[1]["problems"] == [], "the same candidates: it goes on"
    go_live(topics, other)
    [problem] = topics.status()[1]["problems"]
    assert problem.startswith(f"no viewer is in it now: {first} has other candidates")
    assert problem in topics.run("experiment", "status").out
    shutil.rmtree(topics.settings.bundles_dir / rival)
    [problem] = topics.status()[1]["problems"]
    assert problem.startswith("whether viewers are in it now cannot be told here: ") and rival in problem
    assert topics.run("experiment", "stop").code == 0 and topics.status()[1]["problems"] == []


def test_one_release_with_candidates_of_its_own_is_compared_and_named(topics: Topics, trained: Path):
    first, other, rival = sorted(path.name for path in trained.iterdir())
    shutil.copytree(trained, topics.settings.bundles_dir, dirs_exist_ok=True)
    third = train_small(topics.settings.bundles_dir, 3).version
    go_live(topics, first)
    given = ("experiment", "start", "towers", "--variant", "control", "--variant", f"new:release={other}", "--variant")
    done = topics.run(*given, f"newer:release={third}")
    assert done.code == 2 and topics.running() is None
    assert f"{third} has other candidates (towers, rows) than {first}, which is live, and one such" in done.err
    assert f"--warm-start {first} --no-announce" in done.err
    assert topics.run(*given, f"ranker:release={rival}").code == 0
    running = topics.running()
    assert running is not None and running.beside == other
    assert [each.settings["release"] for each in running.variants] == [first, other, rival]
    assert topics.status()[1]["problems"] == []
    go_live(topics, other)
    [problem] = topics.status()[1]["problems"]
    assert problem.startswith(f"no viewer is in it now: {first} has other candidates")


def test_a_release_that_servers_have_no_memory_for_is_not_compared(
    topics: Topics, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    first, other, _ = sorted(path.name for path in trained.iterdir())
    shutil.copytree(trained, topics.settings.bundles_dir, dirs_exist_ok=True)
    go_live(topics, first)
    given = ("experiment", "start", "towers", "--variant", "control", "--variant", f"new:release={other}")
    monkeypatch.setenv("NEXTWATCH_SERVING__MIRROR_ITEMS", "10")
    done = topics.run(*given)
    assert done.code == 2 and topics.running() is None and "serving.mirror_items allows 10" in done.err


def test_a_viewer_who_was_forgotten_is_none_of_the_viewers(topics: Topics):
    topics.start("one")
    for user in ("ann", "bob"):
        topics.show(user, Assigned("one", "new"), 5.0, now_ms() - 1)
    topics.traffic.flush()
    assert topics.status()[1]["variants"][1]["viewers"] == 2
    write_erased_users(topics.settings, ["ann"], now_ms())
    assert topics.status()[1]["variants"][1]["viewers"] == 1


def test_policies_are_evaluated_or_refused_with_the_reason(topics: Topics):
    none = topics.run("evaluate-policy")
    assert none.code == 2 and "no ranking example" in none.err
    topics.show("ann", None, 3.0, now_ms())
    topics.traffic.flush()
    off = topics.run("evaluate-policy")
    assert off.code == 2 and "error: exploration was off: of 1 lists" in off.err
    for number in range(20):
        topics.show(f"u{number}", None, 4.0, now_ms(), probability=0.05, pool=POOL)
    topics.traffic.flush()
    report = json.loads(topics.run("evaluate-policy", "--json").out)
    assert (report["lists"], report["places"], report["viewers"]) == (21, 20, 20)
    uniform = next(each for each in report["policies"] if each["policy"] == "uniform")
    assert uniform["snips"]["value"] == 4.0 and uniform["hardly_tried"]
    assert uniform["doubly_robust"]["value"] == pytest.approx(5.0 + (4.0 - 5.0))
    best = next(each for each in report["policies"] if each["policy"] == "best")
    assert best["snips"]["value"] is None and best["effective_places"] == 0
    assert "hardly tried" in topics.run("evaluate-policy", "--days", "1").out


def test_variants_as_they_are_given():
    assert variants_of(["a", "b:x.y=1,x.z=true,x.n=mmr"]) == (
        Variant("a", 0.5),
        Variant("b", 0.5, {"x.y": 1, "x.z": True, "x.n": "mmr"}),
    )
    assert [each.share for each in variants_of(["a=0.2", "b=0.3"])] == [0.2, 0.3]
    for wrong in ("", "a=much", "a:x.y", "a:=3"):
        with pytest.raises(typer.BadParameter):
            variants_of([wrong])

"""One crash run: a system under `nextwatch up`, a load, deaths, rest, and the verdict on what is there then."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec
from kafka.admin import ConfigResource, ConfigResourceType

from infra.operate.releases import read_topic
from infra.operate.training import published
from infra.platform.settings import Indexer, Join, Kafka, Serving, Settings, Trainer, Trending
from streams import topics
from streams.kafka.releases import announce
from streams.messages import ItemVector, decode
from streams.trainer.progress import PROGRESS_KEY, Progress
from tests.harness.crash.killer import Deaths, Killer, process_of
from tests.harness.crash.load import Load, Pace, Sent
from tests.harness.crash.replay import outcomes, read_all, read_events
from tests.harness.crash.replies import Replies
from tests.harness.crash.supervised import Supervised, supervised
from tests.harness.crash.verdict import Verdict, held_examples, judge
from tests.harness.service import Releases, Size, train_releases
from tests.harness.system import Cluster, wait_until
from tests.harness.traffic import now_ms

REST_S = 240.0
PATIENCE_S = 240.0
WINDOW_S = 6.0
LATE_S = 600.0  # nothing that any outage here delays is later
NEVER_S = 1e9  # half-lives: counts are then plain sums
READ_BY = {  # consumer groups, and what they commit
    "nextwatch-history": (topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS, topics.IMPRESSIONS),
    "nextwatch-join": (topics.WATCH_EVENTS, topics.IMPRESSIONS),
    "nextwatch-trending": (topics.WATCH_EVENTS,),
    "nextwatch-trainer": (topics.TRAINING_EXAMPLES,),
    "indexer": (topics.ITEM_VECTORS, topics.ITEMS),  # not releases: servers repeat themselves
    "serving": (topics.RECOMMEND_REQUESTS,),
}


@dataclass(frozen=True)
class Scale:
    users: int = 120
    releases: int = 2
    size: Size = field(default_factory=lambda: Size(watches=2500))
    pace: Pace = field(default_factory=Pace)


@dataclass
class Outcome:
    seed: int
    sent: Sent
    deaths: Deaths
    verdict: Verdict = field(default_factory=Verdict)
    mixed: list[str] = field(default_factory=list)
    otherwise: list[str] = field(default_factory=list)  # answered twice not alike, or not on record
    refused: list[str] = field(default_factory=list)
    replied_twice: int = 0
    scores: int = 0
    versions: int = 0
    events: int = 0
    seconds: float = 0.0

    @property
    def unanswered(self) -> int:
        return sum(each.reply is None for each in self.sent.asked)


@dataclass
class Run:
    """What a script of deaths works with."""

    system: Supervised
    load: Load
    killer: Killer
    releases: Releases
    rng: random.Random
    say: Callable[[str], None]
    live: int = -1  # the newest release that was published

    def publish(self) -> str:
        """Announce the next release, as `nextwatch train` does; its version."""
        self.live += 1
        manifest = self.releases.bundles[self.live].manifest
        bundles_dir = self.system.settings.bundles_dir
        bundles_dir.mkdir(parents=True, exist_ok=True)
        (trained_dir(self.system.settings) / manifest.version).rename(bundles_dir / manifest.version)
        self.say(f"release {self.live + 1} published")
        announce(self.system.settings.kafka, published(manifest))
        return manifest.version

    def wait_served(self) -> None:
        """Return when the server that was heard last answers from the newest release."""
        version = self.releases.bundles[self.live].manifest.version
        wait_until(lambda: self._newest_told() == version, f"{version} served", REST_S, every_s=0.5)

    def _newest_told(self) -> str:
        servers = (read_topic(self.system.settings.kafka).servers or {}).values()
        return max(servers, key=lambda each: each.heard_ms).version if servers else ""


Script = Callable[[Run], None]


def settings_for(data_dir: Path) -> Settings:
    """Short windows, so that all is closed soon; counts that do not decay, so that they can be compared."""
    return Settings(
        data_dir=data_dir,
        kafka=Kafka(partitions=4, session_timeout_s=6.0),
        join=Join(window_s=WINDOW_S, grace_s=LATE_S, early_s=LATE_S, publish_s=0.5, half_life_h=NEVER_S),
        trending=Trending(half_life_s=NEVER_S),
        trainer=Trainer(publish_s=1.0),
        indexer=Indexer(window_s=0.1),
        serving=Serving(heartbeat_s=0.5, search_s=2.0, k=10),
    )


def trained_dir(settings: Settings) -> Path:
    """Where releases wait to be published: `up` announces the newest that it finds among the bundles by itself."""
    return settings.data_dir / "trained"


def run_crashes(
    scale: Scale,
    script: Script,
    data_dir: Path,
    seed: int,
    say: Callable[[str], None],
    more: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """The whole run; what became of it. `more` variables are given to every process."""
    began_s = time.monotonic()
    settings = settings_for(data_dir)
    offsets = {f"{topics.TRAINING_EXAMPLES}/0": 0}  # so each release learns everything, from the first example on
    with supervised(settings, more) as system:
        say("training the releases while everything starts")
        releases = train_releases(
            trained_dir(settings), scale.releases, scale.size, now_ms=now_ms(), seed=seed, offsets=offsets
        )
        killer = Killer(system, seed, say)
        killer.wait_ready()
        keep_all_records(system.settings.kafka)
        say(f"ready after {time.monotonic() - began_s:.0f} s")
        load = Load(system.settings.kafka, seed, scale.users, releases.items, scale.pace)
        run = Run(system, load, killer, releases, random.Random(seed), say)
        outcome = Outcome(seed, load.sent, killer.deaths)
        with contextlib.closing(load):
            load.publish_catalogue()
            with load.running():
                script(run)
            rest(run)
            outcome.seconds = time.monotonic() - began_s
            say("comparing")
            look(run, outcome)
        say(f"stopping: {system.stop()}")
    return outcome


def keep_all_records(kafka: Kafka) -> None:
    """Histories and rows are not compacted while we look: a reply is judged by those that it was made from."""
    names = [kafka.topic_prefix + topic for topic in (topics.USER_HISTORIES, topics.ITEM_VECTORS)]
    kept = {"min.compaction.lag.ms": str(12 * topics.HOUR_MS)}
    with topics.open_admin(kafka) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=kept) for name in names])

        def are_kept() -> bool:
            configs = topics.describe_configs(admin, names)
            return all(configs[name].items() >= kept.items() for name in names)

        wait_until(are_kept, "records are kept", PATIENCE_S)


def rest(run: Run) -> None:
    """Return when nothing is under way any more and all windows are closed."""
    run.load.finish(PATIENCE_S)
    run.say("all is sent; waiting for rest")
    settings = run.system.settings
    with Cluster(settings.kafka) as cluster:
        wait_until(lambda: is_at_rest(cluster), "rest", REST_S, every_s=0.5)
        with contextlib.suppress(TimeoutError):  # what is missing is told by the verdict
            wait_until(lambda: _all_closed(run), "all windows closed", 10 * WINDOW_S, every_s=2.0)
            wait_until(lambda: _all_told(run, cluster), "all that is learnt published", REST_S, every_s=2.0)
        wait_until(lambda: is_at_rest(cluster), "rest", REST_S, every_s=0.5)


def is_at_rest(cluster: Cluster) -> bool:
    """Whether everybody has committed all that there is, and nobody has written anything meanwhile."""
    names = {name for names in READ_BY.values() for name in names}
    before = {name: cluster.total(name) for name in names}
    behind = sum(cluster.not_committed(group, name) for group, mine in READ_BY.items() for name in mine)
    return behind == 0 and before == {name: cluster.total(name) for name in names}


def _all_closed(run: Run) -> bool:
    settings = run.system.settings
    return held_examples(settings, Counter()).keys() >= outcomes(read_events(settings), settings).keys()


def _all_told(run: Run, cluster: Cluster) -> bool:
    """Whether the trainer's rows hold all examples, by its progress."""
    rows = read_all(run.system.settings, topics.ITEM_VECTORS)
    progress = [decode(ItemVector, each.value).state for each in rows if each.key == PROGRESS_KEY and each.value]
    return bool(progress) and msgspec.msgpack.decode(progress[-1], type=Progress).next_offset >= cluster.total(
        topics.TRAINING_EXAMPLES
    )


def look(run: Run, outcome: Outcome) -> None:
    """Read everything and compare it."""
    settings, bundles = run.system.settings, run.releases.bundles
    events = read_events(settings)
    outcome.verdict = judge(settings, events, outcome.sent, bundles[run.live], run.releases.items)
    replies, takedowns = Replies(settings), outcome.sent.takedowns
    outcome.mixed = replies.mixed(bundles)
    outcome.otherwise = replies.answered_otherwise(takedowns) + replies.recorded_otherwise(takedowns)
    outcome.refused = replies.refused()
    outcome.replied_twice = sum(len(lists) > 1 for lists in replies.replies.values())
    outcome.scores, outcome.versions, outcome.events = replies.compared, len(replies.versions), events.total


def timed(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` with the seconds since the beginning in front."""
    began_s = time.monotonic()
    return lambda what: say(f"{time.monotonic() - began_s:6.1f} s  {what}")


def counts(outcome: Outcome) -> Sequence[str]:
    """The result in a few lines, for people."""
    verdict, deaths = outcome.verdict, outcome.deaths
    kills = ", ".join(
        f"{name} {deaths.of(name)}" for name in sorted({*deaths.killed, *map(process_of, deaths.died_at)})
    )
    again = ", ".join(f"{what} {count}" for what, count in verdict.again.items())
    return (
        f"seed {outcome.seed}: {deaths.total} deaths ({kills}), {deaths.died_at.total()} of them at fault points",
        f"{outcome.events} events: lost {len(verdict.lost)}, doubled {len(verdict.doubled)}, "
        f"differing {len(verdict.differing)}; again with one effect: {again}",
        f"{len(outcome.sent.asked)} requests: unanswered {outcome.unanswered}, mixed {len(outcome.mixed)}, "
        f"answered twice {outcome.replied_twice}, not alike {len(outcome.otherwise)}; {outcome.versions} versions",
        f"numbers of rows off by {verdict.furthest:.1e} at most from a learner's that nothing befalls",
        f"longest recovery to ready {deaths.longest_s:.1f} s; {outcome.seconds:.0f} s in all",
    )

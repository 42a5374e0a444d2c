"""The trainer worker end to end: training examples in a topic, until their rows are acknowledged in another.

Batch, negatives and width as by default (three towers of 64 and the linear part, 257 numbers), histories of 50, 10,000
items. In the same run: the bare step on the same examples in a loop, and
a Faust agent that only takes the same messages in batches. The worker is held against the slower of the two. The
examples lie in the topic before either starts: on two cores a producer beside it would be measured too.
"""

from __future__ import annotations

import contextlib
import sys
import time
from statistics import median

import numpy as np
import polars as pl
import torch
from kafka import KafkaConsumer

from infra.local.broker import Broker, start_broker
from infra.operate.training import published
from infra.platform.health import fetch_health
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.run_files import fill_in, read_run_files
from infra.platform.settings import Model, Ranker, Settings, Trainer
from models.release.bundle import Manifest, read_bundle
from models.retrieval.incremental import IncrementalTrainer
from streams.kafka.releases import announce
from streams.messages import TrainingExample, Watch, encode
from streams.topics import ITEM_VECTORS, TRAINING_EXAMPLES, create_topics
from tests.benchmarks.events.history import broker_name, last_ms, until_still, wait_for_count
from tests.benchmarks.load import send_all
from tests.benchmarks.report import Report
from tests.harness.service import train_release
from tests.harness.system import (
    Cluster,
    cli,
    process,
    stopping,
    temporary_settings,
    wait_for_health,
    wait_until,
    with_section,
)

DEFAULT = Trainer()
BATCH, NEGATIVES, HISTORY, ITEMS = DEFAULT.batch, DEFAULT.negatives, 50, 10_000
PATIENCE_S = 180.0
BASELINES = [sys.executable, "-m", "tests.benchmarks.events.baselines"]


def measure(report: Report, quick: bool) -> None:
    """Examples/s of the trainer worker, of the bare step, and of a Faust agent that does nothing."""
    torch.set_num_threads(1)
    examples, rounds = (6_000, 1) if quick else (40_000, 3)
    report.title = f"trainer: {examples:,} examples, B {BATCH}, S {NEGATIVES}, histories of {HISTORY}"
    made = make_examples(examples, round(time.time() * 1000))
    with temporary_settings() as settings, stopping(start_broker(settings)) as broker:
        report.note(f"broker: {broker_name(broker)}; median of {rounds} rounds")
        manifest = small_release(settings)
        bare = median([bare_rate(settings, manifest, made) for _ in range(rounds)])
        messages = [(example.user_id.encode(), encode(example)) for example in made]
        take = median([run_take(_own(settings, broker, f"t{n}-"), messages) for n in range(rounds)])
        whole = median([run_worker(_own(settings, broker, f"w{n}-"), manifest, messages) for n in range(rounds)])
    slower = min(bare, take)
    for name, rate in (("bare step", bare), ("Faust, no-op take", take), ("trainer worker", whole)):
        report.add(what=name, **{"examples/s": rate, "of the slower baseline": f"{rate / slower:.2f}"})
    report.bar("trainer worker / slower of bare step and no-op take", whole / slower, at_least=0.6)


def make_examples(count: int, now_ms: int) -> list[TrainingExample]:
    """Users with fifty completed watches before each; popular items are watched more."""
    rng = np.random.default_rng(1)
    items = (ITEMS * rng.random((count, HISTORY + 1)) ** 2).astype(int)
    return [
        TrainingExample(
            user_id=f"u{n}",
            item_id=f"i{row[-1]}",
            event_ms=now_ms,
            watch_s=30.0,
            duration_s=60.0,
            watches=tuple(
                Watch(f"i{item}", now_ms - 1000 * (HISTORY - at), 30.0, 60.0, True, f"e{n}-{at}", n)
                for at, item in enumerate(row[:-1])
            ),
            searches=(),
            context=None,
            partition=0,
            offset=n,
            produced_ms=now_ms,
        )
        for n, row in enumerate(items.tolist())
    ]


def small_release(settings: Settings) -> Manifest:
    rng = np.random.default_rng(2)
    rows = 30_000
    frame = pl.DataFrame(
        {
            "user_id": [f"v{n}" for n in rng.integers(0, 2000, rows)],
            "item_id": [f"i{n}" for n in np.r_[np.arange(ITEMS), (ITEMS * rng.random(rows - ITEMS) ** 2).astype(int)]],
            "event_ms": 1_700_000_000_000 + 1000 * np.arange(rows),
        }
    )
    towers, ranker = Model(epochs=1), Ranker(hidden=(8,), members=1, epochs=1)
    return train_release(frame, None, towers, ranker, settings.bundles_dir, round(time.time() * 1000)).manifest


def bare_rate(settings: Settings, manifest: Manifest, examples: list[TrainingExample]) -> float:
    bundle = read_bundle(settings.bundles_dir / manifest.version)
    trainer = IncrementalTrainer(bundle.model, bundle.catalogue, DEFAULT, seed=1)
    batches = [trainer.read(examples[at : at + BATCH]) for at in range(0, len(examples), BATCH)]
    trainer.learn(batches[0])
    began_s = time.perf_counter()
    for batch in batches:
        trainer.learn(batch)
    return len(examples) / (time.perf_counter() - began_s)


def run_take(settings: Settings, messages: list[tuple[bytes, bytes]]) -> float:
    send_all(settings.kafka, TRAINING_EXAMPLES, messages)
    with process(settings, "take", [*BASELINES, "take"]) as worker:
        wait_for_health(settings, worker)
        last_s = wait_for_count(settings, len(messages))
        first_s = float(fetch_health(read_run_files(settings.run_dir)[0])["first_s"])
    return (len(messages) - BATCH) / (last_s - first_s)


def run_worker(settings: Settings, manifest: Manifest, messages: list[tuple[bytes, bytes]]) -> float:
    """From the first batch's rows to the last one's, by their time stamps."""
    send_all(settings.kafka, TRAINING_EXAMPLES, messages)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(settings.kafka))
        announce(settings.kafka, published(manifest))
        stack.enter_context(process(settings, "trainer", cli("worker", "trainer")))
        wait_until(lambda: cluster.total(ITEM_VECTORS) > 0, "the first rows", PATIENCE_S)
        wait_until(lambda: cluster.behind("trainer", TRAINING_EXAMPLES) == 0, "all learnt", PATIENCE_S)
        until_still(lambda: cluster.total(ITEM_VECTORS), still_s=1.0)
        consumer = stack.enter_context(contextlib.closing(KafkaConsumer(**kafka_python_options(settings.kafka))))
        ends = {place: end for place, end in cluster.ends(ITEM_VECTORS).items() if end}
        first_ms = min(last_ms(consumer, place, 1) for place in ends)  # the record before offset 1: the first one
        return 1000 * (len(messages) - BATCH) / (max(last_ms(consumer, *end) for end in ends.items()) - first_ms)


def _own(settings: Settings, broker: Broker, prefix: str) -> Settings:
    """The same bundles, topics of its own."""
    own = with_section(fill_in(settings, broker.bootstrap, ""), "kafka", topic_prefix=prefix)
    create_topics(own.kafka)
    return own

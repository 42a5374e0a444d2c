"""A ranker alone, in a release whose candidates are those of another."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kafka import KafkaProducer

from infra.operate.progress import no_progress
from infra.operate.ranker_stage import delays_of, renew_ranker
from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Join, Ranker, Settings
from models.logs.log import LogError
from models.ranking.impression_log import Delays
from models.ranking.ranker_training import LEAST_ROWS
from models.release.bundle import Bundle, Manifest, read_bundle
from streams.messages import encode
from streams.topics import RANKING_EXAMPLES, create_topics
from tests.unit.infra.backtest.test_ranking import exposure_log
from tests.unit.serving.worlds import ITEMS, train_small
from tests.unit.streams.export.test_ranking_archive import example, shown

RANKER = Ranker(hidden=(6,), members=1, epochs=2)


@pytest.fixture
def base(tmp_path) -> Bundle:
    return read_bundle(tmp_path / "bundles" / train_small(tmp_path / "bundles").version)


def retrain(settings: Settings, base: Bundle, warm: Any, log: Path | None = None) -> Manifest:
    """Beside nobody, in place."""
    return renew_ranker(settings, base, warm, no_progress, None, settings.bundles_dir, log=log).manifest


def check_same_candidates(one: Bundle, other: Bundle) -> None:
    np.testing.assert_array_equal(one.model.item_vectors(), other.model.item_vectors())
    assert one.model.item_ids == other.model.item_ids
    assert one.manifest.offsets == other.manifest.offsets
    assert one.manifest.completed_s == other.manifest.completed_s


def test_the_delays_of_a_logs_features_are_those_of_the_join():
    assert delays_of(Settings(join=Join(window_s=60, half_life_h=3))) == Delays(60_000, 3 * 3_600_000)
    assert delays_of(Settings()) == Delays(), "by default too"


def test_a_ranker_from_a_log_goes_into_a_release_with_the_candidates_of_another(base, tmp_path):
    frame = exposure_log(600).rename({"uid": "user_id"})
    frame = frame.with_columns(item_id=pl.col("item_id").str.replace("i", "item-"))
    frame.write_parquet(tmp_path / "log.parquet")
    settings = Settings(data_dir=tmp_path, ranker=RANKER)
    manifest = retrain(settings, base, None, tmp_path / "log.parquet")
    found = read_bundle(settings.bundles_dir / manifest.version)
    check_same_candidates(found, base)
    assert found.ranker.shape.hidden == (6,)
    assert found.ranker.shape != base.ranker.shape
    sums = found.statistics.at("all", [""], np.array([manifest.created_ms]))
    assert 500 < sums[0, 0] <= 600, "of the log's own impressions, as of the release"
    frame.drop("watch_s").write_parquet(tmp_path / "log.parquet")
    with pytest.raises(LogError, match="the ranker learns from watch_s, which no row has"):
        retrain(settings, base, None, tmp_path / "log.parquet")


def test_a_ranker_from_what_was_served_needs_enough_of_it_and_then_begins_where_the_last_one_ended(
    base, make_settings, kafka
):
    settings = make_settings(kafka, ranker=RANKER.model_dump())
    create_topics(settings.kafka)
    producer = KafkaProducer(**kafka_python_options(settings.kafka))

    def serve(first: int, last: int) -> None:
        for n in range(first, last):
            watched = example(shown(ITEMS[n % 40], 1, float(n % 7)), offset=n, watched_s=(float(n % 60),))
            producer.send(settings.kafka.topic_prefix + RANKING_EXAMPLES, encode(watched), key=b"ann", partition=0)
        producer.flush()

    serve(0, LEAST_ROWS - 1)
    with pytest.raises(LogError, match=f"holds {LEAST_ROWS - 1} shown items .* {LEAST_ROWS} are needed"):
        retrain(settings, base, None)
    serve(LEAST_ROWS - 1, 2 * LEAST_ROWS)
    manifest = retrain(settings, base, None)
    found = read_bundle(settings.bundles_dir / manifest.version)
    check_same_candidates(found, base)
    assert found.ranker.trained
    assert found.ranker.shape.hidden == (6,)
    assert list(found.statistics.rows()) == list(base.statistics.rows()), "what the examples were fed with"
    hardly = settings.model_copy(update={"ranker": RANKER.model_copy(update={"rate": 1e-9})})
    warmed = read_bundle(settings.bundles_dir / retrain(hardly, base, found.ranker).version).ranker.to_arrays()
    for name, array in found.ranker.to_arrays().items():
        np.testing.assert_allclose(warmed[name], array, atol=1e-6, err_msg=name)

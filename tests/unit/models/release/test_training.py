from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from infra.platform.settings import Trainer
from models.catalogue.content import ItemContent, halves_of
from models.logs.log import LogError, log_from_frame
from models.logs.stored_log import StoredLog, store_frame
from models.logs.stored_searches import store_searches
from models.logs.training_set import prepare
from models.ranking.features import numbers_of
from models.release.bundle import Manifest, read_bundle
from models.release.training import train_with_trial
from models.retrieval.incremental import IncrementalTrainer
from models.retrieval.prequential import rank_before
from tests.harness import kuairand
from tests.harness.needs import KUAIRAND, needs
from tests.unit.models.samples import (
    RANKER,
    SETTINGS,
    START_MS,
    Example,
    Viewer,
    Watch,
    small_items,
    small_log,
    taste_log,
    watched,
)

QUICK = SETTINGS.model_copy(update={"epochs": 1})
QUICK_RANKER = RANKER.model_copy(update={"epochs": 1})


def train(frame: pl.DataFrame, bundles_dir: Path, items: pl.DataFrame | None = None, **options: Any) -> Manifest:
    return train_on(store_frame(frame, bundles_dir / "log", completed_s=18.0), bundles_dir, items, **options)


def train_on(log: StoredLog, bundles_dir: Path, items: pl.DataFrame | None, **options: Any) -> Manifest:
    usual = {"settings": QUICK, "ranker": QUICK_RANKER, "created_ms": START_MS, "offsets": {}}
    return train_with_trial(log, items, bundles_dir=bundles_dir, **(usual | options)).manifest


def test_the_same_log_gives_the_same_bundle_in_whatever_order_its_rows_come(tmp_path: Path):
    frame = small_log(600)
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    assert train(frame, tmp_path / "a").files == train(shuffled, tmp_path / "b").files


def test_the_statistics_of_an_old_log_are_as_of_the_release_and_its_end_is_told(tmp_path: Path):
    frame = small_log(600)
    end_ms = int(frame["event_ms"].max())  # type: ignore[arg-type]
    then = train(frame, tmp_path / "then", created_ms=end_ms)
    later = train(frame, tmp_path / "later", created_ms=end_ms + 10**11, learnt_ms=end_ms)  # three years
    assert (then.learnt_ms, later.learnt_ms) == (0, end_ms)
    rows = [
        list(read_bundle(tmp_path / name / each.version).statistics.rows())
        for name, each in (("then", then), ("later", later))
    ]
    assert rows[0] and [(*row[:3], row[3] + 10**11, row[4]) for row in rows[0]] == rows[1]


def test_a_log_without_watch_times_trains_no_ranker_and_says_so(tmp_path: Path):
    manifest = train(small_log(600).drop("watch_s", "duration_s"), tmp_path)
    assert manifest.ranker is None
    bundle = read_bundle(tmp_path / manifest.version)
    assert not bundle.ranker.trained
    assert list(bundle.statistics.rows()) == []


def test_the_ranker_has_learnt_from_retrieval_scores_of_a_model_that_had_not_seen_them(tmp_path: Path):
    """Retrieval scores are there of the newest rows, and of none where no such model was trained and measured."""
    manifest = train(small_log(600), tmp_path)
    points = gap_points(tmp_path / manifest.version)
    assert -20 < points[0] < points[-1] <= 0
    assert manifest.metrics["ranker_rows"] < 100
    without = train(small_log(600), tmp_path / "without", measure=False)
    assert without.ranker
    assert without.metrics == {}
    assert np.isnan(gap_points(tmp_path / "without" / without.version)).all()


def gap_points(directory: Path) -> np.ndarray:
    """The quantile table of the retrieval gap."""
    quantiles = read_bundle(directory).ranker.quantiles
    return quantiles["impression"].points[[f.name for f in numbers_of("impression")].index("retrieval_gap")]


def test_items_of_the_catalogue_and_of_the_log_are_all_in_the_bundle(tmp_path: Path):
    manifest = train(small_log(600), tmp_path, small_items(100).filter(pl.col("item_id") != "i3"))
    catalogue = read_bundle(tmp_path / manifest.version).catalogue
    assert manifest.items == 100
    rows = catalogue.rows(["i3", "i99"])
    assert catalogue.duration_s(rows).tolist() == [63, 159]
    assert [catalogue.channel_of(row) for row in rows.tolist()] == [None, "c3"]


def test_the_catalogues_duration_wins_over_the_logs(tmp_path: Path):
    items = small_items(2).with_columns(duration_s=pl.Series([1.0, None]))
    catalogue = prepare(store_frame(small_log(600), tmp_path, completed_s=18.0), items).catalogue
    assert catalogue.duration_s(catalogue.rows(["i0", "i1"])).tolist() == [1, 61]


@pytest.mark.parametrize(
    "frame",
    [
        small_log(600).with_columns(watch_s=pl.lit(0.5)),
        small_log(600).with_columns(item_id=pl.lit("only")),
        small_log(5),
    ],
)
def test_a_log_with_too_few_completed_watches_is_refused(frame: pl.DataFrame, tmp_path: Path):
    with pytest.raises(LogError, match=r"completed watches of \d+ items"):
        train(frame, tmp_path)


def test_fewer_items_than_negatives_and_one_user_of_everything_are_trained(tmp_path: Path):
    frame = small_log(600, items=3).with_columns(user_id=pl.lit("only"))
    manifest = train(frame, tmp_path)
    assert np.isfinite(read_bundle(tmp_path / manifest.version).model.item_vectors()).all()


def test_progress_goes_through_every_stage(tmp_path: Path):
    calls: list[tuple[str, int, int]] = []
    train(small_log(600), tmp_path, progress=lambda *call: calls.append(call))
    stages = dict.fromkeys(stage for stage, _, _ in calls)
    assert list(stages) == ["validation", "candidates", "features", "ranker"]
    for stage in stages:
        done, total = [(done, total) for name, done, total in calls if name == stage][-1]
        assert done == total


@needs(KUAIRAND)
def test_kuairand_is_read_with_its_invented_times_before_the_real_ones():
    log, items = kuairand.read_kuairand()
    assert (log.height, items.height) == (571_058, 7_583)
    past = log.filter(pl.col("watch_s").is_null())
    assert past["event_ms"].min() >= kuairand.FIRST_MS
    assert kuairand.read_kuairand(history=False)[0].height == 180_129
    with_skips = log_from_frame(kuairand.read_kuairand(skips=True)[0], 18.0).frame.filter(
        ~pl.col("completed") & (pl.col("watch_s") == kuairand.SKIPPED_S)
    )
    assert with_skips.height > 500_000


@dataclass(frozen=True)
class Search:
    query: str


@dataclass(frozen=True)
class Context:
    region: str | None = None
    age: float | None = None


def test_searches_and_context_are_learnt_from_kept_in_the_bundle_and_read_in_serving(tmp_path: Path):
    """Half of the users search "comedy shorts" and live in one region before they watch."""
    frame = small_log(900)
    even = pl.col("user_id").str.slice(1).cast(pl.Int64) % 2 == 0
    frame = frame.with_columns(
        region=pl.when(even).then(pl.lit("de")).otherwise(pl.lit("fr")), age=pl.when(even).then(0.2).otherwise(None)
    )
    searches = frame.filter(even).select("user_id", pl.lit("comedy shorts").alias("query"), pl.col("event_ms") - 1)
    log = store_frame(frame, tmp_path / "log", completed_s=18.0)
    words = store_searches(searches, log, buckets=500)
    settings = SETTINGS.model_copy(update={"search_tokens": 500, "search_dim": 4, "members": 2, "epochs": 2})
    manifest = train_on(log, tmp_path, small_items(), settings=settings, searches=words)
    model = read_bundle(tmp_path / manifest.version).model
    shape = model.encoder.tower.shape
    assert (shape.words, shape.contexts, shape.traits, shape.members) == (4, (3,), 1, 2)
    assert model.encoder.words.shape == (500, 8)
    assert sorted(model.encoder.contexts.fields["region"]) == ["de", "fr"]
    model.encoder.tower.shape = msgspec.structs.replace(shape, muted_towers=False)  # whatever validation said
    nobody = Viewer()
    viewers = [
        nobody,
        Viewer(searches=(Search("Comedy"),)),
        Viewer(context=Context("de")),
        Viewer(context=Context(age=0)),
    ]
    users = model.user_vectors(viewers, START_MS)
    assert np.isfinite(users).all()
    for viewer in users[1:]:
        assert (viewer != users[0]).any()
    np.testing.assert_allclose(users[:1], model.user_vectors([Viewer(context=Context("it"))], START_MS), atol=1e-6)


def test_skips_are_learnt_from_kept_in_the_bundle_and_read_in_serving_and_by_the_live_trainer(tmp_path: Path):
    settings = SETTINGS.model_copy(update={"epochs": 2, "tied": True, "skips": 4, "linear_dim": 3})
    manifest = train(small_log(900), tmp_path, small_items(), settings=settings)
    bundle = read_bundle(tmp_path / manifest.version)
    model, shape = bundle.model, bundle.model.encoder.tower.shape
    assert bundle.manifest.tower.skips == shape.skips == 4
    model.encoder.tower.shape = msgspec.structs.replace(shape, muted_towers=False)  # whatever validation said
    skipped = [Watch(f"i{n}", watch_s=2.0, completed=False) for n in range(10, 20)]
    left_alone, unknown = Watch("i3", watch_s=0.0, completed=False), Watch("?", watch_s=2.0, completed=False)
    histories = ([], skipped[6:], skipped, [*skipped, left_alone], skipped[:3], [*skipped[:3], unknown])
    users = model.user_vectors([Viewer([*each, Watch("i1")]) for each in histories], START_MS)
    assert (users[0] != users[1]).any() and (users[1] != users[4]).any()
    for same in (2, 3):
        np.testing.assert_array_equal(users[1], users[same], err_msg="the newest four that were watched at all")
    np.testing.assert_array_equal(users[4], users[5])
    trainer = IncrementalTrainer(model, bundle.catalogue, Trainer(), seed=1)
    examples = trainer.read([Example([*each, Watch("i1")], item_id="i2") for each in histories])
    np.testing.assert_allclose(trainer.user_vectors(examples.queries), users, atol=1e-6)
    trainer.add_item("?")
    examples = trainer.read([Example([*each, Watch("i1")], item_id="i2") for each in histories])
    assert (trainer.user_vectors(examples.queries)[5] != users[5]).any(), "a new item counts where it has a row"
    ranks = rank_before(trainer, model, examples)
    assert ranks.frozen[4] == ranks.frozen[5], "and not for the release, which has none"


def test_vectors_of_items_are_learnt_from_kept_in_the_bundle_and_place_what_is_new_live(tmp_path: Path):
    """All the way: a catalogue's column, the validation's verdict, the manifest, a release read back, a new item."""
    kinds = np.eye(4).repeat(2, axis=1)  # [4, 8]
    items = pl.DataFrame(
        {"item_id": [f"i{n}" for n in range(60)], "vector": [(7 * kinds[n % 4]).tolist() for n in range(60)]}
    )
    settings = SETTINGS.model_copy(update={"content": True, "epochs": 4})
    manifest = train(taste_log(3000, 60, 60), tmp_path, items, settings=settings)
    assert manifest.metrics["content_gain"] > 2 * manifest.metrics["content_gain_se"] > 0
    assert (manifest.content_words, manifest.content_vector) == (False, 8)
    bundle = read_bundle(tmp_path / manifest.version)
    trainer = IncrementalTrainer(bundle.model, bundle.catalogue, Trainer(), seed=1)
    new = [trainer.add_item(f"new {kind}", ItemContent(vector=halves_of(kinds[kind]))) for kind in range(4)]
    watched_rows = np.flatnonzero(bundle.model.popularity.totals() > 0)
    of = np.array([int(bundle.model.item_ids[row][1:]) % 4 for row in watched_rows])
    vectors = trainer.vectors()[:, :-1] - bundle.model.vectors[watched_rows].mean(axis=0)
    means = np.stack([vectors[watched_rows[of == kind]].mean(axis=0) for kind in range(4)])
    assert (vectors[new] @ means.T).argmax(axis=1).tolist() == [0, 1, 2, 3]
    without = train(taste_log(3000, 60, 60), tmp_path / "off", items, settings=QUICK)
    assert "content.npy" not in without.files and "content_gain" not in without.metrics, "off by default"


def test_a_log_without_skips_has_a_tower_that_does_not_read_them(tmp_path: Path):
    frame = small_log(600).filter(pl.col("watch_s") > 18)
    manifest = train(frame, tmp_path, small_items(), settings=QUICK.model_copy(update={"skips": 4}), measure=False)
    assert read_bundle(tmp_path / manifest.version).manifest.tower.skips == 0


def test_an_encoder_of_each_kind_is_saved_and_read_back_the_same(tmp_path: Path):
    for encoder in ("average", "recent", "attention"):
        settings = QUICK.model_copy(update={"encoder": encoder, "linear_dim": 4, "linear_order": encoder == "recent"})
        log = store_frame(small_log(600), tmp_path / encoder / "log", completed_s=18.0)
        manifest = train_on(log, tmp_path, small_items(), settings=settings, measure=False)
        one, other = (read_bundle(tmp_path / manifest.version).model for _ in range(2))
        viewers = [watched("i1", "i2"), Viewer(), watched(*[f"i{n % 60}" for n in range(70)])]
        users = one.user_vectors(viewers, START_MS)
        assert users.shape == (3, 13) and np.isfinite(users).all()
        np.testing.assert_array_equal(users, other.user_vectors(viewers, START_MS))
        assert (users[0] != users[1]).any()


def test_a_warm_start_begins_where_the_earlier_release_ended(tmp_path: Path):
    """One epoch from noise is worse than one epoch from a model that was trained for long."""
    log = store_frame(small_log(), tmp_path / "log", completed_s=18.0)
    long = train_on(log, tmp_path, small_items(), settings=SETTINGS)
    warm = read_bundle(tmp_path / long.version).model
    once = SETTINGS.model_copy(update={"epochs": 1, "table_rate": 1e-3, "tower_rate": 1e-4})
    cold, warmed = (train_on(log, tmp_path, small_items(), settings=once, warm=each) for each in (None, warm))
    assert warmed.metrics["log_rank_gain"] > cold.metrics["log_rank_gain"]
    with pytest.raises(ValueError, match=r"set model\.members and model\.dim"):
        train_on(log, tmp_path, small_items(), settings=once.model_copy(update={"dim": 16}), warm=warm)


def test_a_warm_start_is_not_validated_on_what_it_has_learnt(tmp_path: Path):
    """Its figures, epochs and retrieval scores are those of a cold start; what goes live begins from it."""
    log = store_frame(small_log(1200), tmp_path / "log", completed_s=18.0)
    warm = read_bundle(tmp_path / train_on(log, tmp_path, small_items()).version).model
    end_ms = int(log.event_ms[-1]) + 1
    cold, known = (
        train_on(log, tmp_path / name, small_items(), warm=each, warm_ms=end_ms)
        for name, each in (("cold", None), ("known", warm))
    )
    assert known.metrics == cold.metrics
    rows = [read_bundle(tmp_path / name / each.version) for name, each in (("cold", cold), ("known", known))]
    assert (rows[0].model.item_vectors() != rows[1].model.item_vectors()).any()


def test_an_item_of_nine_tenths_of_all_watches_and_a_user_of_most_are_trained(tmp_path: Path):
    frame = small_log(2000)
    rng = np.random.default_rng(1)
    frame = frame.with_columns(
        item_id=pl.when(pl.Series(rng.random(2000) < 0.9)).then(pl.lit("i0")).otherwise("item_id"),
        user_id=pl.when(pl.Series(rng.random(2000) < 0.5)).then(pl.lit("u0")).otherwise("user_id"),
        watch_s=pl.lit(40.0),
    )
    model = read_bundle(tmp_path / train(frame, tmp_path).version).model
    assert np.isfinite(model.item_vectors()).all()
    assert model.popularity.log_share().argmax() == model.row("i0")


def test_validation_days_without_anybody_to_ask_are_no_error(tmp_path: Path):
    """Every user watches once: nobody comes back in the newest tenth."""
    frame = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in range(300)],
            "item_id": [f"i{n % 7}" for n in range(300)],
            "event_ms": START_MS + np.arange(300),
        }
    )
    manifest = train(frame, tmp_path)
    assert manifest.metrics["cases"] == 0
    assert np.isfinite(read_bundle(tmp_path / manifest.version).model.item_vectors()).all()

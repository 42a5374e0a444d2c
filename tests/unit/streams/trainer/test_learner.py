"""What a trainer learns, once and in order, and what it publishes so that a restart can go on from it."""

import copy
import dataclasses
import itertools

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from infra.platform.settings import Trainer
from models.catalogue.catalogue import Catalogue
from models.catalogue.content import ContentShape, bag_of
from models.release.bundle import Bundle
from models.retrieval.cold_start import ContentMap, row_of
from streams.messages import Item, ItemVector, TrainingExample, Watch, decode, encode
from streams.trainer.item_contents import ItemContents, ids_of
from streams.trainer.learner import Learner, batches
from streams.trainer.progress import PROGRESS_KEY
from tests.unit.serving.worlds import CREATED_MS

SETTINGS = Trainer(evaluate_share=1.0, publish_s=0)  # more negatives than items: steps are the same in every run


def told(*items: Item) -> ItemContents:
    contents = ItemContents()
    for item in items:
        contents.hear(item)
    return contents


def learner(bundle: Bundle, items: ItemContents | None = None, settings: Trainer = SETTINGS) -> Learner:
    return Learner(bundle, {} if items is None else items, settings, seed=1)


def example(item_id: str, offset: int, partition: int = 0, before: tuple[str, ...] = ()) -> TrainingExample:
    """A completed watch of `item_id` at a place in watch-events, by a user who had completed `before`."""
    watches = tuple(
        Watch(item, CREATED_MS + at, 50.0, 60.0, True, f"{partition}-{offset}-{at}", -1)
        for at, item in enumerate(before)
    )
    event_ms = CREATED_MS + 1000 + offset
    return TrainingExample("u", item_id, event_ms, 50.0, 60.0, watches, (), None, partition, offset, event_ms)


def numbered(*examples: TrainingExample, start: int = 0) -> list[tuple[int, TrainingExample]]:
    """With their offsets in training-examples."""
    return list(enumerate(examples, start))


def vectors(rows: list[tuple[bytes, ItemVector]]) -> dict[str, np.ndarray]:
    return {key.decode(): np.frombuffer(row.vector, "<f4") for key, row in rows}


def hits(model: str, k: int = 10) -> float:
    labels = {"model": model, "k": str(k)}
    return REGISTRY.get_sample_value("nextwatch_prequential_hits_total", labels) or 0.0


def test_what_was_watched_is_published_with_the_version_the_step_and_the_oldest_watch(bundle):
    first, second = example("item-1", 10), example("item-1", 11)
    learnt = learner(bundle).learn(numbered(first, second, example("item-2", 12)))
    rows = dict(learnt.rows)
    assert {b"item-1", b"item-2"} <= rows.keys() and learnt.duplicates == 0
    row = rows[b"item-1"]
    assert (row.version, row.step, row.produced_ms) == (bundle.manifest.version, 1, first.produced_ms)
    assert len(row.vector) == 4 * bundle.manifest.dim


def test_a_watched_item_gains(bundle):
    before = dict(zip(bundle.model.item_ids, bundle.model.item_vectors(), strict=True))
    viewer = bundle.model.user_vectors([example("item-7", 0, before=("item-3",))], CREATED_MS)[0]
    batch = numbered(*(example("item-7", offset, before=("item-3",)) for offset in range(20)))
    after = vectors(learner(bundle).learn(batch).rows)["item-7"]
    assert viewer @ after > viewer @ before["item-7"] + 0.1


def test_how_far_the_moved_rows_are_from_the_release_is_told(bundle):
    """Of the rows that moved; a new item has no row in the release and is not counted."""
    trainer = learner(bundle)
    trainer.learn(numbered(example("item-7", 0, before=("item-3",)), example("a new item", 1)))
    first = REGISTRY.get_sample_value("nextwatch_item_row_turn") or 0.0
    for step in range(1, 40):
        trainer.learn(
            numbered(*(example("item-7", 10 * step + n, before=("item-3",)) for n in range(5)), start=10 * step)
        )
    assert 0 <= first < (REGISTRY.get_sample_value("nextwatch_item_row_turn") or 0.0) < 2
    assert 0.5 < (REGISTRY.get_sample_value("nextwatch_item_row_growth") or 0.0) < 3


def test_an_example_that_was_made_twice_is_learnt_once(bundle):
    """The history worker makes an example again after a crash: another offset, the same watch."""
    once, twice = learner(bundle), learner(bundle)
    rows = once.learn(numbered(example("item-1", 5), example("item-2", 6))).rows
    learnt = twice.learn(numbered(example("item-1", 5), example("item-2", 6), example("item-1", 5)))
    assert learnt.duplicates == 1
    assert [replace(row, learnt_to=2) for _, row in learnt.rows] == [row for _, row in rows]
    again = twice.learn(numbered(example("item-2", 6), example("item-1", 4), start=3))
    assert again.duplicates == 2 and again.rows == []


def test_examples_of_a_watch_topic_of_before_say_nothing_of_the_offsets_of_this_one(bundle):
    trainer = learner(bundle)
    trainer.learn(numbered(example("item-1", 1000)))
    trainer.forget_watched()
    trainer.renewed_to = 3
    trainer.learn(numbered(example("item-2", 1001), example("item-3", 1002), start=1))
    learnt = trainer.learn(numbered(example("item-1", 0), example("item-2", 1), start=3))
    assert learnt.duplicates == 0 and trainer.progress.watched == {0: 1}


def test_an_example_that_is_read_twice_is_learnt_once(bundle):
    trainer = learner(bundle)
    batch = numbered(example("item-1", 5), example("item-2", 6))
    trainer.learn(batch)
    assert trainer.learn(batch) == ([], 2)


def test_watches_of_different_partitions_have_their_own_offsets(bundle):
    trainer = learner(bundle)
    trainer.learn(numbered(example("item-1", 100, partition=0)))
    learnt = trainer.learn(numbered(example("item-2", 3, partition=1), example("item-3", 4, partition=1), start=1))
    assert learnt.duplicates == 0 and trainer.progress.watched == {0: 100, 1: 4}


def test_progress_comes_back_from_its_row(bundle):
    trainer = learner(bundle)
    trainer.learn(numbered(example("item-1", 5), example("item-2", 9, partition=3), start=40))
    key, row = trainer.progress_row()
    restarted = learner(bundle)
    assert restarted.is_new and key == PROGRESS_KEY
    restarted.restore(key, decode(ItemVector, encode(row)))
    assert restarted.progress == trainer.progress and not restarted.is_new
    assert restarted.progress.next_offset == 42 and restarted.progress.watched == {0: 5, 3: 9}


def test_rows_without_a_progress_do_not_begin_a_release(bundle):
    """A trainer died between its first rows and their progress: they are taken back, and the release is still new."""
    trainer = learner(bundle)
    key, row = next((key, row) for key, row in trainer.learn(numbered(example("item-1", 5))).rows if key == b"item-1")
    restarted = learner(bundle)
    restarted.restore(key, decode(ItemVector, encode(row)))
    assert restarted.is_new
    assert dict(restarted.rows_of([key]))[key].vector == row.vector


def test_a_restarted_learner_goes_on_where_the_published_rows_are(bundle):
    items = told(Item("new", channel="c"))
    steps = [
        numbered(*(example(f"item-{at % 7}", 10 * step + at, before=("item-9",)) for at in range(10)), start=10 * step)
        for step in range(3)
    ]
    steps[1][-1] = (steps[1][-1][0], example("new", 19, before=("item-9",)))
    first, restarted = learner(bundle, items), learner(bundle, items)
    published: dict[bytes, ItemVector] = {}  # as a compacted topic keeps them
    for step in steps[:2]:
        published |= dict(first.learn(step).rows)
        published |= dict([first.progress_row()])
    for key, row in published.items():
        restarted.restore(key, decode(ItemVector, encode(row)))
    assert restarted.learn(steps[1]) == ([], 10), "what was learnt is not learnt again"
    went_on, after_restart = first.learn(steps[2]).rows, restarted.learn(steps[2]).rows
    assert [(key, row.step, row.produced_ms) for key, row in went_on] == [
        (key, row.step, row.produced_ms) for key, row in after_restart
    ]
    for (item_id, expected), found in zip(vectors(went_on).items(), vectors(after_restart).values(), strict=True):
        assert found == pytest.approx(expected, abs=2e-3), item_id


def test_rows_of_another_release_are_passed_over(bundle):
    trainer = learner(bundle)
    row = ItemVector("another", 7, b"", b"", 0)
    trainer.restore(b"item-1", row)
    trainer.restore(PROGRESS_KEY, row)
    assert trainer.is_new and trainer.progress.next_offset == 0


def test_examples_are_ranked_before_they_are_learnt(bundle):
    """Nobody finds a new item before its first watches are learnt; the live model does afterwards, the frozen never."""
    trainer = learner(bundle)
    counter = itertools.count()
    before = {model: hits(model) for model in ("live", "frozen", "popular")}
    trainer.learn(numbered(*(example("fresh", next(counter)) for _ in range(150))))
    assert {model: hits(model) - count for model, count in before.items()} == {"live": 0, "frozen": 0, "popular": 0}
    trainer.learn(numbered(*(example("fresh", next(counter)) for _ in range(50)), start=150))
    found = {model: hits(model) - count for model, count in before.items()}
    assert found == {"live": 50, "frozen": 0, "popular": 50}


def test_so_many_are_evaluated_as_the_budget_pays_for_and_none_when_catching_up(bundle):
    def evaluated() -> float:
        return REGISTRY.get_sample_value("nextwatch_prequential_examples_total") or 0.0

    trainer = learner(bundle, settings=Trainer(evaluate_scores=100 * bundle.manifest.items))
    before = evaluated()
    trainer.learn(numbered(*(example("item-1", offset) for offset in range(400))))
    assert evaluated() - before == 100
    before = evaluated()
    trainer.learn(numbered(*(example("item-1", 400 + at) for at in range(10)), start=400), evaluate=False)
    assert evaluated() == before


def test_a_share_of_the_batches_is_evaluated_the_first_one_at_once(bundle):
    trainer, counts = learner(bundle, settings=Trainer(evaluate_share=0.25)), []
    for at in range(9):
        before = REGISTRY.get_sample_value("nextwatch_prequential_examples_total") or 0.0
        trainer.learn(numbered(example("item-1", at), start=at))
        counts.append((REGISTRY.get_sample_value("nextwatch_prequential_examples_total") or 0.0) - before)
    assert counts[0] == 1 and sum(counts) == 3


def test_batches_are_full_but_for_the_last():
    sizes = [len(chunk) for chunk in batches(numbered(*(example("item-1", at) for at in range(7))), 3)]
    assert sizes == [3, 3, 1] and list(batches([], 3)) == []


def test_a_new_item_gets_a_row_with_the_watch_that_admits_it(bundle):
    trainer = learner(bundle, settings=Trainer(admit_after=3))
    for offset in range(2):
        assert b"fresh" not in dict(trainer.learn(numbered(example("fresh", offset), start=offset)).rows)
    assert b"fresh" in dict(trainer.learn(numbered(example("fresh", 2), start=2)).rows)


def test_an_item_that_is_described_after_its_watch_moves_to_where_it_would_have_started(bundle):
    """`items` and `watch-events` keep no order between them."""
    catalogue = Catalogue()
    for item_id in bundle.model.item_ids:
        catalogue.upsert(item_id, channel="c1" if item_id == "item-1" else "c2")
    bundle = dataclasses.replace(bundle, catalogue=catalogue)
    item, late = Item("fresh", channel="c1"), told()
    undescribed, known, waiting = learner(bundle), learner(bundle, items=told(item)), learner(bundle, items=late)
    trainers = undescribed, known, waiting
    rows = [dict(trainer.learn(numbered(example("fresh", 0))).rows)[b"fresh"] for trainer in trainers]
    assert rows[2].vector == rows[0].vector != rows[1].vector
    assert waiting.due(0.0).rows == []
    late.hear(item)
    moved = dict(waiting.due(0.0).rows)[b"fresh"]
    for part in ("vector", "query_row"):
        at, there, before = (np.frombuffer(getattr(row, part), "<f4") for row in (moved, rows[1], rows[0]))
        assert np.linalg.norm(at - there) < 0.2 * np.linalg.norm(before - there), part
    assert waiting.due(0.0).rows == [], "once"


@pytest.mark.parametrize("is_late", [False, True])
def test_what_a_new_item_says_places_it_where_the_release_has_learnt_to(bundle, is_late):
    model = copy.copy(bundle.model)
    shape = ContentShape(words=True, vector=8)
    weights = np.random.default_rng(1).normal(0, 1, (shape.rows, 2 * model.dim - 2)).astype(np.float32)
    model.content = ContentMap(weights, shape)
    bundle = dataclasses.replace(bundle, model=model)
    item = Item("fresh", "A title", "c1", description="What it is about", vector=(0.5,) * 8)
    items = told()
    trainer = learner(bundle, items=items)
    if is_late:
        trainer.learn(numbered(example("fresh", 0)))
        items.hear(item)
        row = dict(trainer.due(0.0).rows)[b"fresh"]
    else:
        items.hear(item)
        row = dict(trainer.learn(numbered(example("fresh", 0))).rows)[b"fresh"]
    said = told(item)["fresh"]
    placed = row_of(weights, bag_of(said, shape)) + weights[-9:-1].T @ said.vector
    expected = placed[: model.dim - 1], placed[model.dim - 1 :]
    found = np.frombuffer(row.vector, "<f4")[:-1], np.frombuffer(row.query_row, "<f4")
    for part, there in zip(found, expected, strict=True):
        assert np.linalg.norm(part - there) < 0.1 * np.linalg.norm(there)


def test_a_vector_of_another_length_than_the_release_has_learnt_is_counted_and_the_rest_places_the_item(bundle):
    model, shape = copy.copy(bundle.model), ContentShape(vector=8)
    weights = np.random.default_rng(1).normal(0, 1, (shape.rows, 2 * model.dim - 2)).astype(np.float32)
    model.content = ContentMap(weights, shape)
    fit, unfit, without = (
        learner(dataclasses.replace(bundle, model=model), told(Item("fresh", "A title", vector=(1.0,) * size)))
        for size in (8, 9, 0)
    )
    counted = REGISTRY.get_sample_value("nextwatch_training_unfit_vectors_total") or 0.0
    rows = [dict(each.learn(numbered(example("fresh", 0))).rows)[b"fresh"] for each in (fit, unfit, without)]
    assert rows[0].vector != rows[1].vector == rows[2].vector
    assert REGISTRY.get_sample_value("nextwatch_training_unfit_vectors_total") == counted + 1


def test_an_idle_item_is_published_as_a_tombstone_and_a_restart_knows_it(bundle):
    settings = Trainer(expire_h=1)
    trainer, hour_ms = learner(bundle, settings=settings), 3_600_000

    def watch(offset: int, hours: int):
        watched = msgspec.structs.replace(example("item-1", offset), event_ms=CREATED_MS + hours * hour_ms)
        return trainer.learn(numbered(watched, start=offset)).rows

    watch(0, 0)
    gone = [key for key, row in watch(1, 5) if row is None]
    assert len(gone) == 39 and b"item-1" not in gone
    restarted = learner(bundle, settings=settings)
    for key in gone:
        restarted.restore(key, None)
    assert len(restarted._trainer._row_of) == 1
    returned = dict(restarted.learn(numbered(example("item-2", 2), start=2)).rows)
    assert returned[b"item-2"] is not None


def test_ids_of_every_column_place_a_new_item(bundle):
    item = Item("x", channel="c", topics=("t",), ids={"music": ("m",)})
    assert ids_of(item) == {"channel": ("c",), "topics": ("t",), "music": ("m",)}
    assert ids_of(Item("y")) == {"channel": (), "topics": ()}


def test_a_row_of_the_releases_own_log_is_neither_learnt_nor_counted(bundle):
    """It came once more, as a watch: `nextwatch replay` after `nextwatch train`."""

    def sample() -> tuple[float, float]:
        counted = REGISTRY.get_sample_value("nextwatch_prequential_examples_total") or 0.0
        return counted, REGISTRY.get_sample_value("nextwatch_prequential_sample") or 0.0

    learnt_ms = CREATED_MS + 1005
    trained = dataclasses.replace(bundle, manifest=replace(bundle.manifest, learnt_ms=learnt_ms))
    live, before = learner(trained), sample()[0]
    rows = [replace(example("item-1", offset, before=("item-2",)), is_row=True) for offset in (3, 5)]
    assert live.learn(numbered(*rows)).rows == [] and sample()[0] == before
    assert live.progress.next_offset == 2 and live.progress.watched == {0: 5}, "it has been read all the same"
    late = example("item-1", 6, before=("item-2",))  # as old as they are, and nobody's row
    newer = replace(example("item-3", 7), is_row=True)
    learnt = live.learn(numbered(replace(late, event_ms=learnt_ms), newer, start=2))
    assert {key for key, _ in learnt.rows} == {b"item-1", b"item-3"} and sample() == (before + 2, 2)

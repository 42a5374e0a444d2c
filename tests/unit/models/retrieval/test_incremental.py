import dataclasses

import numpy as np
import pytest

from infra.platform.settings import Trainer
from models.catalogue.content import ItemContent
from models.logs.timeline import HISTORY
from models.release.bundle import Bundle
from models.retrieval.hyper_parameters import Learns
from models.retrieval.incremental import (
    EXPLODED,
    PUBLISH_GAIN,
    PUBLISH_MOVE,
    STATE_COLUMNS,
    WARM_UP,
    IncrementalTrainer,
    StepResult,
)
from models.retrieval.prequential import Budget, Ranks, rank_before
from tests.unit.models.samples import START_MS, Example, Watch, example, watched

ALL = np.arange(60)


def trainer_of(
    bundle: Bundle, *, negatives: int = 20, learns: Learns = "output_rows", seed: int = 1
) -> IncrementalTrainer:
    settings = Trainer(learning_rate=0.05, negatives=negatives, in_batch=0.5, learns=learns)
    return IncrementalTrainer(bundle.model, bundle.catalogue, settings, seed=seed)


def learn(trainer: IncrementalTrainer, examples: list[Example]) -> StepResult:
    for case in examples:
        trainer.add_item(case.item_id)
    return trainer.learn(trainer.read(examples))


def rank(trainer: IncrementalTrainer, bundle: Bundle, examples: list[Example]) -> Ranks:
    return rank_before(trainer, bundle.model, trainer.read(examples))


def published(trainer: IncrementalTrainer, rows: np.ndarray = ALL) -> dict[str, tuple[bytes, bytes, bytes]]:
    return {item_id: tuple(parts) for item_id, *parts in trainer.rows(rows)}


def vectors(trainer: IncrementalTrainer, rows: np.ndarray = ALL) -> np.ndarray:
    return np.array([np.frombuffer(vector, "<f4") for vector, _, _ in published(trainer, rows).values()])


def some_examples(size: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    draws = [rng.choice(60, 6, replace=False) for _ in range(size)]
    return [example(*[f"i{n}" for n in draw]) for draw in draws]


def seen_by(bundle: Bundle, case: Example) -> np.ndarray:
    """The released scores of all items for a user."""
    return bundle.model.item_vectors() @ bundle.model.user_vectors([case], START_MS)[0]


def test_at_first_the_rows_are_the_bundles(bundle: Bundle):
    trainer = trainer_of(bundle)
    np.testing.assert_array_equal(vectors(trainer), bundle.model.item_vectors())
    for row in (0, 33):
        query = published(trainer)[f"i{row}"][1]
        np.testing.assert_array_equal(np.frombuffer(query, "<f4"), bundle.model.query_row(f"i{row}"))


def test_an_example_of_more_weight_teaches_more_and_counts_as_one_watch(bundle: Bundle):
    plain, heavy = trainer_of(bundle), trainer_of(bundle)
    one, other = example("i1", "i2"), example("i5", "i6")
    for trainer, weight in ((plain, 1.0), (heavy, 4.0)):
        trainer.learn(trainer.read([dataclasses.replace(one, weight=weight), other]))
    before = bundle.model.vectors[1]
    moved = [np.linalg.norm(vectors(trainer, np.array([1]))[0, :-1] - before) for trainer in (plain, heavy)]
    assert moved[1] > 1.5 * moved[0]
    np.testing.assert_array_equal(*(trainer.popularity.counts(ALL) for trainer in (plain, heavy)))


def test_learning_moves_only_the_watched_items_and_the_negatives(bundle: Bundle):
    trainer = trainer_of(bundle, negatives=5)
    before = vectors(trainer)[:, :-1]
    learn(trainer, [example("i1", "i2"), example("i3", "i2")])
    moved = np.flatnonzero((vectors(trainer)[:, :-1] != before).any(axis=1))
    assert {1, 3} <= set(moved.tolist())
    assert len(moved) <= 2 + 5


def test_what_is_watched_again_and_again_rises_for_such_a_history(bundle: Bundle):
    trainer = trainer_of(bundle)
    examples = [example("i41", "i2", "i6"), example("i41", "i6")]
    before = rank(trainer, bundle, examples)
    losses = [learn(trainer, examples).loss for _ in range(30)]
    after = rank(trainer, bundle, examples)
    assert (after.live < before.live).all()
    assert (after.frozen == before.frozen).all()
    assert (after.popular <= before.popular).all()
    assert losses[-1] < losses[0]


def test_only_rows_that_were_watched_or_moved_far_are_published(bundle: Bundle):
    trainer = trainer_of(bundle, negatives=5)
    first = learn(trainer, [example("i1", "i2")])
    assert (first.touched.tolist(), first.due.tolist()) == ([1], []), "a watched row that has moved little may wait"
    touched: set[int] = set()
    for _ in range(200):
        step = learn(trainer, [example("i1", "i2")])
        assert set(step.due.tolist()) <= set(step.touched.tolist())
        touched |= set(step.due.tolist())
    assert 1 in touched and len(touched) > 1, "a negative too, in the end"


def test_a_row_whose_popularity_has_risen_is_due_until_it_is_published_and_a_new_one_is_at_once(bundle: Bundle):
    trainer = trainer_of(bundle, learns="popularity")
    assert learn(trainer, [example("new", "i1")]).due.tolist() == [60]
    published(trainer, np.array([60]))
    steps, before = 0, trainer.popularity.log_share(np.array([1]))
    while 1 not in learn(trainer, [example("i1", "i2")]).due:
        steps += 1
    assert steps > 0
    assert PUBLISH_GAIN < trainer.popularity.log_share(np.array([1])) - before < 2 * PUBLISH_GAIN
    assert 1 in learn(trainer, [example("i1", "i2")]).due
    published(trainer, np.array([1]))
    assert 1 not in learn(trainer, [example("i1", "i2")]).due


def test_publishing_a_row_resets_how_far_it_has_moved(bundle: Bundle):
    trainer = trainer_of(bundle, negatives=5)
    for _ in range(30):
        touched = learn(trainer, [example("i1", "i2")]).touched
    assert trainer._items["moved"][touched].max() > PUBLISH_MOVE
    published(trainer, touched)
    assert (trainer._items["moved"][touched] == 0).all()


def test_the_same_seed_learns_the_same(bundle: Bundle):
    one, other = (trainer_of(bundle) for _ in range(2))
    for seed in range(3):
        learn(one, some_examples(10, seed))
        learn(other, some_examples(10, seed))
    assert published(one) == published(other)


def test_the_bundle_itself_is_left_as_it_is(bundle: Bundle):
    before = bundle.model.item_vectors()
    trainer = trainer_of(bundle)
    trainer.add_item("new")
    learn(trainer, some_examples(10))
    np.testing.assert_array_equal(bundle.model.item_vectors(), before)
    assert len(bundle.model.item_ids) == 60


def test_popularity_counts_every_watch_also_repeats(bundle: Bundle):
    trainer = trainer_of(bundle)
    repeat = example("i1", "i1", "i2")
    before = trainer.popularity.totals().copy()
    result = learn(trainer, [repeat, repeat, example("i3", "i2")])
    assert (trainer.popularity.totals() - before)[[1, 3]].tolist() == [2, 1]
    assert sorted(set(result.touched.tolist()) & {1, 3}) == [1, 3]


def test_a_repeat_is_not_learnt_from_and_not_counted_in_the_ranks(bundle: Bundle):
    trainer = trainer_of(bundle)
    before = vectors(trainer)[:, :-1]
    result = learn(trainer, [example("i1", "i1", "i2")])
    np.testing.assert_array_equal(vectors(trainer)[:, :-1], before)
    assert (result.loss, result.touched.tolist()) == (0, [1])
    ranks = rank(trainer, bundle, [example("i1", "i1", "i2"), example("i3", "i2")])
    assert ranks.counted.tolist() == [False, True]
    assert [ranks.live[0], ranks.frozen[0], ranks.popular[0]] == [-1, -1, -1]


def test_an_item_skipped_before_is_no_repeat(bundle: Bundle):
    skipped = Example([Watch("i1", completed=False)], item_id="i1")
    assert rank(trainer_of(bundle), bundle, [skipped]).counted.tolist() == [True]


def test_a_rank_counts_the_better_items_but_not_the_watched_ones(bundle: Bundle):
    trainer = trainer_of(bundle)
    case = example("i30", *[f"i{n}" for n in range(12)])
    scores = seen_by(bundle, case)
    better = set(np.flatnonzero(scores > scores[30]).tolist()) - set(range(12))
    assert rank(trainer, bundle, [case]).live[0] == rank(trainer, bundle, [case]).frozen[0] == len(better)


def test_an_unknown_item_is_a_miss_for_those_who_do_not_know_it(bundle: Bundle):
    trainer = trainer_of(bundle)
    ranks = rank(trainer, bundle, [example("new", "i1")])
    assert (ranks.live[0], ranks.frozen[0], ranks.popular[0], ranks.counted[0]) == (-1, -1, -1, True)
    learn(trainer, [example("new", "i1")])
    ranks = rank(trainer, bundle, [example("new", "i1")])
    assert ranks.live[0] >= 0
    assert ranks.popular[0] >= 0
    assert ranks.frozen[0] == -1


def test_a_new_item_starts_near_its_channel_and_counts_in_a_history_at_once(bundle: Bundle):
    trainer = trainer_of(bundle)
    row = trainer.add_item("new", ItemContent({"channel": ["c1"], "topics": ["t1"]}))
    assert trainer.add_item("new", ItemContent({"channel": ["c2"]})) == row == 60
    new = vectors(trainer, np.array([row]))[0, :-1]
    same, other = bundle.model.vectors[1::4].mean(axis=0), bundle.model.vectors[2::4].mean(axis=0)
    assert np.linalg.norm(new - same) < np.linalg.norm(new - other)
    with_new, without = rank(trainer, bundle, [example("i5", "new", "i2"), example("i5", "i2")]).live
    assert with_new != without or not np.array_equal(
        *trainer.user_vectors(trainer.read([example("i5", "new", "i2"), example("i5", "i2")]).queries)
    )


def test_many_new_items_grow_the_table(bundle: Bundle):
    trainer = trainer_of(bundle)
    before = published(trainer)
    for n in range(100):
        learn(trainer, [example(f"new{n}", "i1")])
    assert len(trainer) == 160
    assert np.isfinite(vectors(trainer, np.arange(160))).all()
    assert published(trainer)["i1"][1] == before["i1"][1]


def test_restored_rows_take_the_same_next_step(bundle: Bundle):
    original, restored = trainer_of(bundle), trainer_of(bundle)
    for seed in range(4):
        learn(original, some_examples(20, seed))
    learn(original, [example("new", "i1"), example("i1", "new")])
    for item_id, *parts in original.rows(np.arange(61)):
        restored.restore(item_id, *parts)
    assert published(restored, np.arange(61)) == published(original, np.arange(61))
    restored._rng = np.random.default_rng(9)
    original._rng = np.random.default_rng(9)
    one, other = learn(original, some_examples(20, 9)), learn(restored, some_examples(20, 9))
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-6)
    np.testing.assert_allclose(vectors(original, np.arange(61)), vectors(restored, np.arange(61)), rtol=1e-5, atol=1e-6)


def test_a_row_of_another_release_or_one_that_is_not_finite_is_refused_by_name(bundle: Bundle):
    trainer = trainer_of(bundle)
    vector, query, state = published(trainer)["i7"]
    assert len(state) == STATE_COLUMNS.itemsize <= 40
    broken = np.full(len(query) // 4, np.nan, "<f4").tobytes()
    wrong, unlike = "holds a number that is not finite", "does not fit this release"
    for parts, why in (
        ((vector[:-4], query, state), unlike),
        ((vector, query + b"\0", state), unlike),
        ((vector, query, b""), unlike),
        ((vector, broken, state), wrong),
    ):
        with pytest.raises(ValueError, match=f"item i7 {why}"):
            trainer.restore("i7", *parts)
    assert published(trainer)["i7"] == (vector, query, state)


def test_a_step_that_is_not_finite_changes_nothing(bundle: Bundle):
    trainer = trainer_of(bundle)
    vector, query, state = published(trainer)["i2"]
    trainer.restore("i2", vector, np.full(len(query) // 4, 3e38, "<f4").tobytes(), state)  # overflows in the tower
    before, clock = published(trainer), trainer.popularity.clock
    result = learn(trainer, [example("i1", "i2"), example("i3", "i4")])
    assert result.dropped
    assert len(result.touched) == 0
    assert published(trainer) == before
    assert trainer.popularity.clock == clock
    assert not learn(trainer, [example("i3", "i4")]).dropped


@pytest.mark.parametrize("length", [0, 3 * HISTORY])
def test_a_history_of_any_length_is_learnt_from_and_has_a_rank(bundle: Bundle, length: int):
    case = Example(watched(*[f"i{n % 50}" for n in range(length)]).watches, item_id="i55")
    trainer = trainer_of(bundle)
    assert rank(trainer, bundle, [case]).live[0] >= 0
    result = learn(trainer, [case])
    assert np.isfinite(result.loss)
    assert result.touched.tolist() == [55]


def test_an_empty_batch_does_nothing(bundle: Bundle):
    trainer = trainer_of(bundle)
    before = published(trainer)
    assert len(learn(trainer, []).touched) == 0
    assert len(rank(trainer, bundle, []).live) == 0
    assert published(trainer) == before


def test_negatives_are_all_items_where_there_are_fewer_than_asked_for(bundle: Bundle):
    """Then the loss is the full softmax."""
    trainer = trainer_of(bundle, negatives=1000)
    case = example("i30", "i2", "i6")
    scores = seen_by(bundle, case)
    full = np.log(np.exp(scores).sum()) - scores[30]
    np.testing.assert_allclose(learn(trainer, [case]).loss, full, rtol=1e-5)


def test_each_level_learns_what_it_says_and_no_more(bundle: Bundle):
    """history: nothing; popularity: counts; output_rows: item vectors; never what histories average, nor the tower."""
    changed = {}
    for level in ("history", "popularity", "output_rows"):
        trainer = trainer_of(bundle, learns=level)
        before = published(trainer)
        weight = trainer.encoder.tower.members[0].layers[0].weight.clone()
        learn(trainer, [example("i1", "i2")])
        after = published(trainer)
        changed[level] = (
            trainer.popularity.clock > bundle.model.popularity.clock,
            before["i1"][0][:-4] != after["i1"][0][:-4],
            before["i2"][1] != after["i2"][1],
            bool((trainer.encoder.tower.members[0].layers[0].weight != weight).any()),
        )
    assert list(changed.values()) == [
        (False, False, False, False),
        (True, False, False, False),
        (True, True, False, False),
    ]


def test_a_step_whose_loss_explodes_changes_nothing(bundle: Bundle):
    trainer = trainer_of(bundle, negatives=1000)
    for seed in range(WARM_UP):
        assert not learn(trainer, some_examples(10, seed)).dropped
    _, query, state = published(trainer)["i2"]
    case = example("i5", "i7")
    user = trainer.user_vectors(trainer.read([case]).queries)[0]  # an item far out in this user's direction
    trainer.restore("i2", (100 * EXPLODED * user / np.linalg.norm(user)).astype("<f4").tobytes(), query, state)
    before, clock = published(trainer), trainer.popularity.clock
    result = learn(trainer, [case])
    assert result.dropped
    assert (published(trainer), trainer.popularity.clock) == (before, clock)


def test_the_budget_pays_for_the_same_number_of_scores_at_any_size():
    for items in (100, 10_000, 1_000_000):
        budget = Budget(50_000)
        granted = [budget.grant(256, items) for _ in range(2000)]
        assert max(granted) <= 256
        assert sum(granted) * items <= 50_000 * 2001 + 17 * items
        assert sum(granted) > 0
    assert Budget(0).grant(256, 1000) == 0


def test_a_refreshed_row_is_published_with_the_popularity_of_now(bundle: Bundle):
    trainer = trainer_of(bundle, negatives=2)
    trainer.due_refreshes(1000)
    learn(trainer, [example("i1", "i2")])
    before = vectors(trainer)[1, -1]
    for _ in range(60):
        learn(trainer, [example("i5", "i2")] * 6)
    assert 1 in trainer.due_refreshes(1000)
    assert vectors(trainer)[1, -1] < before


def test_a_restored_row_is_due_as_it_was_before_the_crash(bundle: Bundle):
    original, restored = trainer_of(bundle, negatives=2), trainer_of(bundle, negatives=2)
    for trainer in (original, restored):
        trainer.due_refreshes(1000)
    row = original.add_item("new")
    learn(original, [example("new", "i2")] * 20)
    restored.restore("new", *published(original, np.array([row]))["new"])
    found: set[int] = set()
    for _ in range(60):
        learn(original, [example("i5", "i2")] * 6)
        learn(restored, [example("i5", "i2")] * 6)
        found |= set(restored.due_refreshes(1000).tolist())
    assert row in original.due_refreshes(1000)
    assert row in found


def test_ranks_do_not_depend_on_how_many_are_ranked_together(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    trainer, examples = trainer_of(bundle), some_examples(30)
    together = rank(trainer, bundle, examples)
    monkeypatch.setattr("models.retrieval.prequential.rows_at_once", lambda items: 7)
    for one, other in zip(together, rank(trainer, bundle, examples), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_idle_item_expires_and_comes_back_as_a_new_one(bundle: Bundle):
    hour_ms = 3_600_000
    trainer = trainer_of(bundle)
    for hour in range(5):
        trainer.learn(trainer.read([example("i1", "i2")]), START_MS + hour * hour_ms)
        expired = trainer.expire(START_MS + hour * hour_ms, 2 * hour_ms)
        assert len(expired) == (59 if hour == 3 else 0)  # all that nobody has watched since the first look at them
    assert (trainer.row("i1"), trainer.row("i7")) == (1, -1)
    assert rank(trainer, bundle, [example("i7", "i1")]).live[0] == -1
    row = trainer.add_item("i7", ItemContent({"channel": ["c3"]}))
    assert len(trainer) == 60  # a free row is taken
    assert np.isfinite(vectors(trainer, np.array([row]))).all()
    result = learn(trainer, [example("i7", "i1")])
    assert row in result.touched
    assert rank(trainer, bundle, [example("i7", "i1")]).live[0] >= 0


def test_a_free_row_is_never_ranked_high_and_never_learnt_from(bundle: Bundle):
    trainer = trainer_of(bundle, negatives=1000)
    trainer.remove_item("i3")
    trainer.remove_item("i3")
    before = trainer.vectors(np.array([3]))
    assert np.isfinite(learn(trainer, [example("i1", "i2")]).loss)
    scores = trainer.user_vectors(trainer.read([example("i1", "i2")]).queries) @ trainer.vectors().T
    assert scores[0].argmin() == 3
    np.testing.assert_array_equal(trainer.vectors(np.array([3]))[0, :-1], before[0, :-1])


def test_expiry_looks_at_a_bounded_number_of_rows(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.retrieval.incremental.SWEPT", 7)
    trainer = trainer_of(bundle)
    gone = [trainer.expire(START_MS, 10_000) for _ in range(9)] + [
        trainer.expire(START_MS + 100_000, 10_000) for _ in range(9)
    ]
    assert [len(some) for some in gone[:9]] == [0] * 9
    assert sum(map(len, gone)) == 60
    assert max(map(len, gone)) == 7


def test_a_row_that_was_freed_is_never_published(bundle: Bundle):
    """Its refresh may still be due; an empty id would be read as the trainer's progress."""
    trainer = trainer_of(bundle, negatives=2)
    trainer.due_refreshes(1000)
    learn(trainer, [example("i1", "i2")])
    trainer.remove_item("i1")
    published_ids: set[str] = set()
    for _ in range(200):
        touched = learn(trainer, [example("i5", "i2")]).touched
        due = trainer.due_refreshes(1000)
        published_ids |= {item_id for item_id, *_ in trainer.rows(np.union1d(touched, due))}
    assert "" not in published_ids
    assert "i5" in published_ids


def test_a_row_that_another_item_has_taken_over_is_not_the_releases(bundle: Bundle):
    trainer = trainer_of(bundle)
    trainer.remove_item("i3")
    row = trainer.add_item("new")
    assert row == 3
    assert trainer.in_release(np.array([2, 3])).tolist() == [True, False]
    learn(trainer, [example("new", "i2")])
    assert not np.array_equal(vectors(trainer, np.array([3]))[0, :-1], bundle.model.vectors[3])
    assert rank(trainer, bundle, [example("new", "i2")]).frozen[0] == -1


def test_losses_that_rise_for_good_are_learnt_from_again(bundle: Bundle):
    trainer = trainer_of(bundle)
    for _ in range(WARM_UP):
        assert not trainer._diverged(1.0)
    dropped = [trainer._diverged(4.0) for _ in range(200)]
    assert dropped[0]
    assert not dropped[-1]
    assert not any(dropped[dropped.index(False) :])
    assert trainer._diverged(float("nan"))

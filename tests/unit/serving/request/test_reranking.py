"""What a list promises, whatever the candidates: k of them, none twice, the cap, and probabilities that are true."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from infra.platform.settings import Selection
from serving.request.exploration import chances_of, comb, draw, seed_of
from serving.request.reranking import BEST, DRAWN, PINNED, Chosen, Options, choose, pins_of

OFF = Selection()


def options(scores: list[float], channels: list[int] | None = None, **more: Any) -> Options:
    size = len(scores)
    return Options(
        scores=np.array(scores, np.float32),
        channels=np.array(channels or [0] * size, np.int64),
        shown=np.array(more.get("shown", [0.0] * size)),
        spread=np.array(more.get("spread", [0.0] * size), np.float32),
        vectors=more.get("vectors"),
        pinned=more.get("pinned", ()),
    )


def rows(found: list[Chosen]) -> list[int]:
    return [each.row for each in found]


def listed(given: Options, k: int, seed: int = 1, **settings: Any) -> list[int]:
    return rows(choose(given, k, Selection(**settings), seed).items)


def counted(given: Options, found: list[int]) -> dict[int, int]:
    """Items by known channel."""
    return Counter(channel for channel in given.channels[found].tolist() if channel > 0)


# --- laws ------------------------------------------------------------------------------------------------------------

numbers = st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, 2.0]))


@st.composite
def any_options(draw: st.DrawFn) -> Options:
    size = draw(st.integers(0, 40))
    some = st.lists(numbers, min_size=size, max_size=size)
    vectors = np.array(draw(st.lists(some, min_size=3, max_size=3)), np.float32).T.reshape(size, 3)
    return options(
        draw(some),
        draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)),
        shown=draw(some),
        spread=draw(some),
        vectors=draw(st.sampled_from([vectors, None])),
        pinned=draw(st.lists(st.integers(-2, 45), max_size=5)),
    )


any_settings = st.builds(
    Selection,
    channel_cap=st.integers(0, 4),
    explore=st.floats(0, 1),
    explore_by=st.sampled_from(["little_shown", "uncertainty"]),
    explore_from=st.integers(1, 15),
    explore_pool=st.integers(1, 50),
    diversity=st.sampled_from(["none", "mmr", "dpp"]),
    diversity_weight=st.floats(0, 1),
    diversity_pool=st.integers(1, 50),
)


@examples(max_examples=100, deadline=None)
@given(any_options(), st.integers(1, 20), any_settings, st.integers(0, 2**64 - 1))
def test_k_items_come_back_whenever_k_exist_none_twice_pins_on_top(given, k, settings, seed):
    found = choose(given, k, settings, seed).items
    pins = [at for at in dict.fromkeys(given.pinned) if 0 <= at < len(given.scores)][:k]
    assert len(found) == min(k, len(given.scores))
    assert len(set(rows(found))) == len(found)
    assert rows(found)[: len(pins)] == pins
    for place, each in enumerate(found):
        assert each.reason == (PINNED if place < len(pins) else each.reason)
        assert (each.probability is not None) == (each.reason == DRAWN)
        if each.reason == DRAWN:
            assert each.probability is not None and 0 < each.probability <= 1
            assert place >= settings.explore_from - 1


@examples(max_examples=100, deadline=None)
@given(any_options(), st.integers(1, 20), any_settings, st.integers(0, 1000))
def test_no_channel_is_over_its_cap_as_long_as_there_are_others(given, k, settings, seed):
    found = rows(choose(given, k, settings, seed).items)
    if not settings.channel_cap:
        return
    pinned = counted(given, [at for at in dict.fromkeys(given.pinned) if 0 <= at < len(given.scores)][:k])
    over = {channel for channel, n in counted(given, found).items() if n > max(settings.channel_cap, pinned[channel])}
    others = [at for at in range(len(given.scores)) if at not in found]
    full = {channel for channel, n in counted(given, found).items() if n >= settings.channel_cap}
    assert not over or all(given.channels[at] in full for at in others)


@examples(max_examples=100, deadline=None)
@given(any_options(), st.integers(1, 20), any_settings, st.integers(0, 1000))
def test_the_same_seed_gives_the_same_list(given, k, settings, seed):
    assert choose(given, k, settings, seed) == choose(given, k, settings, seed)


@examples(max_examples=100, deadline=None)
@given(any_options(), st.integers(1, 20), st.integers(0, 1000))
def test_off_it_is_the_order_by_score_and_equal_ones_stay_as_they_came(given, k, seed):
    plain = given._replace(pinned=())
    found = choose(plain, k, OFF, seed)
    sunk = [score if np.isfinite(score) else -np.inf for score in plain.scores.tolist()]
    assert rows(found.items) == sorted(range(len(sunk)), key=lambda at: -sunk[at])[:k]
    assert {(each.probability, each.reason) for each in found.items} <= {(None, BEST)}
    assert found.skipped == ()


@pytest.mark.parametrize("by", ["little_shown", "uncertainty"])
@pytest.mark.parametrize("kind", ["none", "mmr", "dpp"])
def test_the_order_of_the_candidates_does_not_matter(kind, by):
    rng = np.random.default_rng(7)
    given = options(
        rng.permutation(60).tolist(),
        rng.integers(0, 9, 60).tolist(),
        shown=rng.integers(0, 50, 60),
        spread=rng.random(60),
        vectors=rng.normal(size=(60, 5)).astype(np.float32),
    )
    turned = rng.permutation(60)
    other = Options(*(None if each is None else each[turned] for each in given[:5]), pinned=())
    settings = {"channel_cap": 3, "explore": 0.3, "explore_by": by, "diversity": kind}
    for seed in range(20):
        assert listed(given, 12, seed, **settings) == turned[listed(other, 12, seed, **settings)].tolist()


# --- cap and pins ----------------------------------------------------------------------------------------------------


def test_the_next_best_takes_the_place_of_what_is_over_the_cap():
    given = options([9, 8, 7, 6, 5, 4], [1, 1, 1, 2, 1, 3])
    assert listed(given, 4, channel_cap=2) == [0, 1, 3, 5]
    assert listed(given, 5, channel_cap=2) == [0, 1, 3, 5, 2], "relaxed, so that five come back"


def test_an_unknown_channel_is_not_capped():
    assert listed(options([3, 2, 1], [0, 0, 0]), 3, channel_cap=1) == [0, 1, 2]


def test_pins_stand_on_top_in_their_order_and_count_for_the_cap():
    given = options([9, 8, 7, 1, 0], [1, 1, 2, 1, 2], pinned=[3, 4, 3, 99, -1])
    assert listed(given, 4, channel_cap=1) == [3, 4, 0, 1], "both channels are full: the rest is what there is"
    assert listed(given, 4, channel_cap=2) == [3, 4, 0, 2]
    assert listed(given, 1) == [3]


def test_a_pin_that_is_no_candidate_is_passed_over_and_the_requests_come_first():
    assert pins_of(["a", "b", "c"], ("c", "x"), ("a", "c")) == [2, 0]
    assert pins_of(["a", "b"], (), ()) == []


# --- exploration -----------------------------------------------------------------------------------------------------


def shares(given: Options, k: int, seeds: int, **settings: Any) -> tuple[dict, dict]:
    """How often each candidate was drawn into each place, and the probability that was given for it each time."""
    seen: Counter[tuple[int, int]] = Counter()
    told: dict[tuple[int, int], set[float]] = {}
    for seed in range(seeds):
        for place, each in enumerate(choose(given, k, Selection(**settings), seed_of(f"r{seed}", 3)).items):
            if each.probability is not None:
                seen[each.row, place] += 1
                told.setdefault((each.row, place), set()).add(each.probability)
    return {key: n / seeds for key, n in seen.items()}, told


WORLDS = {
    "little shown": {"explore": 0.35, "explore_by": "little_shown"},
    "less than one place": {"explore": 0.1},
    "below the top": {"explore": 0.4, "explore_from": 3},
    "one of a channel": {"explore": 0.5, "channel_cap": 2},
    "uncertainty, under a cap": {"explore": 0.3, "explore_by": "uncertainty", "channel_cap": 1},
    "with diversity and a pin": {"explore": 0.4, "diversity": "mmr", "pinned": ("x",)},
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_probability_on_record_is_how_often_the_item_stands_in_that_place(name):
    settings = dict(WORLDS[name])
    pinned = [5] if settings.pop("pinned", ()) else []
    rng = np.random.default_rng(11)
    given = options(
        rng.uniform(1, 30, 14).tolist(),
        [1, 1, 2, 2, 3, 3, 1, 2, 3, 4, 4, 0, 0, 5],
        shown=[0, 0, 1, 2, 3, 5, 9, 9, 20, 30, 4, 0, 100, 7],
        spread=rng.uniform(0.05, 1, 14),
        vectors=rng.normal(size=(14, 4)).astype(np.float32),
        pinned=pinned,
    )
    seeds, k = 4000, 5
    seen, told = shares(given, k, seeds, **settings)
    assert all(len(values) == 1 for values in told.values()), "whatever else is drawn, it is one number"
    for key, values in told.items():
        probability = next(iter(values))
        error = np.sqrt(probability * (1 - probability) / seeds)
        assert abs(seen[key] - probability) < 4.5 * error + 1e-9, (key, seen[key], probability)
    everything = sum(next(iter(values)) for values in told.values())
    assert everything == pytest.approx(sum(seen.values()), abs=0.03), "and nothing was drawn that has none"


def test_any_two_may_be_drawn_together():
    met = [frozenset(comb(np.full(4, 0.5), np.arange(4), np.random.default_rng(seed)).tolist()) for seed in range(300)]
    assert set(met) == {frozenset(pair) for pair in itertools.combinations(range(4), 2)}


def test_as_many_are_drawn_as_the_share_says_on_average_and_never_one_more():
    given = options(list(range(50, 0, -1)))
    counts = [
        sum(each.reason == DRAWN for each in choose(given, 10, Selection(explore=0.25), seed).items)
        for seed in range(2000)
    ]
    assert set(counts) == {2, 3}
    assert np.mean(counts) == pytest.approx(2.5, abs=0.05)


def test_the_little_shown_are_drawn_more_and_the_best_stay_in_their_order():
    given = options(list(range(30, 0, -1)), shown=[0.0] * 10 + [99.0] * 10 + [0.0] * 10)
    drawn: Counter[int] = Counter()
    for seed in range(500):
        found = choose(given, 10, Selection(explore=0.2), seed).items
        best = [each.row for each in found if each.reason == BEST]
        assert best == list(range(len(best))), "the last of the list made room"
        drawn.update(each.row for each in found if each.reason == DRAWN)
    assert sum(drawn[at] for at in range(20, 30)) > 50 * sum(drawn[at] for at in range(10, 20)) > 0


def test_uncertainty_draws_what_could_be_worth_more_seconds():
    sure_and_unsure = options([99, 10, 10, 1], spread=[0, 0.1, 1.0, 1.0])
    seen, _ = shares(sure_and_unsure, 1, 3000, explore=1.0, explore_by="uncertainty")
    worth = np.array([10 * np.expm1(0.1), 10 * np.expm1(1.0), np.expm1(1.0)])
    for at, share in zip((1, 2, 3), worth / worth.sum(), strict=True):
        assert seen[at, 0] == pytest.approx(share, abs=0.04)


def test_where_nobody_is_unsure_all_are_drawn_alike():
    seen, _ = shares(options([9, 1, 2, 3]), 1, 3000, explore=1.0, explore_by="uncertainty")
    assert [seen[at, 0] for at in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.04)


def test_nothing_is_drawn_where_everything_is_shown_anyway():
    assert listed(options([1, 2, 3]), 3, explore=1.0) == [2, 1, 0]


def test_a_channel_that_would_be_met_twice_is_met_once_and_the_others_less_than_asked():
    chances = chances_of(np.array([8.0, 8.0, 1.0]), np.array([0, 0, 1]), 2.0)
    assert chances[:2].sum() == pytest.approx(1.0)
    assert chances[2] == pytest.approx(2 / 17)


# --- diversity -------------------------------------------------------------------------------------------------------

AXES = np.array([[1, 0, 9], [1, 0.05, 9], [0, 1, 9], [1, 0, 9]], np.float32)  # popularity last: no matter of likeness


@pytest.mark.parametrize("kind", ["mmr", "dpp"])
def test_what_is_like_the_first_waits_for_what_is_not(kind):
    given = options([10, 9.9, 9, 1], vectors=AXES)
    assert listed(given, 3, diversity=kind, diversity_weight=0.5) == [0, 2, 1]
    assert listed(given, 4, diversity=kind, diversity_weight=0.0) == [0, 1, 2, 3], "no weight, no change"


@pytest.mark.parametrize("kind", ["mmr", "dpp"])
def test_a_channel_that_is_full_takes_no_pick_from_the_others(kind):
    vectors = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], np.float32)
    given = options([10, 9.9, 9.8, 9.7], [1, 1, 2, 3], vectors=vectors)
    assert listed(given, 2, diversity=kind, diversity_weight=0.9, channel_cap=1) == [0, 3]


def test_mmr_by_hand():
    """Scores 1, .9, .5, 0 of the range; cosines to the first 0, .8, -1."""
    vectors = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [-1, 0, 0]], np.float32)
    given = options([10, 9, 5, 0], vectors=vectors)
    # .7 * (.9, .5, 0) - .3 * (.8, 0, -1) = .39, .35, .3; then of the last two, nearest .6 and -.8: .17, .24
    assert listed(given, 4, diversity="mmr", diversity_weight=0.3) == [0, 1, 3, 2]


@pytest.mark.parametrize("seed", range(8))
def test_dpp_picks_the_largest_determinant(seed):
    """Greedy: each step's candidate makes the Gram matrix of those picked largest, where scores say nothing."""
    vectors = np.random.default_rng(seed).random((30, 7)).astype(np.float32)  # all of them alike
    unit = vectors[:, :-1] / np.linalg.norm(vectors[:, :-1], axis=1, keepdims=True)
    gram = (unit @ unit.T).astype(np.float64)
    found = listed(options([1.0] * 30, vectors=vectors), 5, diversity="dpp", diversity_weight=1.0)
    for step in range(1, 5):
        picked = [[*found[:step], at] for at in range(30) if at not in found[:step]]
        best = max(picked, key=lambda rows: np.linalg.det(gram[np.ix_(rows, rows)]))
        assert found[step] == best[-1]


def test_a_pin_counts_as_picked():
    given = options([10, 9.9, 9, 1], vectors=AXES, pinned=[3])
    assert listed(given, 2, diversity="mmr", diversity_weight=0.9) == [3, 2]


def test_without_vectors_the_step_is_skipped_and_said():
    found = choose(options([1, 2]), 2, Selection(diversity="dpp"), 1)
    assert rows(found.items) == [1, 0]
    assert found.skipped == ("dpp: the candidates have no vectors",)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_a_requests_seed_is_the_same_everywhere_and_another_for_another():
    assert seed_of("r-1", 1) == 16086310244385194907
    assert len({seed_of(f"r-{n}", seed) for n in range(1000) for seed in range(3)}) == 3000


def test_where_every_place_is_drawn_the_chance_of_one_is_not_above_1():
    """Rounding makes the sum more than the places, and a list that says so would be refused by who reads it."""
    pool, groups, places = np.arange(300), np.zeros(300, np.int64), np.arange(10)
    chances = [
        draw(pool, groups, np.random.default_rng(seed).random(300), places=places, expected=10.0, seed=seed).chance
        for seed in range(200)
    ]
    assert max(chances) == 1.0

"""Re-ranks the candidates of one request into its list: pins on top, then the best, some places drawn.

`choose` decides, and is pure; `select` and `add_pins` apply it to a draft. Switched off, which is the default, the list
is the k best in order. The best list is made first, with its cap per channel and its diversity; then some of its places
are given to candidates that are not in it (serving.request.exploration). So what can be drawn never stands in a list
for its score, and the probability on record is the whole one.

Whenever there are k candidates there are k items: a cap is relaxed when too few others are there, and a step that
cannot be taken is skipped and named. Equal scores keep the order in which the candidates came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from infra.platform.settings import Selection
from models.experiments.interleaving import team_draft
from models.ranking.ranking_batch import SOURCES
from models.ranking.ranking_request import Nominations
from serving.request.diversity import pick_apart
from serving.request.exploration import NOTHING, Draws, draw, seed_of
from serving.request.filtering import MayBeShown
from serving.request.response_draft import CandidateSet, Floats, Ranking, ResponseDraft
from serving.state.release import LiveRelease
from streams.experiments import Plan
from streams.messages import Pool, Recommended

Rows = NDArray[np.int64]
Numbers = NDArray[Any]  # real numbers of any width

PINNED, BEST, DRAWN = "pinned", "best", "drawn"
MOST_SPREAD = 10.0  # in log seconds; beyond what the ranker can promise


class Options(NamedTuple):
    """The C candidates of one request, in any order. A score that is not finite sinks."""

    scores: Floats  # [C]: expected seconds, or retrieval scores where nothing was ranked
    channels: NDArray[np.integer[Any]]  # [C]: codes; 0: not known, and never capped
    shown: Numbers  # [C]: decayed impressions of each
    spread: Floats  # [C]: how unsure the ranker is (models.ranking.ranker.Ranked); zeros where nothing was ranked
    vectors: Floats | None = None  # [C, D + 1]: as in the index, popularity last; None: there are none
    pinned: Sequence[int] = ()  # candidates that go on top, in this order


class Chosen(NamedTuple):
    """`probability`: that this candidate stands in this place, over all seeds; None for what was not drawn."""

    row: int  # among the candidates
    probability: float | None
    reason: str


class Choice(NamedTuple):
    """`skipped` names the steps that were asked for and not taken, with the reason; `pool` and `chance` as in Draws."""

    items: list[Chosen]
    skipped: tuple[str, ...] = ()
    pool: tuple[int, ...] = ()
    chance: float = 0.0


def add_pins(draft: ResponseDraft, may_be_shown: MayBeShown) -> None:
    """Make candidates of the pins that nobody has nominated, as far as they may be shown."""
    pins = dict.fromkeys((*draft.request.pinned, *draft.plan.selection.pinned))
    missing = [pin for pin in pins if pin not in draft.candidates.item_ids] if pins else []
    if not missing:
        return
    keep = may_be_shown(draft, missing)
    draft.candidates = behind(draft.candidates, [pin for pin, yes in zip(missing, keep.tolist(), strict=True) if yes])


def behind(candidates: CandidateSet, item_ids: list[str]) -> CandidateSet:
    """The candidates and more of them, that no source has nominated."""
    nothing = np.full(len(item_ids), np.nan, np.float32)
    sources = np.zeros((len(item_ids), len(SOURCES) - 1), np.int64)
    old = candidates.nominations
    return CandidateSet(
        [*candidates.item_ids, *item_ids],
        np.concatenate([candidates.scores, nothing]),
        Nominations(
            np.concatenate([old.sources, sources]),
            np.concatenate([old.trending, nothing]),
            np.concatenate([old.similar, nothing]),
        ),
    )


def select(draft: ResponseDraft, live: LiveRelease | None) -> None:
    """Put the k best candidates under the rules of its plan into the list; where two plans share it, team by team."""
    plan = draft.plan
    if not draft.candidates.item_ids:
        return
    if plan.rival is None:
        draft.items += listed(draft, live, plan)
        return
    lists = listed(draft, live, plan), listed(draft, live, plan.rival)
    first, second = ([item.item_id for item in each] for each in lists)
    picks = team_draft(first, second, draft.k, seed_of(draft.request.request_id, plan.selection.seed + 1))
    for rank, (team, place) in enumerate(picks, 1):
        draft.items.append(replace(lists[team][place], rank=rank, probability=None))
        draft.teams[draft.items[-1].item_id] = plan.rival.variant if team else plan.variant
    draft.pool = None  # no place has the probability that it was drawn with, once two lists share it


def listed(draft: ResponseDraft, live: LiveRelease | None, plan: Plan) -> list[Recommended]:
    """The list that a plan makes of the draft's candidates."""
    settings, candidates = plan.selection, draft.candidates
    _, recorded = draft.recorded
    own = None if live is None else draft.rankings.get(live.with_ranker(plan.release).ranked_by)
    given_s = own.expected_s if own is not None and plan.serving.ranker else None
    options = options_of(draft, live, settings, own or recorded, given_s)
    choice = choose(options, draft.k, settings, seed_of(draft.request.request_id, settings.seed))
    draft.pool = None if given_s is None else pool_of(choice, given_s)
    draft.degraded += [f"selection: {step}" for step in choice.skipped]
    rows = [chosen.row for chosen in choice.items]
    scores, sources = candidates.scores[rows].tolist(), primary_sources(candidates, rows)
    expected_s = [None] * len(rows) if recorded is None else recorded.expected_s[rows].tolist()
    return [
        Recommended(
            candidates.item_ids[at],
            rank,
            PINNED if reason == PINNED else sources[rank - 1],
            None if math.isnan(scores[rank - 1]) else scores[rank - 1],
            expected_s[rank - 1],
            probability=probability,
        )
        for rank, (at, probability, reason) in enumerate(choice.items, 1)
    ]


def pool_of(choice: Choice, expected_s: Floats) -> Pool | None:
    """What goes on record of all that could have been drawn, so that another way to draw can be judged."""
    if not choice.pool:
        return None
    seconds = expected_s[list(choice.pool)].astype(np.float64)
    return Pool(len(seconds), choice.chance, float(seconds.max()), float(seconds.sum()), float((seconds**2).sum()))


def options_of(
    draft: ResponseDraft,
    live: LiveRelease | None,
    settings: Selection,
    ranking: Ranking | None,
    expected_s: Floats | None,
) -> Options:
    """The candidates of a draft as the choice wants them, by expected seconds [C] or, where there are none, by
    retrieval. `ranking`: what else is known of them."""
    item_ids, inputs = draft.candidates.item_ids, ranking and ranking.inputs
    nothing = np.zeros(len(item_ids), np.float32)
    channels: NDArray[np.int32] = np.zeros(len(item_ids), np.int32)
    vectors = None
    if live is not None and settings.channel_cap:
        channels = live.catalogue.channel_codes(live.catalogue.rows(item_ids))
    if live is not None and live.mirror is not None and settings.diversity != "none":
        rows = live.mirror.rows(item_ids)
        vectors = np.where((rows >= 0)[:, None], live.mirror.vectors(rows), np.float32(0))
    return Options(
        draft.candidates.scores if expected_s is None else expected_s,
        channels,
        nothing if inputs is None else inputs.shown,
        nothing if inputs is None or inputs.spread is None else inputs.spread,
        vectors,
        pins_of(item_ids, draft.request.pinned, settings.pinned),
    )


def primary_sources(candidates: CandidateSet, rows: Sequence[int]) -> list[str]:
    """The first of the sources of each of these candidates, in the order of SOURCES."""
    named = candidates.nominations.sources[list(rows)].tolist()
    return [next((SOURCES[code] for code in codes if code), "") for codes in named]


def pins_of(item_ids: Sequence[str], *pinned: Sequence[str]) -> list[int]:
    """The rows of the pinned candidates, in the order of the pins; pins that are no candidates are passed over."""
    wanted = dict.fromkeys(item_id for pins in pinned for item_id in pins)
    if not wanted:
        return []
    place = {item_id: index for index, item_id in enumerate(item_ids) if item_id in wanted}
    return [place[item_id] for item_id in wanted if item_id in place]


def choose(options: Options, k: int, settings: Selection, seed: int) -> Choice:
    """Up to k candidates, top first."""
    pins = _usable(options.pinned, len(options.scores), k)
    order = _best_first(options.scores, pins)  # [C - P]
    apart, skipped = _apart(order, pins, k - len(pins), options, settings)
    best = under_cap(apart, pins, options.channels, settings.channel_cap)[: k - len(pins)]
    drawn = _draw(order, best, pins, k, options, settings, seed) if settings.explore else NOTHING
    merged = _merged(pins, best, drawn, options.channels, settings.channel_cap)
    return Choice(merged, skipped, tuple(drawn.pool.tolist()), drawn.chance)


def under_cap(order: Rows, pins: Rows, channels: NDArray[np.integer[Any]], cap: int) -> Rows:
    """The order with what is one too many of its channel put behind all others; pins count. 0: no cap."""
    if not cap:
        return order
    of_channel = channels[order]
    over = (_nth_of_equals(np.concatenate([channels[pins], of_channel]))[len(pins) :] >= cap) & (of_channel > 0)
    return np.concatenate([order[~over], order[over]])


def _usable(pinned: Sequence[int], candidates: int, k: int) -> Rows:
    """The first k that there are, each once."""
    return np.array([at for at in dict.fromkeys(pinned) if 0 <= at < candidates][:k], np.int64)


def _best_first(scores: Floats, pins: Rows) -> Rows:
    order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
    return order[~np.isin(order, pins)] if len(pins) else order


def _nth_of_equals(codes: NDArray[np.integer[Any]]) -> Rows:
    """Count for each how many of the same code stand before it. [N]"""
    by_code = np.argsort(codes, kind="stable")
    ordered = codes[by_code]
    nth = np.empty(len(codes), np.int64)
    nth[by_code] = np.arange(len(codes)) - np.searchsorted(ordered, ordered)
    return nth


def _apart(order: Rows, pins: Rows, most: int, options: Options, settings: Selection) -> tuple[Rows, tuple[str, ...]]:
    """The order with the picks of MMR or DPP in front, and what was skipped."""
    if settings.diversity == "none" or not most:
        return order, ()
    if options.vectors is None:
        return order, (f"{settings.diversity}: the candidates have no vectors",)
    pool = order[: max(settings.diversity_pool, most)]
    pool = pool[np.isfinite(options.scores[pool])]
    among = np.concatenate([pins, pool])
    picks = pick_apart(
        options.scores[pool],
        options.vectors[among, :-1],
        options.channels[among],
        most=most,
        cap=settings.channel_cap,
        kind=settings.diversity,
        weight=settings.diversity_weight,
    )
    first = pool[picks]
    return np.concatenate([first, order[~np.isin(order, first)]]), ()


def _draw(order: Rows, best: Rows, pins: Rows, k: int, options: Options, settings: Selection, seed: int) -> Draws:
    """Drawn among the best that are not in the list anyway, and not of a channel that pins have filled."""
    others = order[~np.isin(order, best)]
    if settings.channel_cap and len(pins):
        codes, counts = np.unique(options.channels[pins], return_counts=True)
        others = others[~np.isin(options.channels[others], codes[(counts >= settings.channel_cap) & (codes > 0)])]
    pool = others[: settings.explore_pool]
    first = max(len(pins), settings.explore_from - 1)
    return draw(
        pool,
        options.channels[pool] if settings.channel_cap else np.zeros(len(pool), np.int64),
        _weights(options, pool, settings),
        places=np.arange(first, k),
        expected=settings.explore * k,
        seed=seed,
    )


def _weights(options: Options, pool: Rows, settings: Selection) -> Numbers:
    """The weight with which each of the pool is drawn. [Q]"""
    if settings.explore_by == "little_shown":
        return np.asarray(1 / (1 + np.maximum(np.nan_to_num(options.shown[pool]), 0)))
    scores = options.scores[pool].astype(np.float64)
    worth = np.maximum(np.where(np.isfinite(scores), scores, 0), 0)
    spread = np.clip(np.nan_to_num(options.spread[pool].astype(np.float64)), 0, MOST_SPREAD)
    return np.asarray(worth * np.expm1(spread))  # seconds more, were it one spread better


def _merged(pins: Rows, best: Rows, drawn: Draws, channels: NDArray[np.integer[Any]], cap: int) -> list[Chosen]:
    """The list: the drawn in their places, the others in their order around them."""
    kept = _make_room(best, pins, drawn.rows, channels, cap)
    others = [*(Chosen(at, None, PINNED) for at in pins.tolist()), *(Chosen(at, None, BEST) for at in kept)]
    taken = sorted(zip(drawn.places.tolist(), drawn.rows.tolist(), drawn.probabilities.tolist(), strict=True))
    for place, row, probability in taken:
        others.insert(place, Chosen(row, probability, DRAWN))
    return others


def _make_room(best: Rows, pins: Rows, drawn: Rows, channels: NDArray[np.integer[Any]], cap: int) -> list[int]:
    """The best list without as many as were drawn: the last of a channel that would be over its cap, else the last."""
    kept: list[int] = best.tolist()
    spare = len(drawn)
    for channel in channels[drawn].tolist() if cap else ():
        own = [at for at in kept if channels[at] == channel]
        if channel > 0 and own and len(own) + np.count_nonzero(channels[pins] == channel) >= cap:
            kept.remove(own[-1])
            spare -= 1
    return kept[: len(kept) - spare]

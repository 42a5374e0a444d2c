"""Who else nominates candidates, beside the two towers: what is trending, what is like the last watch, what is new.

Each source has a quota and says what score it gives; one that took too long in a batch is left out for the rest of it.
The union has each item once, with all its sources and scores (they are features of the ranker, paper section 4.1), and
never more candidates than a request may have: the two towers' last ones make way for what they have not found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.platform import metrics
from models.ranking.ranking_batch import FRESH, SIMILAR, SOURCES, TRENDING, TWO_TOWER, nominated
from models.ranking.ranking_request import Nominations
from serving.request.draft import Found, ResponseDraft
from serving.state.fresh import FreshView
from serving.state.views import TrendingView
from streams.trending.rules import GLOBAL, region_scope

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Wanted = Callable[[ResponseDraft, Sequence[str]], Flags]  # which of these may be in the draft's answer
Ids = tuple[list[str], Floats]  # C items and their scores, best first

LOOK = 4  # times the quota is looked at, since some of it may not be shown


class Nominees(NamedTuple):
    """Items of one source, best first, and the scores that it gives."""

    item_ids: Sequence[str]
    scores: Sequence[float]


Nominate = Callable[[ResponseDraft], Nominees]
NOBODY = Nominees((), ())


def ask(source: str, drafts: Sequence[ResponseDraft], nominate: Nominate, timeout_s: float) -> list[Nominees]:
    """What a source nominates for each draft; nothing for those that it is too late for."""
    began = time.perf_counter()
    found: list[Nominees] = []
    for draft in drafts:
        if time.perf_counter() - began > timeout_s:
            metrics.SOURCE_LEFT_OUT.labels(source).inc(len(drafts) - len(found))
            found += [NOBODY] * (len(drafts) - len(found))
            break
        found.append(nominate(draft))
    metrics.SOURCE_TIME.labels(source).observe(time.perf_counter() - began)
    return found


def trending_for(draft: ResponseDraft, trending: TrendingView, most: int, wanted: Wanted) -> Nominees:
    """What is watched now where the viewer is, then everywhere; decayed watches as scores."""
    lists = [trending.top(GLOBAL)[: LOOK * most]]
    context = draft.history.context
    if context is not None and context.region:
        lists.insert(0, trending.top(region_scope(context.region))[: LOOK * most])
    score_of = dict(entry for each in reversed(lists) for entry in each)  # where both know it, its own region's
    names = list(dict.fromkeys(item_id for each in lists for item_id, _ in each))
    chosen = first(names, wanted(draft, names), most)
    return Nominees(chosen, [score_of[name] for name in chosen])


def fresh_for(draft: ResponseDraft, fresh: FreshView, most: int, wanted: Wanted, *, now_ms: int, seed: int) -> Nominees:
    """Some of the newest items, drawn by chance, so that each of them is seen by some; its age in hours as a score."""
    newest = fresh.newest(now_ms)
    if len(newest) > most:
        drawn = np.random.default_rng(seed).permutation(len(newest))[: LOOK * most].tolist()
        newest = [newest[at] for at in drawn]
    age_h = {item_id: (now_ms - published_ms) / 3_600_000 for published_ms, item_id in newest}
    names = list(age_h)
    chosen = first(names, wanted(draft, names), most)
    return Nominees(chosen, [age_h[name] for name in chosen])


def similar_of(draft: ResponseDraft, found: Ids, most: int, wanted: Wanted) -> Nominees:
    """What a search by the last completed watch alone has found; its inner products as scores."""
    item_ids, scores = found
    score_of = dict(zip(item_ids, scores.tolist(), strict=True))
    chosen = first(item_ids, wanted(draft, item_ids), most)
    return Nominees(chosen, [score_of[name] for name in chosen])


def unite(towers: Ids, others: Mapping[str, Nominees], most: int) -> Found:
    """At most `most` candidates, each with all its sources. What the towers alone have found comes first and makes
    way first; scores of what they have not found are NaN."""
    item_ids, scores = towers
    place = {item_id: at for at, item_id in enumerate(item_ids)}
    names = list(item_ids)
    for nominees in others.values():
        for item_id in nominees.item_ids:
            if item_id not in place:
                place[item_id] = len(names)
                names.append(item_id)
    by = {source: np.zeros(len(names), np.bool_) for source in SOURCES[1:]}
    given = {source: np.full(len(names), np.nan, np.float32) for source in SOURCES[1:]}
    by[TWO_TOWER][: len(item_ids)] = True
    for source, nominees in others.items():
        rows = [place[item_id] for item_id in nominees.item_ids]
        by[source][rows] = True
        given[source][rows] = nominees.scores
    padded = np.full(len(names), np.nan, np.float32)
    padded[: len(item_ids)] = scores
    everything = Found(names, padded, Nominations(nominated(list(by.values())), given[TRENDING], given[SIMILAR]))
    return take(everything, _kept(by, most)) if len(names) > most else everything


def take(found: Found, rows: NDArray[np.int64]) -> Found:
    """These candidates alone, in this order."""
    old = found.nominations
    nominations = Nominations(old.sources[rows], old.trending[rows], old.similar[rows])
    return Found([found.item_ids[row] for row in rows.tolist()], found.scores[rows], nominations)


def scores_by_source(found: Found, row: int) -> dict[str, float | None]:
    """All sources that nominated a candidate, with the scores that go on record; None for one that gives none."""
    codes = found.nominations.sources[row]
    values = {TWO_TOWER: found.scores[row], TRENDING: found.nominations.trending[row]}
    values |= {SIMILAR: found.nominations.similar[row], FRESH: np.nan}
    names = [SOURCES[code] for code in codes.tolist() if code]
    return {name: None if np.isnan(values[name]) else float(values[name]) for name in names}


def first(names: Sequence[str], keep: Flags, most: int) -> list[str]:
    """The first `most` of those to be kept."""
    return [names[at] for at in np.flatnonzero(keep)[:most].tolist()]


def _kept(by: Mapping[str, Flags], most: int) -> NDArray[np.int64]:
    """Rows of all that others have nominated, and of the towers' best as far as there is room."""
    others = np.logical_or.reduce([mine for source, mine in by.items() if source != TWO_TOWER])
    room = max(0, most - int(np.count_nonzero(others)))
    towers_alone = np.flatnonzero(~others)
    keep = others.copy()
    keep[towers_alone[:room]] = True
    return np.flatnonzero(keep)[:most]

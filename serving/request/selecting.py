"""From candidates to the list: pins, the choice (serving/request/selection.py), and what fills the list up to k."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from infra.platform.settings import Selection
from models.ranking.ranking_batch import SOURCES, TRENDING
from models.ranking.ranking_request import Nominations
from serving.request.draft import Found, ResponseDraft
from serving.request.selection import PINNED, Options, choose, pins_of, seed_of
from serving.request.sources import Wanted
from serving.state.release import LiveRelease
from serving.state.views import CatalogueView, TrendingView
from streams.messages import Recommended
from streams.trending.rules import GLOBAL

CATALOGUE = "catalogue"
CHUNK, MOST_LOOKED_AT = 256, 5120  # spare items

Spare = tuple[str, str, float | None]  # item, source and score


def add_pins(draft: ResponseDraft, settings: Selection, may_be_shown: Wanted) -> None:
    """Make candidates of the pins that nobody has nominated, as far as they may be shown."""
    pins = dict.fromkeys((*draft.asked.request.pinned, *settings.pinned))
    missing = [pin for pin in pins if pin not in draft.found.item_ids] if pins else []
    if not missing:
        return
    keep = may_be_shown(draft, missing)
    draft.found = behind(draft.found, [pin for pin, yes in zip(missing, keep.tolist(), strict=True) if yes])


def behind(found: Found, item_ids: list[str]) -> Found:
    """The candidates and more of them, that no source has nominated."""
    nothing = np.full(len(item_ids), np.nan, np.float32)
    sources = np.zeros((len(item_ids), len(SOURCES) - 1), np.int64)
    old = found.nominations
    return Found(
        [*found.item_ids, *item_ids],
        np.concatenate([found.scores, nothing]),
        Nominations(
            np.concatenate([old.sources, sources]),
            np.concatenate([old.trending, nothing]),
            np.concatenate([old.similar, nothing]),
        ),
    )


def select(draft: ResponseDraft, live: LiveRelease | None, settings: Selection) -> None:
    """The k best candidates under the rules of `selection`."""
    found = draft.found
    if not found.item_ids:
        return
    options = options_of(draft, live, settings)
    choice = choose(options, draft.k, settings, seed_of(draft.asked.request.request_id, settings.seed))
    draft.degraded += [f"selection: {step}" for step in choice.skipped]
    for rank, (at, probability, reason) in enumerate(choice.items, 1):
        draft.items.append(
            Recommended(
                found.item_ids[at],
                rank,
                PINNED if reason == PINNED else primary_source(found, at),
                None if np.isnan(found.scores[at]) else float(found.scores[at]),
                None if draft.expected_s is None else float(draft.expected_s[at]),
                probability=probability,
            )
        )


def options_of(draft: ResponseDraft, live: LiveRelease | None, settings: Selection) -> Options:
    """What the choice is made from."""
    found, fed = draft.found, draft.fed
    nothing = np.zeros(len(found.item_ids), np.float32)
    channels: NDArray[np.int32] = np.zeros(len(found.item_ids), np.int32)
    vectors = None
    if live is not None and settings.channel_cap:
        channels = live.catalogue.channel_codes(live.catalogue.rows(found.item_ids))
    if live is not None and live.mirror is not None and settings.diversity != "none":
        rows = live.mirror.rows(found.item_ids)
        vectors = np.where((rows >= 0)[:, None], live.mirror.vectors(rows), np.float32(0))
    return Options(
        found.scores if draft.expected_s is None else draft.expected_s,
        channels,
        nothing if fed is None else fed.shown,
        nothing if fed is None or fed.spread is None else fed.spread,
        vectors,
        pins_of(found.item_ids, draft.asked.request.pinned, settings.pinned),
    )


def primary_source(found: Found, row: int) -> str:
    """The first of a candidate's sources, in the order of SOURCES."""
    codes = found.nominations.sources[row]
    return next((SOURCES[code] for code in codes.tolist() if code), "")


def fill(
    draft: ResponseDraft,
    trending: TrendingView,
    catalogue: CatalogueView,
    live: LiveRelease | None,
    may_be_shown: Wanted,
) -> None:
    """Add what is trending and then anything that may be shown until there are k items, or none are left."""
    if len(draft.items) >= draft.k:
        return
    taken = {item.item_id for item in draft.items}
    spares = islice(_spares(trending, catalogue, live), MOST_LOOKED_AT)
    while len(draft.items) < draft.k and (chunk := list(islice(spares, CHUNK))):
        keep = may_be_shown(draft, [item_id for item_id, _, _ in chunk])
        for (item_id, source, score), yes in zip(chunk, keep.tolist(), strict=True):
            if yes and item_id not in taken and len(draft.items) < draft.k:
                taken.add(item_id)
                draft.items.append(Recommended(item_id, len(draft.items) + 1, source, score))


def _spares(trending: TrendingView, catalogue: CatalogueView, live: LiveRelease | None) -> Iterator[Spare]:
    """What can fill an answer up, best first."""
    for item_id, count in trending.top(GLOBAL):
        yield item_id, TRENDING, count
    for item_id in catalogue:
        yield item_id, CATALOGUE, None
    for item_id in () if live is None else live.model.item_ids:
        yield item_id, CATALOGUE, None

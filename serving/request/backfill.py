"""Fills a list that is too short up to k items: with what is trending, with what the release knows as popular, then
with anything that may be shown, the newest entries of the catalogue first.

Scores are shares of the watches; what nobody is known to have watched has 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from models.ranking.ranking_batch import TRENDING
from serving.request.filtering import MayBeShown
from serving.request.response_draft import ResponseDraft
from serving.state.release import LiveRelease
from serving.state.views import Views
from streams.messages import Recommended

POPULAR, CATALOGUE = "popular", "catalogue"
CHUNK, MOST_LOOKED_AT = 256, 5120  # spare items

Spare = tuple[str, str, float]  # item, source and score


def fill(draft: ResponseDraft, views: Views, live: LiveRelease | None, may_be_shown: MayBeShown) -> None:
    """Add spare items until there are k, or none are left."""
    if len(draft.items) >= draft.k:
        return
    taken = {item.item_id for item in draft.items}
    spares = islice(_spares(draft, views, live), MOST_LOOKED_AT)
    while len(draft.items) < draft.k and (chunk := list(islice(spares, CHUNK))):
        keep = may_be_shown(draft, [item_id for item_id, _, _ in chunk])
        for (item_id, source, score), yes in zip(chunk, keep.tolist(), strict=True):
            if yes and item_id not in taken and len(draft.items) < draft.k:
                taken.add(item_id)
                draft.items.append(Recommended(item_id, len(draft.items) + 1, source, score))


def _spares(draft: ResponseDraft, views: Views, live: LiveRelease | None) -> Iterator[Spare]:
    """Best first; nothing that is as long as the catalogue is made."""
    trending = views.trending.best(draft.region)
    for item_id, share in zip(trending.item_ids, trending.shares, strict=True):
        yield item_id, TRENDING, float(share)
    for item_id, share in () if live is None else live.popular:
        yield item_id, POPULAR, share
    for item_id in reversed(views.catalogue):
        yield item_id, CATALOGUE, 0.0
    for item_id in () if live is None else live.model.item_ids:
        yield item_id, CATALOGUE, 0.0

"""What may not be in an answer: watched before, excluded, shown too often, taken down, outside the request's filter.

The same rules for every source. What few items are banned by name is a set; what was watched long ago is a compact set
of hashes (streams/history/watched_filter.py); the request's filter reads the catalogue's columns. Nothing here loops
over the catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.catalogue.catalogue import Catalogue
from models.catalogue.item_filter import ItemFilter
from serving.request.draft import ResponseDraft
from serving.state.views import CatalogueView
from streams.history.watched_filter import codes_of, watched_mask
from streams.messages import UserHistory

Flags = NDArray[np.bool_]


def banned_by(history: UserHistory, shown_most: int) -> set[str]:
    """Items of the kept watches, and those shown at least `shown_most` times lately (0: however often)."""
    banned = {watch.item_id for watch in history.watches}
    if shown_most:
        shown = Counter(item_id for each in history.impressions for item_id in each.item_ids)
        banned.update(item_id for item_id, times in shown.items() if times >= shown_most)
    return banned


def wanted(
    draft: ResponseDraft,
    item_ids: Sequence[str],
    catalogue: Catalogue | None,
    view: CatalogueView,
    *,
    now_ms: int,
    seen_days: int,
) -> Flags:
    """bool [C]: which of these may be in the answer. `catalogue`: the release's, None where there is none yet."""
    banned, unavailable = draft.banned, view.unavailable
    allowed = np.array([item not in banned and item not in unavailable for item in item_ids], np.bool_)
    if draft.history.seen and len(item_ids):
        allowed &= ~watched_mask(draft.history.seen, codes_of(item_ids), now_ms=now_ms, days=seen_days)
    if draft.asked.filter is not None and len(item_ids):
        allowed &= passes(draft.asked.filter, item_ids, catalogue, view)
    return allowed


def passes(item_filter: ItemFilter, item_ids: Sequence[str], catalogue: Catalogue | None, view: CatalogueView) -> Flags:
    """bool [C]. Without a release the facts are read from the catalogue's own records, item by item."""
    if catalogue is None:
        catalogue = Catalogue()
        for item_id in item_ids:
            view.describe(item_id, catalogue)
    return np.asarray(item_filter.mask(catalogue, catalogue.rows(item_ids)))

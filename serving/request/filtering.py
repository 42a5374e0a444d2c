"""Rules out what was watched before, excluded, shown too often, taken down, or is outside the request's filter.

The same rules for every source. What few items are banned by name is a set; what was watched long ago is a compact set
of hashes (streams/history/watched_filter.py); the request's filter reads the catalogue's columns. Nothing here loops
over the catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.catalogue.catalogue import Catalogue
from models.catalogue.item_filter import ItemFilter
from serving.request.response_draft import ResponseDraft
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


class MayBeShown(NamedTuple):
    """The rules at one moment. `catalogue`: the release's, None where there is none yet; `watched_days`: what was
    watched longer ago may be shown again."""

    view: CatalogueView
    catalogue: Catalogue | None
    now_ms: int
    watched_days: int

    def __call__(self, draft: ResponseDraft, item_ids: Sequence[str]) -> Flags:
        """bool [C]: True for each of these items that may be in the draft's answer."""
        allowed = np.ones(len(item_ids), np.bool_)
        if ruled_out := draft.banned.intersection(item_ids) | self.view.unavailable.intersection(item_ids):
            allowed = ~np.fromiter(map(ruled_out.__contains__, item_ids), np.bool_, len(item_ids))
        if draft.history.seen and len(item_ids):
            codes = codes_of(item_ids)
            allowed &= ~watched_mask(draft.history.seen, codes, now_ms=self.now_ms, days=self.watched_days)
        if draft.context.filter is not None and len(item_ids):
            allowed &= self._passes(draft.context.filter, item_ids)
        return allowed

    def _passes(self, item_filter: ItemFilter, item_ids: Sequence[str]) -> Flags:
        """bool [C]. Without a release the attributes are read from the view, item by item."""
        catalogue = self.catalogue
        if catalogue is None:
            catalogue = Catalogue()
            for item_id in item_ids:
                self.view.describe(item_id, catalogue)
        return np.asarray(item_filter.mask(catalogue, catalogue.rows(item_ids)))

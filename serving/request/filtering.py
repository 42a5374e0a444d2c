"""Rules out what was watched before, is unwanted, excluded, shown too often, taken down, or outside the filter.

The same rules for every source. What few items are banned by name is a set; what was watched long ago is a compact set
of hashes (streams/history/watched_filter.py); the request's filter reads the catalogue's columns, and so do channels
that the user does not want. Nothing here loops over the catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arrays import Rows
from models.catalogue.catalogue import CHANNEL, Catalogue
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
        item_filter, channels = draft.context.filter, draft.unwanted.channels
        if len(item_ids) and (item_filter is not None or channels):
            catalogue = self._described(item_ids) if self.catalogue is None else self.catalogue
            rows = catalogue.rows(item_ids)
            if item_filter is not None:
                allowed &= item_filter.mask(catalogue, rows)
            if channels:
                allowed &= ~is_of(self._codes(draft, catalogue), catalogue, rows)
        return allowed

    def _codes(self, draft: ResponseDraft, catalogue: Catalogue) -> Set[int]:
        """The codes of the unwanted channels: looked up once for an answer, whose sources all ask."""
        if self.catalogue is None:  # of the items that are asked about alone
            return channel_codes(draft.unwanted.channels, catalogue)
        if draft.unwanted_codes is None:
            draft.unwanted_codes = channel_codes(draft.unwanted.channels, catalogue)
        return draft.unwanted_codes

    def _described(self, item_ids: Sequence[str]) -> Catalogue:
        """The attributes of these items, read from the view, item by item: there is no release yet."""
        catalogue = Catalogue()
        for item_id in item_ids:
            self.view.describe(item_id, catalogue)
        return catalogue


def channel_codes(channels: Iterable[str], catalogue: Catalogue) -> frozenset[int]:
    """The codes of those of the channels that an item is of."""
    return frozenset(catalogue.code_of_id(CHANNEL, channel) for channel in channels) - {0}


def is_of(codes: Set[int], catalogue: Catalogue, rows: Rows) -> Flags:
    """bool [C]: whether each item is of one of the channels with these codes."""
    found = catalogue.channel_codes(rows).tolist()
    return np.fromiter(map(codes.__contains__, found), np.bool_, len(found))  # np.isin takes longer for so few

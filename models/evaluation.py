"""How well candidates are found: the rank of what was watched next, among all items, already watched ones removed.

Always over the whole catalogue (sampled metrics mislead, Krichene and Rendle 2020), always split by time, always with
decayed popularity beside it on the same cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.candidates import CandidateModel, with_one
from models.timeline import Timeline, first_of_pair
from models.tower import HISTORY

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

CUTOFFS = (10, 100, 500)
CELLS = 30_000_000  # most scores held at once


@dataclass(frozen=True)
class Positives:
    """Completed watches in time: int64 [N] each; `users` are any numbers, `items` are catalogue rows."""

    users: Rows
    items: Rows

    def __len__(self) -> int:
        return len(self.users)

    def before(self, cut: int) -> Positives:
        return Positives(self.users[:cut], self.items[:cut])


@dataclass(frozen=True)
class Cases:
    """Of each user who has watched before the cut: the history up to it [B, H], the first unseen item after it [B],
    and all items seen before, as pairs of case and item [K]."""

    histories: Rows
    targets: Rows
    seen_case: Rows
    seen_item: Rows

    def __len__(self) -> int:
        return len(self.targets)


def next_watch_cases(positives: Positives, cut: int) -> Cases:
    """One case per user: what they watched next after the first `cut` watches (paper section 3.4), never a random
    one."""
    new = np.flatnonzero(first_of_pair(positives.users, positives.items))
    later = new[new >= cut]
    users, at = np.unique(positives.users[later], return_index=True)
    known = np.isin(users, positives.users[:cut])
    users, targets = users[known], positives.items[later[at[known]]]
    case_of = np.full(positives.users.max(initial=0) + 1, -1, np.int64)
    case_of[users] = np.arange(len(users))
    past_case = case_of[positives.users[:cut]]
    mine = np.flatnonzero(past_case >= 0)
    # A row of each user at the cut, so that the window before it is all of the past.
    everything = Timeline(np.concatenate([positives.users[:cut], users]))
    windows = everything.before(cut + np.arange(len(users)), HISTORY)
    histories = np.where(windows >= 0, positives.items[windows], -1)
    return Cases(histories, targets, past_case[mine], positives.items[mine])


def measure_recall(model: CandidateModel, cases: Cases) -> dict[str, float]:
    """recall@k of the model and of decayed popularity (`popular_recall@k`), and `cases`, their number."""
    vectors, popular = model.item_vectors(), model.popularity.log_share()
    ranks: list[Rows] = []
    popular_ranks: list[Rows] = []
    size = rows_at_once(len(vectors))
    for start in range(0, len(cases), size):
        block = np.arange(start, min(start + size, len(cases)))
        mine = (cases.seen_case >= start) & (cases.seen_case < start + size)
        seen = cases.seen_case[mine] - start, cases.seen_item[mine]
        scores = with_one(model.encode(cases.histories[block])) @ vectors.T  # [B, N]
        ranks.append(target_ranks(scores, cases.targets[block], *seen))
        scores = np.repeat(popular[None], len(block), axis=0)
        popular_ranks.append(target_ranks(scores, cases.targets[block], *seen))
    metrics = {"cases": float(len(cases))}
    if len(cases):
        metrics |= {f"recall@{k}": float((np.concatenate(ranks) < k).mean()) for k in CUTOFFS}
        metrics |= {f"popular_recall@{k}": float((np.concatenate(popular_ranks) < k).mean()) for k in CUTOFFS}
    return metrics


def rows_at_once(items: int) -> int:
    """How many users can be scored against all items together, in bounded memory."""
    return max(1, min(1024, CELLS // items))


def target_ranks(scores: Floats, targets: Rows, seen_case: Rows, seen_item: Rows) -> Rows:
    """int64 [B]: 0-based rank of each target among all items but the seen ones; equal scores share the middle.

    scores float32 [B, N] (overwritten where seen); targets int64 [B]; seen_case, seen_item int64 [K].
    """
    own = scores[np.arange(len(targets)), targets][:, None]  # [B, 1], before a seen target is struck out
    scores[seen_case, seen_item] = -np.inf
    above = (scores > own).sum(axis=1)
    equal = (scores == own).sum(axis=1)
    return np.asarray(above + np.maximum(equal - 1, 0) // 2)

"""Statistics of what viewers made of the items that were shown to them: decayed sums over closed impressions, by item,
by channel, by topic, over all, and by version what the ranker had promised. Pure; time is the impressions' own.

A sum is decayed when it is touched: value * 2^-(dt / half-life) + new. An impression that is older than the row weighs
as much less. No video counts for more than the cap of the ranker that showed it.

Each row carries its `mark`, so that a repeat after a crash is known: the watermark up to which closed windows are in
it, and the offset of the last impression that pushed an older one out (see streams.join.rules). A row holds all that
was due up to its mark, because whatever is due together is counted before the rows are published.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.ranking.features import SCHEMA_HASH
from streams.join.rules import Tally
from streams.messages import Outcome, ShownOutline, StatisticsRow

LEAST_IMPRESSIONS = 0.01  # a row that decayed below is dropped

Key = tuple[str, str]  # scope and id
Sums = list[float]  # impressions, watches, seconds, completions, expected_s
New = tuple[float, float, float, float, float]  # the same, to be added

ALL = ("all", "")
UNWATCHED: New = (1.0, 0.0, 0.0, 0.0, 0.0)
UNCHANGED: New = (0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(slots=True)
class _Row:
    as_of_ms: int
    sums: Sums
    mark: tuple[int, int]

    def add(self, new: Sums, at_ms: int, half_life_ms: float) -> None:
        old, weight = self.sums, 1.0
        decay = 2.0 ** -(abs(at_ms - self.as_of_ms) / half_life_ms)
        if at_ms >= self.as_of_ms:
            self.sums = old = [each * decay for each in old]
            self.as_of_ms = at_ms
        else:
            weight = decay
        for place, each in enumerate(new):
            if each:  # of most items that are shown nothing is watched
                old[place] += each * weight


class ItemStatistics:
    """The rows of one partition."""

    def __init__(self, partition: int, half_life_h: float) -> None:
        self._partition = partition
        self._half_life_ms = half_life_h * 3_600_000
        self._rows: dict[Key, _Row] = {}
        self._touched: set[Key] = set()
        self._to_sweep: list[Key] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def closed_ms(self) -> int:
        """The watermark up to which windows were closed when the rows were last published."""
        return max((row.mark[0] for row in self._rows.values()), default=0)

    def restore(self, row: StatisticsRow) -> None:
        sums = [row.impressions, row.watches, row.seconds, row.completions, row.expected_s]
        self._rows[row.scope, row.id] = _Row(row.as_of_ms, sums, row.mark)

    def count(self, tally: Tally) -> None:
        """Add an impression's outcomes, or what has changed of them, to the rows that do not hold it yet."""
        at_ms = tally.impression.at_ms
        kind, moment = (0, tally.at_ms) if tally.pushed_by is None else (1, tally.pushed_by)
        for key, sums in contributions(tally).items():
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = _Row(at_ms, [0.0] * 5, (-1, -1))
            if moment > row.mark[kind]:
                row.add(sums, at_ms, self._half_life_ms)
                self._touched.add(key)

    def publish(self, *, closed_ms: int = -1, pushed_by: int = -1) -> list[StatisticsRow]:
        """The rows that were touched since the last time, marked: they hold everything up to here."""
        touched, self._touched = self._touched, set()
        return [self._mark(key, closed_ms, pushed_by) for key in touched]

    def sweep(self, now_ms: int, most: int) -> list[Key]:
        """Look at the next `most` rows and drop those that decayed to nothing; their keys. The sum of all stays."""
        if not self._to_sweep:
            self._to_sweep = list(self._rows)
        looked, self._to_sweep = self._to_sweep[-most:], self._to_sweep[:-most]
        dropped = [key for key in looked if key != ALL and self._is_spent(key, now_ms)]
        for key in dropped:
            del self._rows[key]
        return dropped

    def key_of(self, scope: str, id_: str) -> bytes:
        """The key of a row on the topic."""
        return f"{scope}/{self._partition}/{id_}".encode()

    def _mark(self, key: Key, closed_ms: int, pushed_by: int) -> StatisticsRow:
        row = self._rows[key]
        row.mark = max(row.mark[0], closed_ms), max(row.mark[1], pushed_by)
        sums = (max(0.0, each) for each in row.sums)  # a correction may leave less than nothing, by rounding
        return StatisticsRow(*key, self._partition, row.as_of_ms, *sums, row.mark)  # type: ignore[arg-type,call-arg,misc]

    def _is_spent(self, key: Key, now_ms: int) -> bool:
        row = self._rows.get(key)
        if row is None or key in self._touched:
            return False
        left: float = row.sums[0] * 2.0 ** -(max(0, now_ms - row.as_of_ms) / self._half_life_ms)
        return left < LEAST_IMPRESSIONS


def contributions(tally: Tally) -> dict[Key, Sums]:
    """Return what a tally adds to each row."""
    impression, first = tally.impression, tally.counted is None
    before = {outcome.item_id: outcome for outcome in tally.counted or ()}
    is_ours = impression.schema_hash == SCHEMA_HASH
    calibration = "calibration", impression.ranked_by or impression.version
    sums: dict[Key, Sums] = {}
    for shown, outcome in zip(impression.items, tally.outcomes, strict=True):
        new = _difference(outcome, before.get(outcome.item_id), first, impression.cap_s)
        for key in _keys_of(shown):
            _add(sums, key, new)
        if shown.expected_watch_s is not None and is_ours:
            promised_s = shown.expected_watch_s / impression.factor if first else 0.0
            _add(sums, calibration, (*new[:4], promised_s))
    return sums


def _difference(outcome: Outcome, before: Outcome | None, first: bool, cap_s: float) -> New:
    watched_s = outcome.watched_s
    if before is None:
        if watched_s <= 0 and not outcome.completed:  # as most are
            return UNWATCHED if first else UNCHANGED
        return float(first), float(watched_s > 0), min(watched_s, cap_s), float(outcome.completed), 0.0
    return (
        float(first),
        float(watched_s > 0) - float(before.watched_s > 0),
        min(watched_s, cap_s) - min(before.watched_s, cap_s),
        float(outcome.completed) - float(before.completed),
        0.0,
    )


def _keys_of(shown: ShownOutline) -> list[Key]:
    ids = shown.ids
    keys = [ALL, ("item", shown.item_id)]
    keys += [("channel", id_) for id_ in ids.channel]
    keys += [("length", id_) for id_ in ids.length]
    keys += [("topic", id_) for id_ in ids.topics]
    return keys


def _add(sums: dict[Key, Sums], key: Key, new: New) -> None:
    row = sums.get(key)
    if row is None:
        sums[key] = list(new)
        return
    row[0] += new[0]
    if new is not UNWATCHED:
        row[1] += new[1]
        row[2] += new[2]
        row[3] += new[3]
        row[4] += new[4]

"""Trains the ranker on every row of a log that tells how long it was watched, features as they stood at that time.

Rows go in time order, and what a feature reads comes from earlier rows only: the viewer's window and the item's
running statistics. The retrieval score comes from a model that has not seen the row, so it exists for the last rows
only and is missing before; a score of the final model would know the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from infra.settings import Model
from models.backtest import rows_at_once
from models.batches import batch_size, shuffled_batches
from models.candidates import CandidateModel, with_one
from models.catalogue import Catalogue
from models.features import HISTORY, Histories, Statistics, compute_features
from models.losses import watch_time_logistic
from models.quantiles import fit_quantiles
from models.ranker import CAP_S, ItemStatistics, Ranker, RankerNet, serve_seconds
from models.source import Source
from models.stored_log import StoredLog
from models.timeline import Timeline

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

RATE = 3e-3
WEIGHT_DECAY = 0.01
BATCH = 1024
LEAST_STEPS = 300  # per epoch
BLOCK = 8192  # rows whose features are computed together
LEAST_ROWS = 200  # with fewer, retrieval order is better than a fit
SCORED_ROWS = 50_000  # at most so many rows get a retrieval score: each is compared with the whole catalogue


@dataclass(frozen=True)
class Exposures:
    """A log as arrays [N], in time: `timed` marks the rows whose watch_s is known; others are history only, and count
    with the seconds that made them completed."""

    users: Rows
    rows: Rows
    event_ms: Rows
    watch_s: Floats
    completed: npt.NDArray[np.bool_]
    timed: npt.NDArray[np.bool_]

    @property
    def target_s(self) -> Floats:
        """What the ranker learns and what item statistics count; a history keeps the whole time, as in serving."""
        return np.minimum(self.watch_s, np.float32(CAP_S))


def exposures_of(log: StoredLog, source: Source) -> Exposures:
    """All rows of the log that `source` was prepared from."""
    rows = source.rows[log.items]
    seconds = np.asarray(log.watch_s)
    timed = np.isfinite(seconds)
    least = np.fmin(source.catalogue.duration_s(rows), log.completed_s)
    watch_s = np.where(timed, seconds, least).astype(np.float32)
    users = np.asarray(log.users, np.int64)
    return Exposures(users, rows, np.asarray(log.event_ms), watch_s, np.asarray(log.completed), timed)


def train_ranker(
    features: Floats,
    exposures: Exposures,
    chosen: Rows,
    *,
    catalogue: Catalogue,
    settings: Model,
    progress: Progress = lambda done, total: None,
) -> Ranker:
    """Fit on the rows `chosen` (int64, of `exposures`), whose features are float32 [len(chosen), F].

    With fewer than LEAST_ROWS rows the ranker stays untrained. The same seed gives the same ranker."""
    statistics = item_statistics(exposures, chosen, len(catalogue))
    if len(chosen) < LEAST_ROWS:
        return Ranker(None, None, statistics, catalogue)
    quantiles = fit_quantiles(features)
    watch_s = exposures.target_s[chosen]
    mean_s = float(max(watch_s.mean(), 1e-3))
    net = _new_net(quantiles.width, mean_s, settings)
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    size = batch_size(len(chosen), largest=BATCH, least_steps=LEAST_STEPS)
    batches = shuffled_batches(np.arange(len(chosen)), size, settings.ranker_epochs, rng)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    for step, at in enumerate(batches):
        inputs = torch.from_numpy(quantiles.encode(features[at]))
        loss = watch_time_logistic(net(inputs), torch.from_numpy(watch_s[at])).mean() / (1 + mean_s)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(step + 1, len(batches))
    return Ranker(net, quantiles, statistics, catalogue)


def exposure_features(
    exposures: Exposures,
    chosen: Rows,
    catalogue: Catalogue,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """Features of the rows `chosen` as they stood before each: float32 [len(chosen), F], the retrieval gap missing."""
    timeline = Timeline(exposures.users)
    running = running_statistics(exposures)
    blocks = []
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        blocks.append(
            compute_features(
                catalogue,
                _histories(exposures, timeline.before(block, HISTORY)),
                now_ms=exposures.event_ms[block],
                request=np.arange(len(block)),
                rows=exposures.rows[block],
                statistics=Statistics(*(values[block] for values in running)),
                gap=np.full(len(block), np.nan, np.float32),
            )
        )
        progress(min(start + BLOCK, len(chosen)), len(chosen))
    return np.concatenate(blocks)


def unseen_gaps(model: CandidateModel, exposures: Exposures, chosen: Rows, since: int) -> Floats:
    """`retrieval_gap` of the rows `chosen` by a model trained on the log's first `since` rows: float32 [len(chosen)],
    NaN for rows that the model has seen. The best score is that of the best item not yet in the viewer's history."""
    gap = np.full(len(chosen), np.nan, np.float32)
    scored = np.flatnonzero(chosen >= since)[-SCORED_ROWS:]
    timeline, vectors = Timeline(exposures.users), model.item_vectors()
    size = rows_at_once(len(vectors))
    for start in range(0, len(scored), size):
        at = scored[start : start + size]
        windows = timeline.before(chosen[at], HISTORY)
        completed = (windows >= 0) & exposures.completed[windows]
        histories = np.where(completed, exposures.rows[windows], -1)  # [B, H]
        scores = with_one(model.encode(model.reader.queries_of(histories))) @ vectors.T  # [B, N]
        own = scores[np.arange(len(at)), exposures.rows[chosen[at]]]
        case, place = np.nonzero(completed)
        scores[case, histories[case, place]] = -np.inf
        gap[at] = np.minimum(own - scores.max(axis=1), 0)
    return gap


def item_statistics(exposures: Exposures, chosen: Rows, items: int) -> ItemStatistics:
    """Sums over the rows `chosen`, by item."""
    rows = exposures.rows[chosen]
    return ItemStatistics(
        np.bincount(rows, minlength=items).astype(np.float64),
        np.bincount(rows, exposures.target_s[chosen], minlength=items).astype(np.float64),
        np.bincount(rows, exposures.completed[chosen], minlength=items).astype(np.float64),
    )


def running_statistics(exposures: Exposures) -> tuple[npt.NDArray[np.float64], ...]:
    """The fields of `Statistics` before each row of the log: float64 [N] each. Only timed rows count."""
    counted = exposures.timed.astype(np.float64)
    columns = (counted, counted * exposures.target_s, counted * exposures.completed)
    order = np.argsort(exposures.rows, kind="stable")
    sizes = np.bincount(exposures.rows)
    own = [_sums_before(column[order], sizes)[np.argsort(order, kind="stable")] for column in columns]
    return (*own, *(np.cumsum(column) - column for column in columns))


def measure_ranker(ranker: Ranker, features: Floats, watch_s: Floats) -> dict[str, float]:
    """On rows it has not seen: mean absolute error in seconds, that of the overall mean, predicted over watched."""
    if ranker.net is None or ranker.quantiles is None or not len(watch_s):
        return {}
    with torch.inference_mode():
        predicted = serve_seconds(ranker.net(torch.from_numpy(ranker.quantiles.encode(features))).numpy())
    return {
        "ranker_rows": float(len(watch_s)),
        "ranker_mae_s": float(np.abs(predicted - watch_s).mean()),
        "mean_mae_s": float(np.abs(ranker.statistics.mean_s - watch_s).mean()),
        "ranker_predicted_over_watched": float(predicted.sum() / max(watch_s.sum(), 1e-9)),
    }


def _new_net(inputs: int, mean_s: float, settings: Model) -> RankerNet:
    """Starts at the mean: the odds of an untouched network are close to the mean watch time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = RankerNet(inputs, settings.ranker_hidden)
    with torch.no_grad():
        net.last.bias.fill_(np.log(mean_s))
    return net


def _histories(exposures: Exposures, windows: Rows) -> Histories:
    """windows int64 [B, H]: rows of the log, -1 for none."""
    there = windows >= 0
    return Histories(
        np.where(there, exposures.rows[windows], -1),
        np.where(there, exposures.event_ms[windows], 0),
        np.where(there, exposures.watch_s[windows], 0).astype(np.float32),
        there,
    )


def _sums_before(values: npt.NDArray[np.float64], sizes: Rows) -> npt.NDArray[np.float64]:
    """Of values grouped in runs of `sizes`: the sum of the earlier ones in the run."""
    running = np.cumsum(values) - values
    starts = np.cumsum(sizes) - sizes
    return np.asarray(running - np.repeat(running[starts[sizes > 0]], sizes[sizes > 0]))

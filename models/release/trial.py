"""A release on trial: learnt a second time without the newest watches, and asked for these beside the live one.

What goes live has learnt all there is, so it cannot be judged on any of it. Its twin can: the same settings on the same
log, learnt only up to a cut behind which neither it nor the live release has seen anything. It is compared with the
live release, and with decayed popularity, which needs no model. What then goes live is looked at too: it has seen the
answers, so it must not know less than its twin does, and one that does is spoilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.arrays import Doubles, Rows
from models.evaluation.backtest import Recommender, walk_frozen
from models.evaluation.baselines import DecayedPopular
from models.evaluation.comparison import Ratio, hits, ratio_of
from models.evaluation.eval_queries import History, Stream
from models.evaluation.gate import LEAST_USERS, Comparison, Floor, Verdict, decide
from models.evaluation.ranking_metrics import pair_loss
from models.logs.dataset import Dataset
from models.logs.training_set import TrainingSet
from models.ranking.ranker import Ranker
from models.ranking.ranker_release import LEAST_JUDGED
from models.ranking.ranking_evaluation import item_means, pages_of, predict
from models.ranking.ranking_examples import RankingExamples
from models.release.asked_model import Asked
from models.retrieval.candidate_learning import drawn
from models.retrieval.candidates import CandidateModel
from models.retrieval.popularity import choose_half_life

Progress = Callable[[str, int, int], None]

NEWEST = 0.1  # share of the positives that is held out, where the live release has not learnt some of them
CUTOFFS = (10, 100)
COVERED = 100  # of each list
LEAST_COVERAGE = 0.5  # of the live release's: fewer items in all lists are a collapse
CALIBRATED = (0.7, 1.4)  # as the alarm of miscalibration has it
LIVE, POPULAR, ITEM_MEAN = "live", "popular, decayed", "item's mean seconds"
TWIN, FINAL = "without the newest", "with the newest"  # watches
NO_RANKER = "the ranker is not judged: too few impressions to learn from or to judge by"
KNOWN_IMPRESSIONS = "not compared with the live ranker: it has learnt all but too few of these impressions itself"
STAGE = "trial"


@dataclass(frozen=True)
class Rival:
    """The live release. `learnt_ms`, `ranked_ms`: all it has learnt is from before, of watches and of impressions.
    Without a `version` nothing is live; without a model it cannot be compared with, and `why` says why."""

    version: str = ""
    learnt_ms: int = 0
    ranked_ms: int = 0
    model: CandidateModel | None = None
    ranker: Ranker | None = None
    why: str = "no release is live yet"


class Cut(NamedTuple):
    """The data set's row from which a release is judged. `is_new`: the live release has learnt nothing from there
    on."""

    row: int
    is_new: bool


class Trial(NamedTuple):
    """A twin that has learnt the rows before the cut. `unseen`: impressions that its ranker has not learnt, nor, where
    `is_unseen_live`, the live one."""

    training_set: TrainingSet
    cut: Cut
    model: CandidateModel
    ranker: Ranker
    unseen: RankingExamples | None
    is_unseen_live: bool = True


def choose_cut(dataset: Dataset, learnt_ms: int) -> Cut | None:
    """The newest NEWEST of the positives, or fewer, so that the live release has not learnt them; where that leaves too
    few users, the newest NEWEST without it. None where these are too few as well."""
    event_ms = dataset.event_ms
    history = history_of(dataset)
    share_ms = int(event_ms[min(int(len(dataset) * (1 - NEWEST)), len(dataset) - 1)])
    for from_ms in (max(share_ms, learnt_ms), share_ms):
        row = int(np.searchsorted(event_ms, from_ms, side="left"))
        if 0 < row < len(dataset) and len(history.next_unseen(row)) >= LEAST_USERS:
            return Cut(row, from_ms >= learnt_ms)
    return None


def history_of(dataset: Dataset) -> History:
    columns = (dataset.users, dataset.items, dataset.event_ms)
    return History(Stream(*(np.asarray(column, np.int64) for column in columns)))


def judge_release(
    trial: Trial,
    final: tuple[CandidateModel, Ranker],
    rival: Rival,
    *,
    seed: int,
    progress: Progress = lambda stage, done, total: None,
) -> Verdict:
    """Judge the twin beside the live release and the baselines, and `final`, what would go live, beside its twin."""
    models = {LIVE: rival.model} if rival.model is not None and trial.cut.is_new else {}
    rankers = _live_ranker(rival, is_new=bool(models) and trial.is_unseen_live)
    notes = [] if models else [_why_alone(rival)]
    comparisons = compare_candidates(trial, final[0], models, seed=seed, progress=progress)
    if (unseen := _enough(trial.ranker, trial.unseen)) is None:
        notes.append(NO_RANKER)
    else:
        comparisons += compare_rankers(trial.ranker, rankers, final[1], unseen)
        if models and not trial.is_unseen_live:
            notes.append(KNOWN_IMPRESSIONS)
    return decide(comparisons, notes, seed=seed)


def judge_ranker(
    twin: Ranker, final: Ranker, unseen: RankingExamples | None, rival: Rival, *, seed: int, is_new: bool = True
) -> Verdict:
    """Judge a ranker that has not learnt `unseen` beside the live release's, where `is_new` says that it has not
    either, and the item's mean, and the one that would go live beside it."""
    if (unseen := _enough(twin, unseen)) is None:
        return Verdict("not judged", notes=(NO_RANKER,))
    theirs = _live_ranker(rival, is_new=is_new)
    why = KNOWN_IMPRESSIONS if not is_new else f"not compared with a live ranker: {rival.why or 'it has none'}"
    notes = [] if theirs else [why]
    return decide(compare_rankers(twin, theirs, final, unseen), notes, seed=seed)


def _live_ranker(rival: Rival, *, is_new: bool) -> dict[str, Ranker]:
    return {LIVE: rival.ranker} if is_new and rival.ranker is not None and rival.ranker.trained else {}


def _enough(ranker: Ranker, unseen: RankingExamples | None) -> RankingExamples | None:
    return unseen if ranker.trained and unseen is not None and len(unseen) >= LEAST_JUDGED else None


def _why_alone(rival: Rival) -> str:
    if rival.model is None:
        return f"not compared with a live release: {rival.why}"
    return f"not compared with {rival.version}, which is live: it has learnt all but too few of these watches itself"


def compare_candidates(
    trial: Trial, final: CandidateModel, rivals: Mapping[str, CandidateModel], *, seed: int, progress: Progress
) -> list[Comparison | Floor]:
    """Compare the twin with rivals and popularity; and what would go live, its popularity set back to the cut, with
    the twin."""
    walks = {walk.name: walk for walk in walk_trial(trial, final, rivals, seed=seed, progress=progress)}
    pairs = [*((TWIN, name) for name in (*rivals, POPULAR)), (FINAL, TWIN)]
    recalls = [each for ours, theirs in pairs for each in recall_comparisons(walks[ours], walks[theirs])]
    shown = {name: walk.covered for name, walk in walks.items()}
    return [
        *recalls,
        *(Floor(f"coverage@{COVERED}", name, shown[TWIN], shown[name], LEAST_COVERAGE) for name in rivals),
    ]


class Walked(NamedTuple):
    """Users int64 [n], the ranks int64 [n] of what they watched next, and the share of the catalogue in all lists."""

    name: str
    users: Rows
    ranks: Rows
    covered: float


def walk_trial(
    trial: Trial, final: CandidateModel, rivals: Mapping[str, CandidateModel], *, seed: int, progress: Progress
) -> Iterator[Walked]:
    """Ask each of them for the same users' next watches; one after the other, since vectors are large."""
    cut, catalogue = trial.cut.row, len(trial.model.item_ids)
    history = history_of(trial.training_set.dataset)
    asked = drawn(history.next_unseen(cut), catalogue, seed, least=LEAST_USERS)  # fewer would judge nothing
    models = {TWIN: trial.model, FINAL: set_back(final, trial.model), **rivals}
    words = len(trial.model.encoder.words)
    for number, name in enumerate([*models, POPULAR]):
        recommender: Recommender = (
            Asked(models[name], trial.training_set, history, catalogue, name=name, words=words)
            if name in models
            else recent_popularity(history.stream, cut, catalogue)
        )
        walk = walk_frozen([recommender], history, cut=cut, catalogue=catalogue, asked=asked)
        yield Walked(name, asked.users, walk.ranks[name], walk.coverage[name].coverage(COVERED).value)
        progress(STAGE, number + 1, len(models) + 1)


def recall_comparisons(ours: Walked, theirs: Walked) -> Iterator[Comparison]:
    users, user = np.unique(ours.users, return_inverse=True)
    ones = np.ones(len(user))
    for k in CUTOFFS:
        mine, other = (ratio_of(len(users), user, hits(walked.ranks, k), ones) for walked in (ours, theirs))
        yield Comparison(f"recall@{k}", theirs.name, mine, other)


def compare_rankers(
    twin: Ranker, rivals: Mapping[str, Ranker], final: Ranker, unseen: RankingExamples
) -> list[Comparison | Floor]:
    """Compare the twin with rivals and the item's mean; and what would go live with the twin, by the loss alone: what
    it has seen it may well promise too exactly. All by the least of their caps, so that none is judged by seconds that
    it may not promise."""
    cap_s = min(each.cap_s for each in (twin, final, *rivals.values()))
    unseen = unseen.capped(cap_s)

    def sums_of(predicted: Doubles) -> tuple[Ratio, Ratio]:
        return ranker_sums(unseen, np.minimum(predicted, cap_s))

    sums = {name: sums_of(predict(each, unseen)) for name, each in rivals.items()}
    sums[ITEM_MEAN] = sums_of(item_means(unseen))
    loss, calibration = sums_of(predict(twin, unseen))
    found: list[Comparison | Floor] = []
    for name, (their_loss, theirs) in sums.items():
        found.append(Comparison("ranker_weighted_loss", name, loss, their_loss, "less"))
        found.append(Comparison("ranker_calibration", name, calibration, theirs, "one", CALIBRATED))
    final_loss, _ = sums_of(predict(final, unseen))
    return [*found, Comparison("ranker_weighted_loss", TWIN, final_loss, loss, "less")]


def ranker_sums(unseen: RankingExamples, predicted: Doubles) -> tuple[Ratio, Ratio]:
    """Weighted per-user loss by page, and sum predicted / sum watched, by user."""
    seconds = np.asarray(unseen.target_s, np.float64)
    pages = pages_of(unseen)
    users, user = np.unique(np.asarray(unseen.user), return_inverse=True)
    user_of_page = np.zeros(int(pages.max(initial=-1)) + 1, np.int64)
    user_of_page[pages] = user
    loss = pair_loss(pages, predicted, seconds, np.asarray(unseen.completed))
    return (
        ratio_of(len(users), user_of_page[loss.groups], loss.misordered, loss.weight),
        ratio_of(len(users), user, predicted, seconds),
    )


def recent_popularity(stream: Stream, cut: int, catalogue: int) -> DecayedPopular:
    """Decayed popularity with the half-life that foresees the last days before the cut best."""
    half_life = choose_half_life(
        np.asarray(stream.items[:cut]), catalogue, since=int(cut * (1 - NEWEST)), tolerance=0.0
    )
    return DecayedPopular(stream, cut, catalogue, half_life=half_life, name=POPULAR)


def set_back(final: CandidateModel, twin: CandidateModel) -> CandidateModel:
    """The final model with the items and the popularity that its twin has: what was popular since is no fault of it."""
    known = len(twin.item_ids)
    return CandidateModel(
        final.item_ids[:known],
        final.encoder,
        vectors=final.vectors[:known],
        bias=final.bias[:known],
        query_rows=final.query_rows[:known],
        popularity=twin.popularity,
        content=final.content,
    )

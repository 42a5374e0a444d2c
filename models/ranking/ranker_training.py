"""Trains the ranker from ranking examples on disk, in shuffled batches, to expected watch time (paper section 4.2).

First one pass that fits what is frozen (ids, quantiles) and writes quantiles beside the examples, then the epochs. The
network begins at the mean: the odds of an untouched one are about the mean watch time. The same seed gives the same
ranker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor

from models.arrays import Floats, Rows
from models.device import device_of
from models.logs.array_file import ArrayFile, mapped
from models.logs.batches import batch_size, epoch_batches
from models.logs.log import LogError
from models.ranking.feature import Scope
from models.ranking.features import FEATURES, ids_of
from models.ranking.hyper_parameters import Objective, RankerParameters
from models.ranking.id_spaces import IdSpaces, most_frequent, width_of
from models.ranking.quantiles import (
    Isotonic,
    Quantiles,
    WatchQuantiles,
    fit_isotonic,
    fit_quantiles,
    fit_watch_quantiles,
)
from models.ranking.ranker import Ranker
from models.ranking.ranker_net import RankerNet, RankerShape
from models.ranking.ranking_batch import Codes
from models.ranking.ranking_evaluation import predict
from models.ranking.ranking_examples import CAP_S, SCOPES, RankingExamples
from models.retrieval.losses import paper_logistic, watch_time_logistic

log = structlog.get_logger(__name__)

Progress = Callable[[int, int], None]

LEAST_ROWS = 200  # with fewer, retrieval order is better than a fit
LEAST_STEPS = 300  # per epoch
SAMPLE = 400_000  # examples that quantiles are fitted on
BLOCK = 65_536
MAPPED = 0.1  # share of the examples, newest last, that an isotonic map is fitted on
LEAST_MAPPED = 1_000  # of them
COMPLETION_WEIGHT = 1.0  # of the second head's loss
# The paper's widths need the paper's data: below so many examples a smaller network is as good (see docs/ranking.md).
SIZES = ((2_000_000, (1024, 512, 256)), (50_000, (256, 128)), (0, (64, 32)))


def default_hidden(examples: int) -> tuple[int, ...]:
    """Widths for so many examples."""
    return next(hidden for least, hidden in SIZES if examples >= least)


@dataclass(frozen=True)
class Prepared:
    """Examples as a network reads them. rows int64 [R]: those that it learns from. x: quantiles by scope, files;
    targets float32 [N], what the loss is given."""

    examples: RankingExamples
    rows: Rows
    x: Mapping[Scope, Floats]
    spaces: IdSpaces
    shape: RankerShape
    targets: Floats

    def batch(self, rows: Rows, device: torch.device) -> tuple[dict[Scope, Tensor], dict[Scope, dict[str, Tensor]]]:
        """Quantiles and codes of examples, the query's repeated for each."""
        at = {"query": np.asarray(self.examples.request[rows]), "impression": rows}
        x = {scope: torch.from_numpy(self.x[scope][at[scope]]).to(device) for scope in SCOPES}
        codes = {scope: self._codes(scope, at[scope], device) for scope in SCOPES}
        return x, codes

    def _codes(self, scope: Scope, rows: Rows, device: torch.device) -> dict[str, Tensor]:
        named = {feature: self.examples.ids[feature.name].at(rows) for feature in self.shape.used(scope)[2]}
        found = {f.name: self.spaces.codes(str(f.space), codes) for f, codes in named.items()}
        return {name: torch.from_numpy(codes).to(device) for name, codes in found.items()}


# Of a network, its logits [B, 1 + completion] and the examples that these are of: the mean loss of a batch.
Loss = Callable[[RankerNet, Tensor, Prepared, Rows, RankerParameters], Tensor]


def train_ranker(
    examples: RankingExamples,
    directory: Path,
    *,
    settings: RankerParameters,
    rows: Rows | None = None,
    warm: Ranker | None = None,
    progress: Progress = lambda done, total: None,
) -> Ranker:
    """Fit on the examples `rows` (int64; all, where not given); files that it needs are made in `directory`.

    With fewer than LEAST_ROWS the ranker stays untrained, or is `warm` as it was. `warm`: begin from its networks and
    keep its ids and quantiles, where its shape is the wanted one. With `settings.isotonic` all is trained twice: a map
    of its seconds is fitted on the newest examples by a ranker that has not seen them; where these are too few, weights
    that promise seconds without a map take the place of the paper's."""
    rows = np.arange(len(examples)) if rows is None else rows
    if len(rows) < LEAST_ROWS:
        return warm if warm is not None and warm.trained else Ranker()
    if not settings.isotonic:
        return _trained(examples, directory, settings, settings.objective, rows, warm, progress)
    if newest_of(len(rows)) < LEAST_MAPPED:
        objective: Objective = "unbiased" if settings.objective == "paper" else settings.objective
        least = LEAST_MAPPED / MAPPED
        told = "too few examples for ranker.isotonic: no map"
        log.info(told, examples=len(rows), at_least=least, objective=objective)
        return _trained(examples, directory, settings, objective, rows, warm, progress)
    total = settings.members * settings.epochs * (2 * len(rows) - newest_of(len(rows)))
    isotonic = _isotonic(examples, directory / "earlier", settings, rows, lambda done, _: progress(done, total))
    ranker = _trained(
        examples,
        directory,
        settings,
        settings.objective,
        rows,
        warm,
        lambda done, own: progress(total - own + done, total),
    )
    return ranker.calibrated(isotonic)


def newest_of(examples: int) -> int:
    """How many of them a map is fitted on."""
    return int(MAPPED * examples)


def _isotonic(
    examples: RankingExamples, directory: Path, settings: RankerParameters, rows: Rows, progress: Progress
) -> Isotonic:
    """The map. No warm start, which has seen the newest; and no cap: what the networks say beyond it is mapped too."""
    in_time = rows[np.argsort(examples.at_ms[rows], kind="stable")]
    before, newest = np.split(in_time, [len(rows) - newest_of(len(rows))])
    earlier = _trained(examples, directory, settings, settings.objective, np.sort(before), None, progress)
    taken = examples.take(np.sort(newest[-SAMPLE:]))
    return fit_isotonic(predict(earlier.uncapped(), taken), np.asarray(taken.target_s, np.float64))


def _trained(
    examples: RankingExamples,
    directory: Path,
    settings: RankerParameters,
    objective: Objective,
    rows: Rows,
    warm: Ranker | None,
    progress: Progress,
) -> Ranker:
    """Without a map. `objective`: the weights, which may not be those that are set."""
    if warm is not None and not _fits(warm, len(rows), settings, objective, examples.cap_s):
        warm = None
    spaces = warm.spaces if warm else fit_spaces(examples, rows, settings)
    shape = shape_of(spaces, len(rows), settings, examples.cap_s, objective)
    quantiles = warm.quantiles if warm else _fit_quantiles(examples, rows, shape)
    watch_quantiles = None
    if settings.target == "d2q":
        newest = rows[-SAMPLE:]
        watch_quantiles = fit_watch_quantiles(examples.target_s[newest], examples.duration_s[newest])
    prepared = prepare(examples, rows, directory, spaces, shape, quantiles, watch_quantiles)
    total = settings.members * settings.epochs * len(rows)
    nets = []
    for member in range(settings.members):
        net = _new_net(prepared, settings, member, warm)
        before = member * settings.epochs * len(rows)
        for done in fit(net, prepared, settings, seed=settings.seed + member):
            progress(before + done, total)
        nets.append(net.cpu())
    return Ranker(shape, nets, quantiles, spaces, watch_quantiles)


def fit(
    net: RankerNet, prepared: Prepared, settings: RankerParameters, *, seed: int, loss_of: Loss | None = None
) -> Iterator[int]:
    """Train one member; yields how many examples it has seen, after each step. The network stays on the device.
    `loss_of`: another loss than that of the settings."""
    device = device_of(settings.device)
    net.to(device)
    rng = np.random.default_rng(seed)
    n = len(prepared.rows)
    size = batch_size(n, largest=settings.batch, least_steps=LEAST_STEPS)
    steps = settings.epochs * -(-n // size)
    mean = float(max(prepared.targets[prepared.rows[-SAMPLE:]].mean(), 1e-3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    net.train()
    done = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(settings.epochs):
            for numbers in epoch_batches(n, size, rng):
                rows = prepared.rows[numbers]
                x, codes = prepared.batch(rows, device)
                logits = net(net.query_part(x["query"], codes["query"]), x["impression"], codes["impression"])
                loss = (loss_of or _loss)(net, logits, prepared, rows, settings) / (1 + mean)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                done += len(rows)
                yield done


def _loss(net: RankerNet, logits: Tensor, prepared: Prepared, rows: Rows, settings: RankerParameters) -> Tensor:
    logit = logits[:, 0]
    examples = prepared.examples
    if settings.position:
        logit = logit + net.position_part(torch.from_numpy(examples.position[rows].astype(np.int64)).to(logit.device))
    target = torch.from_numpy(prepared.targets[rows]).to(logit.device)
    watched = torch.from_numpy(np.asarray(examples.completed[rows])).to(logit.device)
    if settings.target == "d2q":
        losses = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    elif prepared.shape.objective == "equal":
        losses = F.binary_cross_entropy_with_logits(logit, watched.float(), reduction="none")
    elif prepared.shape.objective == "paper":
        losses = paper_logistic(logit, target, watched)
    else:
        losses = watch_time_logistic(logit, target)
    loss = losses.mean()
    if settings.completion:
        second = F.binary_cross_entropy_with_logits(logits[:, 1], watched.float())
        loss = loss + COMPLETION_WEIGHT * second
    return loss


def fit_spaces(examples: RankingExamples, rows: Rows, settings: RankerParameters) -> IdSpaces:
    """The ids of each space by how often they stand in clicked impressions."""
    names: dict[str, list[str]] = {}
    for space in dict.fromkeys(str(f.space) for f in FEATURES if not f.is_number):
        scope: Scope = "impression" if any(f.space == space for f in ids_of("impression")) else "query"
        named = [examples.ids[feature.name] for feature in ids_of(scope) if feature.space == space]
        known = ["", *named[0].names] if named[0].first else named[0].names  # one list for all features of a space
        counts = np.sum([_clicked_counts(examples, rows, each, scope, len(known)) for each in named], axis=0)
        names[space] = most_frequent(counts, known, most=settings.ids, least=settings.least_count)
    return IdSpaces(names)


def _clicked_counts(examples: RankingExamples, rows: Rows, named: Codes, scope: Scope, size: int) -> Rows:
    counts = np.zeros(size, np.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        clicked = block[examples.completed[block]]
        at = clicked if scope == "impression" else np.asarray(examples.request[clicked])
        counts += np.bincount(np.asarray(named.codes[at]).ravel(), minlength=size)
    return counts


def shape_of(
    spaces: IdSpaces,
    examples: int,
    settings: RankerParameters,
    cap_s: float = CAP_S,
    objective: Objective | None = None,
) -> RankerShape:
    """The shape to be trained; `cap_s` is the targets', `objective` as it is set, where not given. Raises LogError when
    a feature is to be left out that there is not."""
    unknown = sorted(set(settings.without) - {feature.name for feature in FEATURES})
    if unknown:
        has = ", ".join(feature.name for feature in FEATURES)
        raise LogError(f"ranker.without: there is no feature {', '.join(unknown)}; there are {has}")
    used = tuple(feature.name for feature in FEATURES if feature.name not in settings.without)
    in_use = {str(feature.space) for feature in FEATURES if feature.name in used and not feature.is_number}
    sizes = {space: size for space, size in spaces.sizes.items() if space in in_use}
    return RankerShape(
        hidden=default_hidden(examples) if settings.hidden is None else settings.hidden,
        features=used,
        sizes=sizes,
        widths={space: width_of(size) for space, size in sizes.items()},
        powers=settings.powers,
        position=settings.position,
        completion=settings.completion,
        members=settings.members,
        dropout=settings.dropout,
        cap_s=cap_s,
        objective=objective or settings.objective,
    )


def _fit_quantiles(examples: RankingExamples, rows: Rows, shape: RankerShape) -> dict[Scope, Quantiles]:
    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))]
    at = {"query": np.unique(examples.request[some]), "impression": some}
    return {
        scope: fit_quantiles(np.asarray(examples.numbers[scope][at[scope]])[:, shape.used(scope)[1]])
        for scope in SCOPES
    }


def prepare(
    examples: RankingExamples,
    rows: Rows,
    directory: Path,
    spaces: IdSpaces,
    shape: RankerShape,
    quantiles: Mapping[Scope, Quantiles],
    watch_quantiles: WatchQuantiles | None,
) -> Prepared:
    """Write the quantiles of all examples to `directory`, in pieces."""
    directory.mkdir(parents=True, exist_ok=True)
    x: dict[Scope, Floats] = {}
    for scope in SCOPES:
        _, columns, _ = shape.used(scope)
        file = ArrayFile(directory / f"x_{scope}.npy", np.float32, (len(columns),))
        numbers = examples.numbers[scope]
        for start in range(0, len(numbers), BLOCK):
            file.append(quantiles[scope].encode(np.asarray(numbers[start : start + BLOCK])[:, columns]))
        file.close()
        x[scope] = mapped(file.path)
    targets = np.asarray(examples.target_s)
    if watch_quantiles is not None:
        targets = watch_quantiles.quantile(targets, np.asarray(examples.duration_s))
    return Prepared(examples, rows, x, spaces, shape, targets)


def _new_net(prepared: Prepared, settings: RankerParameters, member: int, warm: Ranker | None) -> RankerNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + member)
        net = RankerNet(prepared.shape)
    if warm is not None:
        net.load_state_dict(warm.nets[member].state_dict())
        return net
    newest = prepared.rows[-SAMPLE:]
    mean, share = float(prepared.targets[newest].mean()), float(prepared.examples.completed[newest].mean())
    objective = prepared.shape.objective
    if settings.target == "d2q" or objective == "equal":
        mean = np.clip(share if objective == "equal" else mean, 0.01, 0.99)
        mean = mean / (1 - mean)
    with torch.no_grad():
        bias = net.bias if net.last is None else net.last.bias
        bias[0] = float(np.log(max(mean, 1e-3)))
    return net


def _fits(warm: Ranker, examples: int, settings: RankerParameters, objective: Objective, cap_s: float) -> bool:
    """Return whether a ranker is of the shape that these settings want, so that one may go on from it."""
    if warm.shape is None:
        return False
    learns_seconds = settings.target == "seconds" and warm.watch_quantiles is None
    wanted = shape_of(warm.spaces, examples, settings, cap_s, objective)
    return learns_seconds and replace(warm.shape, isotonic=False) == wanted

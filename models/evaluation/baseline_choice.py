"""All baselines of a backtest, their settings chosen on the validation part by the walk that the test will make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product

from models.arrays import Rows
from models.evaluation.als import Als, als_is_installed
from models.evaluation.backtest import BLOCK, Entrant, Recommender, walk_frozen, walk_live
from models.evaluation.baselines import DecayedPopular, Popular, Setting, TimesRecency, choose
from models.evaluation.comparison import Estimate
from models.evaluation.eval_queries import Stream, evenly
from models.evaluation.item_to_item import EASE_ITEMS, Ease, ItemKnn
from models.evaluation.split import Split, validation_history

Progress = Callable[[str, int, int], None]

WINDOW_SHARE = 0.02
REFIT_EVENTS, REFIT_SHARE = 5000, 0.02  # of item-kNN in a live walk: the larger, so that refits stay few
VALIDATION_USERS = 5000  # at most, evenly from all: every setting is tried on them
HALF_LIVES = (250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000)
KNN = [{"neighbours": n, "shrink": s} for n, s in product((50, 200, 800), (0.0, 100.0))]
EASE = [{"l2": l2} for l2 in (50.0, 200.0, 800.0, 3200.0)]
RECENCY = {"exponent": (0.4, 0.7, 1.0), "half_life": (1000, 4000, 16_000, 64_000), "floor": (0.01, 0.1, 1.0)}
ALS = [{"factors": d, "regularization": r, "alpha": a} for d, r, a in product((16, 64), (0.1, 10.0), (1.0, 10.0))]


@dataclass(frozen=True)
class KnownPart:
    """All that a recommender is built from: the stream's rows before `cut`, the first `catalogue` items."""

    stream: Stream
    cut: int
    catalogue: int

    def build(self, kind: Callable[..., Recommender], **settings: object) -> Recommender:
        return kind(self.stream, self.cut, self.catalogue, **settings)


class Baselines:
    """Builds them one by one; `left_out` says which could not be, and why."""

    def __init__(
        self,
        stream: Stream,
        parts: Split,
        *,
        catalogue: int,
        validation_catalogue: int,
        live: bool,
        block: int = BLOCK,
        seed: int = 1,
        learn_until: int | None = None,
        timed: bool = True,
    ) -> None:
        """`catalogue` and `validation_catalogue`: items known at the cut and when validation begins. `learn_until`:
        where what is learnt from for the test ends, if not at the cut. Without times what follows recency stands
        aside."""
        self._test = KnownPart(stream, parts.cut if learn_until is None else learn_until, catalogue)
        self._history = validation_history(stream, parts)
        self._validation = KnownPart(self._history.stream, parts.validation, validation_catalogue)
        self._asked = evenly(self._history.next_unseen(parts.validation), VALIDATION_USERS)
        self._live, self._block, self._seed, self._timed = live, block, seed, timed
        self.left_out: dict[str, str] = {}

    def fit(self, progress: Progress = lambda stage, done, total: None) -> list[Entrant]:
        steps: list[Callable[[], list[Entrant]]] = [self._popular, self._decayed, self._knn, self._ease, self._als]
        if not self._timed:
            steps.remove(self._decayed)
            self.left_out["popular, decayed; EASE x recency"] = "the log has an order and no times"
        found: list[Entrant] = []
        for done, step in enumerate(steps):
            progress("baselines", done, len(steps))
            found += step()
        progress("baselines", len(steps), len(steps))
        return found

    def _popular(self) -> list[Entrant]:
        window = max(1, round(WINDOW_SHARE * self._test.cut))
        names: dict[str, int | None] = {f"popular, last {WINDOW_SHARE:.0%}": window} if self._timed else {}
        names["popular, all time"] = None
        return [
            Entrant(self._test.build(Popular, window=events, name=name), {"window_events": events})
            for name, events in names.items()
        ]

    def _decayed(self) -> list[Entrant]:
        return [self._best(DecayedPopular, self._half_lives(HALF_LIVES))]

    def _knn(self) -> list[Entrant]:
        choice = choose(partial(self._validation.build, ItemKnn), KNN, self._ranks)
        settings = choice.setting | {
            "refit_events": max(REFIT_EVENTS, int(REFIT_SHARE * self._test.cut)) if self._live else None
        }
        return [Entrant(self._test.build(ItemKnn, **settings), settings, choice.tried)]

    def _ease(self) -> list[Entrant]:
        build = partial(self._validation.build, Ease, most_items=EASE_ITEMS)
        choice = choose(build, EASE, self._ranks)
        test = self._test
        ease = Ease(test.stream, test.cut, test.catalogue, **choice.setting, most_items=EASE_ITEMS)
        note = "weights as of the cut, histories live" if self._live else ""
        if len(ease.items) == EASE_ITEMS:
            limit = f"knows the {EASE_ITEMS:,} most watched items only: its weights are items times items"
            note = "; ".join(filter(None, (limit, note)))
        alone = Entrant(ease, choice.setting, choice.tried, note)
        if not self._timed:
            return [alone]
        recency, tried = self._recency(build(**choice.setting))
        recent = self._times_recency(test, ease, **recency)
        return [Entrant(recent, choice.setting | recency, tried, note), alone]

    def _recency(self, source: Recommender) -> tuple[Setting, list[tuple[Setting, Estimate]]]:
        """Exponent and floor at a middling half-life, then the half-life."""
        build = partial(self._times_recency, self._validation, source)
        pairs = product(RECENCY["exponent"], RECENCY["floor"])
        grid = [{"exponent": exponent, "half_life": 16_000, "floor": floor} for exponent, floor in pairs]
        first = choose(build, grid, self._ranks)
        others = [first.setting | half_life for half_life in self._half_lives(RECENCY["half_life"])]
        second = choose(build, others, self._ranks)
        return second.setting, first.tried + second.tried

    def _times_recency(
        self, known: KnownPart, source: Recommender, *, half_life: float, **setting: float
    ) -> Recommender:
        popularity = DecayedPopular(known.stream, known.cut, known.catalogue, half_life=half_life)
        return TimesRecency(source, popularity, name="EASE x recency", **setting)

    def _als(self) -> list[Entrant]:
        if not als_is_installed():
            self.left_out["ALS"] = "`implicit` is not installed (pip install 'nextwatch[bench]')"
            return []
        note = "item factors as of the cut, users' from their live histories" if self._live else ""
        return [self._best(Als, ALS, note, seed=self._seed)]

    def _best(self, kind: Callable[..., Recommender], grid: list[Setting], note: str = "", **fixed: object) -> Entrant:
        choice = choose(partial(self._validation.build, kind, **fixed), grid, self._ranks)
        return Entrant(self._test.build(kind, **choice.setting, **fixed), choice.setting, choice.tried, note)

    def _half_lives(self, values: Iterable[float]) -> list[Setting]:
        """Those that the stream is long enough to tell apart; at least one."""
        kept = [value for value in values if value <= self._validation.cut]
        return [{"half_life": value} for value in kept or [min(values)]]

    def _ranks(self, recommender: Recommender) -> Rows:
        cut, catalogue = self._validation.cut, self._validation.catalogue
        if self._live:
            walk = walk_live([recommender], self._history, cut=cut, catalogue=catalogue, block=self._block)
        else:
            walk = walk_frozen(
                [recommender], self._history, cut=cut, catalogue=catalogue, asked=self._asked, coverage=False
            )
        return walk.ranks[recommender.name]

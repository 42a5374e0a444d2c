"""Other releases, loaded beside the live one for an experiment that compares them.

Of a release with the live one's candidates that is the ranker: towers, rows and mirror stay the live release's. One
release may have candidates of its own (serving/experiments/rival_candidates.py). All are loaded and warmed up by a
thread, which lives no longer than that takes; the thread that answers requests takes all of them over at once, between
two batches. What cannot be had yet (a bundle that is still being sent, say) is tried again for as long as it is wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import structlog

from infra.platform import metrics
from infra.platform.retrying import BackOff
from infra.platform.settings import Kafka
from models.release.bundle import BundleError, RankerBundle
from models.release.comparable import why_not_compared
from serving.experiments.rival_candidates import UNFIT, RivalCandidates, load_beside
from serving.state.item_worth import ItemWorth
from serving.state.known_items import KnownItems
from serving.state.release import MOST_RETRY_S, RETRY_S, LiveRelease, ReleaseError, warm_up_ranker
from serving.state.views import CatalogueView
from streams.bundles.source import BundleSource, never

log = structlog.get_logger(__name__)

WARMED = 10  # items that are ranked once
NONE: Mapping[str, LiveRelease] = {}


class RivalSource(NamedTuple):
    """Where rivals come from: bundles, the catalogue, and `rival-vectors`. `mirror_items`: the most items of a release
    with candidates of its own, None: what fits into memory."""

    bundles: BundleSource
    catalogue: CatalogueView
    kafka: Kafka
    mirror_items: int | None = None
    in_bfloat16: bool = False


class Rivals:
    """The rivals of one live release at a time. All runs in the answering thread, but for what `_Loading` does."""

    def __init__(self, source: RivalSource) -> None:
        self._source = source
        self._loading: _Loading | None = None
        self._told = NONE

    @property
    def refusal(self) -> str:
        """Why what is wanted is not there; empty while it is, or is on its way."""
        return "" if self._loading is None else self._loading.refusal

    def beside(self, live: LiveRelease | None, versions: frozenset[str], whole: str = "") -> Mapping[str, LiveRelease]:
        """The rivals of this live release that have the rankers of these releases, by version; none until all are
        loaded, which this begins. `whole`: that of them which has candidates of its own. Others are let go of."""
        wanted: frozenset[str] = frozenset() if live is None else versions - {live.version}
        if self._loading is not None and not self._loading.is_of(live, wanted, whole):
            self._end()
        if live is not None and wanted and self._loading is None:
            self._loading = _Loading(self._source, live, wanted, whole)
        rivals = NONE if self._loading is None else self._loading.look()
        if rivals is not self._told:
            self._told = rivals
            metrics.RIVAL_INFO.clear()
            for version in rivals:
                metrics.RIVAL_INFO.labels(version).set(1)
        return rivals

    def apply_item(self, item_id: str) -> None:
        """An item of the catalogue view has changed."""
        if self._loading is not None:
            self._loading.hear_item(item_id)

    def close(self) -> None:
        if self._loading is not None:
            self._end()
        metrics.RIVAL_INFO.clear()

    def _end(self) -> None:
        assert self._loading is not None
        self._loading.stop()
        self._loading = None


class _Loading:
    """The way of some rankers into memory, and they themselves."""

    def __init__(self, source: RivalSource, live: LiveRelease, versions: frozenset[str], whole: str) -> None:
        self.refusal = ""
        self._rivals = NONE
        self._loaded: dict[str, LiveRelease] = {}  # those that wait for the others
        self._candidates: RivalCandidates | None = None
        self._news: dict[str, None] = {}  # items that have changed since loading began
        self._source, self._versions, self._whole = source, versions, whole
        self._live = replace(live, rivals=NONE)  # those of the experiment before must not wait here
        self._stopped = threading.Event()
        self._begin()

    def is_of(self, live: LiveRelease | None, versions: frozenset[str], whole: str) -> bool:
        """True if it is for this live release, with rivals or without, and for these releases."""
        is_same = live is not None and live.model is self._live.model
        return is_same and (versions, whole) == (self._versions, self._whole)

    def look(self) -> Mapping[str, LiveRelease]:
        """The rivals, once all are there and as good as they can be."""
        candidates = self._candidates
        if not self._rivals or candidates is None:
            return self._rivals
        try:
            candidates.apply()
        except Exception as error:  # outermost: whatever its reader died of, the live release goes on, and it is
            log.exception("a release beside the live one is lost", version=candidates.release.version)  # read anew
            self.refusal = repr(error)
            candidates.close()
            self._rivals, self._candidates = NONE, None
            del self._loaded[candidates.release.version]
            self._begin()
            return NONE
        news, self._news = self._news, {}
        for item_id in news:
            candidates.describe(item_id)
        self.refusal = candidates.waits_for
        return NONE if self.refusal else self._rivals

    def hear_item(self, item_id: str) -> None:
        """An item of the catalogue view has changed; it is looked up at the next look."""
        if self._whole in self._versions:
            self._news[item_id] = None

    def stop(self) -> None:
        """Nobody wants them any more."""
        self._stopped.set()
        if (candidates := self._candidates) is not None:
            candidates.close()

    def _begin(self) -> None:
        threading.Thread(target=self._run, name="rival-loader", daemon=True).start()

    def _run(self) -> None:
        waits = BackOff(RETRY_S, MOST_RETRY_S)
        while not self._stopped.is_set():
            reason = self._try()
            if reason in ("", UNFIT):
                return
            self._stopped.wait(waits.next())

    def _try(self) -> str:
        """Load those that are missing; the reason why not, empty for none."""
        try:
            for version in sorted(self._versions - self._loaded.keys()):
                self._loaded[version] = self._load(version)
        except ReleaseError as refused:
            reason, text = refused.reason, str(refused)
        except Exception as error:  # outermost: a bug in loading must not end the thread without a word
            log.exception("loading a ranker failed", rankers=sorted(self._versions))
            reason, text = "bug", repr(error)
        else:
            self._rivals, self.refusal = dict(self._loaded), ""
            log.info("releases are loaded beside the live one", releases=sorted(self._loaded), live=self._live.version)
            return ""
        if not self._stopped.is_set():
            self.refusal = text
            log.error("releases cannot be compared", live=self._live.version, reason=reason, error=text)
        return reason

    def _load(self, version: str) -> LiveRelease:
        source, stopped = self._source, self._stopped.is_set
        if version != self._whole:
            return load_rival(source.bundles, version, self._live, stopped=stopped, in_bfloat16=source.in_bfloat16)
        release = load_beside(
            source.bundles,
            version,
            self._live,
            source.catalogue,
            mirror_items=source.mirror_items,
            stopped=stopped,
            in_bfloat16=source.in_bfloat16,
        )
        self._candidates = candidates = RivalCandidates(release, source.catalogue, source.kafka)
        if stopped():  # who stopped us may have looked before it was there
            candidates.close()
        return release


def load_rival(
    bundles: BundleSource,
    version: str,
    live: LiveRelease,
    *,
    stopped: Callable[[], bool] = never,
    in_bfloat16: bool = False,
) -> LiveRelease:
    """The live release with the ranker of another one, warmed up. Raises ReleaseError where that cannot be read, or not
    be compared."""
    assert live.manifest is not None  # it was loaded from a bundle, too
    own = RankerBundle(live.manifest, live.ranker, live.statistics)
    try:
        found = bundles.read_ranker(version, stopped, beside=own)
    except BundleError as error:
        raise ReleaseError("bundle", str(error)) from error
    if problem := why_not_compared(found.manifest, live.manifest):
        raise ReleaseError(UNFIT, problem)
    rival = replace(
        live,
        ranker=found.ranker.in_bfloat16() if in_bfloat16 else found.ranker,
        statistics=found.statistics,
        worth=ItemWorth(),
        known=KnownItems(),
        ranked_by=version,
        rivals=NONE,
    )
    item_ids = live.model.item_ids[:WARMED]
    warm_up_ranker(rival, item_ids, np.zeros(len(item_ids), np.float32))
    return rival

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
from itertools import islice
from typing import NamedTuple

import numpy as np
import structlog
from kafka.errors import KafkaError

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
from streams.kafka.follow import TopicMissing, require_topics
from streams.topics import RIVAL_VECTORS

log = structlog.get_logger(__name__)

WARMED = 10  # items that are ranked once
MOST_DESCRIBED = 500  # items that have changed, between two batches
NONE: Mapping[str, LiveRelease] = {}


class RivalSource(NamedTuple):
    """Where rivals come from: bundles, the catalogue, and `rival-vectors`. `mirror_items`: the most items of a release
    with candidates of its own, None: what fits into memory; `processes` of this machine that hold one each."""

    bundles: BundleSource
    catalogue: CatalogueView
    kafka: Kafka
    mirror_items: int | None = None
    in_bfloat16: bool = False
    processes: int = 1


class Wanted(NamedTuple):
    """Of what experiment: the releases whose rankers it compares; `whole`, that of them which has candidates of its
    own; and when it began."""

    releases: frozenset[str] = frozenset()
    whole: str = ""
    since_ms: int = 0


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

    def beside(self, live: LiveRelease | None, wanted: Wanted) -> Mapping[str, LiveRelease]:
        """The rivals of this live release that are wanted, by version; none until all are loaded, which this begins.
        Others are let go of."""
        others: frozenset[str] = frozenset() if live is None else wanted.releases - {live.version}
        wanted = wanted._replace(releases=others)
        if self._loading is not None and not self._loading.is_of(live, wanted):
            self._end()
        if live is not None and others and self._loading is None:
            self._loading = _Loading(self._source, live, wanted)
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
    """The way of some releases into memory, and they themselves."""

    def __init__(self, source: RivalSource, live: LiveRelease, wanted: Wanted) -> None:
        self.refusal = ""
        self._rivals = NONE
        self._loaded: dict[str, LiveRelease] = {}  # those that wait for the others
        self._candidates: RivalCandidates | None = None
        self._news: dict[str, None] = {}  # items that have changed since loading began
        self._source, self._wanted = source, wanted
        self._waits = BackOff(RETRY_S, MOST_RETRY_S)
        self._is_served = False  # all that is wanted, by what the release with candidates of its own waits for
        self._live = replace(live, rivals=NONE)  # those of the experiment before must not wait here
        self._stopped = threading.Event()
        self._begin()

    def is_of(self, live: LiveRelease | None, wanted: Wanted) -> bool:
        """True if it is for this live release, with rivals or without, and for what is wanted."""
        return live is not None and live.model is self._live.model and wanted == self._wanted

    def look(self) -> Mapping[str, LiveRelease]:
        """The rivals, once all are there and as good as they can be."""
        rivals, candidates = self._rivals, self._candidates
        if not rivals or candidates is None:
            return rivals
        try:
            candidates.apply()
        except Exception as error:  # outermost: whatever its reader died of, the live release goes on
            log.exception("a release beside the live one is lost, reading it anew", version=candidates.release.version)
            self.refusal = repr(error)
            candidates.close()
            self._rivals, self._candidates = NONE, None
            del self._loaded[candidates.release.version]
            self._begin(after_s=self._waits.next())
            return NONE
        for item_id in [*islice(self._news, MOST_DESCRIBED)]:
            del self._news[item_id]
            candidates.describe(item_id)
        self.refusal = "" if self._is_served else candidates.waits_for
        self._is_served = not self.refusal and (self._is_served or not self._news)
        return rivals if self._is_served else NONE

    def hear_item(self, item_id: str) -> None:
        """An item of the catalogue view has changed; it is looked up at the next look."""
        if self._wanted.whole in self._wanted.releases:
            self._news[item_id] = None

    def stop(self) -> None:
        """Nobody wants them any more."""
        self._stopped.set()
        if (candidates := self._candidates) is not None:
            candidates.close()

    def _begin(self, after_s: float = 0.0) -> None:
        self._is_served = False
        threading.Thread(target=self._run, args=(after_s,), name="rival-loader", daemon=True).start()

    def _run(self, after_s: float) -> None:
        while not self._stopped.wait(after_s):
            reason = self._try()
            if reason in ("", UNFIT):
                return
            after_s = self._waits.next()

    def _try(self) -> str:
        """Load those that are missing; the reason why not, empty for none."""
        try:
            missing = sorted(self._wanted.releases - self._loaded.keys())
            for version in sorted(missing, key=self._wanted.whole.__eq__):  # whose rows are followed comes last
                self._loaded[version] = self._load(version)
        except ReleaseError as refused:
            reason, text = refused.reason, str(refused)
        except (TopicMissing, KafkaError) as error:
            reason, text = "topic", str(error)
        except Exception as error:  # outermost: a bug in loading must not end the thread without a word
            log.exception("loading a release failed", releases=sorted(self._wanted.releases))
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
        if version != self._wanted.whole:
            return load_rival(source.bundles, version, self._live, stopped=stopped, in_bfloat16=source.in_bfloat16)
        require_topics(source.kafka, [RIVAL_VECTORS])  # before minutes of reading
        self._news = {}  # of before: what follows describes all
        release = load_beside(
            source.bundles,
            version,
            self._live,
            source.catalogue,
            mirror_items=source.mirror_items,
            processes=source.processes,
            stopped=stopped,
            in_bfloat16=source.in_bfloat16,
        )
        candidates = RivalCandidates(release, source.catalogue, source.kafka, self._wanted.since_ms)
        try:
            candidates.read_all(stopped)
        except BaseException:
            candidates.close()
            raise
        self._candidates = candidates
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

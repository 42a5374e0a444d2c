"""Rankers of other releases, loaded beside the live one for an experiment that compares them.

Each is loaded and warmed up by a thread of its own, which lives no longer than that takes; the thread that answers
requests takes all of them over at once, between two batches. Towers, rows and mirror stay the live release's, so only a
release that was trained with the same candidate model can be a rival. What cannot be had yet (a bundle that is still
being sent, say) is tried again for as long as it is wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import structlog

from infra.platform import metrics
from infra.platform.retrying import BackOff
from models.release.bundle import BundleError, RankerBundle
from models.release.comparable import why_not_compared
from serving.state.item_worth import ItemWorth
from serving.state.known_items import KnownItems
from serving.state.release import MOST_RETRY_S, RETRY_S, LiveRelease, ReleaseError, warm_up_ranker
from streams.bundles.source import BundleSource, never

log = structlog.get_logger(__name__)

WARMED = 10  # items that are ranked once
NONE: Mapping[str, LiveRelease] = {}
UNFIT = "unfit"  # a reason that no later try changes


class RivalRankers:
    """The rivals of one live release at a time. All runs in the answering thread, but for what `_Loading` does."""

    def __init__(self, bundles: BundleSource, *, in_bfloat16: bool = False) -> None:
        self._bundles, self._in_bfloat16 = bundles, in_bfloat16
        self._loading: _Loading | None = None
        self._told = NONE

    @property
    def refusal(self) -> str:
        """Why what is wanted is not there; empty while it is, or is on its way."""
        return "" if self._loading is None else self._loading.refusal

    def beside(self, live: LiveRelease | None, versions: frozenset[str]) -> Mapping[str, LiveRelease]:
        """The rivals of this live release that have the rankers of these releases, by version; none until all are
        loaded, which this begins. Others are let go of."""
        wanted: frozenset[str] = frozenset() if live is None else versions - {live.version}
        if self._loading is not None and not self._loading.is_of(live, wanted):
            self._end()
        if live is not None and wanted and self._loading is None:
            self._loading = _Loading(self._bundles, live, wanted, self._in_bfloat16)
        rivals = NONE if self._loading is None else self._loading.rivals
        if rivals is not self._told:
            self._told = rivals
            metrics.RIVAL_INFO.clear()
            for version in rivals:
                metrics.RIVAL_INFO.labels(version).set(1)
        return rivals

    def close(self) -> None:
        if self._loading is not None:
            self._end()

    def _end(self) -> None:
        assert self._loading is not None
        self._loading.stop()
        self._loading = None


class _Loading:
    """The way of some rankers into memory, and they themselves."""

    def __init__(self, bundles: BundleSource, live: LiveRelease, versions: frozenset[str], in_bfloat16: bool) -> None:
        self.rivals = NONE
        self.refusal = ""
        self._loaded: dict[str, LiveRelease] = {}  # those that wait for the others
        self._bundles, self._versions, self._in_bfloat16 = bundles, versions, in_bfloat16
        self._live = replace(live, rivals=NONE)  # those of the experiment before must not wait here
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="rival-loader", daemon=True).start()

    def is_of(self, live: LiveRelease | None, versions: frozenset[str]) -> bool:
        """True if it is for this live release, with rivals or without, and for these rankers."""
        return live is not None and live.model is self._live.model and versions == self._versions

    def stop(self) -> None:
        """Nobody wants them any more."""
        self._stopped.set()

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
            self.rivals, self.refusal = self._loaded, ""
            log.info("rankers are loaded beside the live one", rankers=sorted(self.rivals), live=self._live.version)
            return ""
        if not self._stopped.is_set():
            self.refusal = text
            log.error("rankers cannot be compared", live=self._live.version, reason=reason, error=text)
        return reason

    def _load(self, version: str) -> LiveRelease:
        return load_rival(
            self._bundles, version, self._live, stopped=self._stopped.is_set, in_bfloat16=self._in_bfloat16
        )


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

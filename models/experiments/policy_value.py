"""What another way to draw would have brought, from places that were drawn with probabilities on record.

A drawn place held an item with a known probability; another policy would have put it there with another one. Weighted
by their ratio, what was watched tells of the other policy, on the same requests. Two estimates: self-normalised
inverse propensity scoring (SNIPS: Swaminathan and Joachims, NIPS 2015), and doubly robust with the same normalisation
(Dudik, Langford and Li, ICML 2011; weighted: Thomas and Brunskill, ICML 2016), which asks a model for what the policy
would bring and corrects it by what the model missed of what was shown. Errors are of viewers, not of places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Z = 1.959963985  # of 95 %


class DrawnPlaces(NamedTuple):
    """N drawn places. `logged` [N]: the probability of what was shown there; `target` [N]: the other policy's;
    `watched_s` [N]; `model_s` [N]: what the model expected of what was shown; `policy_s` [N]: and of the policy in this
    place, over all that could have been drawn; `viewer` [N]: whose list it was, from 0."""

    logged: Numbers
    target: Numbers
    watched_s: Numbers
    model_s: Numbers
    policy_s: Numbers
    viewer: NDArray[np.int64]


class Estimate(NamedTuple):
    """Watch seconds of a place, and the 95 % interval at this one look."""

    value: float
    low: float
    high: float


def weights_of(places: DrawnPlaces) -> Numbers:
    return places.target / places.logged


def effective_places(places: DrawnPlaces) -> float:
    """So many places of equal weights would tell as much (Kish); few: the policy was hardly ever tried."""
    weights = weights_of(places)
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0


def logged_value(places: DrawnPlaces) -> Estimate:
    """What the places have brought as they were drawn."""
    return _weighted(places.watched_s, np.ones(len(places.logged)), places.viewer)


def snips(places: DrawnPlaces) -> Estimate:
    """Raises ZeroDivisionError where the policy would have shown nothing of what was shown."""
    return _weighted(places.watched_s, weights_of(places), places.viewer)


def doubly_robust(places: DrawnPlaces) -> Estimate:
    """Raises ZeroDivisionError where the policy would have shown nothing of what was shown."""
    weights, missed = weights_of(places), places.watched_s - places.model_s
    total = _total(weights)
    correction = float((weights * missed).sum()) / total
    expected = float(places.policy_s.mean())
    own = (places.policy_s - expected) / len(weights) + weights * (missed - correction) / total
    return _estimate(expected + correction, own, places.viewer)


def _weighted(values: Numbers, weights: Numbers, viewer: NDArray[np.int64]) -> Estimate:
    total = _total(weights)
    value = float((weights * values).sum()) / total
    return _estimate(value, weights * (values - value) / total, viewer)


def _total(weights: Numbers) -> float:
    total = float(weights.sum())
    if not total:
        raise ZeroDivisionError("the policy shows nothing of what was shown")
    return total


def _estimate(value: float, own: Numbers, viewer: NDArray[np.int64]) -> Estimate:
    """`own` [N]: what each place adds to the estimate's error."""
    width = Z * float(np.sqrt((np.bincount(viewer, own) ** 2).sum()))
    return Estimate(value, value - width, value + width)

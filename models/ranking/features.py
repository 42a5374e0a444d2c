"""The ranker's features: one definition, for training and for serving, for all candidates of all requests at once.

They are declared where they are computed, in query_features.py and impression_features.py. The hash of all declarations
goes into bundle and impressions: a server refuses a bundle whose features it would compute differently, and training
passes over impressions of other features.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from models.arrays import Floats
from models.ranking import impression_features, query_features
from models.ranking.feature import DECLARED, Feature, Scope
from models.ranking.ranking_batch import HISTORY, MOST_TOPICS, SHOWN, Codes, RankingBatch

REVISION = 1  # to be raised when a feature is computed differently; test_features.py holds golden values
MODULES = (query_features, impression_features)  # what is imported is declared
FEATURES = sorted(DECLARED, key=lambda feature: (feature.is_number, feature.scope == "impression"))


_SCHEMA = [f"{feature.name}:{feature.kind}:{feature.scope}:{feature.space}" for feature in FEATURES]
SCHEMA_HASH = hashlib.sha256(f"{_SCHEMA}/{REVISION}/{HISTORY}/{SHOWN}/{MOST_TOPICS}".encode()).hexdigest()[:16]


@cache
def numbers_of(scope: Scope, of_item: bool | None = None) -> tuple[Feature, ...]:
    """In the order in which their values travel. `of_item`: those of the item alone, or all others."""
    return tuple(feature for feature in FEATURES if feature.is_number and feature.is_among(scope, of_item))


@cache
def ids_of(scope: Scope, of_item: bool | None = None) -> tuple[Feature, ...]:
    return tuple(feature for feature in FEATURES if not feature.is_number and feature.is_among(scope, of_item))


def compute_numbers(batch: RankingBatch, scope: Scope, of_item: bool | None = None) -> Floats:
    """float32 [B, F] of scope query, [N, F] of scope impression; NaN for missing, never infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        columns = [np.asarray(feature.compute(batch), np.float32) for feature in numbers_of(scope, of_item)]
        values: Floats = np.stack(columns, axis=1)
    values[~np.isfinite(values)] = np.nan
    return values


def compute_ids(batch: RankingBatch, scope: Scope, of_item: bool | None = None) -> dict[str, Codes]:
    """By feature; codes [B, M] of scope query, [N, M] of scope impression, M 1 where there is one id."""
    found = {}
    for feature in ids_of(scope, of_item):
        named = feature.compute(batch)
        found[feature.name] = named if feature.many else Codes(named.codes[:, None], named.names, named.first)
    return found

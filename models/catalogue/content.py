"""What an item says of itself, as a bag of hashed features: its ids of each column, and the character n-grams of its
title.

N-grams need no dictionary and no language; the hash has a fixed number of buckets, so that what is learnt of them does
not grow with the catalogue. Each group of features has length 1: a long title does not drown a channel.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from zlib import crc32

import numpy as np
import scipy.sparse as sp

BUCKETS = 4096
GRAMS = (3, 4)  # characters of an n-gram
LONGEST_TITLE = 200  # characters that are read
MOST_IDS = 8  # of an item in one column
SIGN = 1 << 31  # the bit of the hash that says which way a feature counts: those of one bucket do not add up

Bag = tuple[list[int], list[float]]  # buckets and values, of one length


def bag_of(ids: Mapping[str, Sequence[str]], title: str = "") -> Bag:
    """The features of an item with these ids by column of the catalogue."""
    groups = [[f"{name}\0{value}" for value in dict.fromkeys(values)][:MOST_IDS] for name, values in ids.items()]
    buckets: list[int] = []
    values: list[float] = []
    for group in [*groups, [f"\0{gram}" for gram in grams_of(title)]]:
        for feature in group:
            code = crc32(feature.encode(errors="replace"))
            buckets.append(code % BUCKETS)
            values.append((-1.0 if code & SIGN else 1.0) / len(group) ** 0.5)
    return buckets, values


def grams_of(title: str) -> list[str]:
    """The distinct n-grams of a title in lower case, words apart by one space."""
    words = title[:LONGEST_TITLE].lower().split()
    text = f" {' '.join(words)} "
    places = ((at, at + size) for size in GRAMS for at in range(len(text) - size + 1))
    return list(dict.fromkeys(text[start:end] for start, end in places)) if words else []


def matrix_of(bags: Iterable[Bag]) -> sp.csr_array:
    """float64 [N, BUCKETS]"""
    ends, buckets, values = array("q", [0]), array("i"), array("d")  # lists would take ten times as much
    for own, counts in bags:
        buckets.extend(own)
        values.extend(counts)
        ends.append(len(buckets))
    parts = np.array(values), np.array(buckets), np.array(ends)
    return sp.csr_array(parts, shape=(len(ends) - 1, BUCKETS))

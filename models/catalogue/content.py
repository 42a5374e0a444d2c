"""What an item says of itself, as numbers: its ids of each column, the character n-grams of its title and the words of
its description as a bag of hashed features, and a vector that its team has made of it (of the picture, say).

N-grams need no dictionary and no language; the hash has a fixed number of buckets, so that what is learnt of them does
not grow with the catalogue. A description is long enough for whole words, which say more than their parts. Each group
of features has length 1: a long title does not drown a channel.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from models.catalogue.catalogue import NO_IDS

BUCKETS = 4096
GRAMS = (3, 4)  # characters of an n-gram
LONGEST_TITLE = 200  # characters that are read
MOST_IDS = 8  # of an item in one column
SIGN = 1 << 31  # the bit of the hash that says which way a feature counts: those of one bucket do not add up

WORD_BUCKETS = 2048  # of descriptions, behind BUCKETS
WORD_SIGN = 1 << 15  # SIGN in 16 bits
MOST_WORDS = 100  # distinct ones of a description
LONGEST_DESCRIPTION = 2000  # characters that are read
MOST_NUMBERS = 2048  # of a vector
LARGEST = 1e30  # of them: its square is a number

_MARKS = "".join(char for char in map(chr, range(0x300, 0x1_FFFF)) if unicodedata.category(char).startswith("M"))
_WORDS = re.compile(rf"[\w{_MARKS}]+")  # with the vowels and tones of scripts that write them as marks
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ufdff\U00020000-\U0003ffff]")  # scripts

Bag = tuple[list[int], list[float]]  # buckets and values, of one length
Codes = npt.NDArray[np.uint16]  # of words: the bucket, and WORD_SIGN
Halves = npt.NDArray[np.float16]  # a vector of length 1, or of nothing but zeros

NO_WORDS: Codes = np.empty(0, np.uint16)
NO_VECTOR: Halves = np.empty(0, np.float16)


class ItemContent(NamedTuple):
    """All that places an item nobody has watched. `ids` by column of the catalogue, the codes of its description's
    words, its vector in half precision, empty for none."""

    ids: Mapping[str, Sequence[str]] = NO_IDS
    title: str = ""
    words: Codes = NO_WORDS
    vector: Halves = NO_VECTOR


NO_CONTENT = ItemContent()


class ContentShape(NamedTuple):
    """What a map of content reads beside ids and title: words of descriptions or not, and vectors of so many numbers,
    0 for none."""

    words: bool = False
    vector: int = 0

    @property
    def buckets(self) -> int:
        return BUCKETS + WORD_BUCKETS * self.words

    @property
    def rows(self) -> int:
        """Of the map: one for each feature, and the mean."""
        return self.buckets + self.vector + 1


IDS_AND_TITLE = ContentShape()


def bag_of(content: ItemContent, shape: ContentShape = IDS_AND_TITLE) -> Bag:
    """The hashed features of an item that a map of this shape reads."""
    named = content.ids.items()
    groups = [[f"{name}\0{value}" for value in dict.fromkeys(values)][:MOST_IDS] for name, values in named]
    buckets: list[int] = []
    values: list[float] = []
    for group in [*groups, [f"\0{gram}" for gram in grams_of(content.title)]]:
        for feature in group:
            code = crc32(feature.encode(errors="replace"))
            buckets.append(code % BUCKETS)
            values.append((-1.0 if code & SIGN else 1.0) / len(group) ** 0.5)
    if shape.words:
        words = content.words.tolist()
        buckets += [BUCKETS + code % WORD_BUCKETS for code in words]
        values += [(-1.0 if code & WORD_SIGN else 1.0) / len(words) ** 0.5 for code in words]
    return buckets, values


def grams_of(title: str) -> list[str]:
    """The distinct n-grams of a title in lower case, words apart by one space."""
    words = title[:LONGEST_TITLE].lower().split()
    text = f" {' '.join(words)} "
    places = ((at, at + size) for size in GRAMS for at in range(len(text) - size + 1))
    return list(dict.fromkeys(text[start:end] for start, end in places)) if words else []


def words_of(description: str) -> list[str]:
    """The first distinct words of a description, without case; of a script that puts no spaces between words each two
    neighbours of a word's characters."""
    text = unicodedata.normalize("NFKC", description[:LONGEST_DESCRIPTION]).casefold()
    words: dict[str, None] = {}
    for word in _WORDS.findall(text):
        parts = [word[at : at + 2] for at in range(len(word) - 1)] if _UNSPACED.search(word) else []
        words |= dict.fromkeys(parts or [word])
    return list(words)[:MOST_WORDS]


def word_codes(description: str) -> Codes:
    """uint16 [W], W <= MOST_WORDS: what is kept of a description, two bytes a word."""
    codes = (crc32(word.encode(errors="replace")) for word in words_of(description))
    return np.array([code % WORD_BUCKETS | (WORD_SIGN if code & SIGN else 0) for code in codes], np.uint16)


def halves_of(vectors: npt.ArrayLike) -> Halves:
    """float16 [..., V]: vectors of finite numbers up to LARGEST, brought to length 1; zeros stay zeros. Of length 1
    every number fits into half precision, whatever the scale of a team's own."""
    numbers = np.asarray(vectors, np.float64)
    lengths = np.sqrt(np.square(numbers).sum(axis=-1, keepdims=True))
    scaled: Halves = np.divide(numbers, lengths, out=np.zeros_like(numbers), where=lengths > 0).astype(np.float16)
    return scaled

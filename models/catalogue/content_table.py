"""What all items of a catalogue say of themselves beside their ids, by row: compact, since there may be millions.

A description is kept as the codes of its words, two bytes each; a vector in half precision, in a file that is mapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from models.arrays import Rows
from models.catalogue.content import (
    NO_VECTOR,
    NO_WORDS,
    Codes,
    ContentShape,
    Halves,
    ItemContent,
    halves_of,
    word_codes,
)

AT_ONCE = 8192  # vectors in double precision


@dataclass(frozen=True)
class ContentTable:
    """Of [N] items: `titles` where there are any; `words` of all descriptions one after the other and where each ends,
    int64 [N]; `vectors` float16 [N, V] of length 1, zeros for an item that has none; all None where nothing is told."""

    titles: pl.Series | None = None
    words: Codes | None = None
    ends: Rows | None = None
    vectors: Halves | None = None

    @property
    def shape(self) -> ContentShape:
        """What there is to be read by a map."""
        return ContentShape(self.words is not None, 0 if self.vectors is None else self.vectors.shape[1])

    def of(self, row: int, ids: Mapping[str, Sequence[str]]) -> ItemContent:
        title = "" if self.titles is None else self.titles[row]
        vector = NO_VECTOR if self.vectors is None else self.vectors[row]
        return ItemContent(ids, title, self._words_of(row), vector)

    def _words_of(self, row: int) -> Codes:
        if self.words is None or self.ends is None:
            return NO_WORDS
        return self.words[self.ends[row - 1] if row else 0 : self.ends[row]]


NOTHING_SAID = ContentTable()


def content_table(items: pl.DataFrame, vectors: pl.Series | None, file: Path) -> ContentTable:
    """The content of items of the columns `title` and `description`, where these are there, and `at`: the place of each
    in `vectors` (lists of one length, null for none), null for none. These are written to `file`."""
    titles = items["title"].fill_null("") if "title" in items.columns else None
    words = ends = None
    if "description" in items.columns and items["description"].null_count() < items.height:
        words, ends = _words(items["description"].fill_null(""))
    sizes = [] if vectors is None else vectors.drop_nulls().head(1).list.len().to_list()
    if vectors is None or not sizes:
        return ContentTable(titles, words, ends)
    return ContentTable(titles, words, ends, _stored(vectors, items["at"], sizes[0], file))


def _words(descriptions: Iterable[str]) -> tuple[Codes, Rows]:
    codes = [word_codes(text) for text in descriptions]
    return np.concatenate([NO_WORDS, *codes]), np.cumsum([len(own) for own in codes], dtype=np.int64)


def _stored(vectors: pl.Series, at: pl.Series, size: int, file: Path) -> Halves:
    """float16 [N, size], mapped: brought to length 1 and written some at once."""
    stored = np.lib.format.open_memmap(file, "w+", np.float16, (len(at), size))
    for start in range(0, len(at), AT_ONCE):
        part = vectors.gather(at[start : start + AT_ONCE])
        numbers = np.zeros((len(part), size))
        numbers[part.is_not_null().to_numpy()] = part.drop_nulls().cast(pl.Array(pl.Float64, size)).to_numpy()
        stored[start : start + AT_ONCE] = halves_of(numbers)
    stored.flush()
    return np.asarray(stored)

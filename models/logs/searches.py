"""Searches as the user tower takes them: words and pairs of words, hashed into a table of a fixed size (paper section
3.3: "each query is tokenized into unigrams and bigrams and each token is embedded").

Hashed and not a vocabulary: a word that nobody has searched before has a row at once, in training and in serving alike.
The hash is a part of what is learnt, so it must never change.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from itertools import pairwise

MOST_TOKENS = 16  # of one query
MOST_SEARCHES = 50
MOST_HISTORY = 200  # tokens of a history
_WORDS = re.compile(r"\w+")


def tokens_of(query: str, buckets: int) -> list[int]:
    """The distinct words of a query, then its pairs of neighbours, as numbers from 1 to `buckets` - 1 (0 is no token);
    at most MOST_TOKENS. Case and the Unicode form of a character do not matter."""
    words = _WORDS.findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", query).casefold()))
    pairs = (f"{left} {right}" for left, right in pairwise(words))
    tokens = dict.fromkeys(_bucket(token, buckets) for token in dict.fromkeys([*words, *pairs]))
    return list(tokens)[:MOST_TOKENS]


def history_tokens(
    queries: Sequence[str], buckets: int, *, most: int = MOST_SEARCHES, most_tokens: int = MOST_HISTORY
) -> list[int]:
    """The tokens of the last `most` queries, in the order of the queries (oldest first, as in a history), of these the
    last `most_tokens`. A word that was searched twice is there twice."""
    tokens = [token for query in queries[-most:] for token in tokens_of(query, buckets)]
    return tokens[-most_tokens:]


def _bucket(token: str, buckets: int) -> int:
    return zlib.crc32(token.encode()) % (buckets - 1) + 1

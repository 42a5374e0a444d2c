"""Splits viewers into the variants of an experiment by a salted hash: the same everywhere, and for as long as the salt
is the same. Another salt splits anew, so that who was in a variant before is spread over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate

BYTES = 8


def place_of(salt: str, user_id: str) -> float:
    """The place of a viewer in [0, 1), even over viewers: 53 bits of BLAKE2b over `<salt>/<user id>` in UTF-8."""
    key = f"{salt}/{user_id}".encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.blake2b(key, digest_size=BYTES).digest(), "big")
    return float(number >> 11) / (1 << 53)


def variant_of(salt: str, user_id: str, shares: Sequence[float]) -> int | None:
    """The number of the viewer's variant, of which each has its share of [0, 1) in order; None beyond them all."""
    place = place_of(salt, user_id)
    return next((number for number, end in enumerate(accumulate(shares)) if place < end), None)

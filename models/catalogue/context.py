"""The context of a watch or a request (region, device, ...) as codes and reals (paper section 3.3, "priors for new
users").

The fields that a log has are part of the model, the others are left out: nothing is learnt from constants. A value
that training has not seen is code 0, which adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from models.arrays import Floats, Rows

FIELDS = ("region", "language", "device", "surface")
TRAITS = ("signed_in", "gender", "age")


class ContextVocabulary(msgspec.Struct, frozen=True):
    """The values of each field in use, whose codes count from 1; and the traits in use."""

    fields: dict[str, tuple[str, ...]] = {}
    traits: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each field, 0 included."""
        return tuple(len(values) + 1 for values in self.fields.values())

    def read(self, contexts: Sequence[Any]) -> tuple[Rows, Floats]:
        """Contexts, None where nothing is known -> codes int64 [B, K] and traits float32 [B, M], NaN unknown."""
        codes = np.zeros((len(contexts), len(self.fields)), np.int64)
        for column, (name, values) in enumerate(self.fields.items()):
            code_of = {value: code for code, value in enumerate(values, 1)}
            codes[:, column] = [code_of.get(value, 0) for value in _column(contexts, name)]
        traits = np.full((len(contexts), len(self.traits)), np.nan, np.float32)
        for column, name in enumerate(self.traits):
            traits[:, column] = [np.nan if value is None else float(value) for value in _column(contexts, name)]
        return codes, traits


def _column(contexts: Sequence[Any], name: str) -> Iterable[Any]:
    return (getattr(context, name, None) for context in contexts)

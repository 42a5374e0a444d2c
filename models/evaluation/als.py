"""Alternating least squares (Hu, Koren and Volinsky, ICDM 2008) by the library `implicit`, where it is installed.

Item factors are those of the cut; a user's are solved anew from the whole past that a query brings, as the library
serves.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from models.arrays import Floats
from models.evaluation.eval_queries import EvalQueries, Stream
from models.evaluation.item_to_item import seen_matrix, watch_matrix


def als_is_installed() -> bool:
    return find_spec("implicit") is not None


class Als:
    name = "ALS"

    def __init__(
        self, stream: Stream, cut: int, catalogue: int, *, factors: int, regularization: float, alpha: float, seed: int
    ) -> None:
        from implicit.cpu.als import AlternatingLeastSquares

        self._catalogue = catalogue
        self._model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, random_state=seed, num_threads=1
        )
        self._model.fit(_matrix(watch_matrix(stream, cut, catalogue)), show_progress=False)

    def scores(self, queries: EvalQueries) -> Floats:
        watched = _matrix(seen_matrix(queries, self._catalogue))
        users = self._model.recalculate_user(np.arange(len(queries)), watched)  # [B, D]
        return np.asarray(users @ self._model.item_factors.T, np.float32)

    def learn(self, rows: slice) -> None:
        """The factors are not followed; the history that `scores` is given is."""


def _matrix(array: object) -> object:
    """The library knows SciPy's older sparse class only."""
    from scipy.sparse import csr_matrix

    return csr_matrix(array)

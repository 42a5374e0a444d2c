from dataclasses import replace

import numpy as np
import pytest
import torch

from models.catalogue.context import ContextVocabulary
from models.logs.examples import Queries
from models.retrieval.candidates import UserEncoder
from models.retrieval.table import Distinct
from models.retrieval.tower import TowerShape, UserTowers
from models.retrieval.tower_arrays import MOST_USERS, TowerArrays

ITEMS, WORDS = 30, 20
SHAPES = {
    "one tower": TowerShape(dim=4),
    "no hidden layer, no residual": TowerShape(dim=4, hidden=(), residual=False),
    "dropout is of training": TowerShape(dim=4, dropout=0.5),
    "side by side": TowerShape(dim=4, members=3, linear=5),
    "all that is known": TowerShape(
        dim=4, hidden=(8, 6), words=3, contexts=(5, 2), traits=2, example_age=True, members=2, linear=3, skips=5
    ),
    "the newest counting most": TowerShape(dim=4, members=2, linear=3, ordered=True),
    "uncompleted watches": TowerShape(dim=4, linear=3, skips=5),
    "muted towers": TowerShape(dim=4, members=2, linear=3, muted_towers=True),
    "muted linear": TowerShape(dim=4, members=2, linear=3, muted_linear=True),
}


def queries_of(shape: TowerShape, users: int, rng: np.random.Generator) -> Queries:
    histories = rng.integers(-1, ITEMS, (users, 7))
    histories[0] = -1
    return Queries(
        histories,
        rng.integers(-1, WORDS, (users, 4 if shape.words else 0)),
        rng.integers(0, 2, (users, len(shape.contexts))),
        np.where(rng.random((users, shape.traits)) < 0.5, np.nan, 0.3).astype(np.float32),
        rng.random(users, np.float32),
        np.where(rng.random((users, shape.skips)) < 0.5, -1, rng.integers(0, ITEMS, (users, shape.skips))),
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_few_users_have_the_vectors_that_torch_gives_them(shape: TowerShape):
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    towers = UserTowers(shape)
    rows = rng.standard_normal((ITEMS, shape.members * shape.dim + shape.linear)).astype(np.float32)
    words = rng.standard_normal((WORDS, shape.members * shape.words)).astype(np.float32)
    encoder = UserEncoder(towers, words, ContextVocabulary())
    queries = queries_of(shape, 5, rng)
    few = encoder.encode(queries, rows)
    with torch.inference_mode():
        expected = towers(encoder.inputs(queries, rows)).numpy()
        unsorted = towers(encoder.inputs(queries, rows, Distinct(ITEMS))).numpy()
    assert few.dtype == np.float32
    np.testing.assert_allclose(few, expected, atol=2e-6)
    np.testing.assert_allclose(unsorted, expected, atol=2e-6)
    one = replace(queries, **{name: getattr(queries, name)[2:3] for name in queries.__dataclass_fields__})
    np.testing.assert_allclose(encoder.encode(one, rows)[0], expected[2], atol=2e-6)


def test_many_users_and_attention_are_torchs(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def encode(_: TowerArrays, queries: Queries, *__: object) -> None:
        asked.append(len(queries.histories))

    monkeypatch.setattr(TowerArrays, "encode", encode)
    rng, rows = np.random.default_rng(1), np.ones((ITEMS, 4), np.float32)
    for name, users in (("average", MOST_USERS), ("average", MOST_USERS + 1), ("attention", 2)):
        shape = TowerShape(dim=4, encoder=name)  # type: ignore[arg-type]
        encoder = UserEncoder(UserTowers(shape), np.empty((0, 0), np.float32), ContextVocabulary())
        encoder.encode(queries_of(shape, users, rng), rows)
    assert asked == [MOST_USERS]

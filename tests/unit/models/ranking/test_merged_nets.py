import numpy as np
import pytest
import torch

from models.ranking.features import ids_of, numbers_of
from models.ranking.merged_nets import FEW_REQUESTS, MergedNets
from models.ranking.ranker_net import RankerNet, RankerShape

FEATURES = tuple(each.name for scope in ("query", "impression") for each in (*ids_of(scope), *numbers_of(scope)))
SPACES = ("item", "language", "region", "device", "surface", "channel", "topic", "length", "source")

Inputs = tuple[torch.Tensor, dict[str, torch.Tensor]]


def shape_of(members: int, hidden: tuple[int, ...], **more: object) -> RankerShape:
    sizes, widths = dict.fromkeys(SPACES, 7), {space: 2 + at for at, space in enumerate(SPACES)}
    return RankerShape(hidden, FEATURES, sizes, widths, members=members, **more)  # type: ignore[arg-type]


def inputs_of(scope: str, rows: int, rng: np.random.Generator) -> Inputs:
    x = rng.random((rows, len(numbers_of(scope))), np.float32)  # type: ignore[arg-type]
    x[rng.random(x.shape) < 0.2] = np.nan
    ids = {f.name: torch.from_numpy(rng.integers(0, 7, (rows, 3 if f.many else 1))) for f in ids_of(scope)}  # type: ignore[arg-type]
    return torch.from_numpy(x), ids


def logits_of(merged: MergedNets, query: Inputs, impression: Inputs, request: np.ndarray) -> np.ndarray:
    """What the items have whoever asks is worked out apart, as serving does."""
    x, ids = impression
    of_item = torch.tensor([feature.of_item for feature in numbers_of("impression")])
    items = merged.of_items(x[:, of_item], ids)
    return merged.logits(query, items, (x[:, ~of_item], ids), request)


def requests_of(kind: str) -> np.ndarray:
    if kind == "in order":
        return np.repeat([0, 1, 2], [4, 1, 6])
    return np.array([2, 0, 1, 2, 0]) if kind == "mixed" else np.arange(FEW_REQUESTS + 5)


@pytest.mark.parametrize("kind", ["in order", "mixed", "many"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 5)])
def test_the_members_together_say_what_each_says_alone(hidden: tuple[int, ...], kind: str):
    rng, request = np.random.default_rng(1), requests_of(kind)
    torch.manual_seed(1)
    shape = shape_of(3, hidden, completion=True, position=True)
    nets = [RankerNet(shape).eval().requires_grad_(False) for _ in range(3)]
    query, impression = inputs_of("query", int(request.max()) + 1, rng), inputs_of("impression", len(request), rng)
    together = logits_of(MergedNets(nets), query, impression, request)
    alone = [net(net.query_part(*query)[torch.from_numpy(request)], *impression).numpy() for net in nets]
    assert together.dtype == np.float32
    assert together.shape == (3, len(request), 2)
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-6)


def test_numbers_of_16_bits_stay_near():
    rng, request = np.random.default_rng(2), requests_of("in order")
    torch.manual_seed(2)
    nets = [RankerNet(shape_of(2, (8, 5))).eval().requires_grad_(False) for _ in range(2)]
    query, impression = inputs_of("query", 3, rng), inputs_of("impression", len(request), rng)
    exact = logits_of(MergedNets(nets), query, impression, request)
    rough = logits_of(MergedNets([net.bfloat16() for net in nets]), query, impression, request)
    assert not (rough == exact).all()
    np.testing.assert_allclose(rough, exact, atol=0.05)


def test_no_candidates_have_no_logits():
    rng = np.random.default_rng(3)
    merged = MergedNets([RankerNet(shape_of(1, (8,))).requires_grad_(False)])
    assert logits_of(
        merged, inputs_of("query", 2, rng), inputs_of("impression", 0, rng), np.zeros(0, np.int64)
    ).shape == (
        1,
        0,
        1,
    )

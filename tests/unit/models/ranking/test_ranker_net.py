"""What the network makes of codes and quantiles, by hand."""

import numpy as np
import torch

from models.ranking.feature import Scope
from models.ranking.features import FEATURES, ids_of
from models.ranking.ranker_net import POSITIONS, RankerNet, RankerShape

EVERYTHING = tuple(feature.name for feature in FEATURES)
SPACES = sorted({str(feature.space) for feature in FEATURES if feature.space})


def shape(*features: str, **changes: object) -> RankerShape:
    known = {str(f.space) for f in FEATURES if f.name in features and f.space}
    values = {"hidden": (4,), "sizes": dict.fromkeys(known, 5), "widths": dict.fromkeys(known, 3), **changes}
    return RankerShape(features=features, **values)  # type: ignore[arg-type]


def new(wanted: RankerShape, seed: int = 1) -> RankerNet:
    torch.manual_seed(seed)
    return RankerNet(wanted).eval().requires_grad_(False)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_a_number_is_fed_as_x_its_square_and_its_root_and_missing_as_a_flag_of_its_own():
    inputs = new(shape("age_h")).impression
    expected = [(0.25 - 1 / 2) / 0.2887, (0.0625 - 1 / 3) / 0.2981, (0.5 - 2 / 3) / 0.2357, 0]
    np.testing.assert_allclose(inputs(row(0.25), {}), [expected], rtol=1e-5)
    np.testing.assert_array_equal(inputs(row(np.nan), {}), [[0, 0, 0, 1]])
    lowest = inputs(row(0.0), {})
    assert lowest[0, 3] == 0, "the lowest value is not missing"
    assert (lowest[0, :3] < 0).all()
    plain = new(shape("age_h", powers=False)).impression
    np.testing.assert_allclose(plain(row(0.25), {}), [[expected[0], 0]], rtol=1e-5)


def test_powers_of_a_uniform_quantile_have_mean_zero_and_spread_one():
    x = torch.linspace(0, 1, 10_001)[:, None]
    columns = new(shape("age_h")).impression(x, {})[:, :3]
    np.testing.assert_allclose(columns.mean(dim=0), [0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(columns.std(dim=0), [1, 1, 1], rtol=2e-3)


def test_several_ids_are_averaged_and_padding_does_not_matter():
    net = new(shape("topics"))
    table = net.tables["topic"].weight
    no_numbers = torch.zeros(1, 0)
    found = net.impression(no_numbers, {"topics": torch.tensor([[1, 3]])})
    np.testing.assert_allclose(found[0], (table[1] + table[3]) / 2, rtol=1e-6)
    for padded in ([[0, 1, 3, 0]], [[1, 0, 0, 0, 3]]):
        np.testing.assert_array_equal(net.impression(no_numbers, {"topics": torch.tensor(padded)}), found)
    assert (net.impression(no_numbers, {"topics": torch.tensor([[0, 0]])}) == 0).all()


def test_ids_of_one_space_share_an_embedding_whatever_their_scope():
    net = new(shape("last_watched", "candidate"))
    assert list(net.tables) == ["item"]
    no_numbers = torch.zeros(1, 0)
    watched = net.query(no_numbers, {"last_watched": torch.tensor([[2, 0]])})
    shown = net.impression(no_numbers, {"candidate": torch.tensor([[2]])})
    np.testing.assert_array_equal(watched, shown)
    assert len([name for name, _ in net.named_parameters() if "tables" in name]) == 1


def test_an_unknown_id_is_zero_and_stays_it_in_training():
    torch.manual_seed(1)
    net = RankerNet(shape("candidate"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    codes = {"candidate": torch.tensor([[0], [1]])}
    for _ in range(3):
        logits = net(net.query_part(torch.zeros(2, 0), {}), torch.zeros(2, 0), codes)
        optimizer.zero_grad()
        logits.sum().backward()
        optimizer.step()
    assert (net.tables["item"].weight[0] == 0).all()


def test_the_query_is_computed_once_and_added_to_each_of_its_candidates():
    """The first layer is one matrix over both, cut in two."""
    wanted = shape("hour", "age_h", "duration_s", "candidate")
    net = new(wanted)
    query, x = torch.rand(1, 1), torch.rand(3, 2)
    codes = {"candidate": torch.tensor([[1], [2], [0]])}
    found = net(net.query_part(query, {}), x, codes)
    row_by_row = [
        net(net.query_part(query, {}), x[n : n + 1], {"candidate": codes["candidate"][n : n + 1]})[0] for n in range(3)
    ]
    np.testing.assert_allclose(found, torch.stack(row_by_row), rtol=1e-6)
    both = torch.cat([net.query(query.expand(3, 1), {}), net.impression(x, codes)], dim=1)
    first = torch.cat([net.of_query, net.of_impression], dim=1)
    hidden = (both @ first.T + net.bias).relu()
    assert net.last is not None
    np.testing.assert_allclose(found, net.last(hidden), rtol=1e-5, atol=1e-6)


def test_without_layers_it_is_a_plain_regression_with_a_logit_for_each_head():
    for completion, logits in ((False, 1), (True, 2)):
        net = new(shape("age_h", "hour", hidden=(), completion=completion))
        one, two, three = (net(net.query_part(row(0.5), {}), row(x), {}) for x in (0.1, 0.3, np.nan))
        assert one.shape == (1, logits)
        assert (one != two).all()
        assert three.isfinite().all()


def test_it_may_read_nothing_of_a_scope():
    net = new(shape("age_h"))
    assert net.query.width == 0
    assert net(net.query_part(torch.zeros(1, 0), {}), torch.rand(2, 1), {}).shape == (2, 1)


def test_a_place_is_a_shift_that_begins_at_nothing():
    net = new(shape("age_h", position=True))
    assert net.position_part(torch.tensor([0, 1, POSITIONS + 99])).tolist() == [0, 0, 0]
    net.position.weight[3], net.position.weight[POSITIONS] = 0.5, -1.0
    shifts = net.position_part(torch.tensor([0, 3, POSITIONS, POSITIONS + 99]))
    assert shifts.tolist() == [0, 0.5, -1, -1], "far down is all one"
    assert new(shape("age_h")).position_part(torch.tensor([3])).tolist() == [0]


def test_every_feature_is_read_once():
    whole = new(shape(*EVERYTHING))
    assert sorted(whole.tables) == SPACES
    scopes: tuple[Scope, Scope] = ("query", "impression")
    for scope, inputs in zip(scopes, (whole.query, whole.impression), strict=True):
        numbers, columns, ids = shape(*EVERYTHING).used(scope)
        assert columns == list(range(len(numbers)))
        assert tuple(ids) == ids_of(scope)
        assert inputs.width == 4 * len(numbers) + 3 * len(ids)

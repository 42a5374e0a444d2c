import numpy as np
import pytest
import torch

from models.logs.pairs import KEPT
from models.logs.timeline import HISTORY
from models.retrieval.encoders import FADES, AttentionEncoder, RecentEncoder, mean_of
from models.retrieval.tower import Dropout, Inputs, TowerShape, UserTower, UserTowers

ENCODERS = ("average", "recent", "attention")


def inputs(vectors: torch.Tensor, places: list[list[int]], **changes: torch.Tensor) -> Inputs:
    size = len(places)
    nothing = Inputs(
        vectors,
        torch.tensor(places).reshape(size, -1),
        torch.empty(0, 0),
        torch.empty(size, 0, dtype=torch.long),
        torch.empty(size, 0, dtype=torch.long),
        torch.empty(size, 0),
        torch.zeros(size),
        torch.empty(size, 0, dtype=torch.long),
    )
    return nothing._replace(**changes)


def tower_of(**shape: object) -> UserTower:
    torch.manual_seed(1)
    return UserTower(TowerShape(dim=4, **shape)).eval()  # type: ignore[arg-type]


def test_the_average_reads_the_mean_of_the_history():
    tower, vectors = tower_of(hidden=(), residual=False), torch.randn(5, 4)
    mean = vectors[[4, 1, 1]].mean(dim=0, keepdim=True)
    expected = tower.layers(mean).detach()
    np.testing.assert_allclose(tower(inputs(vectors, [[-1, 4, 1, 1]])).detach(), expected, rtol=1e-5)
    with_mean = tower_of(hidden=(), residual=True)(inputs(vectors, [[-1, 4, 1, 1]])).detach()
    np.testing.assert_allclose(with_mean, expected + mean, rtol=1e-5)


def test_the_mean_of_the_skips_is_read_beside_the_history_and_not_added_again():
    vectors, skips = torch.randn(5, 4), torch.tensor([[-1, 0, 3]])
    means = torch.cat([vectors[[4, 1]].mean(dim=0, keepdim=True), vectors[[0, 3]].mean(dim=0, keepdim=True)], dim=1)
    for residual in (False, True):
        tower = tower_of(hidden=(), residual=residual, skips=3)
        expected = tower.layers(means).detach() + residual * means[:, :4]
        user = tower(inputs(vectors, [[4, 1]], skip_places=skips)).detach()
        np.testing.assert_allclose(user, expected, rtol=1e-5)
    assert tower(inputs(vectors, [[4, 1]])).isfinite().all(), "also of somebody of whom none is known"


def test_towers_side_by_side_read_their_own_slices_and_the_linear_part_grows_with_the_root():
    torch.manual_seed(1)
    towers = UserTowers(TowerShape(dim=4, members=2, linear=3)).eval()
    vectors = torch.randn(5, 11)
    users = towers(inputs(vectors, [[0, 2, 4, 4]])).detach()
    assert users.shape == (1, 11)
    for member in range(2):
        own = towers.members[member](inputs(vectors[:, 4 * member : 4 * member + 4], [[0, 2, 4, 4]])).detach()
        np.testing.assert_allclose(users[:, 4 * member : 4 * member + 4], own, rtol=1e-6)
    np.testing.assert_allclose(users[0, 8:], vectors[[0, 2, 4, 4], 8:].sum(dim=0) / 2, rtol=1e-5)
    assert (towers(inputs(vectors, [[-1]]))[0, 8:] == 0).all()


def test_where_order_counts_the_linear_part_is_a_sum_in_which_newer_watches_weigh_more():
    towers = UserTowers(TowerShape(dim=4, linear=3, ordered=True)).eval()
    vectors = torch.randn(5, 7)
    users = towers(inputs(vectors, [[-1, 0, 2, -1, 4], [-1, -1, -1, -1, -1]])).detach()
    expected = KEPT**2 * vectors[0, 4:] + KEPT * vectors[2, 4:] + vectors[4, 4:]
    np.testing.assert_allclose(users[0, 4:], expected, rtol=1e-5)
    assert (users[1, 4:] == 0).all()


def test_weights_by_place_begin_with_the_newest_and_are_learnt():
    encoder, vectors = RecentEncoder(), torch.randn(3, 4)
    encoded = encoder(vectors, torch.tensor([[0, -1, 2]]))
    expected = (FADES**2 * vectors[0] + vectors[2]) / (FADES**2 + 1)
    np.testing.assert_allclose(encoded[0].detach(), expected, rtol=1e-5)
    encoded.square().sum().backward()
    moved = encoder.log_weights.grad.nonzero()[:, 0].tolist()
    assert moved == [HISTORY - 3, HISTORY - 1]


def test_a_mean_of_nothing_is_zero_and_not_the_next_ones():
    vectors = torch.randn(5, 4)
    means = mean_of(vectors, torch.tensor([[-1, -1], [2, 3], [-1, -1]]))
    assert (means[[0, 2]] == 0).all()
    np.testing.assert_allclose(means[1], vectors[2:4].mean(dim=0), rtol=1e-6)
    assert mean_of(torch.empty(0, 4), torch.tensor([[-1]])).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("places", [[[-1, 3, 3], [-1, -1, -1], [0, 4, 3]], [[-1, -1], [-1, -1]]])
def test_the_gradient_of_a_mean_is_the_one_that_torch_works_out(places: list[list[int]]):
    vectors = torch.randn(6, 4).requires_grad_()
    means, weights = mean_of(vectors, torch.tensor(places)), torch.randn(len(places), 4)
    (found,) = torch.autograd.grad((means * weights).sum(), vectors)
    rows = [[place for place in row if place >= 0] for row in places]
    plain = torch.stack([vectors[row].mean(dim=0) if row else 0 * vectors[0] for row in rows])
    np.testing.assert_allclose(means.detach(), plain.detach(), rtol=1e-6)
    (expected,) = torch.autograd.grad((plain * weights).sum(), vectors)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_dropout_leaves_out_its_share_and_the_mean_stays(share: float):
    layer, x = Dropout(share), torch.ones(400, 500)
    assert layer.eval()(x) is x
    left = layer.train()(x.requires_grad_())
    assert abs(float((left == 0).float().mean()) - share) < 0.005
    assert share == 1 or abs(float(left.detach().mean()) - 1) < 0.01
    left.sum().backward()
    assert (x.grad == left).all()


@pytest.mark.parametrize("depth", range(5))
def test_a_tower_has_as_many_hidden_layers_as_widths(depth: int):
    tower = tower_of(hidden=(8,) * depth)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in tower.layers) == depth + 1
    assert tower(inputs(torch.randn(2, 4), [[0, 1]])).shape == (1, 4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_empty_histories_have_one_finite_vector(encoder: str):
    tower = tower_of(encoder=encoder)
    users = tower(inputs(torch.randn(3, 4), [[-1, -1], [0, 1], [-1, -1]]))
    assert users.isfinite().all()
    assert (users[0] == users[2]).all()
    assert tower(inputs(torch.empty(0, 4), [[-1]])).isfinite().all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_and_batch_composition_do_not_matter(encoder: str):
    tower, vectors = tower_of(encoder=encoder), torch.randn(6, 4)
    places = [[0, 1, 2], [-1, -1, 5], [-1, 3, 3], [-1, -1, -1]]
    together = tower(inputs(vectors, places)).detach()
    for row, place in enumerate(places):
        for padded in (place, [-1] * 9 + place):
            np.testing.assert_allclose(tower(inputs(vectors, [padded])).detach()[0], together[row], atol=1e-6)


def test_the_average_forgets_order_and_the_others_keep_it():
    vectors = torch.randn(3, 4)
    for encoder, keeps in (("average", False), ("recent", True), ("attention", True)):
        tower = tower_of(encoder=encoder)
        if encoder == "attention":
            with torch.no_grad():
                tower.encoder.positions.normal_()
        one, other = tower(inputs(vectors, [[0, 1, 2], [2, 1, 0]])).detach()
        assert (not torch.allclose(one, other, atol=1e-5)) is keeps


def test_attention_looks_back_and_never_forward():
    """What the second watch has gathered does not depend on the third."""
    torch.manual_seed(2)
    encoder = AttentionEncoder(4).eval()
    seen: list[torch.Tensor] = []
    encoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder.blocks[-1].register_forward_hook(lambda _, args, out: seen.append(out))
    vectors = torch.randn(4, 4)
    encoder(vectors, torch.tensor([[0, 1, 2]]))
    encoder(vectors, torch.tensor([[0, 1, 3]]))
    blocks = [tensor for tensor in seen if tensor.dim() == 3]
    np.testing.assert_allclose(blocks[0][0, :2].detach(), blocks[1][0, :2].detach(), atol=1e-6)
    assert not torch.allclose(blocks[0][0, 2], blocks[1][0, 2])


def test_searches_context_traits_and_age_each_change_the_user():
    tower = tower_of(words=3, contexts=(4, 2), traits=2, example_age=True)
    words = torch.randn(2, 3)
    plain = inputs(
        torch.randn(2, 4),
        [[0, 1]],
        words=words,
        word_places=torch.tensor([[-1]]),
        context=torch.tensor([[0, 0]]),
        traits=torch.tensor([[torch.nan, torch.nan]]),
    )
    user = tower(plain)
    for change in (
        {"word_places": torch.tensor([[1]])},
        {"context": torch.tensor([[3, 0]])},
        {"context": torch.tensor([[0, 1]])},
        {"traits": torch.tensor([[0.0, torch.nan]])},  # a known 0 is not an unknown one
        {"age": torch.tensor([0.5])},
    ):
        assert (tower(plain._replace(**change)) != user).any(), change


def test_unknown_context_is_never_learnt():
    tower = tower_of(contexts=(3,))
    users = tower(inputs(torch.randn(1, 4), [[0], [0]], context=torch.tensor([[0], [2]])))
    users.sum().backward()
    gradient = tower.contexts[0].weight.grad
    assert (gradient[0] == 0).all()
    assert (gradient[2] != 0).any()

import numpy as np
import torch

from models.tower import ItemTable, UserTower, bag_histories


def encode(tower: UserTower, vectors: torch.Tensor, rows: list[list[int]]) -> np.ndarray:
    distinct, index, starts = bag_histories(np.array(rows))
    return tower(vectors[distinct], index, starts).detach().numpy()


def test_the_tower_reads_the_mean_of_the_history():
    tower, vectors = UserTower(3, ()), torch.randn(5, 3)
    expected = tower.layers(vectors[[4, 1, 1]].mean(dim=0, keepdim=True)).detach()
    np.testing.assert_allclose(encode(tower, vectors, [[-1, 4, 1, 1]]), expected, rtol=1e-6)


def test_an_empty_history_is_the_zero_vector_and_not_the_next_ones():
    tower, vectors = UserTower(3, (4,)), torch.randn(5, 3)
    encoded = encode(tower, vectors, [[-1, -1], [2, 3], [-1, -1]])
    np.testing.assert_allclose(
        encoded[[0, 2]], tower(vectors[:1], torch.empty(0, dtype=torch.long), torch.tensor([0, 0])).detach()
    )
    np.testing.assert_allclose(encoded[[1]], encode(tower, vectors, [[2, 3]]), rtol=1e-6)


def test_a_history_without_any_items_at_all_is_encoded():
    assert np.isfinite(encode(UserTower(3, (4,)), torch.randn(5, 3), [[-1], [-1]])).all()


def test_an_item_is_its_own_row_plus_its_channel_plus_the_mean_of_its_topics():
    table = ItemTable(np.array([1, 0]), np.array([[1, 2], [0, 0]]), 3)
    with torch.no_grad():
        table.channel += torch.tensor([9.0])  # also row 0, which stands for "unknown"; it is never learnt
        table.topic += torch.tensor([[7.0], [2.0], [4.0]])
        table.channel[0] = 0
    items = table(torch.tensor([0, 1])).detach()
    np.testing.assert_allclose(items, (table.own + torch.tensor([[9.0 + 3.0], [0.0]])).detach(), rtol=1e-6)


def test_unknown_channels_and_topics_are_never_learnt():
    table = ItemTable(np.array([1, 0]), np.array([[1, 0], [0, 0]]), 3)
    table(torch.tensor([0, 1, 1])).sum().backward()
    assert (table.channel.grad[0] == 0).all()
    assert (table.topic.grad[0] == 0).all()
    assert (table.channel.grad[1] != 0).all()

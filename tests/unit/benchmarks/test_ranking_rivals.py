"""What the ranker's rivals compute, by hand: isotonic calibration, attention, crosses, start and seconds."""

import numpy as np
import pytest
import torch

from models.ranking.ranker_net import RankerNet, RankerShape
from tests.benchmarks.ranking.ranking_nets import LAST, AttendingNet, CrossingNet, started_seconds

SHAPE = RankerShape(
    hidden=(4,),
    features=("candidate", "last_watched", "age_h"),
    sizes={"item": 6},
    widths={"item": 3},
    completion=True,
)


def net_of(kind: type[RankerNet], shape: RankerShape = SHAPE) -> RankerNet:
    torch.manual_seed(1)
    return kind(shape).eval().requires_grad_(False)


def logits(net: RankerNet, watched: list[int], candidate: int = 1) -> torch.Tensor:
    codes = torch.tensor([watched])
    query = net.query_part(torch.zeros(1, 0), {"last_watched": codes})
    return net(query, torch.tensor([[0.3]]), {"candidate": torch.tensor([[candidate]])})


def test_a_candidate_attends_to_the_watches_that_agree_with_it_and_to_no_unknown_one():
    net = net_of(AttendingNet)
    assert isinstance(net, AttendingNet)
    net.asks.weight.copy_(100 * torch.eye(3))
    net.asks.bias.zero_()
    watched = torch.zeros(1, LAST, 3)
    watched[0, -2:] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    attended = net.attended(torch.tensor([[0, 2.0, 0]]), watched)
    np.testing.assert_allclose(attended, [[0, 1, 0]], atol=1e-6)
    opposed = net.attended(torch.tensor([[-2.0, -2.0, 0]]), watched)
    np.testing.assert_allclose(opposed, [[0.5, 0.5, 0]], atol=1e-6, err_msg="the unknown are not asked")
    assert (net.attended(torch.ones(1, 3), torch.zeros(1, LAST, 3)) == 0).all()


def test_only_the_last_watches_are_attended_to_in_whatever_order():
    net = net_of(AttendingNet, SHAPE)
    net.of_query.zero_()  # what the plain network reads of the history
    last = [2, 3, *[0] * (LAST - 2)]
    np.testing.assert_allclose(logits(net, [4, *last]), logits(net, [5, *last[::-1]]), rtol=1e-5)
    assert not torch.allclose(logits(net, last), logits(net, [4, *last[1:]]))


def test_crosses_begin_as_the_rankers_own_network_and_multiply_the_inputs():
    own, crossing = net_of(RankerNet), net_of(CrossingNet)
    assert isinstance(crossing, CrossingNet)
    np.testing.assert_allclose(logits(crossing, [2, 3]), logits(own, [2, 3]), rtol=1e-5)
    for up in crossing.up:
        up.bias.fill_(1.0)  # x <- x0 + x, twice: three times the inputs
    own.of_query.mul_(3), own.of_impression.mul_(3)
    np.testing.assert_allclose(logits(crossing, [2, 3]), logits(own, [2, 3]), rtol=1e-4)


def test_seconds_are_those_of_a_start_and_those_of_what_is_left_by_their_chances():
    found = started_seconds(np.log(np.array([[20.0, 3.0], [5000.0, 1.0]], np.float32)), left_s=1.0, cap_s=600.0)
    assert found == pytest.approx([3 / 4 * 20 + 1 / 4, 600 / 2 + 1 / 2], rel=1e-4)

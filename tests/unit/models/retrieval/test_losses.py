import math

import numpy as np
import pytest
import torch

from models.retrieval.losses import LEAST, Extra, paper_logistic, shared_softmax, watch_time_logistic
from models.retrieval.sampling import find_hits, merged


def sampled_softmax(
    positive: torch.Tensor, negatives: torch.Tensor, log_expected: torch.Tensor, hits: torch.Tensor
) -> torch.Tensor:
    """The definition, [B]: negative log likelihood under a softmax whose denominator is estimated from a sample.

    positive [B]: logit of the watched item, not corrected; negatives [B, S]: logits of the sample. log_expected [S]:
    log of how often each is expected in the sample; it is *subtracted*, so that the sum over the sample is an unbiased
    estimate of the sum over all other items. hits bool [B, S]: negatives that are the positive itself, left out."""
    corrected = (negatives - log_expected).masked_fill_(hits, LEAST)  # [B, S]
    return torch.nn.functional.softplus(torch.logsumexp(corrected, dim=1) - positive)


def loss_of(positive: float, negatives: list[float], expected: list[float], hits: list[list[int]]) -> torch.Tensor:
    """Of one user, by the exponentials of the logits."""
    ones, size = torch.ones(1, 1), len(negatives)
    extra = Extra(torch.zeros(1), -torch.tensor(expected).log(), torch.tensor(hits, dtype=torch.long))
    own, others = torch.tensor([[positive]]).log(), torch.tensor(negatives).log()[:, None]
    return shared_softmax(ones, own, torch.zeros(1), others, torch.zeros(size), extra)


def test_sampled_softmax_is_the_number_computed_by_hand():
    # negatives 3 and 5 are expected 0.5 and 2 times: denominator 2 + 3 / 0.5 + 5 / 2 = 10.5
    np.testing.assert_allclose(loss_of(2, [3, 5], [0.5, 2], [[], []]), [-math.log(2 / 10.5)], rtol=1e-6)


def test_a_negative_that_is_the_positive_is_left_out():
    np.testing.assert_allclose(loss_of(2, [2, 6], [1, 1], [[0], [0]]), [-math.log(2 / 8)], rtol=1e-6)


@pytest.mark.parametrize("wide", [False, True])
def test_the_shared_softmax_is_the_sampled_one_with_the_same_gradients(wide: bool):
    """Against autograd on the plain definition, hits and per-example offsets included."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"users": (6, 4), "own": (6, 4), "own_bias": (6,), "others": (9, 4), "bias": (9,)}
    leaves = {name: torch.randn(size, generator=generator).requires_grad_() for name, size in sizes.items()}
    targets, negatives = np.array([0, 1, 2, 3, 4, 5]), np.array([7, 1, 8, 1, 5, 9, 3, 10, 11])
    hits = torch.from_numpy(targets)[:, None] == torch.from_numpy(negatives)
    own_extra = torch.randn(6, generator=generator)
    extra = torch.randn((6, 9) if wide else (9,), generator=generator)
    weights = torch.rand(6, generator=generator)

    positive = (leaves["users"] * leaves["own"]).sum(dim=1) + leaves["own_bias"] + own_extra
    logits = leaves["users"] @ leaves["others"].T + leaves["bias"]
    plain = sampled_softmax(positive, logits + extra, torch.zeros(9), hits)
    expected = torch.autograd.grad((plain * weights).sum(), list(leaves.values()))

    together = Extra(own_extra, extra, torch.from_numpy(find_hits(targets, negatives, 12)))
    fast = shared_softmax(*leaves.values(), together)
    found = torch.autograd.grad((fast * weights).sum(), list(leaves.values()))
    np.testing.assert_allclose(fast.detach(), plain.detach(), rtol=1e-5)
    for name, one, other in zip(sizes, found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=name)


def test_negatives_that_were_drawn_several_times_are_the_same_sum_when_they_are_merged():
    """Loss and gradients of users, positives and item rows; hits included."""
    generator, rng = torch.Generator().manual_seed(4), np.random.default_rng(4)
    items = torch.randn(12, 4, generator=generator).requires_grad_()
    users = torch.randn(6, 4, generator=generator).requires_grad_()
    targets, drawn, extra = np.arange(6), rng.integers(0, 12, 48), torch.randn(12, generator=generator)

    def found(negatives: np.ndarray, counts: np.ndarray) -> tuple[torch.Tensor, ...]:
        own, others, hits = items[targets], items[negatives], torch.from_numpy(find_hits(targets, negatives, 12))
        offsets = Extra(extra[targets], extra[negatives] + torch.from_numpy(np.log(counts)).float(), hits)
        losses = shared_softmax(users, own, torch.zeros(6), others, torch.zeros(len(negatives)), offsets)
        return losses, *torch.autograd.grad(losses.sum(), (users, items))

    rows, counts = merged(drawn)
    assert len(rows) == 16 and counts.max() > 1
    for one, other in zip(found(rows, counts), found(drawn, np.ones(48)), strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), rtol=1e-4, atol=1e-5)


def test_the_shared_softmax_is_finite_when_all_negatives_are_hits_or_logits_are_large():
    users = torch.full((2, 1), 100.0, requires_grad=True)
    items = torch.full((1, 1), 100.0)
    nothing = torch.zeros(1)
    hits = torch.tensor([[0], [0]])
    losses = shared_softmax(users, items.expand(2, 1), torch.zeros(2), items, nothing, Extra(nothing, nothing, hits))
    losses.sum().backward()
    np.testing.assert_allclose(losses.detach(), [0, math.log(2)], rtol=1e-3)
    assert users.grad.isfinite().all() and users.grad[0] == 0


def test_odds_of_the_watch_time_loss_are_the_mean_watch_time():
    # Watched 30 s and 6 s of four impressions: E[T] = 9 s, whatever the share of watched ones.
    watch_s = torch.tensor([30.0, 0, 6, 0])
    logit = torch.tensor([math.log(9)], requires_grad=True)
    watch_time_logistic(logit.expand(4), watch_s).sum().backward()
    np.testing.assert_allclose(logit.grad, [0], atol=1e-5)  # and it is convex: this is the minimum


def test_watch_time_loss_is_the_number_computed_by_hand():
    # odds 3: -(5 log 3/4 + log 1/4)
    loss = watch_time_logistic(torch.tensor([math.log(3)]), torch.tensor([5.0]))
    np.testing.assert_allclose(loss, [-(5 * math.log(0.75) + math.log(0.25))], rtol=1e-6)


def test_odds_of_the_papers_loss_are_the_mean_watch_time_over_the_unwatched_share():
    # Two of four impressions are watched: E[T] = 9 s, P = 1/2, so the odds are 9 / (1 - 1/2).
    watch_s = torch.tensor([30.0, 0, 6, 0])
    logit = torch.tensor([math.log(18)], requires_grad=True)
    paper_logistic(logit.expand(4), watch_s, watch_s > 0).sum().backward()
    np.testing.assert_allclose(logit.grad, [0], atol=1e-5)


def test_the_papers_loss_is_the_number_computed_by_hand():
    # odds 3: a watched one is a positive of weight 5, another one a negative of weight 1, whatever was watched of it
    logits, watch_s = torch.full((2,), math.log(3)), torch.tensor([5.0, 2.0])
    loss = paper_logistic(logits, watch_s, torch.tensor([True, False]))
    np.testing.assert_allclose(loss, [-5 * math.log(0.75), -math.log(0.25)], rtol=1e-6)

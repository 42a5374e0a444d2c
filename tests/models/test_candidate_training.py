import numpy as np
import pytest
import torch

from models.candidate_training import CandidateNet, Sampler, step_loss, train_candidates
from models.candidates import CandidateModel, encode
from models.catalogue import Catalogue
from models.evaluation import Positives
from models.log import log_from_frame
from models.training import build_catalogue
from tests.models.samples import SETTINGS, small_items, small_log


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build_catalogue(log_from_frame(small_log(), 18.0), small_items(70))  # ten items that nobody watches


@pytest.fixture(scope="module")
def positives(catalogue: Catalogue) -> Positives:
    log = log_from_frame(small_log(), 18.0).frame.filter("completed")
    users = log["user_id"].rank("dense").to_numpy().astype(np.int64)
    return Positives(users, catalogue.rows(log["item_id"]))


@pytest.fixture(scope="module")
def model(positives: Positives, catalogue: Catalogue) -> CandidateModel:
    return train_candidates(positives, catalogue, SETTINGS)


def test_the_same_seed_gives_the_same_model(positives: Positives, catalogue: Catalogue, model: CandidateModel):
    again = train_candidates(positives, catalogue, SETTINGS)
    for name, array in model.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array, err_msg=name)


def test_another_seed_gives_another_model(positives: Positives, catalogue: Catalogue, model: CandidateModel):
    other = train_candidates(positives, catalogue, SETTINGS.model_copy(update={"seed": 2}))
    assert (other.vectors != model.vectors).any()


def test_training_leaves_the_callers_random_numbers_alone(positives: Positives, catalogue: Catalogue):
    torch.manual_seed(4)
    train_candidates(positives.before(100), catalogue, SETTINGS)
    after = torch.rand(1)
    torch.manual_seed(4)
    assert after == torch.rand(1)


def test_the_served_user_vector_is_the_trained_one(positives: Positives, catalogue: Catalogue):
    net = CandidateNet(catalogue, 8, (16,))
    histories = np.array([[-1, 3, 4], [5, 6, 5], [-1, -1, -1]])
    with torch.no_grad():
        table = net.queries(torch.arange(len(catalogue))).numpy()
        np.testing.assert_array_equal(encode(net.tower, table, histories), net(histories).numpy())


def test_items_that_nobody_watched_start_at_their_channel_and_topics(model: CandidateModel, catalogue: Catalogue):
    unwatched = catalogue.row("i65")
    same = [row for row in range(60) if catalogue.channel_of(row) == catalogue.channel_of(unwatched)]
    other = [row for row in range(60) if row not in same]
    near = (model.vectors[same] @ model.vectors[unwatched]).mean()
    assert near > (model.vectors[other] @ model.vectors[unwatched]).mean() + 0.1
    assert np.isfinite(model.item_vectors()).all()


def test_the_expected_count_is_the_mean_of_the_drawn_one():
    targets = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 55])
    rng = np.random.default_rng(1)
    sampler = Sampler(targets, 20, 40, rng)
    counts, draws = np.zeros(20), 2000
    expected = np.full(20, np.nan)
    for _ in range(draws):
        rows, log_expected = sampler.draw(rng.permutation(targets)[:50])
        counts += np.bincount(rows, minlength=20)
        expected[rows] = np.exp(log_expected)
    np.testing.assert_allclose(counts / draws, expected, rtol=0.1)


def test_the_step_converges_to_the_full_softmax(positives: Positives, catalogue: Catalogue):
    """The whole step, offsets and sampler included, against the cross entropy over all items."""
    net = CandidateNet(catalogue, 8, (16,))
    torch.nn.init.normal_(net.bias, generator=torch.Generator().manual_seed(2))
    rng = np.random.default_rng(1)
    snapshots = rng.normal(size=(3, len(catalogue))).astype(np.float32)
    targets, snapshot = positives.items[:64], np.arange(64) % 3
    histories = np.where(rng.random((64, 5)) < 0.8, rng.integers(0, 60, (64, 5)), -1)
    sampler = Sampler(positives.items, len(catalogue), 200_000, rng)
    with torch.no_grad():
        loss = step_loss(net, histories, targets, snapshots=snapshots, snapshot=snapshot, sampler=sampler)
        items = net.outputs(torch.arange(len(catalogue)))
        logits = net(histories) @ items.T + net.bias + torch.from_numpy(snapshots)[torch.from_numpy(snapshot)]
        full = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets))
    # 64 in-batch negatives among 100,000 uniform ones: what is left is sampling noise
    np.testing.assert_allclose(loss, full, rtol=0.01)


def test_a_repeat_is_no_example(catalogue: Catalogue):
    repeated = Positives(np.repeat(np.arange(10), 100), np.tile(np.repeat(np.arange(4), 25), 10))
    steps: list[int] = []
    train_candidates(repeated, catalogue, SETTINGS, lambda done, total: steps.append(total))
    assert steps == [SETTINGS.epochs] * SETTINGS.epochs  # 40 pairs: one batch of at least 64 per epoch


def test_progress_counts_every_step(positives: Positives, catalogue: Catalogue):
    steps: list[tuple[int, int]] = []
    train_candidates(positives.before(200), catalogue, SETTINGS, lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}

"""Training on a GPU: the same model within what single precision leaves, and a clear error where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.platform.settings import Ranker as RankerSettings
from models.device import DeviceMissing, device_of
from models.ranking.ranker_training import train_ranker
from models.ranking.ranking_evaluation import predict
from models.retrieval.candidate_learning import learn_candidates
from tests.harness.needs import GPU, needs
from tests.unit.models.samples import SETTINGS, made_examples, small_source

QUICK = RankerSettings(hidden=(8,), members=1, epochs=2, dropout=0.0, completion=False, position=True)


def test_the_processor_is_always_there():
    assert device_of("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceMissing, match=r"--device cuda: torch .*; install a build for your GPU, or take cpu"):
        device_of("cuda")


@needs(GPU)
@pytest.mark.parametrize("encoder", ["average", "recent", "attention"])
def test_candidates_are_the_same_on_a_gpu(encoder: str):
    source = small_source()
    rows, vectors = len(source.dataset), []
    for device in ("cpu", "cuda"):
        settings = SETTINGS.model_copy(update={"encoder": encoder, "epochs": 2, "dropout": 0.0, "device": device})
        learned = learn_candidates(
            source, settings, until=rows, valid_from=int(0.8 * rows), items=len(source.catalogue)
        )
        vectors.append(learned.model.item_vectors())
    np.testing.assert_allclose(vectors[1], vectors[0], rtol=1e-2, atol=1e-3)


@needs(GPU)
def test_rankers_are_the_same_on_a_gpu(tmp_path: Path):
    rng = np.random.default_rng(1)
    target_s = rng.uniform(0, 60, 800) * (rng.random(800) < 0.5)
    examples = made_examples(target_s, target_s > 18, ids={"candidate": [[f"i{n % 7}"] for n in range(800)]})
    on_cpu, on_gpu = (
        predict(
            train_ranker(examples, tmp_path / device, settings=QUICK.model_copy(update={"device": device})), examples
        )
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-2)

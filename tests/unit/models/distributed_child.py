"""One of several training processes: trains on the small log and writes its losses and some of its rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from models.release.distributed import process_group
from models.retrieval.candidate_learning import new_net
from models.retrieval.candidate_training import Fit, TrainingData
from tests.unit.models.samples import SETTINGS, small_source


def losses_and_rows(epochs: int = 3) -> tuple[list[float], list[list[float]]]:
    source = small_source()
    items = len(source.catalogue)
    data = TrainingData(source.dataset, len(source.dataset), items, SETTINGS)
    fit = Fit(new_net(source, SETTINGS, items=items), data, SETTINGS)
    losses = [fit.run_epoch(epochs, lambda done, total: None) for _ in range(epochs)]
    return losses, fit.net.outputs.everything()[:10].tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group() as rank:
        Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(losses_and_rows()), encoding="utf-8")

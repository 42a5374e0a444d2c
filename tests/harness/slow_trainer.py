"""`nextwatch`, but a training step with an example of the item `SLOW` waits until the file `$GATE` is there: run as a
module, with nextwatch's own arguments."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from infra.cli.main import main
from streams.trainer.learner import Learner, Learnt

SLOW = "slow"
GATE = "TEST_GATE_OF_SLOW_STEPS"

_learn = Learner.learn


def learn_slowly(self: Learner, batch: Any, *when: Any, **how: Any) -> Learnt:
    gate = Path(os.environ[GATE])
    while any(example.item_id == SLOW for _, example in batch) and not gate.exists():
        time.sleep(0.05)
    return _learn(self, batch, *when, **how)


if __name__ == "__main__":
    Learner.learn = learn_slowly  # type: ignore[method-assign]
    main()

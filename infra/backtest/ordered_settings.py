"""The settings of a model for a log that has an order only: order tells or it does not, and validation says which.

What is served by default averages a history and was chosen on a log whose order hardly matters. Where order tells, by
the test of order on each user's last watch but one, the settings below take the place of the defaults. What somebody
has set stays as it is. The test itself takes no part.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from infra.operate.progress import Step, no_progress
from infra.platform.settings import Model
from models.evaluation.leave_one_out import HeldOut
from models.evaluation.order_test import OrderTest, order_test
from models.evaluation.split import validation_history

IN_ORDER: dict[str, Any] = {
    "encoder": "recent",
    "linear_order": True,
    "linear_dim": 1024,  # 256 lose a third of what pairs of items tell beside a tower
    "tied": True,
    "members": 1,
    "negatives": 512,
}


def fitting(held: HeldOut, model: Model, step: Step = no_progress) -> tuple[Model, OrderTest]:
    """The settings for this log, and the test of order that chose them: learnt from what the model learns from, asked
    for each user's last watch but one."""
    history, cut = validation_history(held.history.stream, held.parts), held.parts.validation
    found = order_test(
        history.stream,
        history.next_unseen(cut),
        cut=cut,
        catalogue=held.catalogue,
        seed=model.seed,
        progress=partial(step, "settings: does order tell?"),
    )
    return (in_order(model) if found.is_sequential else model), found


def in_order(model: Model) -> Model:
    """The model with IN_ORDER wherever nothing was set."""
    return model.model_copy(
        update={name: value for name, value in IN_ORDER.items() if name not in model.model_fields_set}
    )

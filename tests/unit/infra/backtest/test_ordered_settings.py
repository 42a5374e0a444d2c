"""Which settings a log without times gets: by the test of order on validation, and never against what somebody set."""

import numpy as np
import pytest

from infra.backtest.leave_one_out import UNTIMED
from infra.backtest.ordered_settings import IN_ORDER, fitting, in_order
from infra.platform.settings import Model, Settings
from models.evaluation.leave_one_out import HeldOut, hold_out
from models.logs.sequences import Sequences

USERS, WATCHES, ITEMS = 300, 9, 60
ROWS = np.arange(USERS * WATCHES)


def held_of(*, ordered: bool, last: int = 0) -> HeldOut:
    """After each item come three others only, or each user's items stand in no order; `last`: another last watch."""
    rng = np.random.default_rng(3)
    following, walks = rng.integers(0, ITEMS, (ITEMS, 3)), [rng.integers(0, ITEMS, USERS)]
    while len(walks) < WATCHES:
        walks.append(following[walks[-1], rng.integers(0, 3, USERS)])
    items = np.stack(walks, axis=1)
    if not ordered:
        items = rng.permuted(items, axis=1)
    items[:, -1] = (items[:, -1] + last) % ITEMS
    names = [f"i{item}" for item in range(ITEMS)]
    return hold_out(Sequences([f"u{n}" for n in range(USERS)], names, ROWS // WATCHES, items.ravel()))


def test_where_order_tells_the_settings_keep_it():
    found, order = fitting(held_of(ordered=True), Model())
    assert order.is_sequential
    assert {name: getattr(found, name) for name in IN_ORDER} == IN_ORDER


def test_where_order_tells_nothing_the_defaults_stay():
    found, order = fitting(held_of(ordered=False), Model())
    assert not order.is_sequential
    assert found == Model()


@pytest.mark.parametrize("set_by", [Model(linear_dim=64), Settings(model={"linear_dim": 64}).model])
def test_what_somebody_has_set_stays(set_by: Model):
    found = in_order(set_by.model_copy(update=UNTIMED))
    assert found.linear_dim == 64 and found.linear_order and found.half_life_events == 0


def test_the_tests_own_items_choose_nothing():
    one, other = (fitting(held_of(ordered=True, last=last), Model())[1] for last in (0, 1))
    assert one == other

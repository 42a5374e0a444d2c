"""The simulated service counts as the simulated people behave."""

from pathlib import Path

import numpy as np
import pytest

from infra.platform.settings import Selection
from infra.simulation.browsing_model import look_down
from serving.request.reranking import DRAWN
from tests.benchmarks.selection.selection_scene import NOW_MS, make_scene
from tests.benchmarks.selection.selection_service import K, Service, value_of


def test_the_worth_of_a_list_is_what_is_watched_out_of_it_on_average() -> None:
    rng = np.random.default_rng(1)
    chance, watch_s = 0.4 * rng.random(20), 30 * rng.random(20)
    _, started = look_down(rng, np.repeat(chance[None], 100_000, axis=0))
    seconds = (started * watch_s).sum(axis=1)
    assert value_of(chance, watch_s) == pytest.approx(seconds.mean(), abs=4 * seconds.std() / 100_000**0.5)


def test_what_was_served_is_learnt_from_and_never_shown_to_who_has_watched_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("USERS", 40), ("ITEMS", 300), ("WATCHES", 1500)):
        monkeypatch.setattr(f"tests.benchmarks.selection.selection_scene.{name}", value)
    monkeypatch.setattr("tests.benchmarks.selection.selection_service.CANDIDATES", 60)
    service = Service(make_scene(1, tmp_path), Selection(explore=0.1))
    users, first = service.world.user_ids[:20], service.ranker
    for minute in range(2):
        known = {user: {watch.item_id for watch in service.histories[user].watches} for user in users}
        lists = service.serve(users, NOW_MS + 60_000 * minute)
        for user, shown in zip(users, lists, strict=True):
            names = {service.scene.bundle.catalogue.item_ids[row] for row in shown.rows.tolist()}
            assert len(names) == K and not names & known[user]
            assert sum(each.reason == DRAWN for each in shown.choice.items) == 2
    assert service.shown.sum() == 2 * 20 * K
    service.learn(tmp_path / "again", seed=1)
    assert service.ranker.trained and service.ranker is not first

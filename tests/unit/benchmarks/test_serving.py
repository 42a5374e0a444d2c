"""The arithmetic of the benchmarks of serving, on what can be computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.ranking.features import FEATURES
from models.ranking.ranker import Ranker
from models.ranking.ranker_net import RankerNet, RankerShape
from serving.state import mirror as mirror_module
from serving.state.int8_rows import Int8Rows
from serving.state.mirror import Mirror
from streams import topics
from tests.benchmarks.serving import serving_scan
from tests.benchmarks.serving.serving_memory import memory_of_release
from tests.benchmarks.serving.serving_pipeline import Server
from tests.benchmarks.serving.serving_precision import FLOAT32, compared, passes_of
from tests.benchmarks.serving.serving_requests import batch_between
from tests.benchmarks.serving.serving_service import Load
from tests.unit.serving.worlds import ITEMS, train_small


def test_the_layers_in_float32_give_what_the_ranker_gives() -> None:
    numbers = tuple(feature.name for feature in FEATURES if feature.is_number)
    shape = RankerShape((16, 8), numbers, {}, {}, members=2)
    torch.manual_seed(1)
    ranker = Ranker(shape, [RankerNet(shape), RankerNet(shape)])
    query_width, width = (len(shape.used(scope)[0]) for scope in ("query", "impression"))
    query, x, request = torch.rand(2, query_width), torch.rand(7, width), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    own = [net(net.query_part(query, {})[request], x, {})[:, 0] for net in ranker.nets]
    found = {kind: run(((query, {}), (x, {}), request)) for kind, run in passes_of(ranker).items()}
    torch.testing.assert_close(found[FLOAT32], sum(own) / 2)
    for kind in ("bfloat16", "bfloat16 by autocast", "int8, dynamic"):
        torch.testing.assert_close(found[kind], found[FLOAT32], atol=0.1, rtol=0.1, msg=kind)


def test_an_equal_order_has_tau_one_and_a_reversed_one_minus_one() -> None:
    exact = np.linspace(0, 1, 60)
    tau, same = compared(exact, 2 * exact)
    assert [tau, same] == pytest.approx([1.0, 1.0])
    tau, same = compared(exact, -exact)
    assert tau == pytest.approx(-1.0)
    assert same == pytest.approx(40 / 50)  # both tops hold the 40 in the middle


def test_the_batches_between_two_readings_do_not_count_those_before() -> None:
    names = ('nextwatch_batch_messages_sum{stage="serving"}', 'nextwatch_batch_messages_count{stage="serving"}')
    before, after = dict(zip(names, (100.0, 100.0), strict=True)), dict(zip(names, (148.0, 104.0), strict=True))
    assert batch_between(before, after) == 12.0
    assert batch_between({}, before) == 1.0


def test_rounds_of_a_load_add_up_to_their_mean_rate() -> None:
    both = Load([10.0], [], 1.0, 1) + Load([20.0, 30.0], [], 3.0)
    assert (both.whole_ms, both.wall_s, both.unanswered) == ([10.0, 20.0, 30.0], 4.0, 1)


def test_a_server_without_kafka_answers_every_request_with_a_list(tmp_path: Path) -> None:
    train_small(tmp_path)
    server = Server(tmp_path)
    stages = server.serve(server.records(3, np.random.default_rng(1)))
    assert stages.keys() >= {"retrieve", "rank", "reply"}
    assert server.sent.messages == {"replies": 3, topics.IMPRESSIONS: 3}


def test_what_a_worker_holds_is_loaded_without_broker_and_milvus(tmp_path: Path) -> None:
    manifest = train_small(tmp_path)
    found = memory_of_release(tmp_path)
    assert found["raw mirror"] == 4 * len(ITEMS) * manifest.dim
    assert found["raw query rows"] == 4 * len(ITEMS) * (manifest.dim - 1)
    assert found["raw statistics"] >= len(ITEMS) * (4 + 1) * 8  # known in one partition: four sums and a time
    assert found["raw catalogue"] > 0


def test_a_bound_that_hides_an_item_is_a_list_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "has_int8_product", lambda: True)
    vectors = np.random.default_rng(1).standard_normal((3000, 65)).astype(np.float32)
    mirror, asked = Mirror([f"i{at}" for at in range(3000)], vectors), vectors[:4].copy()
    assert serving_scan.same_lists(mirror, asked, 100) == [True] * 4
    bounds = Int8Rows.bounds
    row = mirror.rows(mirror.search(asked[1:2], 1)[0][0])

    def hidden(self: Int8Rows, queries: np.ndarray, size: int) -> np.ndarray:
        found = bounds(self, queries, size)
        found[1, row] = -100
        return found

    monkeypatch.setattr(Int8Rows, "bounds", hidden)
    assert serving_scan.same_lists(mirror, asked, 100) == [True, False, True, True]

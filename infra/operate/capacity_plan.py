"""What a load needs, from measured costs of one event, request, user and item: `nextwatch doctor --plan`.

Everything here is a product of a number of the load and a cost of unit_costs.toml, so a plan is as good as these and
says nothing of what was not measured: bursts, a cluster's own overheads, a network between data centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path

import msgspec

COSTS = Path(__file__).with_name("unit_costs.toml")
BUSY = 0.6  # of a core at the busiest moment that is planned for: the rest is for bursts and for catching up
SPARE = 1  # processes more than the load needs, of those that several may be of: one may be gone
DAY_S = 86_400
WINDOW_S = 3600  # so long a list waits for watches (join.window_s)
GB = 1e9


class PlanError(ValueError):
    """The costs cannot be used; the text says which."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a deployment, at its busiest."""

    users: float = 100e6  # whose histories are kept
    items: float = 10e6
    events_per_s: float = 50_000.0
    requests_per_s: float = 20_000.0
    retention_days: float = 7.0  # of events, examples and impressions
    memory_gb: float = 64.0  # that one process may take
    replication: int = 3


class Costs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one of each: CPU milliseconds of one core, bytes in a topic or in memory, and how many follow from one."""

    examples_per_event: float
    rows_per_example: float
    statistics_per_impression: float

    broker_message_ms: float
    history_event_ms: float
    join_watch_ms: float
    join_impression_ms: float
    trending_event_ms: float
    trainer_example_ms: float
    indexer_row_ms: float
    milvus_row_ms: float
    serving_request_ms: float
    serving_event_ms: float
    serving_record_ms: float

    watch_bytes: float
    history_bytes: float
    example_bytes: float
    row_bytes: float
    impression_bytes: float
    ranking_example_bytes: float
    statistics_bytes: float
    request_bytes: float
    reply_bytes: float

    history_user_bytes: float
    join_list_bytes: float
    serving_user_bytes: float
    trainer_item_bytes: float
    serving_item_bytes: float
    mirror_item_bytes: float
    milvus_item_bytes: float


class Need(msgspec.Struct, frozen=True):
    """A part of the deployment: what all its `processes` take together. `limit`: the most processes that can share the
    work; 0: any number."""

    part: str
    processes: int
    cores: float
    memory_gb: float
    limit: int = 0


class Flow(msgspec.Struct, frozen=True):
    topic: str
    messages_per_s: float
    mb_per_s: float
    stored_gb: float  # with its replicas


class Plan(msgspec.Struct, frozen=True):
    load: Load
    needs: list[Need]
    flows: list[Flow]
    partitions: int
    breaks: list[str]


def read_costs(path: Path = COSTS) -> Costs:
    """Raises PlanError."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Costs)
    except (OSError, msgspec.DecodeError) as error:
        raise PlanError(f"{path}: {error}") from error


def plan_for(load: Load, cost: Costs) -> Plan:
    """The parts, their flows, and what breaks, worst first. Pure."""
    examples = load.events_per_s * cost.examples_per_event
    rows = examples * cost.rows_per_example
    statistics = load.requests_per_s * cost.statistics_per_impression
    flows = _flows(load, cost, examples=examples, rows=rows, statistics=statistics)
    messages = sum(flow.messages_per_s for flow in flows)
    joined_ms = load.events_per_s * cost.join_watch_ms + load.requests_per_s * cost.join_impression_ms
    needs = [
        _need("brokers", load, messages * cost.broker_message_ms),
        _need("history", load, load.events_per_s * cost.history_event_ms, load.users * cost.history_user_bytes),
        _need("join", load, joined_ms, load.requests_per_s * WINDOW_S * cost.join_list_bytes),
        _need("trending", load, load.events_per_s * cost.trending_event_ms),
        _need("trainer", load, examples * cost.trainer_example_ms, load.items * cost.trainer_item_bytes, limit=1),
        _need("indexer", load, rows * cost.indexer_row_ms, limit=1),
        _need("Milvus", load, rows * cost.milvus_row_ms, load.items * cost.milvus_item_bytes),
        _servers(load, cost, shared=rows + statistics),
    ]
    partitions = max(need.processes for need in needs if need.part in ("history", "join", "trending", "serving"))
    return Plan(load, needs, flows, partitions, _breaks(load, cost, needs, shared=rows + statistics))


def _need(part: str, load: Load, cpu_ms_per_s: float, memory_bytes: float = 0.0, *, limit: int = 0) -> Need:
    cores, memory_gb = cpu_ms_per_s / 1000, memory_bytes / GB
    wanted = max(ceil(cores / BUSY), ceil(memory_gb / load.memory_gb))
    return Need(part, limit or max(1, wanted) + SPARE, cores, memory_gb, limit)


def _servers(load: Load, cost: Costs, *, shared: float) -> Need:
    """Requests and histories are divided among servers; rows, statistics and the release are every server's own."""
    own_ms = load.requests_per_s * cost.serving_request_ms + load.events_per_s * cost.serving_event_ms
    left_ms = 1000 * BUSY - shared * cost.serving_record_ms  # of a core, for what is divided
    left_gb = load.memory_gb - _server_gb(load, cost)
    if left_ms <= 0 or left_gb <= 0:
        return Need("serving", 0, inf, inf)
    wanted = max(1, ceil(own_ms / left_ms), ceil(load.users * cost.serving_user_bytes / GB / left_gb)) + SPARE
    cores = (own_ms + wanted * shared * cost.serving_record_ms) / 1000
    return Need("serving", wanted, cores, load.users * cost.serving_user_bytes / GB + wanted * _server_gb(load, cost))


def _server_gb(load: Load, cost: Costs) -> float:
    """What every server holds of all items; the mirror only where it fits into a fifth of its memory."""
    mirror = load.items * cost.mirror_item_bytes / GB
    return load.items * cost.serving_item_bytes / GB + (mirror if mirror < load.memory_gb / 5 else 0.0)


def _flows(load: Load, cost: Costs, *, examples: float, rows: float, statistics: float) -> list[Flow]:
    """What goes through each topic: messages a second, and bytes of one."""
    events, requests = load.events_per_s, load.requests_per_s
    kept = {  # by time; the others are compacted to the newest of each key
        "watch-events": (events, cost.watch_bytes),
        "training-examples": (examples, cost.example_bytes),
        "impressions": (requests, cost.impression_bytes),
        "ranking-examples": (requests, cost.ranking_example_bytes),
        "recommend-requests": (requests, cost.request_bytes),
        "recommend-replies": (requests, cost.reply_bytes),
    }
    newest = {
        "user-histories": (events, cost.history_bytes, load.users),
        "join-state": (requests + events, cost.join_list_bytes, requests * WINDOW_S),
        "item-vectors": (rows, cost.row_bytes, load.items),
        "item-statistics": (statistics, cost.statistics_bytes, load.items),
    }
    days_s = load.retention_days * DAY_S
    flows = [
        Flow(name, each, each * size / 1e6, each * size * days_s * load.replication / GB)
        for name, (each, size) in kept.items()
    ]
    return flows + [
        Flow(name, each, each * size / 1e6, keys * size * load.replication / GB)
        for name, (each, size, keys) in newest.items()
    ]


def _breaks(load: Load, cost: Costs, needs: Sequence[Need], *, shared: float) -> list[str]:
    """What one process must do alone and cannot, worst first, each with what helps."""
    over = {need.part: need.cores / BUSY for need in needs if need.limit}
    found = {
        "trainer": (over["trainer"], "it learns a sample of {share:.2f} of the examples (trainer.sample_after_s)"),
        "indexer": (
            over["indexer"],
            "rows wait longer before they are published (trainer.publish_s), or a bulk import",
        ),
        "what every server reads of all items": (
            shared * cost.serving_record_ms / 1000 / BUSY,
            "statistics and rows published less often (join.publish_s, trainer.publish_s), or each server of a part",
        ),
        "what every server holds of all items": (
            _server_gb(load, cost) / load.memory_gb,
            "a larger machine, or attributes of the items kept outside",
        ),
    }
    broken = sorted(((times, what, way) for what, (times, way) in found.items() if times > 1), reverse=True)
    return [f"{what}: {times:.1f} times what one can; {way.format(share=1 / times)}" for times, what, way in broken]

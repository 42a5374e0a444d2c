"""How a worker ends that cannot finish a batch: at once, so that nothing of the batch is acknowledged. And what it
reports as its lag."""

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from prometheus_client import REGISTRY

from infra.platform.settings import Settings
from streams.kafka import faust_app, partition_counts
from streams.kafka.faust.patches import Fetched
from streams.kafka.faust_app import EXIT_AGAIN, EXIT_BUG, declare_agent, handle_batches, report_lag, to_the_end
from streams.kafka.requirements import TopicUnfit
from streams.write_permit import Fenced


class Left(BaseException):
    """In place of the process's end."""


@pytest.fixture(autouse=True)
def leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)


async def cancelled_in(end: Exception | None, times: int) -> list[str]:
    """A batch that comes to `end`, and whose agent is cancelled `times` times on the way; what it has done."""
    done: list[str] = []
    goes_on = asyncio.Event()

    async def handle() -> None:
        done.append("begun")
        await goes_on.wait()
        if end is not None:
            raise end
        done.append("done")

    agent = asyncio.ensure_future(to_the_end(handle()))
    for _ in range(times):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        agent.cancel()
    await asyncio.sleep(0)
    assert not agent.done()
    goes_on.set()
    try:
        await agent
    except asyncio.CancelledError:
        done.append("cancelled")
    return done


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize(("error", "code"), [(Fenced("gone"), EXIT_AGAIN), (OSError("no broker"), EXIT_BUG)])
def test_a_batch_that_fails_ends_the_process_also_when_it_is_cancelled_before(error, code, times):
    with pytest.raises(Left) as left:
        asyncio.run(cancelled_in(error, times))
    assert left.value.args == (code,)


@pytest.mark.parametrize(("times", "end"), [(0, []), (1, ["cancelled"]), (2, ["cancelled"])])
def test_a_batch_is_finished_also_when_it_is_cancelled(times, end):
    assert asyncio.run(cancelled_in(None, times)) == ["begun", "done", *end]


class Worker:
    """An app with one batch to come, and what is done to it, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.consumer_generation_id, self.flow_control = 1, SimpleNamespace(is_active=lambda: True)
        self.channel: asyncio.Queue[Any] = asyncio.Queue()
        record = SimpleNamespace(
            topic="p-watch-events", partition=0, offset=4, timestamp=7, key=b"u", value=b"v", headers=()
        )
        self.channel.put_nowait(SimpleNamespace(message=Fetched({TP("p-watch-events", 0): [record]}, 1)))
        self.consumer = SimpleNamespace(
            assignment=lambda: {TP("p-watch-events", 0)},
            begin=lambda batch: self.seen.append(f"begun {batch.ends}"),
            acknowledge=lambda batch: self.seen.append("acknowledged"),
            commit=self.commit,
        )

    async def commit(self) -> None:
        self.seen.append("committed")

    async def handle_all(self, handle: Any, stop: asyncio.Event | None = None) -> None:
        app: Any = self
        settings = Settings.model_validate({"kafka": {"topic_prefix": "p-"}})
        work = handle_batches(app, SimpleNamespace(channel=self.channel), handle, settings=settings, **OPTIONS)
        agent = asyncio.ensure_future(work)
        if stop is not None:
            await stop.wait()
        else:
            await asyncio.wait([agent], timeout=0.1)
        if not agent.done():
            agent.cancel()
        await agent


OPTIONS: Any = {"stage": "test", "max_": 10, "within": 0.0}


def seen_with(end: BaseException | None) -> list[str]:
    """What becomes of a batch whose handling ends so: an error that it raises, or a bug that it returns."""

    async def run() -> list[str]:
        worker = Worker()

        async def handle(batch: list[Any]) -> BaseException | None:
            worker.seen.append(f"handled {[(raw.topic, raw.offset, raw.produced_ms) for raw in batch]}")
            if isinstance(end, Fenced):
                raise end
            return end

        try:
            await worker.handle_all(handle)
        except (Left, asyncio.CancelledError) as error:
            worker.seen.append(repr(error))
        return worker.seen[2:] if worker.seen[1].startswith("handled") else worker.seen

    return asyncio.run(run())


def test_a_batch_is_acknowledged_when_it_is_done_and_not_when_it_failed():
    assert seen_with(None) == ["acknowledged", "CancelledError()"]
    assert seen_with(Fenced("gone")) == [f"Left({EXIT_AGAIN})"]


def test_a_bug_ends_the_process_behind_its_event():
    assert seen_with(ValueError("a bug")) == ["acknowledged", "committed", f"Left({EXIT_BUG})"]


def test_a_batch_that_was_finished_when_its_agent_was_cancelled_is_acknowledged():
    async def run() -> None:
        worker, begun = Worker(), asyncio.Event()

        async def handle(batch: list[Any]) -> None:
            begun.set()
            await asyncio.sleep(0.02)
            worker.seen.append("done")

        with pytest.raises(asyncio.CancelledError):
            await worker.handle_all(handle, begun)
        assert worker.seen == ["begun {TP(topic='p-watch-events', partition=0): 4}", "done", "acknowledged"]

    asyncio.run(run())


def test_the_lag_of_a_partition_that_is_anothers_by_now_is_not_told_any_more(monkeypatch):
    monkeypatch.setattr(faust_app, "LAG_EVERY_S", 0)
    first, second, changelog = TP("p-lag-of-events", 0), TP("p-lag-of-events", 1), TP("p-lag-of-states", 0)
    ours = {first, second, changelog}
    consumer = SimpleNamespace(
        assignment=lambda: ours,
        highwater=lambda _: 10,
        _committed_offset={first: 4},
        _read_offset={first: 5, second: 6, changelog: 0},
    )
    app: Any = SimpleNamespace(
        should_stop=False, consumer=consumer, tables=SimpleNamespace(changelog_topics={changelog.topic})
    )

    def told() -> list[float | None]:
        places = (("lag-of-events", "0"), ("lag-of-events", "1"), ("lag-of-states", "0"))
        labels = [{"topic": topic, "partition": partition} for topic, partition in places]
        return [REGISTRY.get_sample_value("nextwatch_consumer_lag_messages", each) for each in labels]

    async def report() -> None:
        nonlocal ours
        reporting = asyncio.ensure_future(report_lag(app, "p-"))
        await asyncio.sleep(0.01)
        assert told() == [6, 3, None]
        del consumer._read_offset[first]  # as in a rebalance that leaves it here
        await asyncio.sleep(0.01)
        assert told() == [6, 3, None], "what was told last"
        ours = {second}
        await asyncio.sleep(0.01)
        assert told() == [None, 3, None]
        app.should_stop = True
        await reporting

    asyncio.run(report())


def test_a_worker_looks_where_states_lie_before_the_first_batch_of_each_assignment_and_leaves(monkeypatch):
    """It may have been out of the group while partitions were raised."""
    done: list[str] = []
    found: list[Exception] = [TopicUnfit("being raised")]
    agents, assigned = list[Any](), list[Any]()
    app: Any = SimpleNamespace(
        task=lambda run: run,
        agent=lambda topic, name: agents.append,
        on_partitions_assigned=SimpleNamespace(connect=assigned.append),
    )

    def require(kafka: Any) -> None:
        done.append("looked")
        if len(done) > 6:
            raise found.pop()

    @contextlib.asynccontextmanager
    async def outbox(*_: Any) -> Any:
        yield None

    async def handle(batch: Any, _: Any) -> None:
        done.append("handled")

    async def batches(_: Any, __: Any, handle: Any, **___: Any) -> None:
        for _ in range(2):
            await handle([])
            await handle([])
            await assigned[0]()

    monkeypatch.setattr(partition_counts, "require_partitions", require)
    monkeypatch.setattr(faust_app, "raw_topic", lambda *_: None)
    monkeypatch.setattr(faust_app, "open_outbox", outbox)
    monkeypatch.setattr(faust_app, "handle_batches", batches)
    declare_agent(app, Settings(), "history", (), handle, max_=1, within=1.0)
    with pytest.raises(Left) as left:
        asyncio.run(run_twice(agents[0]))
    assert left.value.args == (EXIT_AGAIN,)
    assert done == ["looked", "handled", "handled", "looked", "handled", "handled", "looked"]


async def run_twice(agent: Any) -> None:
    await agent(None)
    await agent(None)

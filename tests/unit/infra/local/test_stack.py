"""When `up` gives up on what it has started: on what crashes again and again, not on what takes its time. Without any
process: what is watched here only says that it runs."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.local import processes, stack, supervisor
from infra.local.processes import embedded_services
from infra.local.stack import running_stack
from infra.local.supervisor import Part, Supervisor, Watched
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Gateway, Ingest, Settings
from infra.platform.topic_mappings import TopicMapping

News = list[tuple[str, str]]


def running(log: Path, code: int | None = None) -> Any:
    """A process as the supervisor sees it; with a `code` it has ended."""
    return SimpleNamespace(log=log, pid=0, poll=lambda: code, ask_to_stop=lambda: None, stop=lambda: 0)


def part(name: str, log: Path, *, ready_after_s: float = 0.0, code: int | None = None) -> Part:
    ready_s = time.monotonic() + ready_after_s

    def ask(process: Any) -> dict[str, Any]:
        return {"ready": time.monotonic() >= ready_s, "reasons": ["waiting for the catalogue"]}

    return Part(name, lambda: running(log, code), ask)


@contextmanager
def started(
    settings: Settings, news: News, monkeypatch: pytest.MonkeyPatch, *, is_limited: bool = False, **late: Any
) -> Iterator[None]:
    """`running_stack` on a broker that is only said to be there, with one part that is `late`."""
    monkeypatch.setattr(supervisor, "LATE_S", 0.2)
    monkeypatch.setattr(supervisor, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("infra.platform.kafka_access.require_access", lambda kafka: None)
    monkeypatch.setattr("streams.topics.create_topics", lambda kafka: None)
    log = settings.data_dir / "log"

    def command_part(name: str, arguments: Any, reachable: Any) -> Part:
        return part(name, log, **(late if name == "trainer" else {}))

    monkeypatch.setattr(stack, "command_part", command_part)
    with running_stack(settings, lambda name, what: news.append((name, what)), is_limited=is_limited):
        yield


@pytest.fixture
def settings(make_settings) -> Settings:
    return make_settings("127.0.0.1:1", "http://127.0.0.1:1", embedded={"ready_timeout_s": 0.3})


def test_as_many_servers_are_started_as_are_set(settings, monkeypatch):
    news: News = []
    serving = settings.serving.model_copy(update={"processes": 3})
    with started(settings.model_copy(update={"serving": serving}), news, monkeypatch):
        ready = [name for name, what in news if what == "ready"]
    assert sorted(name for name in ready if name.startswith("serving")) == ["serving", "serving-2", "serving-3"]


def test_what_lives_is_waited_for_and_told_of(settings, monkeypatch):
    news: News = []
    with started(settings, news, monkeypatch, ready_after_s=1.0):
        ready = list(news)
    late = [(name, what) for name, what in ready if what.startswith("not ready after")]
    told = [name for name, what in late if what.endswith("waiting for the catalogue")]  # not: nobody was asked yet
    assert len(told) >= 2 and set(told) == {"trainer"}
    assert ready[-1] == ("trainer", "ready")


LIMIT = r"is not ready after 0\.3 s \(embedded\.ready_timeout_s, or NEXTWATCH_EMBEDDED__READY_TIMEOUT_S\)"


@pytest.mark.parametrize(
    ("late", "says"),
    [
        ({"code": 1}, "does not start: it crashed 3 times in a row"),
        ({"is_limited": True, "ready_after_s": 60.0}, LIMIT),
    ],
    ids=["it crashes again and again", "the demo keeps its limit"],
)
def test_what_is_not_ready_is_given_up_and_named(settings, monkeypatch, late, says):
    with pytest.raises(ServiceError, match=f"trainer {says}"), started(settings, [], monkeypatch, **late):
        pytest.fail("it is not ready")


def test_who_ran_for_long_before_each_crash_and_was_never_ready_is_given_up_too(tmp_path):
    """A crash after a steady run is forgiven when it comes to how soon it is started again, not here."""
    watcher = Supervisor(lambda name, what: None)  # not entered: nothing looks at the part but what follows
    watched = Watched(part("x", tmp_path / "log"), running(tmp_path / "log"))
    watcher._watched["x"] = watched
    crashes = iter(range(1, 10))

    def sleep(seconds: float) -> None:
        watched.restarts, watched.crashes = next(crashes), 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched, "why_not_ready", lambda: "it reads")
        patch.setattr(supervisor, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        with pytest.raises(ServiceError, match="x does not start: it reads"):
            watcher.wait_ready(None)
    assert watched.restarts == 3


def test_the_limit_of_an_embedded_service_is_named(make_settings, monkeypatch):
    settings = make_settings(milvus_uri="http://127.0.0.1:1", embedded={"ready_timeout_s": 0.3})
    process = running(settings.data_dir / "log")
    broker = SimpleNamespace(
        name="broker",
        kind="kafka",
        bootstrap="127.0.0.1:1",
        directory=settings.data_dir,
        process=process,
        restart=lambda: process,
        is_ready=bool,
    )
    monkeypatch.setattr(processes, "Broker", lambda settings, environ: broker)
    with (
        Supervisor(lambda name, what: None) as watcher,
        pytest.raises(ServiceError, match=f"broker {LIMIT}"),
        embedded_services(settings, watcher, probe=lambda uri: True),
    ):
        pytest.fail("it is not ready")


def test_a_taken_default_port_gives_the_gateway_another_one_and_a_set_one_is_kept(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(stack, "Gateway", lambda: SimpleNamespace(port=port))
        assert stack.with_gateway_port(Settings(gateway=Gateway(port=port))).gateway.port == 0
        assert stack.with_gateway_port(Settings(gateway=Gateway(port=port + 1))).gateway.port == port + 1
    assert stack.with_gateway_port(Settings(gateway=Gateway(port=port))).gateway.port == port


@pytest.mark.parametrize("is_mapped", [False, True])
def test_ingest_runs_where_topics_are_mapped_and_only_there(settings, monkeypatch, is_mapped: bool):
    fields = {"item_id": "id"}
    mappings = (TopicMapping(topic="videos", becomes="items", fields=fields),) if is_mapped else ()
    settings = settings.model_copy(update={"ingest": Ingest(topics=mappings)})
    news: News = []
    with started(settings, news, monkeypatch):
        assert ("ingest" in {name for name, _ in news}) is is_mapped

"""`up`'s processes as a whole: real services and a command of ours, and nothing of them left, however it ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local.broker import answers
from infra.local.processes import STOP_ORDER, command_part, embedded_services, process_environ
from infra.local.supervisor import Supervisor
from infra.platform.run_files import find_services
from infra.platform.settings import load_settings
from tests.conftest import BROKERS, environ_for, milvus_answers
from tests.unit.infra.platform.test_process_guard import is_alive, until

pytestmark = pytest.mark.service


UP = """
import sys, time
from pathlib import Path
from infra.local.processes import embedded_services
from infra.platform.settings import Settings
from infra.local.supervisor import Supervisor, interrupted_by_signals
from tests.conftest import milvus_answers
settings = Settings(data_dir=Path(sys.argv[1]))
report = lambda name, what: print(name, what, file=sys.stderr, flush=True)
try:
    with interrupted_by_signals(), Supervisor(report) as supervisor:
        with embedded_services(settings, supervisor, probe=milvus_answers):
            processes = [supervisor.process(state.name) for state in supervisor.states()]
            print(*[pid for process in processes for pid in (process.pid, process.guard.pid)], flush=True)
            time.sleep(60)
except KeyboardInterrupt:
    sys.exit(0)
"""


def start_up(directory: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A running UP, and the processes that it has started: two services, and their guards."""
    with (directory / "up.log").open("a") as log:
        command = [sys.executable, "-c", UP, str(directory)]
        up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environ_for("noida"))
    assert up.stdout is not None
    pids = [int(pid) for pid in up.stdout.readline().split()]
    assert len(pids) == 4, (directory / "up.log").read_text()
    return up, pids


@pytest.mark.parametrize("kind", BROKERS)
def test_services_that_are_not_named_are_started_and_found_by_other_commands(make_settings, kind: str):
    settings = make_settings()
    news: list[str] = []
    with (
        Supervisor(lambda name, what: news.append(f"{name} {what}")) as supervisor,
        embedded_services(settings, supervisor, probe=milvus_answers, environ=environ_for(kind)) as filled,
    ):
        assert answers(filled.kafka.bootstrap)
        assert milvus_answers(filled.milvus.uri)
        assert find_services(settings) == filled
        assert {state.name: state.health.get("kind") for state in supervisor.states()} == {
            "broker": kind,
            "milvus": None,
        }
    assert [each.split(" with")[0] for each in news[-2:]] == ["milvus stopped", "broker stopped"]
    with pytest.raises(OSError):
        socket.create_connection(tuple(filled.kafka.bootstrap.split(":")), timeout=1)  # type: ignore[arg-type]


def test_services_that_are_named_are_not_started(kafka, milvus_uri, make_settings):
    settings = make_settings(kafka, milvus_uri)
    with (
        Supervisor(lambda name, what: None) as supervisor,
        embedded_services(settings, supervisor, probe=milvus_answers) as filled,
    ):
        assert filled == settings
        assert supervisor.states() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_however_up_ends(tmp_path, number: signal.Signals):
    up, pids = start_up(tmp_path)
    assert all(is_alive(pid) for pid in pids)
    up.send_signal(number)
    assert up.wait(20) == (-number if number == signal.SIGKILL else 0)
    if number == signal.SIGKILL:
        assert until(lambda: not any(is_alive(pid) for pid in pids), 20)
    assert [pid for pid in pids if is_alive(pid)] == []


def test_after_a_killed_up_the_next_one_starts_on_the_same_data(tmp_path):
    for _ in range(2):
        up, pids = start_up(tmp_path)
        up.kill()
        up.wait()
    assert until(lambda: not any(is_alive(pid) for pid in pids), 20)


def test_a_crashed_service_comes_back_at_its_address(make_settings):
    settings = make_settings(milvus={"uri": "http://127.0.0.1:1"})
    with (
        Supervisor(lambda name, what: None) as supervisor,
        embedded_services(settings, supervisor, probe=milvus_answers, environ=environ_for("noida")) as filled,
    ):
        crashed = supervisor.process("broker")
        assert crashed is not None
        os.kill(crashed.pid, signal.SIGKILL)
        assert until(lambda: supervisor.states()[0].restarts == 1)
        supervisor.wait_ready(20)
        assert answers(filled.kafka.bootstrap)


def test_a_command_is_ready_when_its_own_page_says_so(make_settings, monkeypatch, tmp_path):
    page = """
import sys, time
from infra.platform.health import Health, serve_health
from infra.platform.settings import load_settings
health = Health("history", waiting_for="its partitions")
with serve_health(health, load_settings(), started_ms=1):
    time.sleep(0.7)
    health.ready = True
    time.sleep(60)
"""
    (tmp_path / "page.py").write_text(page)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    settings = make_settings("127.0.0.1:1", "http://127.0.0.1:1")
    part = command_part("history", [str(tmp_path / "page.py")], settings, program=[sys.executable])
    news: list[str] = []
    with Supervisor(lambda name, what: news.append(what)) as supervisor:
        process = part.start()
        supervisor.add(part, process)
        assert until(lambda: supervisor.states()[0].health.get("reasons") == ["waiting for its partitions"])
        supervisor.wait_ready(10)
        state = supervisor.states()[0]
        assert state.health["pid"] == state.pid == process.pid
        assert state.health["address"].startswith("127.0.0.1:")
    assert news[0] == "ready"


def test_children_get_these_settings_and_no_others(make_settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = make_settings("a:1", "http://b:2", data_dir=Path("here"), metrics={"port": 9100})
    environ = process_environ(settings, {"PATH": "/bin", "NEXTWATCH_KAFKA__BOOTSTRAP": "other:1", "HOME": "/h"})
    assert (environ["PATH"], environ["HOME"]) == ("/bin", "/h")
    for name in [name for name in os.environ if name.startswith("NEXTWATCH_")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    seen = load_settings()
    assert (seen.kafka, seen.milvus) == (settings.kafka, settings.milvus)
    assert seen.data_dir == tmp_path / "here"
    assert seen.metrics.port == 0, "several processes cannot share one port"


def test_the_stop_order_lets_everyone_finish_its_last_writes():
    order = sorted(STOP_ORDER, key=lambda name: STOP_ORDER[name])
    assert order.index("serving") < order.index("history") < order.index("indexer")
    assert order[-2:] == ["milvus", "broker"]

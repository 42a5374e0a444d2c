"""`nextwatch up` as a person runs it: everything starts, and whichever way it ends, nothing is left."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.local.stack import COMMANDS
from infra.operate.status import fetch_samples
from infra.platform import settings
from infra.platform.health import fetch_page
from infra.platform.run_files import read_run_files
from infra.platform.settings import Metrics, Settings
from tests.conftest import BROKERS, environ_for
from tests.harness.system import cli, run_cli, wait_until
from tests.unit.infra.sockets import is_loopback, listening
from tests.unit.serving.worlds import train_small

pytestmark = pytest.mark.service

READY_S = 120.0
GONE_S = 180.0
SERVICES = 2  # broker and Milvus
SECRETS = {f"NEXTWATCH_{section}__{name}".upper(): f"secret-{section}-4711" for section, name in settings.SECRETS}


@dataclass
class Up:
    process: subprocess.Popen[bytes]
    settings: Settings
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def relatives(self) -> dict[int, str]:
        """Every process that `up` has started, or that they have, by process id: all of them carry its data directory
        in their environment or command line."""
        mark = str(self.settings.data_dir).encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in {os.getpid(), self.process.pid}:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    command = (entry / "cmdline").read_bytes()
                    if mark in command or mark in (entry / "environ").read_bytes():
                        found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def wait_until_ready(self) -> None:
        self._wait(lambda: "ready: broker" in self.said(), "ready")

    def wait_until_started(self) -> None:
        """Our own processes are there, none is ready yet."""
        self._wait(
            lambda: sum("infra.cli" in command for command in self.relatives().values()) >= len(COMMANDS), "started"
        )

    def wait_until_gone(self) -> None:
        self.process.wait(GONE_S)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.relatives(), "gone", GONE_S if self.process.returncode == -9 else 1.0)
        assert self.relatives() == {}

    def _wait(self, true: object, what: str) -> None:
        def look() -> bool:
            assert self.process.poll() is None, self.said()
            return bool(true())  # type: ignore[operator]

        wait_until(look, f"up is {what}", READY_S, every_s=0.2)


@contextlib.contextmanager
def running_up(data_dir: Path, broker: str) -> Iterator[Up]:
    """`nextwatch up` on a data directory, in a session of its own, as a terminal would start it."""
    own = {"NEXTWATCH_DATA_DIR": str(data_dir), "NEXTWATCH_GATEWAY__PORT": "0", "PYTHONUNBUFFERED": "1"}
    environ = environ_for(broker) | SECRETS | own
    log = data_dir.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            cli("up"), env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    up = Up(process, Settings(data_dir=data_dir), log)
    try:
        yield up
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pid in up.relatives():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def check_that_nobody_else_gets_in(pid: int, others: dict[int, str]) -> None:
    """Every process of ours, every service and every guard listens on the loopback interface or nowhere."""
    found = listening([pid, *others])
    for each, addresses in found.items():
        assert all(map(is_loopback, addresses)), f"{others.get(each, 'up')} listens on {addresses}"
    listeners = [others[each] for each, addresses in found.items() if addresses]
    assert len(listeners) == len(COMMANDS) + SERVICES, f"each has a page or a port: {listeners}"


def check_that_no_secret_is_told(up: Up, others: dict[int, str]) -> None:
    """Not to the process list, to any file that is left (logs, run files), nor to who asks /health without a token."""
    told = [up.said(), *others.values()]
    files = [path for path in up.settings.data_dir.rglob("*") if path.is_file() and not path.name.endswith("index")]
    for path in files:  # Kafka's indexes are ten megabytes of zeros each
        with contextlib.suppress(FileNotFoundError):  # what was written beside a file has taken its place meanwhile
            told.append(path.read_bytes().decode("latin-1"))
    records = read_run_files(up.settings.run_dir)
    token = Metrics(token=SecretStr(SECRETS["NEXTWATCH_METRICS__TOKEN"]))
    told += [fetch_page(record, "/health", None, 10.0).decode() for record in records]
    told += [fetch_page(record, "/health", token, 10.0).decode() for record in records]
    assert not [name for name, secret in SECRETS.items() if any(secret in text for text in told)]
    assert not any(fetch_samples(record) for record in records) and all(fetch_samples(each, token) for each in records)


@pytest.mark.parametrize("broker", BROKERS)
def test_ctrl_c_stops_everything_that_up_has_started(broker, tmp_path):
    version = train_small(Settings(data_dir=tmp_path / "data").bundles_dir).version  # while no broker ran
    with running_up(tmp_path / "data", broker) as up:
        up.wait_until_ready()
        wait_until(lambda: f"the newest bundle, {version}" in up.said(), "it is announced", READY_S)
        assert {record["name"] for record in read_run_files(up.settings.run_dir)} == set(COMMANDS)
        others = up.relatives()
        assert len(others) == 2 * (len(COMMANDS) + SERVICES), "each process and its guard"
        assert ("stand-in" in up.said()) == (broker == "noida"), "it says what it keeps"
        check_that_nobody_else_gets_in(up.process.pid, others)
        check_that_no_secret_is_told(up, others)
        assert '"ready": true' in run_cli(Settings(data_dir=up.settings.data_dir), "status", "--json")
        os.killpg(up.process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
        up.wait_until_gone()
        assert up.process.returncode == 0 and up.said().rstrip().endswith("stopped")
        assert "Traceback" not in up.said() and up.said().count("stopped with code 0") >= len(COMMANDS)
        assert not read_run_files(up.settings.run_dir) and not (up.settings.data_dir / "services.json").exists()


def test_sigterm_while_it_starts_stops_everything_too(tmp_path):
    with running_up(tmp_path / "data", BROKERS[0]) as up:
        up.wait_until_started()
        up.process.terminate()
        up.wait_until_gone()
        assert up.process.returncode == 0 and "Traceback" not in up.said()


@pytest.mark.parametrize("broker", BROKERS)
def test_nothing_outlives_an_up_that_is_killed(broker, tmp_path):
    with running_up(tmp_path / "data", broker) as up:
        up.wait_until_started()
        time.sleep(1.0)
        assert up.relatives()
        up.process.kill()
        up.wait_until_gone()

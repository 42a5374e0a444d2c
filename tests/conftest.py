"""What whole-system tests run against: a real broker of each kind and a real Milvus Lite server, once per test run; the
Milvus server that NEXTWATCH_TEST_MILVUS names in its place, where a test takes any.

`kafka` is Apache Kafka where KAFKA_HOME is set, else noida; tests that are marked with `on_both_brokers` run on both
then. Tests share the services and are kept apart by `kafka.topic_prefix`, which the `settings` fixture makes unique. A
broken service is a failure; a missing tool skips, and fails where CI says that it is there (tests/harness/needs.py).
Whoever uses a service is marked `service` here, so that `make unit` can leave it out.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from infra.local.broker import Broker, start_broker
from infra.local.milvus_server import MilvusServer, start_milvus
from infra.local.stack import milvus_answers
from infra.platform.run_files import fill_in
from infra.platform.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings
from tests.harness.needs import NOIDA, require
from tests.harness.system import stopping

# the same examples in every run, so that a failure is of the change and not of the day;
# `pytest --hypothesis-profile=default` draws new ones
# (the first one of a process reads our sources for constants, which takes seconds)
hypothesis_settings.register_profile(
    "same-examples", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("same-examples")

MILVUS_SERVER = os.environ.get("NEXTWATCH_TEST_MILVUS", "")  # read before the settings' variables are taken away
BROKERS = ["noida", *(["kafka"] if os.environ.get("KAFKA_HOME") else [])]
# tests run on the real broker where it is there; these ones, which show how we get on with each of them, on both
on_both_brokers = pytest.mark.parametrize("broker", BROKERS, indirect=True)


# fixtures that are services; whatever else starts a service or a process of ours says `service` itself
SERVICES = {"broker", "milvus", "milvus_uri", "own_broker", "own_milvus", "secured"}
TESTS = Path(__file__).parent
SYSTEM = TESTS / "system"
UNIT = TESTS / "unit"
# What needs no service and takes seconds all the same, for it trains, starts processes, or tries things by the hundred:
# `make unit` leaves it out. Files below tests/unit, or how the names of their tests begin.
SLOW = (
    "benchmarks/test_selection_service.py",
    "clients/test_distribution.py",
    "indexer/test_pending_writes.py::test_coalesced_writing",
    "indexer/test_rollout_machine.py",
    "infra/backtest/test_backtest_command.py",
    "infra/backtest/test_ranking.py",
    "infra/backtest/test_recommenders.py",
    "infra/backtest/test_report.py",
    "infra/cli/test_cli.py",
    "infra/deploy/test_alerts.py::test_every_alarm",
    "infra/local/test_stack.py",
    "infra/operate/going_live/test_gate.py",
    "infra/operate/test_replay.py::test_a_broker_that_is_not_there",
    "infra/operate/test_ranker_stage.py",
    "infra/platform/test_guarded_pages.py",
    "infra/simulation/test_browsing_model.py",
    "infra/simulation/test_world.py",
    "models/catalogue/test_filter_syntax.py::test_any_text",
    "models/evaluation/test_gate.py::test_an_equal_release",
    "models/logs/test_searches.py",
    "models/logs/test_stored_log.py",
    "models/ranking/test_impression_log.py",
    "models/ranking/test_ranker.py",
    "models/ranking/test_ranker_release.py",
    "models/ranking/test_ranker_training.py",
    "models/release/test_distributed.py",
    "models/release/test_training.py",
    "models/release/test_trial.py",
    "models/retrieval/test_candidate_training.py",
    "models/retrieval/test_checkpoint.py",
    "models/test_threads.py",
    "serving/request/test_reranking.py",
    "serving/state/test_release.py::test_a_batch_never_mixes",
    "streams/bundles/test_fetching.py",
    "streams/bundles/test_sending.py",
    "streams/history/test_rules.py::test_what_stays",
    "streams/join/test_app.py::test_crashes_anywhere",
    "streams/join/test_app.py::test_the_worker_needs_no_torch",
    "streams/join/test_rules.py::test_in_any_order",
    "streams/kafka/test_unpacking.py::test_a_bomb",
    "streams/loading/test_histories.py::test_histories_are_those",
    "streams/test_epochs.py::TestInterleaved",
    "streams/test_fuzz.py::test_a_hundred_thousand",
    "streams/test_fuzz.py::test_the_views_of_serving",
    "streams/trending/test_trending_regions.py",
)

# What takes a minute or more, the longest first: these begin first, so that none of them is alone at the end. Files
# below tests.
LONG = (
    "system/test_outages.py",
    "system/test_fuzz.py",
    "system/test_load.py",
    "system/test_whole_system.py",
    "system/test_soak.py",
    "system/test_serving.py",
    "system/test_standby.py",
    "system/test_join.py",
    "system/upgrade/test_upgrade.py",
    "system/console/test_console.py",
    "system/test_readiness.py",
    "system/test_takedown.py",
    "system/test_gateway.py",
    "system/test_rebuild.py",
    "system/test_streams.py",
    "system/partitions/test_raise.py",
    "system/test_parity.py",
    "system/deploy/test_deployed.py",
    "system/test_forget.py",
)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before `-m` chooses, and after pytest has put them in its order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    paths = [UNIT / name.partition("::")[0] for name in SLOW] + [TESTS / name for name in LONG]
    moved = [path for path in paths if not path.is_file()]
    assert not moved, "slow files that have moved"
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if SERVICES & fixtures or SYSTEM in item.path.parents or item.get_closest_marker("system"):
            item.add_marker("service")
        if item.nodeid.removeprefix("tests/unit/").startswith(SLOW):
            item.add_marker("slow")
    yield
    begins = {TESTS / name: at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: begins.get(item.path, len(LONG)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        require(*mark.args)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Figures that tests tell of themselves, so that a trend can be seen from run to run."""
    reports = [each for found in terminalreporter.stats.values() for each in found if hasattr(each, "user_properties")]
    for line in dict.fromkeys(value for each in reports for name, value in each.user_properties if name == "told"):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True, scope="session")
def only_our_settings() -> None:
    """The tests build their settings themselves; nothing comes from the shell that they were started in."""
    for variable in [name for name in os.environ if name.startswith(ENV_PREFIX) or name == CONFIG_VARIABLE]:
        del os.environ[variable]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that ran inside a test has set logging up for a stderr that is gone with the test."""
    yield
    structlog.reset_defaults()


def environ_for(kind: str) -> dict[str, str]:
    """The environment in which `start_broker` starts a broker of this kind."""
    if kind == "noida":
        require(NOIDA)
    environ = dict(os.environ)
    if kind == "noida":
        environ.pop("KAFKA_HOME", None)
    return environ


@pytest.fixture(scope="session", params=BROKERS[-1:])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running broker that tests share: they must not stop it."""
    data_dir = tmp_path_factory.mktemp(f"broker-{request.param}")
    with stopping(start_broker(Settings(data_dir=data_dir), environ=environ_for(request.param))) as running:
        yield running


@pytest.fixture(scope="session")
def kafka(broker: Broker) -> str:
    """`host:port` of a running broker; see `on_both_brokers`."""
    return broker.bootstrap


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A running Milvus Lite server that tests share."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("milvus"))
    with stopping(start_milvus(settings, probe=milvus_answers)) as running:
        yield running


@pytest.fixture(scope="session")
def milvus_uri(request: pytest.FixtureRequest) -> str:
    """Of the server that NEXTWATCH_TEST_MILVUS names, else of Milvus Lite."""
    if MILVUS_SERVER:
        return MILVUS_SERVER
    uri: str = request.getfixturevalue("milvus").uri
    return uri


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of one test: its own data directory and topic prefix; sections are given as dictionaries."""

    def make(bootstrap: str = "", milvus_uri: str = "", **sections: Any) -> Settings:
        sections["kafka"] = {"topic_prefix": f"t{uuid.uuid4().hex[:8]}-"} | sections.get("kafka", {})
        return fill_in(Settings(**({"data_dir": tmp_path} | sections)), bootstrap, milvus_uri)

    return make


@pytest.fixture
def kafka_settings(kafka: str, make_settings: Callable[..., Settings]) -> Settings:
    """For a test that needs a broker only."""
    return make_settings(kafka)


@pytest.fixture
def settings(kafka: str, milvus_uri: str, make_settings: Callable[..., Settings]) -> Settings:
    """For a whole-system test: a running broker and a running Milvus."""
    return make_settings(kafka, milvus_uri)

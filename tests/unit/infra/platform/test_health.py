"""The web page of a process: what Prometheus and a supervisor read."""

import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from math import isnan
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from infra.platform.guarded_process import ServiceError
from infra.platform.health import Health, fetch_health, serve_health
from infra.platform.run_files import TARGETS, read_run_files


def get(address: str, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type, body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", headers=headers)) as reply:
            return reply.status, reply.headers["Content-Type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_parse_and_say_their_content_type(make_settings) -> None:
    registry = CollectorRegistry()
    Counter("nextwatch_things_total", "Things", ["kind"], registry=registry).labels("a\nb").inc(3)
    with serve_health(Health("x"), make_settings(), started_ms=1, registry=registry) as address:
        status, content_type, body = get(address, "/metrics")
        open_metrics = get(address, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    samples = [each for family in text_string_to_metric_families(body) for each in family.samples]
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    assert ("nextwatch_things_total", {"kind": "a\nb"}, 3.0) in [(s.name, s.labels, s.value) for s in samples]
    assert open_metrics[1].startswith("application/openmetrics-text")
    assert open_metrics[2].endswith("# EOF\n")


def test_a_process_is_unavailable_until_it_is_ready(make_settings) -> None:
    health = Health("history", waiting_for="its partitions")
    with serve_health(health, make_settings(), started_ms=1) as address:
        status, content_type, body = get(address, "/health")
        assert (status, content_type) == (503, "application/json")
        assert json.loads(body)["reasons"] == ["waiting for its partitions"]
        assert get(address, "/health/ready")[0] == 503
        assert get(address, "/health/live")[0] == 200
        health.ready, health.detail = True, {"release": "20260101_000000_abcdef"}
        report = json.loads(get(address, "/health")[2])
        assert report["ready"] and report["live"] and report["process"] == "history"
        assert report["release"] == "20260101_000000_abcdef"
        assert get(address, "/health/ready")[0] == 200
        health.live = False
        assert [get(address, path)[0] for path in ("/health", "/health/ready", "/health/live")] == [503, 503, 503]
        assert get(address, "/secrets")[0] == 404


def test_a_process_tells_what_is_left_on_its_disks_and_nothing_of_one_that_is_not_there(make_settings) -> None:
    settings = make_settings()
    with serve_health(Health("x"), settings, started_ms=1) as address:
        _, _, body = get(address, "/metrics")
        told = {
            (each.name, each.labels["directory"]): each.value
            for family in text_string_to_metric_families(body)
            for each in family.samples
            if each.name.startswith("nextwatch_disk_")
        }
    volume = shutil.disk_usage(settings.data_dir)
    assert told["nextwatch_disk_size_bytes", "data_dir"] == volume.total
    assert told["nextwatch_disk_free_bytes", "data_dir"] == pytest.approx(volume.free, rel=0.1)
    assert not settings.bundles_dir.exists() and isnan(told["nextwatch_disk_free_bytes", "bundles"])


def test_a_process_is_listed_while_it_runs(make_settings) -> None:
    settings = make_settings()
    with serve_health(Health("indexer"), settings, started_ms=5) as address:
        (record,) = read_run_files(settings.run_dir)
        assert (record["name"], f"{record['host']}:{record['port']}", record["started_ms"]) == ("indexer", address, 5)
        assert fetch_health(record)["process"] == "indexer"
        assert json.loads((settings.run_dir / TARGETS).read_text()) == [
            {"targets": [address], "labels": {"process": "indexer"}}
        ]
    assert read_run_files(settings.run_dir) == []
    assert json.loads((settings.run_dir / TARGETS).read_text()) == []
    assert fetch_health(record)["live"] is False


@pytest.mark.parametrize("name", ["ready", "standby"])
def test_whether_it_is_ready_or_a_standby_is_a_metric_too(make_settings, name: str) -> None:
    health = Health("indexer")
    with serve_health(health, make_settings(), started_ms=1) as address:
        for is_so in (False, True, False):
            setattr(health, name, is_so)
            assert f"\nnextwatch_{name} {float(is_so)}\n" in get(address, "/metrics")[2]


def test_two_processes_of_one_name_are_both_listed(make_settings) -> None:
    settings = make_settings()
    with (
        serve_health(Health("serving"), settings, started_ms=1) as one,
        serve_health(Health("serving"), settings, started_ms=2) as two,
    ):
        found = [f"{record['host']}:{record['port']}" for record in read_run_files(settings.run_dir)]
        assert sorted(found) == sorted([one, two])


def test_what_a_killed_process_left_is_dropped(make_settings) -> None:
    settings = make_settings()
    settings.run_dir.mkdir()
    left: Path = settings.run_dir / "trainer.json"
    left.write_text(json.dumps({"name": "trainer", "pid": 1, "host": "127.0.0.1", "port": 1, "started_ms": 1}))
    (settings.run_dir / TARGETS).write_text('[{"targets": ["127.0.0.1:1"], "labels": {"process": "trainer"}}]')
    assert read_run_files(settings.run_dir) == []  # although process 1 lives: nobody holds the file
    assert not left.exists()
    assert json.loads((settings.run_dir / TARGETS).read_text()) == []


def test_a_port_in_use_is_an_error_that_names_the_setting(make_settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = make_settings(metrics={"port": taken.getsockname()[1]})
        with (
            pytest.raises(ServiceError, match=r"in use: give metrics.port another"),
            serve_health(Health("x"), settings, started_ms=1),
        ):
            pass


@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
def test_a_process_that_dies_in_the_middle_of_its_answer_is_not_ready(status: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_and_die() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(f"HTTP/1.0 {status}\r\nContent-Length: 100\r\n\r\n".encode())
            connection.close()

        thread = threading.Thread(daemon=True, target=answer_and_die)
        thread.start()
        record = {"name": "history", "pid": 1, "host": "127.0.0.1", "port": server.getsockname()[1]}
        health = fetch_health(record, timeout_s=30)
        thread.join()
    assert health["ready"] is False and "no answer" in health["reasons"][0]


def test_a_scraper_that_says_nothing_does_not_block_the_others(make_settings) -> None:
    with serve_health(Health("x"), make_settings(), started_ms=1) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.send(b"GET /metr")
            assert get(address, "/health/live")[0] == 200

"""Milvus is slow or away: what was read waits in order, what was not read stays in Kafka."""

import contextlib
import socket
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from indexer.collection import Index
from infra.local.milvus_server import MilvusServer
from infra.platform import metrics
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Milvus, Settings
from models.release.bundle import Bundle
from tests.harness.system import wait_until, with_section
from tests.unit.indexer.site import PATIENCE_S, Site, Trained

pytestmark = pytest.mark.system


class SlowLink:
    """A TCP link to a server on this machine: passes on all that comes to `port`, `delay_s` late per piece."""

    def __init__(self, to_port: int) -> None:
        self.delay_s = 0.0
        self._to_port = to_port
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Hang up on everyone, and on whoever calls from now on."""
        self._is_cut = True
        for each in list(self._open):
            _hang_up(each)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                caller, _ = self._server.accept()
                if self._is_cut:
                    caller.close()
                    continue
                called = socket.create_connection(("127.0.0.1", self._to_port))
                for pair in ((caller, called), (called, caller)):
                    self._open.add(pair[0])
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                time.sleep(self.delay_s)
                target.sendall(piece)
        _hang_up(target)
        _hang_up(source)
        self._open.discard(source)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_rows_wait_in_order_while_milvus_is_away(own_site: Site, own_milvus: MilvusServer) -> None:
    site = own_site
    bundle = site.live()
    own_milvus.process.kill()
    for step in (1, 2, 3):
        site.touch(bundle, "item-3", value=step, step=step)
    site.take_down("item-4")
    [record] = read_run_files(site.settings.run_dir)
    site.wait(lambda: not fetch_health(record)["ready"], "/health says not ready")
    assert "Milvus" in fetch_health(record)["reasons"][0]
    assert metrics.INDEX_RETRIES.labels("milvus")._value.get() > 0
    own_milvus.restart()
    wait_until(site.index.is_ready, "Milvus answers again", PATIENCE_S)
    site.wait_for(bundle, item_3=3.0, item_4=None)
    site.wait(lambda: fetch_health(record)["ready"], "/health says ready")


ITEMS, STEPS, READ_TOGETHER = 400, 15, 100


def test_a_slow_milvus_makes_reading_wait_and_nothing_is_dropped_or_reordered(
    kafka_settings: Settings, milvus: MilvusServer, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.kafka.follow._MAX_RECORDS", READ_TOGETHER)
    written, most_waiting = spy_on_upserts(monkeypatch), 0
    with (
        contextlib.closing(SlowLink(milvus.port)) as link,
        contextlib.closing(Index(Milvus(uri=milvus.uri))) as direct,
        contextlib.closing(Site(with_section(kafka_settings, "milvus", uri=link.uri, timeout_s=5), trained)) as site,
    ):
        bundle = site.live()
        written.clear()
        stood_still_s = metrics.INDEX_WAITED.labels("milvus")._value.get()
        link.delay_s, began_s = 0.1, time.monotonic()
        for step in range(1, STEPS + 1):
            for number in range(ITEMS):
                site.touch(bundle, f"new-{number}", value=step, step=step, wait=False)
        site.flush()
        for seconds in (0.0, 0.5):
            time.sleep(3.0 - seconds)
            most_waiting = max(most_waiting, int(metrics.INDEX_WAITING._value.get()))
            assert direct.count(bundle.manifest.version) < bundle.manifest.items + ITEMS or behind(written)
            link.cut()
            time.sleep(seconds)
            link.mend()
        slow_s = time.monotonic() - began_s
        assert metrics.INDEX_WAITED.labels("milvus")._value.get() - stood_still_s > 0.7 * slow_s
        link.delay_s = 0.0
        wanted = {f"new-{number}": STEPS for number in range(ITEMS)}
        site.wait(lambda: steps_in(direct, bundle, list(wanted)) == wanted, "the newest row of every item")
    assert most_waiting <= site.settings.indexer.batch + READ_TOGETHER
    assert all(steps == sorted(steps) for steps in written.values())


def behind(written: dict[str, list[int]]) -> bool:
    """Return whether some of the rows were not written yet."""
    return any(steps[-1] < STEPS for steps in written.values())


def spy_on_upserts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The steps that are written from now on, by item, in their order."""
    written: dict[str, list[int]] = defaultdict(list)
    original = Index.upsert

    def upsert(self: Index, version: str, item_ids: list[str], vectors: Any, steps: list[int], *more: Any) -> None:
        original(self, version, item_ids, vectors, steps, *more)
        for item_id, step in zip(item_ids, steps, strict=True):
            written[item_id].append(step)

    monkeypatch.setattr(Index, "upsert", upsert)
    return written


def steps_in(index: Index, bundle: Bundle, item_ids: list[str]) -> dict[str, int]:
    return {i: step for i, (step, _) in index.vectors(bundle.manifest.version, item_ids).items()}

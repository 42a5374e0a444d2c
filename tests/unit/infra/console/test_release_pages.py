"""Rolling back from the page of releases: what is offered, asked, done and refused."""

import asyncio
import sys
import threading
from typing import Any

import pytest
from msgspec import structs

from indexer.errors import IndexFailure
from infra.console import release_pages
from infra.console.release_pages import run_roll_back
from infra.operate.releases import BundleFound, CollectionFound, ReleaseReport
from infra.operate.roll_back import RollBackPlan, RollBackRefused, RolledBack
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Settings
from tests.unit.infra.console.consoles import HERE, TOKEN, know_catalogue, run

PAGE = "/console/roll-back"
PLAN = RollBackPlan(CollectionFound("old", "announced", "", 200), "new", "newer", {"s1", "s2"})
DONE = RolledBack("old", "new", ["s1"], [], "", 0.4)
BUNDLES = [BundleFound("old", 1_000_000), BundleFound("new", 1_000_000), BundleFound("older", 1_000_000)]
REPORT = ReleaseReport("new", "old", "new", BUNDLES, [], [], [])


class Releases:
    """What the pages ask for and do, without Kafka and Milvus."""

    def __init__(self) -> None:
        self.report, self.plan, self.outcome, self.done = REPORT, PLAN, DONE, list[str]()

    def choose(self, settings: Settings, version: str) -> RollBackPlan:
        if version != self.plan.spare.version:
            raise RollBackRefused(
                f"a roll-back goes to the spare, which is {self.plan.spare.version} and not {version}"
            )
        return self.plan

    def roll_back(self, settings: Settings, version: str) -> RolledBack:
        self.done.append(version)
        return self.outcome


@pytest.fixture(autouse=True)
def releases(monkeypatch: pytest.MonkeyPatch) -> Releases:
    know_catalogue(monkeypatch)
    found = Releases()
    monkeypatch.setattr(release_pages, "read_report", lambda settings: found.report)
    monkeypatch.setattr("infra.operate.roll_back.read_plan", found.choose)
    monkeypatch.setattr(release_pages, "run_roll_back", found.roll_back)
    return found


def see(path: str, token: str = "") -> tuple[int, str]:
    return run(lambda ask: ask("GET", path), token)


def go_back(version: str, token: str = "", headers: Any = HERE) -> tuple[int, str]:
    return run(lambda ask: ask("POST", PAGE, data={"version": version}, headers=headers), token)


def test_a_roll_back_is_offered_of_the_spare_alone_to_who_may(releases: Releases):
    page = see("/console/releases")[1]
    assert page.count("roll back to this one") == 1 and 'name="version" value="old"' in page
    assert "roll back to this one" not in see("/console/releases", TOKEN)[1]
    releases.report = structs.replace(REPORT, bundles=[BundleFound("old", 1, problem="damaged"), *BUNDLES[1:]])
    assert "roll back to this one" not in see("/console/releases")[1]


def test_it_is_asked_first_with_what_it_means_and_nothing_is_done_by_asking(releases: Releases):
    status, page = see(f"{PAGE}?version=old")
    assert status == 200 and not releases.done
    for words in ("new is live", "200 items", "2 servers", "new is kept as the spare", "newer goes live when"):
        assert words in page
    assert '<form class="ask" method="post" action="/console/roll-back">' in page
    page = see(f"{PAGE}?version=old", TOKEN)[1]
    assert "<form" not in page and "Log in to roll back" in page


def test_it_is_done_and_told(releases: Releases):
    status, page = go_back("old")
    assert status == 200 and releases.done == ["old"]
    assert "old is live in place of new" in page and "answered from by s1" in page and 'role="status"' in page
    releases.outcome = structs.replace(DONE, served_by=[], waiting_for=["deaf"], coming="newer")
    page = go_back("old")[1]
    assert "Not served yet by deaf" in page and "newer goes live when its index is ready" in page
    releases.outcome = structs.replace(DONE, served_by=[])
    assert "No server has been heard" in go_back("old")[1]


@pytest.mark.parametrize(("version", "status"), [("older", 409), ("new", 409), ("<script>", 409), ("", 400)])
def test_what_the_command_refuses_is_refused_with_its_reason(version: str, status: int, releases: Releases):
    asked, done = see(f"{PAGE}?version={version}"), go_back(version)
    assert asked[0] == done[0] == status and not releases.done
    if status == 409:
        assert "Not rolled back: a roll-back goes to the spare, which is old" in done[1] and "<form" not in asked[1]
        assert "<script" not in asked[1] + done[1]


def test_a_damaged_bundle_that_the_command_finds_is_told(releases: Releases, monkeypatch: pytest.MonkeyPatch):
    def refuse(settings: Settings, version: str) -> RolledBack:
        raise ServiceError("the spare old cannot be served: old/tower.safetensors is damaged")

    monkeypatch.setattr(release_pages, "run_roll_back", refuse)
    status, page = go_back("old")
    assert status == 409 and "Not rolled back: the spare old cannot be served: old/tower.safetensors" in page


def test_without_milvus_nothing_is_done_and_the_page_says_so(releases: Releases, monkeypatch: pytest.MonkeyPatch):
    def fail(settings: Settings, version: str) -> RollBackPlan:
        raise IndexFailure("Milvus does not answer")

    monkeypatch.setattr("infra.operate.roll_back.read_plan", fail)
    for status, page in (see(f"{PAGE}?version=old"), go_back("old")):
        assert status == 503 and "Milvus does not answer" in page
    assert not releases.done


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_another_site_and_who_has_no_token_cannot_roll_back(headers: dict[str, str], releases: Releases):
    assert go_back("old", headers=headers)[0] == go_back("old", TOKEN, headers=headers)[0] == 403
    assert go_back("old", TOKEN)[0] == 303 and not releases.done


def test_others_are_answered_while_a_roll_back_waits(releases: Releases, monkeypatch: pytest.MonkeyPatch):
    let_go = threading.Event()

    def wait(settings: Settings, version: str) -> RolledBack:
        assert let_go.wait(10)
        return DONE

    async def scene(ask):
        waiting = asyncio.create_task(ask("POST", PAGE, data={"version": "old"}, headers=HERE))
        await asyncio.sleep(0.05)
        now = await ask("GET", "/console/now")
        let_go.set()
        return now[0], (await waiting)[0]

    monkeypatch.setattr(release_pages, "run_roll_back", wait)
    assert run(scene) == (200, 200)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "says"), [
    ("import sys; print('checking old\\nerror: the spare old is damaged', file=sys.stderr); sys.exit(2)",
     "^the spare old is damaged$"),
    ("import sys; sys.exit(70)", "exit code 70"),
    ("print('[1]')", "exit code 0"),
])  # fmt: skip
def test_a_command_that_fails_is_told_in_its_own_words(script: str, says: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(release_pages, "PROGRAM", (sys.executable, "-c", script))
    with pytest.raises(ServiceError, match=says):
        run_roll_back(Settings(), "old")


def test_a_command_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(release_pages, "PROGRAM", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(release_pages, "COMMAND_S", 0.5)
    with pytest.raises(ServiceError, match="not done within"):
        run_roll_back(Settings(), "old")


def test_the_command_is_told_the_release_as_one_word_and_the_settings(monkeypatch: pytest.MonkeyPatch):
    script = (
        "import json, os, sys; broker = os.environ['NEXTWATCH_KAFKA__BOOTSTRAP']\n"
        "print(json.dumps({'version': sys.argv[3], 'before': broker,"
        "'served_by': sys.argv[1:3], 'waiting_for': [], 'coming': '', 'spent_s': 0.1}))"
    )
    monkeypatch.setattr(release_pages, "PROGRAM", (sys.executable, "-c", script))
    done = run_roll_back(Settings(kafka={"bootstrap": "127.0.0.1:1"}), "--help")  # type: ignore[arg-type]
    assert done.served_by == ["releases", "--rollback"]
    assert (done.version, done.before) == ("--to=--help", "127.0.0.1:1")

"""The console in Chromium, in front of a running system: what a person sees, clicks and types there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import quote

import pytest
from msgspec import structs
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from streams.dead_letters.box import OPEN, read_box
from streams.topics import WATCH_EVENTS
from tests.harness.console.browser import View, Visit, chromium, faults, install_axe, visiting
from tests.harness.console.running import RunningConsole, running_console
from tests.harness.gateways import running_gateway
from tests.harness.needs import CHROMIUM, NPM, needs
from tests.harness.service import Size
from tests.harness.system import wait_until, with_section
from tests.harness.traffic import Histories

pytestmark = [needs(CHROMIUM), needs(NPM)]

STRANGE = "a/\"b\" 'c' 😀 100% <i>?&#"  # an id
MARKUP = "<img src=/x onerror=alert(1)><script>alert(2)</script> \"T\" & 'Co'"  # a title
LONG = "\U0001f600W" * 1000  # a title
RENAMED, MARKED, LENGTHY = "v000150", "v000151", "v000152"
BAD = b'{"event_id": "<i>bad</i>", \xc3\xa9' + b"w" * 5000
SIZE = Size(users=100, items=200, watches=3000)
TOKEN = "a-token-of-the-test"
WIDTHS = (360, 1400)
PAGES = {
    "now": "/console",
    "no user": "/console/user",
    "user": "/console/user?user={user}",
    "somebody new": "/console/user?user=nobody-yet",
    "items": "/console/item",
    "found": "/console/item?search=0",
    "item": f"/console/item?item={MARKED}",
    "strange item": f"/console/item?item={quote(STRANGE, safe='')}",
    "long item": f"/console/item?item={LENGTHY}",
    "long items": "/console/item?search=w\U0001f600w",
    "releases": "/console/releases",
    "roll back": "/console/roll-back?version={spare}",
    "no roll back": "/console/roll-back?version={live}",
    "dead letters": "/console/dead-letters",
    "letter": "/console/dead-letter?id={letter}",
    "log in": "/console/login",
}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    with running_console(tmp_path_factory.mktemp("console"), SIZE, releases=2, renamed={RENAMED: STRANGE}) as running:
        for item_id, title in ((MARKED, MARKUP), (LENGTHY, LONG)):
            running.service.traffic.publish(structs.replace(running.items[item_id], title=title))
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return install_axe(tmp_path_factory.mktemp("axe"))


@pytest.fixture
def visit(console: RunningConsole, browser: Browser) -> Iterator[Visit]:
    """A window on the console; nothing may go wrong in it, and it may ask nobody else."""
    with visiting(browser, console.gateway.address, View()) as visit:
        yield visit
        assert visit.complaints == [] and visit.strayed == []


def user_path(user: str, only: str = "") -> str:
    return f"/console/user?user={quote(user, safe='')}&filter={quote(only, safe='')}"


def path_of(path: str, console: RunningConsole) -> str:
    """A page of this system."""
    spare, live = (each.manifest.version for each in console.service.releases.bundles)
    return path.format(user=console.users[0], spare=spare, live=live, letter=letter_of(console))


def letter_of(console: RunningConsole) -> str:
    """The id of a letter that is open, the newest."""
    letters = read_box(console.service.settings.kafka).values()
    return [str(each.place) for each in letters if each.state == OPEN][-1]


def complaints_of(visit: Visit) -> list[str]:
    """What the browser complains of, but that a roll-back is refused."""
    return [each for each in visit.complaints if "status of 409" not in each]


def titles(page: Page, section: str) -> list[str]:
    """The titles in the section of this heading, in their order."""
    found = page.locator("section", has=page.get_by_role("heading", name=section, exact=True))
    return found.locator("td .item").all_inner_texts()


# --- every page -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_and_complains_of_nothing_and_axe_finds_no_serious_fault_light_or_dark(
    width: int, console: RunningConsole, browser: Browser, axe: str
):
    with visiting(browser, console.gateway.address, View(width), bypass_csp=True) as visit:
        found = {}
        for name, path in PAGES.items():
            page = visit.open(path_of(path, console))
            found[name] = [*visit.too_wide(), *faults(page, axe)]
        page = visit.open(user_path(console.users[0]))
        page.get_by_role("button", name="watch this").last.click()
        expect(page.get_by_role("heading", name="Before")).to_be_visible()
        found["watched"] = [*visit.too_wide(), *faults(page, axe)]
    assert not {name: faults for name, faults in found.items() if faults}
    assert complaints_of(visit) == [] and visit.strayed == []


@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
def test_every_page_works_under_its_own_policy_and_without_scripts(path, console: RunningConsole, browser: Browser):
    with visiting(browser, console.gateway.address, View(), java_script_enabled=False) as visit:
        page = visit.open(path_of(path, console))
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.locator("nav a").count() == 5
    assert complaints_of(visit) == [] and visit.strayed == []
    assert {url.removeprefix(visit.address) for url in visit.requests} > {"/console/console.css"}


def test_the_pages_are_of_the_running_system(visit: Visit, console: RunningConsole):
    text = visit.open("/console/releases").locator("main").inner_text()
    assert all(each.manifest.version in text for each in console.service.releases.bundles)
    assert "1 open" in visit.open("/console/dead-letters").locator("main").inner_text()
    now = visit.open("/console/now")
    expect(now.locator(".processes")).to_contain_text("history ready")
    expect(now.locator("figure")).to_have_count(8)


# --- watch this -----------------------------------------------------------------------------------------------------


def test_a_watch_is_in_the_history_and_the_new_list_stands_beside_the_old_one(visit: Visit, console: RunningConsole):
    user = console.users[1]
    page = visit.open(user_path(user))
    before = titles(page, "The list now")
    assert len(before) == 20
    page.get_by_role("button", name="watch this").nth(2).click()
    expect(page.get_by_role("status")).to_contain_text(f"Watched {before[2]}")
    asked_anew = titles(page, "Before")  # two that are nearly as good may change places
    assert len({*asked_anew} & {*before}) >= 18 and titles(page, "After") != before
    assert titles(page, "History")[0] == before[2]
    item = console.items[page.get_by_role("status").locator("small").inner_text()]
    kept = Histories(console.service.settings.kafka)
    history = kept.of(user, lambda history: history.watches[-1].item_id == item.item_id, "the watch")
    kept.close()
    assert history.watches[-1].watch_s == item.duration_s and not history.impressions


def test_a_page_that_is_loaded_again_watches_nothing_twice(visit: Visit, console: RunningConsole):
    page = visit.open(user_path(console.users[2]))
    known = len(titles(page, "History"))
    page.get_by_role("button", name="watch this").first.click()
    expect(page.get_by_role("status")).to_be_visible()
    once = titles(page, "History")
    page.reload()
    expect(page.get_by_role("status")).to_be_visible()
    assert titles(page, "History") == once and len(once) == known + 1


def test_two_consoles_at_once_show_each_its_own_user(console: RunningConsole, browser: Browser):
    users, address = console.users[3:5], console.gateway.address
    with ExitStack() as stack:
        visits = [stack.enter_context(visiting(browser, address, View())) for _ in users]
        pages = [visit.open(user_path(user)) for visit, user in zip(visits, users, strict=True)]
        lists = [titles(page, "The list now") for page in pages]
        for page in pages:  # both are on their way before either is back
            page.get_by_role("button", name="watch this").first.click(no_wait_after=True)
        for page, user, shown in zip(pages, users, lists, strict=True):
            expect(page.get_by_role("status")).to_contain_text(shown[0])
            expect(page.get_by_role("heading", level=1)).to_have_text(f"User {user}")
            before = titles(page, "Before")  # asked for anew: two that are nearly as good may change places
            assert len({*before} & {*shown}) >= len(shown) - 2 and titles(page, "History")[0] == shown[0]
        assert not any(visit.complaints or visit.strayed for visit in visits)


def test_who_has_no_token_reads_and_who_logs_in_watches(console: RunningConsole, browser: Browser):
    settings = with_section(console.service.settings, "gateway", token=SecretStr(TOKEN))
    user = console.users[5]
    with running_gateway(settings) as gateway, visiting(browser, gateway.address, View()) as visit:
        page = visit.open(user_path(user))
        assert titles(page, "The list now") and page.get_by_role("button", name="watch this").count() == 0
        page.get_by_role("link", name="log in to write").click()
        page.get_by_label("gateway.token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Now")
        page = visit.open(user_path(user))
        page.get_by_role("button", name="watch this").first.click()
        expect(page.get_by_role("status")).to_be_visible()
        assert page.get_by_role("link", name="log in to write").count() == 0
        assert visit.complaints == [] and visit.strayed == []


# --- dead letters and releases ----------------------------------------------------------------------------------------


def test_a_letter_is_read_retried_and_dropped(visit: Visit, console: RunningConsole):
    """What is sent again is as bad as it was: it is a new letter, that was tried twice."""
    before = letter_of(console)
    console.service.traffic.send(WATCH_EVENTS, "nobody", BAD)
    wait_until(lambda: letter_of(console) != before, "a letter of it", 30)
    first = letter_of(console)
    page = visit.open("/console/dead-letters")
    page.get_by_role("link", name=first, exact=True).click()
    expect(page.locator("pre")).to_have_text(BAD.decode())
    page.get_by_role("button", name="retry").click()
    expect(page.get_by_role("status")).to_contain_text("was sent again as watch-events/")
    page.reload()
    expect(page.get_by_role("status")).to_contain_text("was sent again before")
    wait_until(lambda: letter_of(console) not in (before, first), "a letter of what was sent again", 30)
    page = visit.open(f"/console/dead-letter?id={letter_of(console)}")
    expect(page.locator("dl")).to_contain_text("2 times")
    expect(page.get_by_role("link", name=first)).to_be_visible()
    page.get_by_role("button", name="drop").click()
    expect(page.get_by_role("status")).to_contain_text("was dropped")
    expect(page.get_by_role("button")).to_have_count(0)
    page.get_by_role("link", name="All open letters").click()
    expect(page.locator("main")).to_contain_text("1 open")


def test_a_release_is_rolled_back_after_it_was_asked_and_once(console: RunningConsole, browser: Browser):
    spare, live = (each.manifest.version for each in console.service.releases.bundles)
    with visiting(browser, console.gateway.address, View()) as visit:
        page = visit.open("/console/releases")
        page.get_by_role("button", name="roll back to this one").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(f"Roll back to {spare}")
        expect(page.locator("main")).to_contain_text(f"{live} is live")
        page.get_by_role("button", name=f"Roll back to {spare}").click(no_wait_after=True)  # it loads torch
        expect(page.get_by_role("status")).to_contain_text(f"{spare} is live in place of {live}", timeout=60_000)
        assert page.get_by_role("alert").count() == 0 and console.service.served() == {spare}
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text(f"release {spare} is live already")
        expect(visit.open(user_path(console.users[0])).locator("main")).to_contain_text(f"release {spare}")
        assert complaints_of(visit) == [] and visit.strayed == []


# --- without a mouse ------------------------------------------------------------------------------------------------


def tab_to(page: Page, words: str, most: int = 80) -> None:
    """Press Tab until what has the focus says this; each stop on the way must show that it has it."""
    for _ in range(most):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => { const has = document.activeElement;
            return [has.getAttribute("aria-label") || has.name || has.textContent, getComputedStyle(has).outlineStyle]
            }"""
        )
        assert outline != "none", f"{name} does not show the focus"
        if words in name:
            return
    raise AssertionError(f"Tab does not lead to {words}")


def test_all_of_it_can_be_done_with_the_keyboard(visit: Visit, console: RunningConsole):
    user = console.users[6]
    page = visit.open("/console")
    tab_to(page, "User")
    page.keyboard.press("Enter")
    expect(page.get_by_label("User")).to_be_focused()
    page.keyboard.type(user)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"User {user}")
    tab_to(page, "watch this")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Watched")
    tab_to(page, "Item")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Title or id")).to_be_focused()
    page.keyboard.type("#42")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Items with")
    tab_to(page, "#42")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("#42")


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_title_with_markup_is_words(visit: Visit):
    page = visit.open(f"/console/item?item={MARKED}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(MARKUP)
    assert page.locator("main img, main script").count() == 0
    page.get_by_label("Title or id").fill("<script>")
    page.keyboard.press("Enter")
    page.get_by_role("link", name=MARKUP).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(MARKUP)


def test_a_strange_id_is_found_shown_and_watched_by_a_strange_user(visit: Visit, console: RunningConsole):
    item = console.items[STRANGE]
    page = visit.open("/console/item")
    page.get_by_label("Title or id").fill(STRANGE)
    page.keyboard.press("Enter")
    page.get_by_role("link", name=item.title).click()
    assert page.locator("h1 small").inner_text() == STRANGE
    expect(page.get_by_role("heading", name="Neighbours in the live release")).to_be_visible()
    page = visit.open(user_path(STRANGE, f'channel == "{item.channel}"'))
    expect(page.get_by_role("heading", level=1)).to_have_text(f"User {STRANGE}")
    page.get_by_role("button", name=f"watch this: {item.title}").click()
    expect(page.get_by_role("status")).to_contain_text(STRANGE)
    assert titles(page, "History") == [item.title]
    assert page.get_by_label("User").input_value() == STRANGE


def test_a_filter_that_is_wrong_is_told_and_kept(console: RunningConsole, browser: Browser):
    wrong = "channel << '<b>'"
    with visiting(browser, console.gateway.address, View()) as visit:
        page = visit.open(user_path(console.users[0], wrong))
        expect(page.get_by_role("alert")).to_contain_text("character")
        assert page.get_by_label("Filter").input_value() == wrong

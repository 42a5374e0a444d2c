"""The pages as a browser gets them: what they show, that it is escaped, and who may write."""

import asyncio
import re
from html import unescape
from urllib.parse import quote

import pytest
from markupsafe import escape
from msgspec.structs import replace

from indexer.errors import IndexFailure
from infra.console import pages
from infra.console.catalogue import Catalogue
from infra.console.neighbours import Neighbour
from nextwatch_client import RecommendReply, Signal
from streams.messages import Item, WatchEvent, decode
from tests.unit.infra.console.consoles import HERE, TOKEN, know_catalogue, run

MARKUP = "<script>alert('1')</script>\"&"
STRANGE = ["a/b", "a//b/", "with space", "\"quotes'", "emoji \U0001f600", "..", "a?b#c", "100%", "a&b=c+d"]
STRANGE_ITEM = Item(MARKUP, "of a strange id")
PAGES = ("/console", "/console/now", "/console/user", "/console/item", "/console/login")


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    monkeypatch.setattr(pages, "read_neighbours", lambda settings, item: [Neighbour("b", 0.91)])
    return know_catalogue(monkeypatch, Item("a", MARKUP, channel="cats", duration_s=42.0), Item("b", "B"), STRANGE_ITEM)


def form_of(page: str, item: str) -> dict[str, str]:
    """The fields of the form `watch this` of an item."""
    forms = re.findall(r'<form method="post".*?</form>', page, re.DOTALL)
    fields = [dict(re.findall(r'name="(\w+)" value="([^"]*)"', form)) for form in forms]
    return next(each for each in fields if each["item"] == item)


def test_a_user_is_shown_with_history_lists_and_why():
    page = run(lambda ask: ask("GET", "/console/user?user=ann"))[1]
    for word in ("old", "shown-item", "fits what this user watched", "30", "1.5", "release v1", "completed"):
        assert word in page


def test_what_a_user_has_said_of_items_and_channels_is_shown():
    async def scene(ask):
        said = (Signal("dislike", "bad-item", None, 1, "s1", 0), Signal("not_interested", None, "<cats>", 2, "s2", 1))
        ask.servers.of = replace(ask.servers.of, signals=said)
        return await ask("GET", "/console/user?user=ann")

    page = run(scene)[1]
    assert "not interested channel &lt;cats&gt;" in page and re.search(r"dislike <a [^>]*item=bad-item", page)


def test_looking_leaves_no_impression():
    async def scene(ask):
        form = form_of((await ask("GET", "/console/user?user=ann"))[1], "a")
        await ask("POST", "/console/watch", data=form, headers=HERE)
        return ask.servers.asked

    asked = run(scene)
    assert len(asked) >= 5 and not any(each.record for each in asked)


@pytest.mark.parametrize("user", STRANGE)
def test_a_user_may_have_any_id_in_the_page_and_in_its_path(user):
    async def scene(ask):
        status, page = await ask("GET", f"/console/user?user={quote(user, safe='')}")
        form = {name: unescape(value) for name, value in form_of(page, "a").items()}
        watched = await ask("POST", "/console/watch", data=form, headers=HERE)
        return status, page, watched, ask.servers.asked, decode(WatchEvent, ask.brokers.sent[0].value)

    status, page, (watched_status, watched), asked, event = run(scene)
    assert status == watched_status == 200 and {each.user_id for each in asked} == {event.user_id} == {user}
    assert f"<h1>User {escape(user)}</h1>" in page and f"<h1>User {escape(user)}</h1>" in watched


@pytest.mark.parametrize("letter", ["W", "\U0001f600"])
def test_a_title_of_two_thousand_letters_is_cut_in_sight_and_whole_on_its_own_page_once(letter, monkeypatch):
    """In UTF-8 that is up to 8 kB; a longer one is refused as a message."""
    title = letter * 2000
    know_catalogue(monkeypatch, *(Item(item_id, title) for item_id in "abc"))
    for path, times in (("/console/user?user=ann", 0), ("/console/item?search=a", 0), ("/console/item?item=a", 1)):
        status, page = run(lambda ask, path=path: ask("GET", path))
        assert status == 200 and page.count(title) == page.count(f'title="{title}"') == times, path
        seen = re.sub(r'title="[^"]*"', "", page)
        assert max(map(len, re.findall(rf"{letter}+", seen))) == 119 and f"{letter}…" in seen, path


@pytest.mark.parametrize("path", ["/console/user?user={}", "/console/item?item={}", "/console/item?search={}"])
def test_what_was_typed_is_cut_in_sight_however_long_it_is(path):
    status, page = run(lambda ask: ask("GET", path.format("w" * 10_000)))
    assert status in (200, 400) and max(map(len, re.findall("w+", re.sub(r'value="w+"', "", page)))) < 1000


@pytest.mark.parametrize("path", ["/console/user?user=ann", "/console/item?search=script", "/console/item?item=a"])
def test_a_title_with_markup_is_shown_as_text(path):
    page = run(lambda ask: ask("GET", path))[1]
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;&amp;" in page and "<script" not in page


def test_ids_with_markup_are_text_and_links_that_lead_back():
    async def scene(ask):
        ask.servers.ids = [MARKUP]
        user = await ask("GET", f"/console/user?user={quote(MARKUP)}&filter={quote(MARKUP)}")
        [link] = set(re.findall(r'href="(/console/item\?item=%3C[^"]*)"', user[1]))
        return user[1], (await ask("GET", link.replace("&amp;", "&")))[1], ask.servers.asked[-1]

    user, item, asked = run(scene)
    assert "<script" not in user + item and "of a strange id" in item
    assert (asked.user_id, asked.filter) == (MARKUP, MARKUP)


def test_an_item_is_shown_with_its_state_and_its_neighbours():
    page = run(lambda ask: ask("GET", "/console/item?item=a"))[1]
    for word in ("available", "cats", "42", "0.91", 'href="/console/item?item=b"'):
        assert word in page


def test_without_an_index_an_item_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch):
    def fail(settings, item):
        raise IndexFailure("Milvus does not answer")

    monkeypatch.setattr(pages, "read_neighbours", fail)
    status, page = run(lambda ask: ask("GET", "/console/item?item=a"))
    assert status == 200 and "Milvus does not answer" in page and "cats" in page


def test_a_filter_that_is_refused_is_told_with_the_servers_words():
    async def scene(ask):
        ask.servers.reply = RecommendReply("r", error="filter: unexpected '<' at character 12")
        return await ask("GET", "/console/user?user=ann&filter=x")

    status, page = run(scene)
    assert status == 400 and "unexpected &#39;&lt;&#39; at character 12" in page


def test_a_watch_is_sent_and_the_new_list_stands_beside_the_old_one():
    async def scene(ask):
        before = (await ask("GET", "/console/user?user=ann"))[1]
        reply = await ask.http.post("/console/watch", data=form_of(before, "a"), headers=HERE)
        return reply.status_code, reply.text, ask.brokers.sent

    status, page, [sent] = run(scene)
    event = decode(WatchEvent, sent.value)
    assert (event.user_id, event.item_id, event.watch_s, event.duration_s) == ("ann", "a", 42.0, 42.0)
    assert status == 200 and "Before" in page and "After" in page
    assert "up 1" in page and ">new<" in page and "No longer in the list" in page


def test_a_page_that_is_loaded_again_sends_the_same_event():
    async def scene(ask):
        form = form_of((await ask("GET", "/console/user?user=ann"))[1], "a")
        for _ in range(2):
            await ask.http.post("/console/watch", data=form, headers=HERE)
        return [decode(WatchEvent, record.value).event_id for record in ask.brokers.sent]

    first, second = run(scene)
    assert first == second


def test_a_watch_that_the_brokers_do_not_take_is_told():
    async def scene(ask):
        ask.brokers.refused[b"ann"] = "not acknowledged within 5 s"
        form = {"user": "ann", "item": "a", "event_id": "e"}
        return await ask("POST", "/console/watch", data=form, headers=HERE)

    status, page = run(scene)
    assert status == 503 and "not acknowledged" in page


@pytest.mark.parametrize("form", [{"user": "ann", "item": "a"}, {"user": "", "item": "a", "event_id": "e"}, {}])
def test_a_form_that_holds_no_watch_sends_nothing(form):
    async def scene(ask):
        return (await ask("POST", "/console/watch", data=form, headers=HERE))[0], ask.brokers.sent

    assert run(scene) == (400, [])


def test_two_readers_see_what_each_has_asked_for():
    async def scene(ask):
        return await asyncio.gather(*(ask("GET", f"/console/user?user=user-{number}") for number in range(10)))

    for number, (status, page) in enumerate(run(scene)):
        assert status == 200 and f'value="user-{number}"' in page


def test_every_page_loads_nothing_from_elsewhere_and_runs_no_script():
    async def scene(ask):
        return [await ask.http.get(path) for path in (*PAGES, "/console/console.css", "/console/icon.svg")]

    for reply in run(scene):
        assert reply.status_code == 200
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy
        text = reply.text.replace('xmlns="http://www.w3.org/2000/svg"', "")  # the name of a language, never fetched
        assert not re.search(r"(?:src|href)=\"(?!/console)|://|<script| style=", text)


def test_a_browser_names_its_origin_to_us_and_to_nobody_else():
    """Under `no-referrer` it calls the origin of our own forms "null", and we would refuse them."""

    async def scene(ask):
        form = {"user": "ann", "item": "a", "event_id": "e"}
        watched = await ask.http.post("/console/watch", data=form, headers=HERE)
        return [watched, *[await ask.http.get(path) for path in PAGES]]

    assert {reply.headers["referrer-policy"] for reply in run(scene)} == {"same-origin"}


# --- who may ------------------------------------------------------------------------------------------------------


def test_reading_is_free_on_loopback_and_writing_takes_the_token():
    async def scene(ask):
        page = await ask("GET", "/console/user?user=ann")
        form = {"user": "ann", "item": "a", "event_id": "e"}
        return page, (await ask("POST", "/console/watch", data=form, headers=HERE))[0], ask.brokers.sent

    (status, page), written, sent = run(scene, TOKEN)
    assert status == 200 and "watch this" not in page and "log in to write" in page
    assert written == 303 and not sent, "it is sent to log in"


@pytest.mark.parametrize("headers", [{"X-Forwarded-For": "10.0.0.1"}, {"Host": "console.example.org"}])
def test_behind_a_proxy_reading_is_not_free(headers):
    assert run(lambda ask: ask("GET", "/console/user?user=ann", headers=headers), TOKEN)[0] == 303


def test_beyond_loopback_reading_takes_the_token():
    assert run(lambda ask: ask("GET", "/console/now"), TOKEN)[0] == 200

    async def scene(ask):
        object.__setattr__(ask.services.rules, "is_local", False)
        return (await ask("GET", "/console/now"))[0], (await ask("GET", "/console/login"))[0]

    assert run(scene, TOKEN) == (303, 200)


def test_who_logs_in_may_write_until_the_token_changes():
    async def scene(ask):
        wrong = await ask.http.post("/console/login", data={"token": "guess"}, headers=HERE)
        right = await ask.http.post("/console/login", data={"token": TOKEN}, headers=HERE)
        form = {"user": "ann", "item": "a", "event_id": "e"}
        written = await ask("POST", "/console/watch", data=form, headers=HERE)
        return wrong, right, written[0], len(ask.brokers.sent)

    wrong, right, written, sent = run(scene, TOKEN)
    cookie = right.headers["set-cookie"]
    assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
    assert right.status_code == 303 and right.headers["location"] == "/console/now"
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/console" in cookie and TOKEN not in cookie
    assert (written, sent) == (200, 1)


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
@pytest.mark.parametrize("token", ["", TOKEN])
def test_another_site_cannot_write_with_our_readers_cookie(headers, token):
    async def scene(ask):
        await ask.http.post("/console/login", data={"token": token}, headers=HERE)
        form = {"user": "ann", "item": "a", "event_id": "e"}
        return (await ask("POST", "/console/watch", data=form, headers=headers))[0], ask.brokers.sent

    assert run(scene, token) == (403, [])

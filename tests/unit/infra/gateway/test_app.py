"""What each page answers, and with which status what goes wrong is told."""

import asyncio
import time
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from infra.gateway import routes
from infra.operate.forget_users import ForgetReport
from nextwatch_client import (
    Context,
    Recommended,
    RecommendReply,
    RequestFailed,
    RequestTimeout,
    Signal,
    UserHistory,
    Watch,
)
from streams.messages import Item, WatchEvent, encode
from streams.topics import ITEMS, SEARCH_EVENTS, SIGNALS, WATCH_EVENTS, partition_of
from tests.unit.infra.gateway.gateways import gateway

TOKEN = "s3cret-token"
STRANGE = ["a/b", "a//b/", "with space", "\"quotes'", "emoji 😀", "..", "a?b#c", "100%", "?token"]


def watch(**change):
    return {"event_id": "e", "user_id": "ann", "item_id": "v", "event_ms": 1000, "watch_s": 3.0} | change


def run(scene, token="", **settings):
    async def play():
        async with gateway(token, **settings) as ask:
            return await scene(ask)

    return asyncio.run(play())


def test_a_list_is_asked_for_as_any_client_asks():
    async def scene(ask):
        ask.servers.reply = RecommendReply("r", items=(Recommended("v", 1, "trending"),), version="v1")
        query = "k=3&filter=duration_s+%3C+600&exclude=a&exclude=b&pinned=c&record=false&region=de"
        found = await ask("GET", f"/recommend/ann?{query}")
        return found, ask.servers.asked

    (status, reply), [asked] = run(scene, deadline_s=2.0)
    assert status == 200 and reply["items"] == [{"item_id": "v", "rank": 1, "source": "trending"}]
    assert (asked.user_id, asked.k, asked.filter, asked.exclude) == ("ann", 3, "duration_s < 600", ("a", "b"))
    assert (asked.pinned, asked.record, asked.context) == (("c",), False, Context(region="de"))
    assert asked.deadline_ms == 2000


def test_a_request_goes_on_in_the_trace_that_it_came_in():
    async def scene(ask):
        await ask.http.get("/recommend/ann", headers={"traceparent": "00-a-b-01"})
        await ask.http.get("/recommend/ann")
        return ask.servers.traces

    assert run(scene) == ["00-a-b-01", ""]


@pytest.mark.parametrize("user", STRANGE)
def test_a_user_may_have_any_id(user):
    async def scene(ask):
        status, _ = await ask("GET", f"/recommend/{quote(user, safe='').replace('.', '%2E')}")
        return status, ask.servers.asked[0].user_id

    assert run(scene) == (200, user)


@pytest.mark.parametrize("query", ["k=0", "k=three", "kk=3", "k=1001", "record=perhaps", f"region={'x' * 2001}"])
def test_a_request_that_cannot_be_used_is_told_why_and_goes_nowhere(query):
    async def scene(ask):
        return await ask("GET", f"/recommend/ann?{query}"), ask.servers.asked

    (status, reply), asked = run(scene)
    assert status == 400 and len(reply["error"]) > 5 and not asked


@pytest.mark.parametrize(
    ("outcome", "status", "says"),
    [
        (RecommendReply("r", error="filter: unknown field 'x' at character 1"), 400, "at character 1"),
        (RecommendReply("r", error="internal error: KeyError"), 503, "its log"),
        (RequestTimeout("no reply within 5 s"), 503, "no reply within"),
        (RequestFailed("the request could not be sent"), 503, "could not be sent"),
        (KeyError("a bug"), 500, "internal error"),
    ],
    ids=["refused", "a bug of a server", "no reply", "not sent", "a bug of ours"],
)
def test_what_goes_wrong_behind_the_gateway(outcome, status, says):
    async def scene(ask):
        ask.servers.reply = outcome
        return await ask.http.get("/recommend/secret-ann")

    with capture_logs() as logs:
        reply = run(scene)
    assert reply.status_code == status and says in reply.json()["error"]
    assert ("retry-after" in reply.headers) == (status == 503)
    assert "secret-ann" not in str([{**line, "exc_info": ""} for line in logs])
    assert bool(logs) == (status == 500)


def test_watches_are_202_once_the_brokers_have_acknowledged_all():
    async def scene(ask):
        return await ask("POST", "/watches", json=[watch(), watch(event_id="f", user_id="bob")]), ask.brokers.sent

    (status, reply), sent = run(scene)
    assert status == 202 and reply == {"accepted": 2, "problems": []}
    assert [(each.topic, each.key, each.partition) for each in sent] == [
        (WATCH_EVENTS, user.encode(), partition_of(user, 4)) for user in ("ann", "bob")
    ]
    assert sent[0].value == encode(WatchEvent("e", "ann", "v", 1000, 3.0))


def test_of_a_body_with_a_wrong_event_the_others_are_taken():
    async def scene(ask):
        body = [watch(), watch(event_id="f", watch_s=-1)]
        return await ask("POST", "/watches", json=body), len(ask.brokers.sent)

    (status, reply), sent = run(scene)
    assert (status, sent, reply["accepted"]) == (207, 1, 1)
    [problem] = reply["problems"]
    assert (problem["index"], problem["event_id"], problem["code"]) == (1, "f", "invalid")


def test_what_the_brokers_do_not_take_is_told_event_by_event():
    async def scene(ask):
        ask.brokers.refused[b"bob"] = "not acknowledged within 5 s"
        return await ask.http.post("/watches", json=[watch(), watch(event_id="f", user_id="bob")])

    reply = run(scene)
    assert reply.status_code == 503 and reply.headers["retry-after"]
    [problem] = reply.json()["problems"]
    assert reply.json()["accepted"] == 1 and (problem["index"], problem["code"]) == (1, "unacknowledged")


def test_a_watch_of_the_far_future_is_refused_as_the_streams_would():
    async def scene(ask):
        return await ask("POST", "/watches", json=watch(event_ms=time.time_ns() // 1_000_000 + 10_000_000))

    status, reply = run(scene)
    assert status == 400 and reply["problems"][0]["code"] == "future"


def test_searches_go_to_their_topic():
    async def scene(ask):
        search = {"event_id": "s", "user_id": "ann", "query": "cats", "event_ms": 1000}
        return await ask("POST", "/searches", json=search), ask.brokers.sent

    (status, _), [sent] = run(scene)
    assert (status, sent.topic, sent.key) == (202, SEARCH_EVENTS, b"ann")


def test_signals_go_to_their_topic_and_one_about_nothing_is_refused():
    async def scene(ask):
        good = {"event_id": "s", "user_id": "ann", "kind": "dislike", "item_id": "v", "event_ms": 1000}
        body = [good, good | {"event_id": "about-nothing", "item_id": None}]
        return await ask("POST", "/signals", json=body), ask.brokers.sent

    (status, reply), [sent] = run(scene)
    assert (status, sent.topic, sent.key) == (207, SIGNALS, b"ann")
    assert [problem["event_id"] for problem in reply["problems"]] == ["about-nothing"]


def test_who_has_only_said_what_to_leave_out_has_a_history():
    async def scene(ask):
        said = Signal("dislike", "v", None, 1, "s", 0)
        ask.servers.reply = RecommendReply("r", history=UserHistory("ann", signals=(said,)))
        return await ask("GET", "/history/ann")

    status, reply = run(scene)
    assert status == 200 and reply["signals"] == [["dislike", "v", None, 1, "s", 0]]


def test_an_item_is_put_and_taken_down():
    async def scene(ask):
        told = [await ask("PUT", "/items/a%2Fb", json={"title": "T"}), await ask("DELETE", "/items/a%2Fb")]
        return told, ask.brokers.sent

    told, sent = run(scene)
    assert [status for status, _ in told] == [202, 202]
    assert [(each.topic, each.key, each.value) for each in sent] == [
        (ITEMS, b"a/b", encode(Item("a/b", "T"))),
        (ITEMS, b"a/b", None),
    ]


def test_an_item_that_is_not_acknowledged_is_503():
    async def scene(ask):
        ask.brokers.refused[b"a"] = "not acknowledged within 5 s"
        return await ask("PUT", "/items/a", json={})

    assert run(scene)[0] == 503


def test_a_history_is_asked_of_the_server_that_has_it():
    async def scene(ask):
        ask.servers.reply = RecommendReply("r", history=UserHistory("ann", (Watch("v", 1, 2.0, None, True, "e", 0),)))
        return await ask("GET", "/history/ann"), ask.servers.asked

    (status, reply), [asked] = run(scene)
    assert status == 200 and reply["watches"] == [["v", 1, 2.0, None, True, "e", 0]]
    assert asked.history and not asked.record


def test_of_whom_nothing_is_known_there_is_no_history():
    async def scene(ask):
        ask.servers.reply = RecommendReply("r", history=UserHistory("ann"))
        nothing = await ask("GET", "/history/ann")
        ask.servers.reply = RecommendReply("r")
        return nothing, await ask("GET", "/history/ann")

    nothing, older = run(scene)
    assert nothing[0] == 404 and older[0] == 503, "a server of before tells no histories"


def test_one_user_after_the_other_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def forget(settings, users, *, wait_s, held):
        time.sleep(0.2)
        asked.append((users, wait_s, held))
        return ForgetReport(len(users), 1, ["history/1"])

    async def scene(ask):
        return await asyncio.gather(*(ask("POST", f"/forget/{user}") for user in ("a%2Fb", "bob")))

    monkeypatch.setattr(routes, "forget_users", forget)
    first, second = run(scene, deadline_s=3.0)
    assert first[0] == 200 and first[1]["waiting_for"] == ["history/1"]
    assert second[0] == 429 and asked == [(["a/b"], 3.0, False)]


def test_a_body_that_is_too_large_is_not_taken():
    async def scene(ask):
        return await ask("POST", "/watches", content=b"x" * 1001), ask.brokers.sent

    (status, reply), sent = run(scene, max_body_bytes=1000)
    assert status == 413 and "gateway.max_body_bytes" in reply["error"] and not sent


def test_a_body_that_does_not_come_is_not_waited_for():
    async def scene(ask):
        async def dawdling():
            yield b"["
            await asyncio.sleep(5)
            yield b"]"

        return await ask("POST", "/watches", content=dawdling())

    assert run(scene, deadline_s=0.1)[0] == 408


def test_ten_thousand_watches_in_one_body_are_taken():
    async def scene(ask):
        body = [watch(event_id=f"e{number}") for number in range(10_000)]
        return await ask("POST", "/watches", json=body), len(ask.brokers.sent)

    assert run(scene) == ((202, {"accepted": 10_000, "problems": []}), 10_000)


def test_more_requests_than_set_are_told_to_come_again():
    async def scene(ask):
        ask.servers.wait_s = 0.2
        replies = await asyncio.gather(*(ask.http.get("/recommend/ann") for _ in range(3)))
        return sorted((each.status_code, each.headers.get("retry-after")) for each in replies), await ask(
            "GET", "/recommend/ann"
        )

    replies, after = run(scene, requests=2)
    assert replies == [(200, None), (200, None), (429, "1")] and after[0] == 200


def test_health_is_told_to_all_and_its_details_to_who_shows_the_token():
    async def scene(ask):
        ask.services.health.detail["gateway"] = "http://127.0.0.1:8080"
        stranger = await ask("GET", "/health")
        friend = await ask("GET", "/health", headers={"Authorization": f"Bearer {TOKEN}"})
        ask.services.health.ready = False
        return stranger, friend, (await ask("GET", "/health/ready"))[0], (await ask("GET", "/health/live"))[0]

    stranger, friend, ready, live = run(scene, TOKEN)
    assert stranger == (200, {"live": True, "ready": True})
    assert friend[1]["gateway"] == "http://127.0.0.1:8080"
    assert (ready, live) == (503, 200)


def test_without_the_token_nothing_is_read_or_sent():
    async def scene(ask):
        asks = [("GET", "/recommend/ann"), ("POST", "/watches"), ("DELETE", "/items/a"), ("GET", "/metrics")]
        asks += [("GET", "/history/ann"), ("POST", "/forget/ann"), ("GET", "/nowhere")]
        return [(await ask.http.request(*each)) for each in asks], ask.servers.asked, ask.brokers.sent

    replies, asked, sent = run(scene, TOKEN)
    assert {reply.status_code for reply in replies} == {401} and not asked and not sent
    assert all(reply.headers["www-authenticate"] == "Bearer" for reply in replies)


def test_metrics_count_requests_by_page_and_status_and_name_no_user():
    async def scene(ask):
        await ask("GET", "/recommend/secret-ann")
        await ask("GET", "/secret-page")
        return await ask("GET", "/metrics")

    status, page = run(scene)
    assert status == 200 and "secret" not in page
    assert 'nextwatch_gateway_requests_total{route="recommend",status="200"}' in page
    assert 'nextwatch_gateway_requests_total{route="other",status="404"}' in page


def test_no_other_origin_is_allowed_and_pages_may_load_nothing_from_elsewhere():
    async def scene(ask):
        options = await ask.http.options("/recommend/ann", headers={"Access-Control-Request-Method": "GET"})
        return options, await ask.http.get("/docs"), await ask.http.get("/page.css")

    options, page, style = run(scene)
    assert not [name for name in options.headers if name.startswith("access-control")]
    assert "default-src 'none'" in page.headers["content-security-policy"] and style.status_code == 200
    assert "://" not in page.text and "<script" not in page.text


def test_openapi_describes_every_page_with_its_body():
    async def scene(ask):
        return await ask("GET", "/openapi.json")

    status, document = run(scene)
    assert status == 200
    assert set(document["paths"]) == {
        *("/recommend/{user}", "/watches", "/searches", "/signals"),
        *("/items/{item}", "/history/{user}", "/forget/{user}"),
        *("/health", "/health/live", "/health/ready", "/metrics"),
    }
    body = document["paths"]["/watches"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["oneOf"][0] == {"$ref": "#/components/schemas/WatchEvent"}
    assert {"event_id", "user_id", "item_id"} <= set(document["components"]["schemas"]["WatchEvent"]["required"])

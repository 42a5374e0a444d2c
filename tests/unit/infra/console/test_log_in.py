"""How often a wrong token may be shown, and that a right one is taken after the wait."""

import asyncio
import logging

import pytest
from structlog.testing import capture_logs

from infra.console import log_in
from infra.console.log_in import LogInLimit
from tests.unit.infra.console.consoles import HERE, TOKEN, console, know_catalogue, run


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    know_catalogue(monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the way in sees it."""
    now_s = [1000.0]
    monkeypatch.setattr(log_in.time, "monotonic", lambda: now_s[0])
    return now_s


# --- the limit itself -------------------------------------------------------------------------------------------------


def test_after_five_wrong_tokens_in_a_minute_an_address_waits_until_the_first_is_a_minute_old():
    limit = LogInLimit()
    for now_s in (0.0, 10.0, 20.0, 30.0, 40.0):
        assert limit.wait_s("a", now_s) == 0
        limit.note_wrong("a", now_s)
    assert limit.wait_s("a", 40.0) == 20.0 and limit.wait_s("a", 59.0) == 1.0
    assert limit.wait_s("b", 40.0) == 0, "others do not wait"
    assert limit.wait_s("a", 60.0) == 0
    limit.note_wrong("a", 60.0)
    assert limit.wait_s("a", 61.0) == 9.0, "the second of the five is next"


def test_after_twenty_in_all_everybody_waits_and_who_goes_on_makes_nobody_wait_longer():
    limit = LogInLimit()
    for number in range(20):
        assert limit.wait_s(f"a{number}", float(number)) == 0
        limit.note_wrong(f"a{number}", float(number))
    assert limit.wait_s("somebody else", 20.0) == 40.0
    assert limit.wait_s("somebody else", 60.0) == 0, "the first is forgotten"


def test_four_wrong_tokens_a_minute_are_never_held():
    limit = LogInLimit()
    for number in range(1000):
        assert limit.wait_s("a", 15.0 * number) == 0
        limit.note_wrong("a", 15.0 * number)


# --- on the page ------------------------------------------------------------------------------------------------------


async def log_in_with(ask, token: str):
    return await ask.http.post("/console/login", data={"token": token}, headers=HERE)


def test_too_many_wrong_tokens_are_429_with_the_seconds_to_wait_and_the_right_one_works_after_them(clock):
    async def scene(ask):
        wrong = [await log_in_with(ask, f"guess-{number}") for number in range(5)]
        clock[0] += 0.5
        held = [await log_in_with(ask, token) for token in ("guess-6", TOKEN)]
        clock[0] += int(held[1].headers["retry-after"])
        return wrong, held, await log_in_with(ask, TOKEN)

    wrong, held, right = run(scene, TOKEN)
    assert [each.status_code for each in wrong] == [401] * 5
    assert [each.status_code for each in held] == [429] * 2 and "set-cookie" not in held[1].headers
    assert held[1].headers["retry-after"] == "60" and "none is looked at for 60 s" in held[1].text
    assert right.status_code == 303 and "set-cookie" in right.headers


def test_of_many_attempts_at_once_no_more_are_looked_at(clock):
    async def scene(ask):
        replies = await asyncio.gather(*(log_in_with(ask, f"guess-{number}") for number in range(30)))
        return sorted(each.status_code for each in replies)

    assert run(scene, TOKEN) == [401] * 5 + [429] * 25


def test_a_header_that_names_another_address_helps_nobody(clock):
    async def scene(ask):
        for number in range(6):
            headers = HERE | {"X-Forwarded-For": f"10.0.0.{number}", "Forwarded": f"for=10.0.0.{number}"}
            last = await ask.http.post("/console/login", data={"token": "guess"}, headers=headers)
        return last.status_code

    assert run(scene, TOKEN) == 429


def test_who_is_logged_in_stays_so_while_others_guess(clock):
    async def scene(ask):
        await log_in_with(ask, TOKEN)
        held = [(await log_in_with(ask, "guess")).status_code for _ in range(6)][-1]
        form = {"user": "ann", "item": "a", "event_id": "e"}
        return held, (await ask("POST", "/console/watch", data=form, headers=HERE))[0]

    assert run(scene, TOKEN) == (429, 200)


def test_another_sites_page_cannot_use_a_readers_attempts_up(clock):
    async def scene(ask):
        for _ in range(10):
            await ask.http.post("/console/login", data={"token": "guess"}, headers={"Origin": "https://evil.example"})
        return (await log_in_with(ask, TOKEN)).status_code

    assert run(scene, TOKEN) == 303


def test_of_a_token_nothing_is_logged_told_or_measured(clock, caplog, capfd):
    async def scene(ask):
        replies = [await log_in_with(ask, token) for token in ("a-wrong-guess", TOKEN)]
        for path in ("/console/login?token=a-wrong-guess", f"/console/user?user={TOKEN}", f"/console/{TOKEN}"):
            replies.append(await ask.http.get(path, headers=HERE))
        return replies, await ask("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})

    with capture_logs() as logs, caplog.at_level(logging.DEBUG):
        replies, (_, metrics) = run(scene, TOKEN)
    assert [each.status_code for each in replies] == [401, 303, 400, 400, 400]
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    told = [str(logs), str(ours), *capfd.readouterr(), *(each.text + str(each.headers) for each in replies), metrics]
    assert not [text for text in told if TOKEN in text or "a-wrong-guess" in text]


def test_from_each_address_there_are_attempts_until_there_are_twenty_in_all(clock, monkeypatch):
    """Addresses of one console: they share the limit, which is made anew with the console's pages."""
    limit = LogInLimit()
    monkeypatch.setattr("infra.console.pages.LogInLimit", lambda: limit)

    async def scene():
        statuses = []
        for number in range(5):
            async with console(TOKEN, address=f"192.0.2.{number}") as ask:
                statuses += [(await log_in_with(ask, "guess")).status_code for _ in range(6)]
        return statuses

    assert asyncio.run(scene()) == ([401] * 5 + [429]) * 4 + [429] * 6

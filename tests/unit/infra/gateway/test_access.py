"""Who is let in: decided from a request's head."""

import pytest

from infra.gateway.access import AccessRules, Head, require_token_beyond_loopback
from infra.platform.settings import Gateway, SettingsError

TOKEN = "s3cret-token"
LOCAL = {"host": "127.0.0.1:8080"}


def status(rules: AccessRules, path: str = "/recommend/ann", query: str = "", **headers: str) -> int:
    """That of the refusal; 200 for who is let in."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    refusal = rules.refuse(Head("GET", path, query, LOCAL | told))
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer  {TOKEN}"}, 200),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": "Bearer s3cret-toke"}, 401),
        ({"authorization": "Bearer é"}, 401),
        ({"host": "gateway.example.org", "authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_with_a_token_only_who_shows_it_is_let_in(shown: dict[str, str], expected: int):
    assert status(AccessRules(TOKEN), **shown) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"host": "localhost:9"}, 200),
        ({"host": "[::1]:9"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8080"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
    ],
)
def test_without_a_token_a_browser_is_let_in_by_our_own_pages_only(headers: dict[str, str], expected: int):
    assert status(AccessRules(), **headers) == expected


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/health", "token=x"),
        ("/recommend/ann", "k=3&Access_Token="),
        ("/recommend/ann", f"x={TOKEN}"),
        ("/recommend/ann", "x=s3cret%2Dtoken"),
        (f"/history/{TOKEN}", ""),
    ],
)
def test_a_token_in_a_url_is_refused_whoever_shows_it(path: str, query: str):
    assert status(AccessRules(TOKEN), path, query, authorization=f"Bearer {TOKEN}") == 400


def test_health_and_the_description_are_open_to_all():
    assert status(AccessRules(TOKEN), "/docs") == status(AccessRules(TOKEN), "/openapi.json") == 200
    assert status(AccessRules(TOKEN), "/health/ready") == 200
    assert status(AccessRules(), "/health", host="evil.example") == 200
    assert status(AccessRules(TOKEN), "/healthy") == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "gateway.example.org", "::", ""])
def test_beyond_loopback_it_does_not_start_without_a_token(host: str):
    with pytest.raises(SettingsError, match="NEXTWATCH_GATEWAY__TOKEN"):
        require_token_beyond_loopback(Gateway(host=host))
    require_token_beyond_loopback(Gateway(host=host, token=TOKEN))


def test_on_loopback_it_starts_without_one():
    for host in ("127.0.0.1", "::1", "localhost"):
        require_token_beyond_loopback(Gateway(host=host))


def test_the_token_is_not_printed():
    assert TOKEN not in repr(AccessRules(TOKEN))

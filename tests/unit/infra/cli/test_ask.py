"""`nextwatch recommend`, as a person asks."""

from __future__ import annotations

from infra.platform.settings import Settings
from streams.topics import create_topics
from tests.unit.clients.responder import responding
from tests.unit.infra.command import commands


def test_exclusions_and_a_filter_travel_with_the_request(kafka_settings: Settings, monkeypatch, capsys):
    create_topics(kafka_settings.kafka)
    run = commands(monkeypatch, capsys, "recommend", "ann", settings=kafka_settings)
    with responding(kafka_settings.kafka) as seen:
        done = run("-k", "3", "--exclude", "a", "--exclude", "b", "--filter", "duration_s < 600", "--json")
    assert done.code == 0, done.err
    [(_, request)] = seen
    assert (request.k, request.exclude, request.filter) == (3, ("a", "b"), "duration_s < 600")

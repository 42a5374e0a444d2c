"""What `nextwatch topics` shows of topics that are to be ingested, without a broker."""

from pathlib import Path

import pytest
import typer

from infra.cli import ingest
from infra.platform.settings import Settings, SettingsError
from streams.ingest.sample import Sampled

MAPPING = '[[ingest.topics]]\ntopic = "videos"\nbecomes = "items"\nfields = { item_id = "id" }\n'
ROWS = [
    Sampled("plays", 0, 7, "sent", "watch-events", {"user_id": "u", "event_ms": 1_700_000}),
    Sampled("plays", 0, 8, "refused", reason="user_id: nothing at viewer.id"),
    Sampled("plays", 0, 9, "passed over"),
]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_files_mappings_stand_in_place_of_the_settings_own(tmp_path):
    settings = ingest.with_mappings(Settings(), written(tmp_path, MAPPING))
    assert [each.topic for each in settings.ingest.topics] == ["videos"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[", "mine.toml: not a TOML file"),
        (MAPPING.replace("item_id", "id"), r"mine.toml: ingest.topics.0: .*fields\.id: items have no such field"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, text: str, problem: str):
    with pytest.raises(SettingsError, match=problem):
        ingest.with_mappings(Settings(), written(tmp_path, text))


def test_nothing_mapped_is_told(tmp_path):
    with pytest.raises(SettingsError, match="--suggest TOPIC proposes a mapping"):
        ingest.show_sample(Settings(), 3, written(tmp_path, ""), as_json=False)


@pytest.mark.parametrize(("rows", "code"), [(ROWS, 1), (ROWS[::2], 0), ([], 0)])
def test_a_sample_is_shown_with_what_is_refused_and_why_and_ends_with_1_then(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: list[Sampled], code: int
):
    monkeypatch.setattr("streams.ingest.sample.sample", lambda settings, count, now_ms: rows[:count])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(typer.Exit) as ended:
        ingest.show_sample(Settings(), 3, written(tmp_path, MAPPING), as_json=False)
    shown = capsys.readouterr().out
    assert ended.value.exit_code == code
    for row in rows:
        assert f"{row.topic}/{row.partition}/{row.offset}" in shown and f"plays: 1 {row.outcome}" in shown
    assert ("user_id: nothing at viewer.id" in shown) is bool(code)
    assert ("1970-01-01T00:28:20Z" in shown) is bool(rows), "seconds that were taken for ms"


def test_any_time_can_be_shown():
    assert ingest.when({"event_ms": 2**53 - 1}) == "beyond the year 9999"
    assert ingest.when({"item_id": "i"}) == ingest.when(None) == ""

"""The program of docs/from-gorse.md: what it writes is a log and a catalogue of ours."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from models.logs.log import read_items
from models.logs.stored_log import store_log
from tests.unit.docs.pages import ROOT


def test_an_export_becomes_a_log_and_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    feedback = [
        {"FeedbackType": "star", "UserId": "ann", "ItemId": "v1", "Timestamp": "2013-02-28T14:38:27Z"},
        {"FeedbackType": "read", "UserId": "ann", "ItemId": "v2", "Timestamp": "2013-02-28T15:00:00Z"},
    ]
    items = [
        {"ItemId": "v1", "IsHidden": False, "Categories": ["news"], "Comment": "A title"},
        {"ItemId": "v2", "IsHidden": True, "Categories": [], "Comment": "Another"},
    ]
    Path("feedback.jsonl").write_text("".join(json.dumps(each) + "\n" for each in feedback))
    dated = (each | {"Timestamp": "2013-01-01T00:00:00Z", "Labels": {}} for each in items)
    Path("items.jsonl").write_text("".join(json.dumps(each) + "\n" for each in dated))
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "from-gorse.md").read_text("utf-8"), re.DOTALL)
    exec(compile(code, "from-gorse.md", "exec"), {})  # the page's own words
    (tmp_path / "stored").mkdir()
    log = store_log(tmp_path / "log.parquet", tmp_path / "stored", completed_s=18.0)
    assert log.completed.tolist() == [True, False] and log.event_ms[0] == 1362062307000
    found, written = read_items(tmp_path / "catalogue.parquet"), pl.read_parquet("catalogue.parquet")
    assert pl.Series(found["topics"][0]).to_list() == ["news"]
    assert written["title"].to_list() == ["A title", "Another"] and written["available"].to_list() == [True, False]

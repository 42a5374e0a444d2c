"""What a log of ours looks like to whoever reads it by machine."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from infra.platform.logs import set_up_logging


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def test_in_json_each_line_is_an_object_also_of_a_bug_and_of_third_parties(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    log = structlog.get_logger("ours")
    log.debug("not severe enough")
    log.info("release is live", version="v1", partitions=[1, 2], settings=object())
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        log.exception("a bug")
        logging.getLogger("kafka.client").exception("node %d not ready", 1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("info", "release is live"),
        ("error", "a bug"),
        ("error", "node 1 not ready"),
    ]
    assert lines[0]["partitions"] == [1, 2] and lines[0]["timestamp"].endswith("Z")
    assert all("ValueError: of two\nlines" in line["exception"] for line in lines[1:])
    assert lines[2]["logger"] == "kafka.client"


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    structlog.get_logger().warning("broker unavailable, trying again", wait_s=0.5)
    said = capsys.readouterr().err
    assert "[warning  ] broker unavailable, trying again wait_s=0.5" in said

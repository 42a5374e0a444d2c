"""Logs that have an order only: what is read, and the line that an error names."""

from pathlib import Path

import polars as pl
import pytest

from models.logs.log import LogError, log_from_frame
from models.logs.sequences import read_sequences, sequences_of


def read(tmp_path: Path, text: str | bytes):
    path = tmp_path / "log.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_sequences(path)


def test_a_line_is_a_user_and_what_they_watched_in_order(tmp_path):
    found = read(tmp_path, "ann 5 3 5\nbob 3\t9\n")
    assert (found.user_ids, found.item_ids) == (["ann", "bob"], ["5", "3", "9"])
    assert found.users.tolist() == [0, 0, 0, 1, 1]
    assert found.items.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a 1 2\nb\n", "line 2: needs a user and at least one item, it has ['b']"),
        ("a 1 2\n\nb 1\n", "line 2: needs a user and at least one item, it has nothing"),
        ("a 1 2\nb 1\na 3\n", "line 3: user a has a line before"),
        (b"a 1 2\nb \xff\n", "line 2: is not text in UTF-8"),
        (f"a 1\nb {'x' * 300}\n", "line 2: an id has at most 256 characters: xxxxx"),
        ("", "has no rows; a line is `user item item ...`"),
    ],
)
def test_an_error_names_the_line(tmp_path, text, says):
    with pytest.raises(LogError) as raised:
        read(tmp_path, text)
    assert f"{tmp_path / 'log.txt'}: {says}" in str(raised.value)


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path):
    with pytest.raises(LogError, match=r"none\.txt: cannot be read: No such file"):
        read_sequences(tmp_path / "none.txt")


def test_reading_tells_how_far_it_is(tmp_path):
    path, steps = tmp_path / "log.txt", []
    path.write_text("".join(f"u{n} a b\n" for n in range(2500)))
    read_sequences(path, lambda *step: steps.append(step))
    size = path.stat().st_size
    assert len(steps) == 3 and steps[-1] == ("reading", size, size)


def test_of_a_log_with_times_the_order_is_kept():
    frame = pl.DataFrame(
        {
            "user_id": ["b", "a", "b", "a"],
            "item_id": ["x", "y", "z", "x"],
            "event_ms": [30, 20, 10, 40],
            "watch_s": [60.0, 60.0, 60.0, 1.0],  # the last is not completed
        }
    )
    found = sequences_of(log_from_frame(frame, 18.0))
    names = [(found.user_ids[u], found.item_ids[i]) for u, i in zip(found.users, found.items, strict=True)]
    assert names == [("b", "z"), ("a", "y"), ("b", "x")]

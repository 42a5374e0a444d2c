"""The README's picture of the demo."""

from __future__ import annotations

import re

from infra.simulation.demo_picture import draw


def test_the_picture_shows_what_was_printed_and_fetches_nothing():
    svg = draw("\x1b[32mholds\x1b[0m  the reply knows the three watches\n", "make demo, at commit 1234567")
    assert "holds" in svg and "1234567" in svg and svg.startswith("<svg")
    assert not re.search(r"url\([\"']?http|src=|href=", svg)

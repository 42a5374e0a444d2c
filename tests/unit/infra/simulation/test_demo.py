"""The demo's choices and arithmetic; that it holds as a whole is what running it says."""

from __future__ import annotations

from infra.simulation.demo import LEAST_VIDEOS, LEAST_WATCHES, watched_channels


def channel_with(videos: int, watches: int, name: str) -> tuple[dict[str, str | None], dict[str, int]]:
    item_ids = [f"{name}-{n}" for n in range(videos)]
    return dict.fromkeys(item_ids, name), {item_ids[0]: watches}


def test_a_channel_counts_as_watched_with_enough_videos_and_enough_watches_of_them() -> None:
    channel_of: dict[str, str | None] = {"alone": None}
    watches = {"alone": 10 * LEAST_WATCHES, "gone": 7}
    for name, videos, watched in (
        ("liked", LEAST_VIDEOS, LEAST_WATCHES),
        ("small", LEAST_VIDEOS - 1, LEAST_WATCHES),
        ("ignored", LEAST_VIDEOS, LEAST_WATCHES - 1),
    ):
        more, counts = channel_with(videos, watched, name)
        channel_of, watches = channel_of | more, watches | counts
    assert watched_channels(channel_of, watches) == {"liked"}

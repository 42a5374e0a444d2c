"""KuaiRand's exposures (CC BY-SA 4.0, read in place from ../shared, never copied) as our log and catalogue."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

DIRECTORY = Path(__file__).resolve().parents[3] / "shared" / "data" / "kuairand"
FIRST_MS = int(datetime(2022, 4, 8, tzinfo=UTC).timestamp() * 1000)  # where the invented stamps begin
SAID = pl.when(pl.col("is_hate") == 1).then(pl.lit("dislike")).when(pl.col("is_like") == 1).then(pl.lit("like"))
SKIPPED_S = 1.0  # invented: how long what was not watched long before 25 April was watched


def is_there() -> bool:
    return DIRECTORY.is_dir()


def read_kuairand(
    *,
    history: bool = True,
    skips: bool = False,
    surface: bool = False,
    kinds: bool = False,
    signals: bool = False,
    directory: Path = DIRECTORY,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The log (user_id, item_id, event_ms, watch_s, duration_s) and the catalogue, as `log_from_frame` takes them.

    The long watches of before 25 April come first: their order is real, their times are invented (linear from 8 April
    to each user's last stamp) and their seconds are not known (null). `history=False` leaves them out. `skips=True`
    adds what was shown then and not watched long, spread over the same time: its order is real, but not against the
    long watches, and its SKIPPED_S are invented, so no ranker is to learn from them. What is there is what another
    recommender chose to show. `surface=True` adds the column of that name, the app's tab; `kinds=True` to the
    catalogue what sort of video it is and how it was uploaded. It has no titles.
    `signals=True` adds likes and dislikes of the stamped rows. Raises FileNotFoundError when
    the data is absent.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"the KuaiRand data is not at {directory}")
    exposures = pl.read_parquet(directory / "exposures_0425_0505.parquet").select(
        user_id=pl.col("user_id").cast(pl.String),
        item_id=pl.col("video_id").cast(pl.String),
        event_ms=pl.col("time_ms"),
        watch_s=pl.col("play_time_ms") / 1000,
        duration_s=pl.when(pl.col("duration_ms") > 0).then(pl.col("duration_ms") / 1000),
        **({"signal": SAID} if signals else {}),
        **({"surface": pl.concat_str(pl.lit("tab-"), pl.col("tab"))} if surface else {}),
    )
    log = exposures
    if history:
        log = pl.concat([_past_watches(directory, exposures, skips), exposures], how="diagonal")
    return log, _catalogue(directory, kinds)


def _past_watches(directory: Path, exposures: pl.DataFrame, skips: bool) -> pl.DataFrame:
    durations = exposures.group_by("item_id").agg(pl.col("duration_s").drop_nulls().first())
    users = pl.read_parquet(directory / "history_to_0424.parquet")
    past = _in_time(users, "long_watch_seq").with_columns(watch_s=pl.lit(None, pl.Float64))
    if skips:
        shown = _in_time(users, "watch_seq").join(past, on=["user_id", "item_id"], how="anti")
        past = pl.concat([past, shown.with_columns(watch_s=pl.lit(SKIPPED_S))])
    return past.join(durations, on="item_id", how="left")


def _in_time(users: pl.DataFrame, name: str) -> pl.DataFrame:
    """The videos of a column of lists, evenly spread in time."""
    span = (pl.col("last_time_ms") - FIRST_MS).clip(0)
    length = pl.col(name).list.len()
    return (
        users.with_columns(length=length, place=pl.int_ranges(1, length + 1))
        .explode(name, "place")
        .drop_nulls(name)
        .select(
            user_id=pl.col("user_id").cast(pl.String),
            item_id=pl.col(name).cast(pl.String),
            event_ms=(FIRST_MS + span * pl.col("place") / pl.col("length")).cast(pl.Int64),
        )
    )


def _catalogue(directory: Path, kinds: bool) -> pl.DataFrame:
    return pl.read_parquet(directory / "videos.parquet").select(
        item_id=pl.col("video_id").cast(pl.String),
        channel=pl.col("author_id").cast(pl.String),
        topics=pl.when(pl.col("tag") != "unknown").then(pl.col("tag")),
        duration_s=pl.col("video_duration") / 1000,
        published_ms=pl.col("upload_dt").str.to_datetime().dt.epoch("ms"),
        music=pl.col("music_id").cast(pl.String),
        **({"kind": pl.col("video_type"), "upload": pl.col("upload_type")} if kinds else {}),
    )

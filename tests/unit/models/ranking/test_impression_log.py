"""Exposures streamed in time order against the same worked out row by row, and that no feature sees its own
future."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from models.logs import timeline
from models.ranking import impression_log as module
from models.ranking.feature import Scope
from models.ranking.features import FEATURES, compute_ids, compute_numbers, numbers_of
from models.ranking.impression_log import PAGE_MS, Delays, ImpressionLog, Retrieved
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import id_strings
from models.ranking.ranking_batch import HISTORY, LENGTHS, MOST_TOPICS, length_codes
from models.ranking.ranking_examples import CAP_S, QUERY_IDS, SCOPES, RankingExamples
from models.ranking.ranking_request import RankingQuery, ranking_batch_of
from tests.unit.models.samples import START_MS, ShownList, Viewer, Watch, small_exposures, small_log

MINUTE_MS = 60_000
DELAYS = Delays(window_ms=30 * MINUTE_MS, half_life_ms=2 * 3_600_000.0)
COMPLETED_S = 18.0
# A log that fails is shown as it was drawn: making it smaller takes minutes, and a failure keeps its files open.
FILES = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@contextmanager
def chunks_of(exposures: int, settled: int, windows: int) -> Iterator[None]:
    """Sizes of the pieces that a log is read in."""
    sizes = ((module, "CHUNK", exposures), (module, "SETTLED", settled), (timeline, "CHUNK", windows))
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, size in sizes:
            patch.setattr(owner, name, size)
        yield


@dataclass(frozen=True)
class Context:
    region: str | None


def items() -> pl.DataFrame:
    """`i0` has two topics, `i1` shares its channel, `i2` has neither; `i3` is not listed at all."""
    return pl.DataFrame(
        {
            "item_id": ["i0", "i1", "i2"],
            "channel": ["c", "c", None],
            "topics": [["t", "s"], ["s"], []],
            "duration_s": [30.0, 100.0, None],
            "published_ms": [START_MS - 3_600_000, None, START_MS - 7_200_000],
        }
    )


row = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u", "v"]),
        "item_id": st.sampled_from(["i0", "i1", "i2", "i3"]),
        "event_ms": st.integers(0, 40).map(lambda n: START_MS + 7 * n * MINUTE_MS),
        "watch_s": st.sampled_from([None, 0.0, 0.0, 3.0, 25.0, 900.0]),
        "duration_s": st.sampled_from([None, None, 0.0, 60.0]),
        "region": st.sampled_from([None, "de", "fr"]),
    }
)
SCHEMA = {"user_id": pl.String, "item_id": pl.String, "event_ms": pl.Int64, "watch_s": pl.Float64}
SCHEMA |= {"duration_s": pl.Float64, "region": pl.String}
logs = st.lists(row, min_size=1, max_size=40).map(lambda rows: pl.DataFrame(rows, schema=SCHEMA))


# --- row by row ------------------------------------------------------------------------------------------------------


class Naive:
    """The log's rows as they were stored, and what a server would have known at one of them."""

    def __init__(self, exposures: ImpressionLog) -> None:
        self.exposures = exposures
        frame = exposures.log.frame()
        if "region" not in frame.columns:
            frame = frame.with_columns(region=pl.lit(None, pl.String))
        self.rows = frame.to_dicts()
        for each in self.rows:
            known = each["duration_s"]
            fact = exposures.catalogue.duration_s(exposures.catalogue.rows([each["item_id"]])).item()
            each["lasts_s"] = known if known is not None else None if np.isnan(fact) else fact

    def page(self, row: int) -> int:
        return min(n for n in range(len(self.rows)) if self.page_of(n) == self.page_of(row))

    def page_of(self, row: int) -> tuple[str, int]:
        return self.rows[row]["user_id"], self.rows[row]["event_ms"] // PAGE_MS

    def viewer(self, row: int, asked: int) -> Viewer:
        before = [each for each in self.rows[:asked] if each["user_id"] == self.rows[row]["user_id"]]
        watches = [
            Watch(
                each["item_id"],
                each["event_ms"],
                np.nan if each["watch_s"] is None else each["watch_s"],
                each["lasts_s"],
                each["completed"],
            )
            for each in before
            if each["watch_s"] is None or each["watch_s"] > 0
        ]
        shown = [ShownList(each["event_ms"], [each["item_id"]]) for each in before if each["watch_s"] is not None]
        return Viewer(watches, context=Context(self.rows[row]["region"]), impressions=shown)

    def statistics(self, now_ms: int, window_ms: int = DELAYS.window_ms) -> ItemStatistics:
        """Sums over impressions whose window had closed at `now_ms`."""
        sums: dict[tuple[str, str], np.ndarray] = {}
        catalogue = self.exposures.catalogue
        for each in self.rows:
            if each["watch_s"] is None or each["event_ms"] >= now_ms - window_ms:
                continue
            seconds = min(each["watch_s"], CAP_S, np.inf if each["lasts_s"] is None else each["lasts_s"])
            decay = 2.0 ** -((now_ms - each["event_ms"]) / DELAYS.half_life_ms)
            values = decay * np.array([1, each["watch_s"] > 0, seconds, each["completed"]], np.float64)
            place = catalogue.row(each["item_id"])
            scopes = [("item", each["item_id"]), ("all", "")]
            scopes += [("topic", topic) for topic in catalogue.topics_of(place)[:MOST_TOPICS]]
            channel = catalogue.channel_of(place)
            scopes += [("channel", channel)] if channel else []
            length = LENGTHS[length_codes(catalogue.duration_s(np.array([place])))[0]]
            scopes += [("length", length)] if length else []
            for scope in scopes:
                sums[scope] = sums.get(scope, 0) + values
        found = ItemStatistics(DELAYS.half_life_ms)
        for (scope, name), total in sums.items():
            found.set(scope, name, 0, now_ms, total.tolist())
        return found

    def served(self, row: int, asked: int) -> tuple[dict[Scope, np.ndarray], dict[str, tuple[str, ...]]]:
        """The features of a row as a server computes them when its request comes at row `asked`."""
        now_ms = self.rows[asked]["event_ms"]
        item, nothing = self.rows[row]["item_id"], np.full(1, np.nan, np.float32)
        query = RankingQuery(self.viewer(row, asked), now_ms, [item], nothing)
        moment = ranking_batch_of([query], self.exposures.catalogue, [self.statistics(now_ms)])
        numbers = {scope: compute_numbers(moment, scope)[0] for scope in SCOPES}
        ids = {name: each for scope in SCOPES for name, each in compute_ids(moment, scope).items()}
        found = id_strings(ids, "query", [0])[0] | id_strings(ids, "impression", [0])[0]
        del found["sources"]  # a log does not say which source nominated a row
        return numbers, found


def ids_at(examples: RankingExamples, number: int) -> dict[str, tuple[str, ...]]:
    """The ids of one example by feature, of query and impression."""
    found = {}
    for name, named in examples.ids.items():
        at = examples.request[number] if name in QUERY_IDS else number
        known = tuple(named.names[code - named.first] for code in named.codes[at].tolist() if code > 0)
        if known:
            found[name] = known
    return found


def check_all(
    exposures: ImpressionLog, asked_of: Callable[[Naive, int], int], examples: RankingExamples, start: int = 0
) -> None:
    naive = Naive(exposures)
    timed = [n for n, each in enumerate(naive.rows) if n >= start and each["watch_s"] is not None]
    assert len(examples) == len(timed)
    for number, at in enumerate(timed):
        numbers, ids = naive.served(at, asked_of(naive, at))
        np.testing.assert_allclose(examples.numbers["query"][examples.request[number]], numbers["query"], rtol=1e-5)
        for name, found, expected in zip(
            [f.name for f in numbers_of("impression")],
            examples.numbers["impression"][number],
            numbers["impression"],
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)
        assert ids_at(examples, number) == ids
        each = naive.rows[at]
        assert examples.target_s[number] == min(each["watch_s"], CAP_S, each["lasts_s"] or np.inf)
        assert (examples.completed[number], examples.at_ms[number]) == (each["completed"], each["event_ms"])


@settings(FILES, max_examples=40)
@given(logs, st.sampled_from([1, 3, 1000]), st.sampled_from([1, 4, 1000]), st.sampled_from([1, 5, 1000]))
def test_a_log_gives_the_features_that_a_server_would_have_computed(
    frame: pl.DataFrame, chunk: int, settled: int, windows: int
):
    """Windows, pages and statistics against the ones worked out row by row, in pieces of any size."""
    with chunks_of(chunk, settled, windows):
        exposures = small_exposures(frame, items(), DELAYS, COMPLETED_S)
        check_all(exposures, Naive.page, exposures.examples("all"))


@settings(FILES, max_examples=25)
@given(logs, st.integers(0, 12), st.sampled_from([1, 3, 1000]))
def test_a_state_frozen_at_the_users_first_row_is_the_one_of_that_row(frame: pl.DataFrame, start: int, chunk: int):
    with chunks_of(chunk, 4, 1000):
        exposures = small_exposures(frame, items(), DELAYS, COMPLETED_S)
        start = min(start, len(exposures))
        first = exposures.first_of_user(start)
        examples = exposures.examples("user", start=start, frozen=first)

        def asked_of(naive: Naive, at: int) -> int:
            asked = next(n for n in range(start, at + 1) if naive.rows[n]["user_id"] == naive.rows[at]["user_id"])
            assert first[at - start] == asked
            return asked

        check_all(exposures, asked_of, examples, start)


@settings(FILES, max_examples=30)
@given(logs)
def test_the_statistics_of_a_release_are_those_of_all_closed_impressions(frame: pl.DataFrame):
    exposures = small_exposures(frame, items(), DELAYS, COMPLETED_S)
    end_ms = int(exposures.log.event_ms[-1])
    expected = Naive(exposures).statistics(end_ms, window_ms=-1)
    found = {row[:2]: row[3:] for row in exposures.statistics().rows()}
    for scope, name, _, as_of_ms, sums in expected.rows():
        if sums[0] > module.LEAST_IMPRESSIONS * 1.01:
            assert found[scope, name][0] == as_of_ms == end_ms
            np.testing.assert_allclose(found.pop((scope, name))[1], sums, rtol=1e-6)
    assert all(sums[0] < module.LEAST_IMPRESSIONS * 1.02 for _, sums in found.values())


def test_several_sizes_of_pieces_give_the_same_examples():
    frame = small_log(600).with_columns(event_ms=START_MS + 30_000 * np.arange(600))
    found = []
    for sizes in ((16_384, 500_000, 1_000_000), (64, 10, 100), (7, 1, 13)):
        with chunks_of(*sizes):
            found.append(small_exposures(frame, delays=DELAYS).examples("all"))
    whole = found[0]
    for examples in found[1:]:
        np.testing.assert_array_equal(examples.target_s, whole.target_s)
        np.testing.assert_allclose(
            examples.numbers["impression"], whole.numbers["impression"], rtol=2e-6, atol=1e-6, equal_nan=True
        )
        queries = [each.numbers["query"][each.request] for each in (examples, whole)]
        np.testing.assert_array_equal(*queries)


# --- no feature sees its own future ----------------------------------------------------------------------------------


ROWS = 500


def busy_log() -> pl.DataFrame:
    """Twelve users, a row each half minute: pages of some ten rows, and four hours."""
    frame = small_log(ROWS, users=12, items=30)
    region = pl.Series([f"r{n % 3}" for n in range(ROWS)])
    return frame.with_columns(event_ms=START_MS + 30_000 * np.arange(ROWS), region=region)


def features(frame: pl.DataFrame) -> tuple[ImpressionLog, RankingExamples]:
    exposures = small_exposures(frame, delays=DELAYS)
    return exposures, exposures.examples("all")


def check_same(ours: RankingExamples, theirs: RankingExamples, numbers: np.ndarray) -> None:
    """To the bit, ids and numbers of query and impression."""
    assert len(numbers)
    for scope in SCOPES:
        one, other = (
            np.asarray(each.numbers[scope])[each.request[numbers] if scope == "query" else numbers]
            for each in (ours, theirs)
        )
        np.testing.assert_array_equal(one.view(np.int32), other.view(np.int32))
    for number in numbers.tolist():
        assert ids_at(ours, number) == ids_at(theirs, number)


def differs(ours: RankingExamples, theirs: RankingExamples, numbers: np.ndarray, name: str) -> bool:
    column = [f.name for f in numbers_of("impression")].index(name)
    one, other = (np.nan_to_num(each.numbers["impression"][numbers, column]) for each in (ours, theirs))
    return bool((one != other).any())


@pytest.fixture(scope="module")
def at_rest() -> tuple[ImpressionLog, RankingExamples]:
    return features(busy_log())


@pytest.mark.parametrize("cut", [1, 57, 200, ROWS - 1])
def test_rows_before_a_cut_know_nothing_of_what_comes_after_it(
    at_rest: tuple[ImpressionLog, RankingExamples], cut: int
):
    """Users, items, outcomes, times and contexts of all rows from the cut on are shuffled or drawn anew."""
    rng, frame = np.random.default_rng(cut), busy_log()
    columns = {name: frame[name].to_numpy().copy() for name in frame.columns}
    for values in columns.values():
        values[cut:] = rng.permutation(values[cut:])
    columns["event_ms"][cut:] = columns["event_ms"][cut - 1] + 1 + np.sort(rng.integers(0, 10**7, ROWS - cut))
    _, shuffled = features(pl.DataFrame(columns))
    before = np.arange(cut)
    check_same(shuffled, at_rest[1], before)
    if cut < ROWS - 1:
        assert differs(shuffled, at_rest[1], np.arange(cut, ROWS), "item_shown"), "else this test would prove nothing"


@pytest.mark.parametrize("row", [57, 200, 470])
def test_a_page_knows_no_outcome_from_its_first_row_on(at_rest: tuple[ImpressionLog, RankingExamples], row: int):
    """The outcomes of all rows from the first one of a page on are others; of that page and of those that began before
    it all rows stay as they were, also rows that come later: one request, one state."""
    pages = np.asarray(at_rest[0].pages[:ROWS])
    cut = int(pages[row])
    rng, frame = np.random.default_rng(cut), busy_log()
    watch_s = frame["watch_s"].to_numpy().copy()
    watch_s[cut:] = rng.permutation(watch_s[cut:]) * rng.integers(0, 2, ROWS - cut)
    _, changed = features(frame.with_columns(watch_s=watch_s))
    began_before = np.flatnonzero(pages <= cut)
    assert began_before.max() > cut
    check_same(changed, at_rest[1], began_before)
    after = np.flatnonzero(pages > cut)
    if len(after) > 50:
        assert differs(changed, at_rest[1], after, "channel_watched_s")


def test_an_outcome_is_not_known_to_others_before_its_window_has_closed(at_rest: tuple[ImpressionLog, RankingExamples]):
    frame, changed_row = busy_log(), 100
    watch_s = frame["watch_s"].to_numpy().copy()
    watch_s[changed_row] += 500.0
    frame = frame.with_columns(watch_s=watch_s, duration_s=pl.lit(600.0))
    quiet = features(busy_log().with_columns(duration_s=pl.lit(600.0)))[1]
    exposures, changed = features(frame)
    asked_ms = exposures.log.event_ms[exposures.pages[:ROWS]]
    others = np.asarray(exposures.log.users != exposures.log.users[changed_row])
    closed_ms = int(exposures.log.event_ms[changed_row]) + DELAYS.window_ms
    check_same(changed, quiet, np.flatnonzero(others & (asked_ms <= closed_ms)))
    assert differs(changed, quiet, np.flatnonzero(others & (asked_ms > closed_ms)), "item_mean_s"), "but then it is"


def test_the_state_of_a_user_is_the_same_on_the_whole_page(at_rest: tuple[ImpressionLog, RankingExamples]):
    exposures, examples = at_rest
    pages = np.asarray(exposures.pages[:ROWS])
    assert 12 < len(np.unique(pages)) < ROWS / 3
    for page in np.unique(pages).tolist():
        queries = np.asarray(examples.numbers["query"])[examples.request[pages == page]]
        assert (queries.view(np.int32) == queries[:1].view(np.int32)).all()
    regions = [ids_at(examples, number)["region"] for number in range(ROWS)]
    assert regions == [(region,) for region in busy_log()["region"]], "but where each row was shown is its own"


# --- what a log may lack ---------------------------------------------------------------------------------------------


def column(examples: RankingExamples, name: str, scope: Scope = "impression") -> np.ndarray:
    values = np.asarray(examples.numbers[scope])[:, [f.name for f in numbers_of(scope)].index(name)]
    return values if scope == "impression" else values[examples.request]


def test_rows_of_unknown_length_are_history_but_neither_examples_nor_statistics():
    frame = busy_log().with_columns(
        watch_s=pl.when(pl.int_range(ROWS) % 2 == 0).then("watch_s"), duration_s=pl.lit(None, pl.Float64)
    )
    exposures, examples = features(frame)
    assert len(examples) == ROWS / 2
    assert column(examples, "history_entries", "query").max() > 20
    statistics = exposures.statistics().at("all", [""], exposures.log.event_ms[-1:])
    assert 0 < statistics[0, 0] <= ROWS / 2
    nothing = small_exposures(frame.with_columns(watch_s=pl.lit(None, pl.Float64)))
    assert len(nothing.examples("all")) == 0
    assert list(nothing.statistics().rows()) == []


def test_a_replay_is_one_video_as_a_target_and_whole_in_a_history():
    frame = busy_log().with_columns(watch_s=pl.lit(5000.0), user_id=pl.lit("only"), duration_s=pl.lit(None, pl.Float64))
    facts = pl.DataFrame({"item_id": ["i0"], "duration_s": [45.0]})
    exposures = small_exposures(frame, facts, DELAYS)
    examples = exposures.examples("all")
    lasts = np.asarray(examples.duration_s)
    assert set(lasts[~np.isnan(lasts)].tolist()) == {45.0}
    np.testing.assert_array_equal(examples.target_s, np.where(np.isnan(lasts), CAP_S, 45))
    assert column(examples, "last_watch_s", "query")[-1] == 5000
    assert np.nanmax(column(examples, "item_mean_s")) <= CAP_S * (1 + 1e-6)
    assert column(examples, "history_share", "query")[-1] == 1


def test_a_scorer_is_asked_for_rows_and_when_they_were_asked(at_rest: tuple[ImpressionLog, RankingExamples]):
    exposures, _ = at_rest
    asked_of: list[tuple[int, int]] = []

    def scorer(rows: np.ndarray, asked: np.ndarray) -> Retrieved:
        asked_of.extend(zip(rows.tolist(), asked.tolist(), strict=True))
        score = np.where(rows % 2 == 0, rows, np.nan).astype(np.float32)
        best, place = (asked + 1000).astype(np.float32), np.full(len(rows), 3, np.float32)
        return Retrieved(score, best, place, rows % 4 == 0)

    examples = exposures.examples("scored", start=200, scorer=scorer)
    pages = exposures.pages[:ROWS].tolist()
    assert asked_of == [(row, pages[row]) for row in range(200, ROWS)]
    rows = np.arange(200, ROWS)
    np.testing.assert_array_equal(column(examples, "retrieval_score"), np.where(rows % 2 == 0, rows, np.nan))
    gap = np.where(rows % 2 == 0, rows - (np.array(pages[200:]) + 1000), np.nan)
    np.testing.assert_array_equal(column(examples, "retrieval_gap"), gap)
    assert [ids_at(examples, n).get("sources") for n in (0, 1, 2)] == [("two_tower",), None, None]


def test_progress_is_told_up_to_the_end(at_rest: tuple[ImpressionLog, RankingExamples]):
    told: list[tuple[int, int]] = []
    with chunks_of(64, 10, 1000):
        at_rest[0].examples("told", start=100, progress=lambda *step: told.append(step))
    assert told[0] == (64, 400)
    assert told[-1] == (400, 400)


def test_all_id_features_are_stored_and_a_whole_history_with_them(at_rest: tuple[ImpressionLog, RankingExamples]):
    assert at_rest[1].ids["last_watched"].codes.shape[1] == HISTORY
    assert {f.name for f in FEATURES if not f.is_number} == set(at_rest[1].ids)

"""The command line: every command explains itself, and what a person can mend ends as one line and an exit code."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Settings
from streams.messages import Recommended, RecommendReply, RecommendRequest, encode
from streams.topics import TOPICS, create_topics
from tests.unit.clients.responder import responding
from tests.unit.infra.command import Done, commands
from tests.unit.models.samples import small_log

COMMANDS = ["up", "demo", "worker", "indexer", "serve", "train", "replay", "recommend", "watch", "history", "topics"]
COMMANDS += ["gateway", "load", "retrain", "config", "status", "backtest", "evaluate-policy"]


@pytest.fixture
def nextwatch(tmp_path, monkeypatch, capsys) -> Callable[..., Done]:
    """Runs the command line in an empty directory, in this process."""
    monkeypatch.chdir(tmp_path)
    return commands(monkeypatch, capsys)


def is_one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


def test_help_lists_every_command_and_each_explains_itself_without_any_settings(nextwatch, tmp_path):
    (tmp_path / "nextwatch.toml").write_text("this is not TOML")
    listed = nextwatch("--help")
    assert listed.code == 0
    for command in COMMANDS:
        assert f" {command} " in listed.out, f"{command} is not listed"
        explained = nextwatch(command, "--help")
        assert explained.code == 0 and f"Usage: nextwatch {command}" in explained.out
        assert nextwatch(command, "-h").out == explained.out
        assert len(explained.out.splitlines()[3].strip()) > 20, "the first thing after the usage says what it does"


def test_without_arguments_the_help_is_shown(nextwatch):
    assert "Usage: nextwatch [OPTIONS] COMMAND" in nextwatch().out


def test_an_unknown_command_or_option_is_a_usage_error(nextwatch):
    assert nextwatch("recomend", "alice").code == 2 and nextwatch("status", "--jsn").code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("recommend", "alice"),
        ("watch", "alice", "video"),
        ("history", "alice"),
        ("worker", "history"),
        ("indexer",),
        ("serve",),
        ("topics", "--check"),
        ("train", "--from-topics"),
        ("train", "log.csv", "--announce"),
        ("replay", "log.csv"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_a_broker_a_command_says_how_to_get_one(nextwatch, arguments):
    done = nextwatch(*arguments)
    assert done.code == 2 and done.out == "" and is_one_line(done.err)
    assert "set kafka.bootstrap, or start `nextwatch up`" in done.err


def test_a_broker_that_does_not_answer_is_one_line(nextwatch, monkeypatch):
    def impatient(kafka: Any) -> dict[str, Any]:
        return kafka_python_options(kafka) | {"bootstrap_timeout_ms": 300}

    for place in ("streams.topics", "streams.kafka.follow"):
        monkeypatch.setattr(f"{place}.kafka_python_options", impatient)
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    for arguments in (("topics", "--check"), ("history", "alice"), ("worker", "trainer")):
        done = nextwatch(*arguments)
        assert done.code == 2 and is_one_line(done.err), done.err
        assert "Kafka: " in done.err and "NEXTWATCH_KAFKA__BOOTSTRAP" in done.err


def test_topics_that_are_not_there_are_one_line(nextwatch, monkeypatch, kafka):
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", kafka)
    monkeypatch.setenv("NEXTWATCH_KAFKA__TOPIC_PREFIX", "nowhere-")
    for arguments in (("worker", "history"), ("history", "alice"), ("recommend", "alice"), ("train", "--from-topics")):
        done = nextwatch(*arguments)
        assert done.code == 2 and is_one_line(done.err), done.err
        assert "does not exist; `nextwatch topics --create` makes it" in done.err
    checked = nextwatch("topics", "--check", "--json")
    assert checked.code == 1 and len(json.loads(checked.out)["problems"]) == len(TOPICS)


@pytest.mark.parametrize(
    ("file", "variables", "says"),
    [
        ("[kafka]\npartition = 3", {}, "unknown setting kafka.partition"),
        ("[kafka]\npartitions = 0", {}, "setting kafka.partitions"),
        ("kafka = [", {}, "nextwatch.toml: not a TOML file"),
        ('[kafka]\npassword = "x"', {}, "kafka.password is a secret"),
        ("", {"NEXTWATCH_KAFKA__BOOTSTRP": "b:1"}, "unknown setting kafka.bootstrp (NEXTWATCH_KAFKA__BOOTSTRP)"),
        ("", {"NEXTWATCH_SERVING__K": "many"}, "NEXTWATCH_SERVING__K"),
        ("", {"NEXTWATCH_SELECTION__PINNED": "welcome"}, "setting selection.pinned (NEXTWATCH_SELECTION__PINNED)"),
        ("", {"NEXTWATCH_MODEL__HIDDEN": "256,128"}, "must be a list as JSON"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_that_names_it(nextwatch, tmp_path, monkeypatch, file, variables, says):
    (tmp_path / "nextwatch.toml").write_text(file)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = nextwatch("config")
    assert done.code == 2 and done.out == "" and is_one_line(done.err) and says in done.err


def test_a_settings_file_that_is_not_there_is_one_line(nextwatch):
    done = nextwatch("--config", "other.toml", "config")
    assert done.code == 2 and is_one_line(done.err) and "other.toml does not exist" in done.err


def test_config_shows_what_is_in_effect(nextwatch, tmp_path, monkeypatch):
    (tmp_path / "nextwatch.toml").write_text('[kafka]\nbootstrap = "broker:9092"\npartitions = 7')
    monkeypatch.setenv("NEXTWATCH_KAFKA__PARTITIONS", "8")
    shown = nextwatch("--data-dir", "elsewhere[1]", "config")
    assert shown.code == 0 and "broker:9092" in shown.out and "elsewhere[1]" in shown.out
    tree = json.loads(nextwatch("config", "--json").out)
    assert tree["kafka"]["partitions"] == 8, "the environment wins over the file"
    names = [line.split()[-1] for line in shown.out.splitlines()[1:] if line.strip()]
    assert "NEXTWATCH_KAFKA__PARTITIONS" in names and "NEXTWATCH_DATA_DIR" in names


def test_topics_are_listed_without_a_broker(nextwatch, monkeypatch):
    monkeypatch.setenv("NEXTWATCH_KAFKA__TOPIC_PREFIX", "p-")
    listed = json.loads(nextwatch("topics", "--json").out)
    rows = {row["topic"]: row for row in listed["topics"]}
    assert rows.keys() == {"p-" + topic.name for topic in TOPICS} and listed["problems"] == []
    assert rows["p-training-examples"]["partitions"] == 1 and rows["p-items"]["cleanup"] == "compact"
    table = nextwatch("topics")
    assert table.code == 0 and all(name in table.out for name in rows)


def test_topics_are_made_and_checked(nextwatch, monkeypatch, kafka_settings):
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", kafka_settings.kafka.bootstrap)
    monkeypatch.setenv("NEXTWATCH_KAFKA__TOPIC_PREFIX", kafka_settings.kafka.topic_prefix)
    made = nextwatch("topics", "--create")
    assert made.code == 0 and f"made {len(TOPICS)}" in made.out and "as it must be" in made.out
    monkeypatch.setenv("NEXTWATCH_KAFKA__PARTITIONS", "9")
    checked = nextwatch("topics", "--check")
    assert checked.code == 1 and "4 partitions, expected 9" in checked.out


def test_status_of_an_empty_directory_says_that_nothing_runs(nextwatch):
    asked = nextwatch("status", "--json")
    report = json.loads(asked.out)
    assert asked.code == 1 and report["processes"] == [] and report["ready"] is False
    told = nextwatch("status")
    assert told.code == 1 and "start `nextwatch up`" in told.out


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("event_ms", None, "column event_ms is missing"),
        ("user_id", ["u1", None, "u3"], "row 2, column user_id"),
        ("watch_s", [1.0, 2.0, -3.0], "row 3, column watch_s"),
        ("event_ms", ["1", "2", "yesterday"], "row 3, column event_ms"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_line_with_row_and_column(nextwatch, tmp_path, column, value, says):
    columns = {"user_id": ["u1", "u2", "u3"], "item_id": ["a", "b", "c"], "event_ms": [1, 2, 3], "watch_s": [1.0] * 3}
    columns = {name: values for name, values in (columns | {column: value}).items() if values is not None}
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
    done = nextwatch("train", "log.parquet", "--no-announce")
    assert done.code == 2 and is_one_line(done.err) and says in done.err and "log.parquet" in done.err


def test_a_file_or_directory_that_cannot_be_used_is_one_line_and_no_bug(nextwatch, tmp_path):
    small_log().write_csv(tmp_path / "log.csv")
    (tmp_path / "no-directory").write_text("")
    done = nextwatch("--data-dir", "no-directory/data", "train", "log.csv", "--no-announce")
    assert done.code == 2 and is_one_line(done.err) and "no-directory" in done.err and "--data-dir" in done.err


def test_a_damaged_history_is_one_line_with_the_command_that_mends_it(nextwatch, monkeypatch):
    damaged = SimpleNamespace(key=b"alice", value=b"{junk")
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setattr("infra.operate.user_history.read_to_end", lambda *_, **__: [damaged])
    done = nextwatch("history", "alice")
    assert done.code == 2 and is_one_line(done.err) and "nextwatch rebuild histories" in done.err


def test_train_wants_one_source_and_a_log_that_is_there(nextwatch):
    assert "not both" in nextwatch("train").err
    assert "not both" in nextwatch("train", "log.csv", "--from-topics").err
    alone = nextwatch("train", "--from-topics", "--stage", "ranking", "--processes", "2")
    assert alone.code == 2 and "--stage ranking" in alone.err and "--processes" in alone.err
    missing = nextwatch("train", "log.csv", "--no-announce")
    assert missing.code == 2 and is_one_line(missing.err) and "log.csv: no such file" in missing.err
    mapped = nextwatch("train", "log.csv", "--no-announce", "--map", "user")
    assert mapped.code == 2 and "--map" in mapped.err


def test_a_log_is_trained_without_a_broker_and_waits_for_the_next_up(nextwatch, tmp_path, monkeypatch):
    small_log(600).write_parquet(tmp_path / "log.parquet")
    for name, value in {"MEMBERS": "1", "EPOCHS": "1", "DIM": "8"}.items():
        monkeypatch.setenv(f"NEXTWATCH_MODEL__{name}", value)
    done = nextwatch("--data-dir", "data", "train", "log.parquet")
    assert done.code == 0 and "the next `nextwatch up` takes the newest bundle" in done.out
    (bundle,) = (tmp_path / "data" / "bundles").iterdir()
    learnt_ms = json.loads((bundle / "manifest.json").read_bytes())["learnt_ms"]
    assert learnt_ms == small_log(600)["event_ms"].max(), "what it has learnt is known by it"


def test_a_log_that_cannot_be_loaded_is_one_line_and_nothing_is_started(nextwatch, tmp_path):
    done = nextwatch("--data-dir", "data", "load", "log.csv")
    assert done.code == 2 and is_one_line(done.err) and "log.csv: no such file" in done.err
    assert not list((tmp_path / "data").glob("*"))


def test_a_speed_that_is_none_is_refused(nextwatch, monkeypatch):
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    done = nextwatch("replay", "log.csv", "--speed", "fast")
    assert done.code == 2 and "a number or max, not 'fast'" in done.err


def test_what_looks_like_markup_in_an_error_is_shown_as_it_is(nextwatch):
    done = nextwatch("--config", "[bold]x[/y]", "config")
    assert done.code == 2 and "[bold]x[/y] does not exist" in done.err


def test_a_bug_is_a_trace_and_exit_code_70(nextwatch, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("infra.cli.cluster.dump_settings", broken)
    done = nextwatch("config")
    assert done.code == 70 and "ZeroDivisionError: a bug" in done.err


def test_training_on_from_what_does_not_fit_is_one_line(nextwatch, tmp_path):
    """A release of other shape, no release at all, a checkpoint of another training."""
    frame = small_log(600)
    frame.write_parquet(tmp_path / "log.parquet")
    quick = {"NEXTWATCH_MODEL__MEMBERS": "1", "NEXTWATCH_MODEL__EPOCHS": "1", "NEXTWATCH_MODEL__DIM": "8"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quick.items():
            patch.setenv(name, value)
        none = nextwatch("train", "log.parquet", "--no-announce", "--json", "--warm-start", "newest")
        assert none.code == 2 and is_one_line(none.err) and "holds no release" in none.err
        assert nextwatch("train", "log.parquet", "--no-announce", "--json").code == 0
        patch.setenv("NEXTWATCH_MODEL__DIM", "4")
        other = nextwatch("train", "log.parquet", "--no-announce", "--json", "--warm-start", "newest")
        assert other.code == 2 and is_one_line(other.err) and "set model.members and model.dim" in other.err
        (tmp_path / "c" / "validation").mkdir(parents=True)
        state = {"identity": "another", "places": [[0, 1]], "choice": {"epochs": 1}}
        (tmp_path / "c" / "validation" / "state.json").write_text(json.dumps(state))
        foreign = nextwatch("train", "log.parquet", "--no-announce", "--json", "--checkpoints", "c")
        assert foreign.code == 2 and is_one_line(foreign.err) and "is of another training" in foreign.err


def test_exclusions_and_a_filter_travel_with_the_request(kafka_settings: Settings, monkeypatch, capsys):
    """`nextwatch recommend`, as a person asks."""
    create_topics(kafka_settings.kafka)
    run = commands(monkeypatch, capsys, "recommend", "ann", settings=kafka_settings)
    with responding(kafka_settings.kafka) as seen:
        done = run("-k", "3", "--exclude", "a", "--exclude", "b", "--filter", "duration_s < 600", "--json")
    assert done.code == 0, done.err
    [(_, request)] = seen
    assert (request.k, request.exclude, request.filter) == (3, ("a", "b"), "duration_s < 600")


def test_a_list_is_followed_until_an_error_and_what_moves_is_marked(kafka_settings: Settings, monkeypatch, capsys):
    create_topics(kafka_settings.kafka)
    run = commands(monkeypatch, capsys, "recommend", "ann", settings=kafka_settings)
    lists = [["a", "b", "c"], ["b", "new [i]", "a"]]

    def reply_of(request: RecommendRequest, copy: int) -> list[bytes]:
        if not lists:
            return [encode(RecommendReply(request.request_id, error="no more"))]
        items = tuple(
            Recommended(item, rank, "index", title=f"[b]{item} {'t' * 99}") for rank, item in enumerate(lists.pop(0), 1)
        )
        return [encode(RecommendReply(request.request_id, items=items))]

    with responding(kafka_settings.kafka, reply_of) as seen:
        done = run("--watch", "--every-s", "0.1")
    assert (done.code, len(seen)) == (1, 3), done.err
    rows = [line.split() for line in done.out.splitlines() if line[:1].isdigit()]
    assert [row[1] for row in rows] == ["a", "b", "c", "b", "new", "a"]
    assert "[b]a ttt" in done.out and "t" * 81 not in done.out, "a title is text, and cut"
    assert rows[3][-2:] == ["up", "1"] and rows[4][-1] == "new" and rows[5][-2:] == ["down", "2"]
    assert "error: no more" in done.out

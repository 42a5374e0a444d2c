"""Secrets come from the environment and go to whoever must have them: nowhere else are they to be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

import infra.operate.status
from indexer.collection import Index
from indexer.errors import IndexFailure
from infra.platform.logs import set_up_logging
from infra.platform.settings import SECRETS, Milvus, Settings, SettingsError, load_settings, to_environ, variable_of
from tests.unit.infra.command import Done, commands

SECRET = {f"{section}.{name}": f"secret-{section}-4711" for section, name in SECRETS}


@pytest.fixture
def nextwatch(monkeypatch, capsys, tmp_path) -> Callable[..., Done]:
    """Run a command of ours that has every secret."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    for name, value in SECRET.items():
        monkeypatch.setenv(variable_of(name), value)
    return commands(monkeypatch, capsys)


def told_in(*texts: str) -> list[str]:
    return [name for name, value in SECRET.items() if any(value in text for text in texts)]


def test_every_setting_that_could_be_a_secret_is_one() -> None:
    found = {
        (section, name)
        for section, field in Settings.model_fields.items()
        for name, leaf in getattr(field.annotation, "model_fields", {}).items()
        if leaf.annotation is SecretStr or any(word in name for word in ("password", "token", "secret"))
    } - {("model", "search_tokens")}  # words of searches
    assert found == set(SECRETS)


def test_the_settings_that_are_printed_mask_them(nextwatch: Any) -> None:
    for arguments in (("config",), ("config", "--json")):
        done = nextwatch(*arguments)
        assert done.code == 0 and not told_in(*done[1:])
        assert done.out.count("********") == len(SECRETS)


def test_settings_show_none_when_they_are_shown_in_whatever_way() -> None:
    values = {section: {name: SECRET[f"{section}.{name}"]} for section, name in SECRETS}
    settings = Settings(**values)  # type: ignore[arg-type]
    assert not told_in(repr(settings), str(settings), f"{settings.kafka}", settings.model_dump_json())
    assert len(told_in(*to_environ(settings).values())) == len(SECRETS), "a process gets them, by its environment"


@pytest.mark.parametrize("text", ['[{}]\n{} = "{}"\n', '{0} = "{2}"\n', '[[{}]]\n{} = "{}"\n'])
def test_a_settings_file_with_one_is_refused_without_repeating_it_also_in_a_section_of_a_wrong_form(
    tmp_path: Path, text: str
) -> None:
    for section, name in SECRETS:
        file = tmp_path / f"{section}.toml"
        file.write_text(text.format(section, name, SECRET[f"{section}.{name}"]))
        named = variable_of(f"{section}.{name}") if text.startswith("[{") else section
        with pytest.raises(SettingsError, match=named) as refused:
            load_settings(file)
        assert not told_in(str(refused.value))


def test_a_secret_of_a_wrong_kind_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match=r"kafka\.password") as refused:
        load_settings(overrides={"kafka.password": ["secret-kafka-4711"]})
    assert not told_in(str(refused.value))


def test_a_crash_leaves_its_trace_and_no_secret(nextwatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(settings: Settings) -> None:
        password = settings.kafka.password.get_secret_value()  # a trace that showed locals would show it
        raise RuntimeError(f"a bug, with {settings!r} and {len(password)} characters")

    monkeypatch.setattr(infra.operate.status, "read_status", bug)
    done = nextwatch("status")
    assert done.code == 70 and "RuntimeError: a bug" in done.err and "in bug" in done.err
    assert not told_in(*done[1:])


def test_a_bug_that_is_logged_leaves_its_trace_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("debug")
    settings = Settings(**{section: {name: SECRET[f"{section}.{name}"]} for section, name in SECRETS})  # type: ignore[arg-type]
    try:
        token = settings.metrics.token.get_secret_value()
        raise RuntimeError(f"a bug, {len(token)}")
    except RuntimeError:
        structlog.get_logger().exception("what happened", settings=settings)
    said = capsys.readouterr().err
    assert "RuntimeError: a bug" in said and "kafka" in said and not told_in(said)


def test_a_milvus_that_does_not_answer_is_told_of_without_the_token() -> None:
    milvus = Milvus(uri="http://127.0.0.1:1", token=SecretStr(SECRET["milvus.token"]), timeout_s=0.5)
    with pytest.raises(IndexFailure) as failed:
        Index(milvus).is_ready() or Index(milvus).versions()
    assert not told_in(str(failed.value), repr(failed.value), repr(failed.value.__cause__))
